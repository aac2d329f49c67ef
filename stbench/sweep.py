"""Axes -> Cases: what to measure, still without a device.

A sweep comes from a preset, a YAML file and options, later ones winning. The flags are those of llama-bench
where it has them: comma lists, ``first-last``, ``first-last+step``, ``first-last*mult``; ``-p`` and ``-n``
make separate cases (``pp512``, ``tg128``), ``-pg`` makes combined ones (``pp39+tg256``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from stbench import yamlfile
from stbench.errors import InputError, SweepError, UsageError

MAX_VALUES = 1000
ENGINE = "sbr"

# The fake one needs no runtime and no model: it serves models called "fake" or "fake:OPTIONS" (see
# stbench/agent/fake.py) and tests this pipeline.
FAKE = "fake"
ENGINES = (ENGINE, FAKE)

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
    # The same rows, shorter: what the README's command runs.
    "quick": {
        "models": ["smallthinker-4b", "qwen3-0.6b", "qwen3-1.7b"],
        "sparse_ffn": ["on", "off"],
        "sparse_lm_head": ["on", "off"],
        "prompt_gen": [[PUBLISHED_PROMPT_TOKENS, 64]],
        "n_ctx": 4096,
        "replicates": 3,
    },
}


# Keys of a sweep that together say what to compute, keys that only say when to stop, and keys that are called
# otherwise once they are settled.
WORKLOADS = ("prompt", "gen", "prompt_gen")
LIMITS = ("max_time", "max_failures")
RENAMED = {"max_time": "max_time_s", "warmup": "warmup_tokens"}


@dataclass(frozen=True)
class Case:
    """One sweep point. Threads come in when a device does."""

    engine: str
    model: str
    sparse_ffn: bool
    sparse_lm_head: bool
    n_prompt: int
    n_gen: int
    n_depth: int

    @property
    def switches(self) -> str:
        """``dense``, ``sparse``, ``lmhead`` or ``sparse+lmhead``."""
        return switches_label(self.sparse_ffn, self.sparse_lm_head)

    @property
    def workload(self) -> str:
        """As llama-bench writes it: ``pp512``, ``tg128``, ``pp39+tg256``, ``tg128@d512``."""
        return workload_label(self.n_prompt, self.n_gen, self.n_depth)

    def label(self, threads: int) -> str:
        """The case as a person types it; the engine is named where it is not our own."""
        text = f"{self.model}/{self.switches}/t{threads}/{self.workload}"
        return text if self.engine == ENGINE else f"{text}/{self.engine}"


def switches_label(sparse_ffn: bool, sparse_lm_head: bool) -> str:
    """The name of a combination of the two switches."""
    return "+".join(["sparse"] * sparse_ffn + ["lmhead"] * sparse_lm_head) or "dense"


def workload_label(n_prompt: int, n_gen: int, n_depth: int) -> str:
    """The name of a workload, tokens in each part."""
    parts = [f"pp{n_prompt}"] * (n_prompt > 0) + [f"tg{n_gen}"] * (n_gen > 0)
    return "+".join(parts) + (f"@d{n_depth}" if n_depth else "")


@dataclass(frozen=True)
class Traits:
    """What decides which switches a model has. None: not known before it is loaded."""

    relu: bool | None
    predictor: bool | None


def _axis(value: Any, minimum: int) -> list[int]:
    items = value if isinstance(value, list) else [value]
    numbers: list[int] = []
    for item in items:
        if isinstance(item, str):
            numbers.extend(parse_range(item, minimum))
        elif type(item) is int and item >= minimum:
            numbers.append(item)
        else:
            raise ValueError(f"whole numbers from {minimum} up")
    return list(dict.fromkeys(numbers))


def _switch(value: Any) -> list[bool]:
    """``on,off`` as typed; YAML reads a bare on or off as true or false."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    known = {"on": True, "off": False}
    words = [known.get(item.strip(), item) if isinstance(item, str) else item for item in items]
    if not words or not all(isinstance(word, bool) for word in words):
        raise ValueError("on, off or both")
    return list(dict.fromkeys(word for word in words if isinstance(word, bool)))


