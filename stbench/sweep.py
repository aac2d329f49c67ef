"""Axes -> Cases: what to measure, still without a device.

A sweep comes from a preset, a YAML file and options, later ones winning. The flags are those of llama-bench
where it has them: comma lists, ``first-last``, ``first-last+step``, ``first-last*mult``; ``-p`` and ``-n``
make separate cases (``pp512``, ``tg128``), ``-pg`` makes combined ones (``pp39+tg256``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from stbench import yamlfile
from stbench.axes import AUTO_FFN, Duration, Engines, From0, From1, Names, Pairs, SparseFfn, Switch, Threads
from stbench.axes import AUTO_THREADS as AUTO_THREADS
from stbench.axes import parse_range as parse_range
from stbench.engine_names import ENGINE as ENGINE
from stbench.engine_names import FAKE as FAKE
from stbench.engine_names import LLAMA_BENCH as LLAMA_BENCH
from stbench.engine_names import is_fake as is_fake
from stbench.engine_names import is_program, left_out
from stbench.errors import InputError, SweepError, UsageError

# The prompt of the published command line, in tokens of the Qwen2 vocabulary that these models share:
# 3 + 6 + 2 (system turn) + 3 + 21 + 2 (user turn) + 2 (assistant header), counted with the vocabulary's
# merges. The text: "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nCalculate
# the integral of f(x) = sin(x) from 0 to 3pi/4.<|im_end|>\n<|im_start|>assistant".
PUBLISHED_PROMPT_TOKENS = 39

PRESETS: dict[str, dict[str, Any]] = {
    # The 4B table of the published page: its prompt's length, 256 tokens, a context of 4096 that is allocated
    # and touched. Threads are the device's (devices.yaml: 4 on the two big machines, several elsewhere, of
    # which the table takes the fastest; all CPUs on `local`).
    "published-4b": {
        "models": ["smallthinker-4b", "qwen3-0.6b", "qwen3-1.7b"],
        "sparse_ffn": ["on", "off"],
        "sparse_lm_head": ["on", "off"],
        "prompt_gen": [[PUBLISHED_PROMPT_TOKENS, 256]],
        "n_ctx": 4096,
        "replicates": 6,
    },
    # The unlimited rows of the 21B table. Its models take up to 17 GB each, so there is one at a time; Gemma
    # 3n runs in llama.cpp alone.
    "published-21b": {
        "models": ["smallthinker-21b", "qwen3-30b-a3b", "gemma3n-e4b", "gemma3n-e2b"],
        "engines": [ENGINE, LLAMA_BENCH],
        "sparse_ffn": ["on", "off"],
        "prompt_gen": [[PUBLISHED_PROMPT_TOKENS, 256]],
        "n_ctx": 4096,
        "replicates": 6,
        "one_model_at_a_time": True,
    },
    # The same rows as published-4b, shorter: what the README's command runs.
    "quick": {
        "models": ["smallthinker-4b", "qwen3-0.6b", "qwen3-1.7b"],
        "sparse_ffn": ["on", "off"],
        "sparse_lm_head": ["on", "off"],
        "prompt_gen": [[PUBLISHED_PROMPT_TOKENS, 64]],
        "n_ctx": 4096,
        "replicates": 3,
    },
    # Our engine beside llama.cpp, whose ratios end the sweep (stbench/data/bars.csv). Dense rows run the very
    # file that llama.cpp runs: rows of down that lie by neuron are for skipping. Sparse switches change
    # decoding only, and no bar is set for the lm_head alone.
    "versus-llama-cpp": {
        "models": ["smallthinker-4b", "smallthinker-4b:standard", "qwen3-0.6b", "qwen3-1.7b"],
        "engines": ["sbr", "llama-bench"],
        "sparse_ffn": ["on", "off"],
        "sparse_lm_head": ["on", "off"],
        "threads": [1, "all"],
        "prompt": [512],
        "gen": [128],
        "filter": [
            *("*:standard/dense/*", "*:qwen3*/dense/*", "*/llama-bench/*"),
            *("*:smallthinker-4b/sparse/*/tg128", "*:smallthinker-4b/sparse+lmhead/*/tg128"),
        ],
        "replicates": 9,
    },
}


# What a preset measures besides when llama-bench is among the engines: the published rows that only llama.cpp
# can fill. Without it nobody has to build llama.cpp, or write 2.6 GB more.
WITH_LLAMA_BENCH = {"published-4b": ["gemma3n-e2b"], "quick": ["gemma3n-e2b"]}

Isa = Literal["auto", "scalar", "avx2", "avxvnni", "avx512vnni", "amx", "neon", "neon-dotprod", "neon-i8mm"]

# Keys of a sweep that together say what to compute, keys that only say when to stop, and keys that are called
# otherwise once they are settled.
WORKLOADS = ("prompt", "gen", "prompt_gen")
LIMITS = ("max_time", "max_failures", "max_reruns")
RENAMED = {"max_time": "max_time_s", "warmup": "warmup_tokens"}


@dataclass(frozen=True)
class Case:
    """One sweep point. Threads come in when a device does."""

    engine: str
    model: str
    sparse_ffn: bool | str
    sparse_lm_head: bool
    n_prompt: int
    n_gen: int
    n_depth: int

    @property
    def switches(self) -> str:
        """``dense``, ``sparse``, ``auto``, or one of these and ``lmhead``, as in ``sparse+lmhead``."""
        return switches_label(self.sparse_ffn, self.sparse_lm_head)

    @property
    def workload(self) -> str:
        """As llama-bench writes it: ``pp512``, ``tg128``, ``pp39+tg256``, ``tg128@d512``."""
        return workload_label(self.n_prompt, self.n_gen, self.n_depth)

    def label(self, threads: int) -> str:
        """The case as a person types it. A program stands where our own engine has its switches:
        ``smallthinker-4b/dense/t2/tg128``, ``smallthinker-4b/llama-bench/t2/tg128``."""
        how = self.engine if is_program(self.engine) else self.switches
        text = f"{self.model}/{how}/{threads_label(threads)}/{self.workload}"
        return f"{text}/{self.engine}" if self.engine == FAKE else text


def threads_label(threads: int) -> str:
    """``t4``, or ``tauto``."""
    return "tauto" if threads == AUTO_THREADS else f"t{threads}"


def switches_label(sparse_ffn: bool | str, sparse_lm_head: bool) -> str:
    """The name of a combination of the two switches; ``sparse_ffn`` may be "auto"."""
    ffn = AUTO_FFN if sparse_ffn == AUTO_FFN else "sparse"
    return "+".join([ffn] * bool(sparse_ffn) + ["lmhead"] * sparse_lm_head) or "dense"


def workload_label(n_prompt: int, n_gen: int, n_depth: int) -> str:
    """The name of a workload, tokens in each part."""
    parts = [f"pp{n_prompt}"] * (n_prompt > 0) + [f"tg{n_gen}"] * (n_gen > 0)
    return "+".join(parts) + (f"@d{n_depth}" if n_depth else "")


@dataclass(frozen=True)
class Traits:
    """What decides which switches a model has. None: not known before it is loaded."""

    relu: bool | None
    predictor: bool | None


class SweepEntry(pydantic.BaseModel):
    """A sweep as written in YAML or given by options; every key may be missing."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    preset: Literal["published-4b", "published-21b", "quick", "versus-llama-cpp"] | None = None
    models: Names | None = None
    engines: Engines | None = None
    sparse_ffn: SparseFfn | None = None
    sparse_lm_head: Switch | None = None
    threads: Threads | None = None
    prompt: From1 | None = None
    gen: From1 | None = None
    prompt_gen: Pairs | None = None
    depth: From0 | None = None
    replicates: Annotated[int, pydantic.Field(ge=1, le=1000)] | None = None
    filter: Names | None = None
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63)] | None = None
    max_time: Duration | None = None
    max_failures: Annotated[int, pydantic.Field(ge=1)] | None = None
    max_reruns: Annotated[int, pydantic.Field(ge=0)] | None = None
    bracket_ms: Annotated[int, pydantic.Field(ge=0, le=2000)] | None = None
    sample_hz: Annotated[float, pydantic.Field(ge=0, le=10)] | None = None
    isa: Isa | None = None
    n_ctx: Annotated[int, pydantic.Field(ge=1, le=1 << 20)] | None = None
    n_batch: Annotated[int, pydantic.Field(ge=1, le=65536)] | None = None
    kv_type: Literal["f16", "f32"] | None = None
    load: Literal["auto", "mmap", "read", "repack"] | None = None
    lm_head_threshold: Annotated[float, pydantic.Field(ge=-1e9, le=1e9)] | None = None
    requantise_down: bool | None = None
    one_model_at_a_time: bool | None = None
    warmup: Annotated[int, pydantic.Field(ge=0, le=4096)] | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep with everything settled. ``threads`` None: the device's, 0: all of its CPUs, AUTO_THREADS:
    searched for;
    ``max_reruns`` None: as the plan bounds them. Times in seconds."""

    models: tuple[str, ...]
    workloads: tuple[tuple[int, int, int], ...]
    engines: tuple[str, ...] = (ENGINE,)
    sparse_ffn: tuple[bool | str, ...] = (False,)
    sparse_lm_head: tuple[bool, ...] = (False,)
    threads: tuple[int, ...] | None = None
    replicates: int = 5
    filter: tuple[str, ...] = ()
    seed: int = 0
    max_time_s: float | None = None
    max_failures: int | None = None
    max_reruns: int | None = None
    bracket_ms: int = 200
    sample_hz: float = 1.0
    isa: str = "auto"
    n_ctx: int = 4096
    n_batch: int = 64
    kv_type: str = "f16"
    load: str = "auto"
    lm_head_threshold: float = 0.0
    requantise_down: bool = False
    one_model_at_a_time: bool = False
    warmup_tokens: int = 4
    preset: str = ""


def build_sweep(
    options: Mapping[str, Any], yaml_text: bytes | None = None, yaml_name: str = "sweep"
) -> Sweep:
    """Merges preset, YAML and options (keys of :class:`SweepEntry`). Raises :class:`SweepError`.

    Without ``models`` anywhere, the preset is ``quick``.
    """
    from_file, typed = _layers(options, yaml_text, yaml_name)
    preset = typed.pop("preset", None) or from_file.pop("preset", None)
    from_file.pop("preset", None)
    if preset is None and "models" not in typed and "models" not in from_file:
        preset = "quick"
    base = SweepEntry.model_validate(PRESETS[preset]).model_dump(exclude_none=True) if preset else {}
    for layer in (from_file, typed):
        _put_on(base, layer)
    own_models = "models" in from_file or "models" in typed
    if not own_models and LLAMA_BENCH in base.get("engines", ()):
        base["models"] = [*base["models"], *WITH_LLAMA_BENCH.get(preset or "", ())]
    return _settle(base, preset or "")


def load_sweep(options: Mapping[str, Any], path: Path | None) -> Sweep:
    """:func:`build_sweep` with the YAML read from ``path``. Raises also :class:`InputError`."""
    return build_sweep(options, _read(path), str(path))


def resumed_sweep(stored: Sweep, options: Mapping[str, Any], path: Path | None) -> Sweep:
    """A stored sweep with the limits (``max_time``, ``max_failures``) that file and options give anew.

    Raises :class:`UsageError` when they ask for other axes: the records of one campaign belong to one sweep.
    """
    from_file, typed = _layers(options, _read(path), str(path))
    wanted: dict[str, Any] = {}
    for layer in (from_file, typed):
        _put_on(wanted, layer)
    limits = {RENAMED.get(key, key): wanted.pop(key) for key in LIMITS if key in wanted}
    base = _unsettled(stored)
    same_work = all(wanted.get(key, []) == base[key] for key in WORKLOADS)
    other = [
        key for key, value in wanted.items() if not (same_work if key in WORKLOADS else value == base[key])
    ]
    if other:
        said = ", ".join(option(key) if key in typed else f"{key} of {path}" for key in other)
        raise UsageError(
            f"--resume goes on with the stored sweep; {said} would change it",
            hint="leave it away, or start another --campaign NAME for other axes",
        )
    return replace(stored, **limits)


def sweep_from_json(data: Any, source: Path) -> Sweep:
    """The inverse of ``dataclasses.asdict``. Raises :class:`InputError` for what is no stored sweep."""
    try:
        values = {key: _frozen(value) for key, value in dict(data).items()}
        sweep = Sweep(**values)
        _unsettled(sweep)
        return sweep
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{source}: the stored sweep cannot be read", hint="another --campaign NAME starts a new one"
        ) from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def option(key: str) -> str:
    """The option that gives a key of :class:`SweepEntry`."""
    return "--" + {"n_batch": "batch"}.get(key, key).replace("_", "-")


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def _layers(
    options: Mapping[str, Any], yaml_text: bytes | None, yaml_name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the file says and what the options say. Raises :class:`SweepError` with every problem of both."""
    problems: list[str] = []
    from_file: dict[str, Any] = {}
    if yaml_text is not None:
        document = yamlfile.parse(yaml_text, yaml_name)
        if document.data is not None or not document.problems:
            entry = yamlfile.validate(document, SweepEntry, document.data, ())
            from_file = entry.model_dump(exclude_none=True) if entry else {}
        problems += document.problems
    typed = _check_options(options, problems)
    if problems:
        raise SweepError(problems)
    return from_file, typed


