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
from stbench.devices.engine_names import ENGINE as ENGINE
from stbench.devices.engine_names import FAKE as FAKE
from stbench.devices.engine_names import LLAMA_BENCH as LLAMA_BENCH
from stbench.devices.engine_names import is_fake as is_fake
from stbench.devices.engine_names import is_program, left_out
from stbench.errors import InputError, SweepError, UsageError
from stbench.sweeps.axes import (
    AUTO_FFN,
    Duration,
    Engines,
    From0,
    From1,
    Names,
    Pairs,
    SparseFfn,
    Switch,
    Threads,
)
from stbench.sweeps.axes import AUTO_THREADS as AUTO_THREADS
from stbench.sweeps.axes import parse_range as parse_range
from stbench.sweeps.limited import (
    AUTO,
    COLD,
    UNLIMITED,
    Caches,
    Direct,
    Ios,
    Limited,
    Limits,
    Policies,
    Prefetches,
    Starts,
    combinations,
    meaningless,
    only_for_caches,
)
from stbench.sweeps.presets import PRESETS as PRESETS
from stbench.sweeps.presets import PUBLISHED_PROMPT_TOKENS as PUBLISHED_PROMPT_TOKENS
from stbench.sweeps.presets import WITH_LLAMA_BENCH, instead_of_file

Preset = Literal[
    "published-4b",
    "published-21b",
    "limited-4b",
    "limited-4b-small-context",
    "limited-21b",
    "cache-sizes-4b",
    "quick",
    "versus-llama-cpp",
    "versus-llama-cpp-21b",
]
Isa = Literal["auto", "scalar", "avx2", "avxvnni", "avx512vnni", "amx", "neon", "neon-dotprod", "neon-i8mm"]

# Keys of a sweep that together say what to compute, keys that only say when to stop, and keys that are called
# otherwise once they are settled.
WORKLOADS = ("prompt", "gen", "prompt_gen")
LIMITS = ("max_time", "max_failures", "max_reruns")
RENAMED = {"max_time": "max_time_s", "warmup": "warmup_tokens"}


@dataclass(frozen=True)
class Case:
    """One sweep point. Threads come in when a device does. ``replay``: experts come from a trace."""

    engine: str
    model: str
    sparse_ffn: bool | str
    sparse_lm_head: bool
    n_prompt: int
    n_gen: int
    n_depth: int
    limited: Limited = UNLIMITED
    replay: bool = False

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
        ``smallthinker-4b/dense/t2/tg128``, ``smallthinker-4b/llama-bench/t2/tg128``,
        ``smallthinker-4b/sparse/t2/mem1g/cacheauto/tg128``."""
        how = self.engine if is_program(self.engine) else self.switches
        limits = self.limited.label + "/replay" * self.replay
        text = f"{self.model}/{how}/{threads_label(threads)}{limits}/{self.workload}"
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
    experts: bool | None = None


class SweepEntry(pydantic.BaseModel):
    """A sweep as written in YAML or given by options; every key may be missing."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    preset: Preset | None = None
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
    memory_limit: Limits | None = None
    cache: Caches | None = None
    policy: Policies | None = None
    io: Ios | None = None
    prefetch: Prefetches | None = None
    start: Starts | None = None
    io_direct: Direct | None = None
    record_routing: bool | None = None
    replay_routing: str | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep with everything settled. ``threads`` None: the device's, 0: all of its CPUs, AUTO_THREADS:
    searched for;
    ``max_reruns`` None: as the plan bounds them. Times in seconds. Limits and caches are as in Settings, 0
    and "" being none; ``replay_routing`` is a trace on this machine, "" for none."""

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
    memory_limit: tuple[int, ...] = (0,)
    cache: tuple[str, ...] = ("",)
    policy: tuple[str, ...] = (AUTO,)
    io: tuple[str, ...] = (AUTO,)
    prefetch: tuple[str, ...] = (AUTO,)
    start: tuple[str, ...] = (COLD,)
    io_direct: str = AUTO
    record_routing: bool = False
    replay_routing: str = ""

    def limited(self, engine: str) -> list[Limited]:
        """What limits the cases of an engine: a program has no cache and runs once under each limit."""
        caches = ("",) if is_program(engine) else self.cache
        return list(combinations(self.memory_limit, caches, self.policy, self.io, self.prefetch, self.start))


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
    base = unsettled(stored)
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
        unsettled(sweep)
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
        raise InputError(f"{path}: {error.strerror}", hint=instead_of_file(str(path))) from error


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
    typed = checked_options(options, problems)
    if problems:
        raise SweepError(problems)
    return from_file, typed


def _put_on(base: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """A layer that says what to compute replaces it as a whole: -n 32 does not add to a preset's workload."""
    if layer.keys() & set(WORKLOADS):
        for key in WORKLOADS:
            base.pop(key, None)
    base.update(layer)


def checked_options(options: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """What options (keys of :class:`SweepEntry`) mean; sentences on wrong ones go into ``problems``."""
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
    sweep = Sweep(workloads=workloads, preset=preset, **settled)
    problems = _limited_problems(sweep)
    if problems:
        hint = "--cache none, or leave the other away" if any(sweep.cache) else "--cache auto is one"
        raise SweepError(problems, hint=hint)
    return sweep


def _limited_problems(sweep: Sweep) -> list[str]:
    """What of the limited axes contradicts the rest, a sentence each."""
    problems = only_for_caches(
        sweep.cache, sweep.policy, sweep.io, sweep.prefetch, sweep.io_direct, sweep.start
    )
    if any(sweep.cache) and sweep.load not in (AUTO, "repack"):
        problems.append(f"load {sweep.load}: a cache holds weights in the kernels' layout (auto or repack)")
    if any(sweep.cache) and sweep.requantise_down:
        problems.append("requantise_down: a bundle holds a file's weights as they are")
    return problems


def unsettled(sweep: Sweep) -> dict[str, Any]:
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
    replay = bool(sweep.replay_routing)
    if unsaid := meaningless(sweep.cache, sweep.policy, sweep.io, sweep.prefetch, sweep.start):
        notes.append(unsaid)
    for engine in filter(is_program, sweep.engines):
        if any(sweep.cache):
            notes.append(f"caches are of {ENGINE}: {engine} runs once under each memory limit without one")
        if replay:
            notes.append(f"{engine} chooses its experts itself: routing is replayed for {ENGINE} alone")
    for model in sweep.models:
        known = traits[model]
        if replay and known.experts is False:
            notes.append(f"{model} left out: it has no experts whose routing could be replayed")
            continue
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
                cases += [
                    Case(engine, model, ffn, head, *workload, limited, replay and not is_program(engine))
                    for limited in sweep.limited(engine)
                    for workload in sweep.workloads
                ]
    if not cases:
        raise UsageError("no case is left of this sweep: " + "; ".join(notes))
    return cases, notes


def _combinations(sweep: Sweep) -> Sequence[tuple[bool | str, bool]]:
    return [(ffn, head) for ffn in sweep.sparse_ffn for head in sweep.sparse_lm_head]