def _names(value: Any) -> list[str]:
    """A comma list as typed, or a YAML list, whose items are taken as they are."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("a name or a list of names")
    return list(dict.fromkeys(names))


def _engines(value: Any) -> list[str]:
    names = _names(value)
    for name in names:
        if name not in ENGINES:
            raise ValueError(f"engines out of {', '.join(ENGINES)}")
    return names


def _pairs(value: Any) -> list[tuple[int, int]]:
    """``48,256`` as typed, or ``[[48, 256]]`` in YAML."""
    try:
        if isinstance(value, str):
            value = [[int(n) for n in part.split(",")] for part in value.split(";")]
        if isinstance(value, list) and value and all(isinstance(n, int) for n in value):
            value = [value]
        pairs = [(p, g) for p, g in value]
    except (ValueError, TypeError):
        pairs = []
    if not pairs or not all(type(n) is int and n > 0 for pair in pairs for n in pair):
        raise ValueError("pairs of prompt and generated tokens, such as 39,256")
    return list(dict.fromkeys(pairs))


def _duration(value: Any) -> float:
    """Seconds, or ``90s``, ``15m``, ``2h``."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9:
        return float(value)
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smh]?)", value) if isinstance(value, str) else None
    if match is None or float(match[1]) == 0:
        raise ValueError("a duration such as 90s, 15m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


From0 = Annotated[list[int], pydantic.BeforeValidator(lambda value: _axis(value, 0))]
From1 = Annotated[list[int], pydantic.BeforeValidator(lambda value: _axis(value, 1))]
Switch = Annotated[list[bool], pydantic.BeforeValidator(_switch)]
Names = Annotated[list[str], pydantic.BeforeValidator(_names)]
Engines = Annotated[list[str], pydantic.BeforeValidator(_engines)]
Pairs = Annotated[list[tuple[int, int]], pydantic.BeforeValidator(_pairs)]
Duration = Annotated[float, pydantic.BeforeValidator(_duration)]


class SweepEntry(pydantic.BaseModel):
    """A sweep as written in YAML or given by options; every key may be missing."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    preset: Literal["published-4b", "quick"] | None = None
    models: Names | None = None
    engines: Engines | None = None
    sparse_ffn: Switch | None = None
    sparse_lm_head: Switch | None = None
    threads: From1 | None = None
    prompt: From1 | None = None
    gen: From1 | None = None
    prompt_gen: Pairs | None = None
    depth: From0 | None = None
    replicates: Annotated[int, pydantic.Field(ge=1, le=1000)] | None = None
    filter: Names | None = None
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63)] | None = None
    max_time: Duration | None = None
    max_failures: Annotated[int, pydantic.Field(ge=1)] | None = None
    isa: Literal["auto", "scalar", "avx2", "avx512vnni", "neon", "neon-dotprod"] | None = None
    n_ctx: Annotated[int, pydantic.Field(ge=1, le=1 << 20)] | None = None
    n_batch: Annotated[int, pydantic.Field(ge=1, le=65536)] | None = None
    kv_type: Literal["f16", "f32"] | None = None
    load: Literal["mmap", "read"] | None = None
    lm_head_threshold: Annotated[float, pydantic.Field(ge=-1e9, le=1e9)] | None = None
    requantise_down: bool | None = None
    warmup: Annotated[int, pydantic.Field(ge=0, le=4096)] | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep with everything settled. ``threads`` None: the device's. Times in seconds."""

    models: tuple[str, ...]
    workloads: tuple[tuple[int, int, int], ...]
    engines: tuple[str, ...] = (ENGINE,)
    sparse_ffn: tuple[bool, ...] = (False,)
    sparse_lm_head: tuple[bool, ...] = (False,)
    threads: tuple[int, ...] | None = None
    replicates: int = 5
    filter: tuple[str, ...] = ()
    seed: int = 0
    max_time_s: float | None = None
    max_failures: int | None = None
    isa: str = "auto"
    n_ctx: int = 4096
    n_batch: int = 64
    kv_type: str = "f16"
    load: str = "mmap"
    lm_head_threshold: float = 0.0
    requantise_down: bool = False
    warmup_tokens: int = 4
    preset: str = ""


def parse_range(text: str, minimum: int = 0) -> list[int]:
    """``1,2``, ``1-4``, ``2-8+2`` (2 4 6 8), ``1-8*2`` (1 2 4 8). Raises ValueError that completes
    "expected"."""
    values: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9})(?:([+*])(\d{1,9}))?)?\s*", part)
        if match is None:
            raise ValueError("numbers or ranges such as 1,4, 1-8+1 or 1-8*2")
        first, last = int(match[1]), int(match[2] or match[1])
        sign, step = match[3] or "+", int(match[4] or 1)
        if first > last or step < (2 if sign == "*" else 1) or (sign == "*" and first == 0):
            raise ValueError("a range that goes up, such as 1-8+1 or 1-8*2")
        if first < minimum:
            raise ValueError(f"whole numbers from {minimum} up")
        while first <= last:
            values.append(first)
            first = first + step if sign == "+" else first * step
            if len(values) > MAX_VALUES:
                raise ValueError(f"at most {MAX_VALUES} values")
    return values


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
                if (engine == FAKE) != is_fake(model):
                    notes.append(f"{model} left out for the engine {engine}")
                    continue
                cases += [Case(engine, model, ffn, head, *workload) for workload in sweep.workloads]
    if not cases:
        raise UsageError("no case is left of this sweep: " + "; ".join(notes))
    return cases, notes


def is_fake(model: str) -> bool:
    """Whether a model is one of the fake engine's."""
    return model.partition(":")[0] == FAKE


def _combinations(sweep: Sweep) -> Sequence[tuple[bool, bool]]:
    return [(ffn, head) for ffn in sweep.sparse_ffn for head in sweep.sparse_lm_head]