def _put_on(base: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """A layer that says what to compute replaces it as a whole: -n 32 does not add to a preset's workload."""
    if layer.keys() & set(WORKLOADS):
        for key in WORKLOADS:
            base.pop(key, None)
    base.update(layer)


def _check_options(options: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    document = yamlfile.Document("options")
    given = {key: value for key, value in options.items() if value is not None}
    entry = yamlfile.validate(document, SweepEntry, given, ())
    for problem in document.problems:
        key, colon, rest = problem.removeprefix(f"{document.name}:1: ").partition(":")
        problems.append(option(key) + colon + rest)
    return entry.model_dump(exclude_none=True) if entry else {}


def _settle(values: dict[str, Any], preset: str) -> Sweep:
    pairs = [(p, 0) for p in values.pop("prompt", [])] + [(0, n) for n in values.pop("gen", [])]
    pairs += [tuple(pair) for pair in values.pop("prompt_gen", [])]
    pairs = pairs or [(512, 0), (0, 128)]
    depths = values.pop("depth", [0])
    workloads = tuple((p, n, d) for d in depths for p, n in pairs)
    longest = max(sum(workload) for workload in workloads)
    if "n_ctx" in values and values["n_ctx"] < longest:
        raise SweepError(
            [f"n_ctx {values['n_ctx']} is too small: the longest workload has {longest} tokens"],
            hint=f"--n-ctx {longest} or more",
        )
    values.setdefault("n_ctx", max(4096, -(-longest // 256) * 256))
    settled: dict[str, Any] = {
        RENAMED.get(key, key): tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
    }
    return Sweep(workloads=workloads, preset=preset, **settled)


def _unsettled(sweep: Sweep) -> dict[str, Any]:
    """The inverse of :func:`_settle`: every key of :class:`SweepEntry` that has a value."""
    workloads = dict.fromkeys((prompt, gen) for prompt, gen, _ in sweep.workloads)
    values: dict[str, Any] = {
        "prompt": [prompt for prompt, gen in workloads if not gen],
        "gen": [gen for prompt, gen in workloads if not prompt],
        "prompt_gen": [pair for pair in workloads if all(pair)],
        "depth": list(dict.fromkeys(depth for *_, depth in sweep.workloads)),
    }
    for key in SweepEntry.model_fields.keys() - values.keys():
        value = getattr(sweep, RENAMED.get(key, key))
        values[key] = list(value) if isinstance(value, tuple) else value
    return values


def expand(sweep: Sweep, traits: Mapping[str, Traits]) -> tuple[list[Case], list[str]]:
    """All cases in reading order, and a note for each combination that no model of the sweep could run.

    ``traits`` has an entry for every model of the sweep.
    """
    cases: list[Case] = []
    notes: list[str] = []
    for model in sweep.models:
        known = traits[model]
        for ffn, head in _combinations(sweep):
            missing = [
                what
                for wanted, there, what in (
                    (ffn, known.relu, "no ReLU experts"),
                    (head, known.predictor, "no lm_head predictor"),
                )
                if wanted and there is False
            ]
            if missing:
                notes.append(
                    f"{model}/{switches_label(ffn, head)} left out: the model has {' and '.join(missing)}"
                )
                continue
            for engine in sweep.engines:
                why = left_out(engine, model, bool(ffn) or head)
                if why:
                    notes.append(why)
                    continue
                cases += [Case(engine, model, ffn, head, *workload) for workload in sweep.workloads]
    if not cases:
        raise UsageError("no case is left of this sweep: " + "; ".join(notes))
    return cases, notes


def _combinations(sweep: Sweep) -> Sequence[tuple[bool | str, bool]]:
    return [(ffn, head) for ffn in sweep.sparse_ffn for head in sweep.sparse_lm_head]
