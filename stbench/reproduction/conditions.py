"""Under which conditions a published cell was measured, as far as its publisher says, and under which one was
measured here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stbench.agent.wire import DeviceFacts, RunRecord
from stbench.devices.engine_names import ENGINE, LLAMA_BENCH, needs_llama_cpp
from stbench.reproduction.published_cells import PublishedCell
from stbench.sweeps.plan import Plan
from stbench.sweeps.presets import CACHE_WARMUP_TOKENS, PUBLISHED_PROMPT_TOKENS
from stbench.tables.limited_grid import GIB, published_limit
from stbench.wording import clean, count

PUBLISHED_GEN_TOKENS = 256
PUBLISHED_WEIGHTS = "q4_0"

SAME = "same"
DIFFERS = "differs"
UNSTATED = "never stated"

# What a board says of itself, or its CPU, when it is the published device. Letters and digits only.
_MACHINES = {
    "i9-14900": ("i914900",),
    "snapdragon-8-elite": ("snapdragon8elite", "sm8750", "oneplus13"),
    "rk3588": ("rk3588",),
    "rk3576": ("rk3576",),
    "raspberry-pi-5": ("raspberrypi5",),
    "rdk-x5": ("rdkx5",),
    "rk3566": ("rk3566",),
}
_X86 = ("i9-14900",)


@dataclass(frozen=True)
class Condition:
    """``published`` and ``here`` in words; ``state`` is SAME, DIFFERS or UNSTATED."""

    name: str
    published: str
    here: str
    state: str


def sweep_options(
    cell: PublishedCell, *, gen: int | None, replicates: int, threads: str | None
) -> dict[str, Any]:
    """The axes of a sweep that measures a cell as it was published, as far as that is known.

    A limited SmallThinker keeps its experts on storage, with the largest cache that fits; the limited rows of
    the others show what mapping a file costs, without a cache of ours. ``gen``: other than the published
    number of tokens; ``threads`` None: the stated number and, for devices with fewer CPUs, all of them
    (:func:`with_stated_threads` takes one of the two), or auto where the fastest was published."""
    row = cell.row
    stated = cell.device.threads
    options: dict[str, Any] = {
        "models": [row.model],
        "engines": [LLAMA_BENCH if needs_llama_cpp(row.model) else ENGINE],
        "sparse_ffn": ["on" if row.sparse_ffn else "off"],
        "sparse_lm_head": ["on" if row.sparse_lm_head else "off"],
        "threads": threads or ([stated, "all"] if stated else "auto"),
        "prompt_gen": [[PUBLISHED_PROMPT_TOKENS, gen or PUBLISHED_GEN_TOKENS]],
        "n_ctx": 4096,
        "replicates": replicates,
    }
    if row.limited:
        caches = row.model.startswith("smallthinker")
        options |= {
            "memory_limit": [f"{published_limit(row.memory) // GIB}GiB"],
            "cache": ["auto" if caches else "none"],
        }
        options |= {"warmup": CACHE_WARMUP_TOKENS} if caches else {}
    return options


def with_stated_threads(plan: Plan, stated: int) -> Plan:
    """The plan's jobs of the stated number of threads; those of all CPUs where there are too few for that."""
    jobs = tuple(job for job in plan.jobs if job.settings.threads == stated)
    return replace(plan, jobs=jobs) if jobs else plan


def same_machine(cell: PublishedCell, device: str, facts: DeviceFacts | None) -> bool:
    """Whether the device at hand is the published one: by what it says of itself, else by its name in
    devices.yaml, unless its kind of CPU speaks against that."""
    if facts is None:
        return device == cell.device.key
    said = re.sub(r"[^a-z0-9]", "", f"{facts.board or ''}{facts.cpu_model}".lower())
    if any(name in said for name in _MACHINES[cell.device.key]):
        return True
    if any(name in said for key, found in _MACHINES.items() for name in found if key != cell.device.key):
        return False
    is_x86 = facts.machine in ("x86_64", "AMD64", "i686")
    return device == cell.device.key and is_x86 == (cell.device.key in _X86)


def conditions(cell: PublishedCell, records: Sequence[RunRecord]) -> list[Condition]:
    """All conditions of a cell, in the order in which they matter. ``records``: its replicates, at least
    one."""
    return [
        *_machine_and_engine(cell, records),
        *_work(cell, records),
        *(_limit(cell, records) if cell.row.limited else []),
        *_unstated(records),
    ]


def _machine_and_engine(cell: PublishedCell, records: Sequence[RunRecord]) -> list[Condition]:
    record = _best(records)
    facts = record.facts
    here = clean((facts.board or facts.cpu_model or facts.machine) if facts else record.device, 60)
    spec = record.model.synthetic
    engine, settings = record.engine, record.settings
    wanted = (cell.row.sparse_ffn, cell.row.sparse_lm_head)
    return [
        _of("machine", cell.device.name, here, same_machine(cell, record.device, facts)),
        _of("engine", "not said for each row; SmallThinker in its own framework", engine, False),
        _of(
            "weights",
            "released model",
            "synthetic, of the same shapes" if spec else "a real file",
            spec is None,
        ),
        _of("quantisation", "Q4_0 throughout", *_quantisation(record)),
        _of(
            "switches",
            _switches(*wanted),
            _switches(settings.sparse_ffn, settings.sparse_lm_head),
            wanted == (settings.sparse_ffn, settings.sparse_lm_head),
        ),
    ]


def _switches(sparse_ffn: bool, sparse_lm_head: bool) -> str:
    found = [name for name, on in (("ffn", sparse_ffn), ("lm_head", sparse_lm_head)) if on]
    return f"sparse {' and '.join(found)}" if found else "dense"


def _quantisation(record: RunRecord) -> tuple[str, bool]:
    spec = record.model.synthetic
    if spec is None:
        return "as in the file", False
    return spec.weight_type.upper(), spec.weight_type.lower() == PUBLISHED_WEIGHTS


def _work(cell: PublishedCell, records: Sequence[RunRecord]) -> list[Condition]:
    record = _best(records)
    work, settings, effective = record.workload, record.settings, record.effective
    threads = effective.threads if effective else settings.threads
    stated = cell.device.threads
    if stated:
        how = _of("threads", str(stated), str(threads), threads == stated)
    else:
        why = clean(record.choice.why, 300) if record.choice else ""
        said = f"{threads}, {why or 'not searched for'}"
        how = _of("threads", "as many as were fastest", said, bool(why))
    loaded = []
    if needs_llama_cpp(cell.row.model):
        loaded = [_of("memory", cell.row.memory, "the whole file is loaded or mapped", False)]
    return [
        how,
        _of(
            "prompt",
            f"{PUBLISHED_PROMPT_TOKENS} tokens",
            f"{work.n_prompt} tokens",
            work.n_prompt == PUBLISHED_PROMPT_TOKENS,
        ),
        _of(
            "generation",
            f"{PUBLISHED_GEN_TOKENS} tokens",
            f"{work.n_gen} tokens",
            work.n_gen == PUBLISHED_GEN_TOKENS,
        ),
        _of("text", "one chat prompt, its own continuation", "a seeded stream of tokens", False),
        *loaded,
    ]


def _limit(cell: PublishedCell, records: Sequence[RunRecord]) -> list[Condition]:
    record = _best(records)
    wanted, settings = published_limit(cell.row.memory), record.settings
    verdicts = sorted({r.limit.verdict if r.limit else "without proof" for r in records if r.status == "ok"})
    methods = sorted({r.limit.method for r in records if r.limit})
    cache = settings.cache or "none: the file is mapped"
    return [
        _of(
            "memory limit",
            cell.row.memory,
            f"{settings.memory_limit_bytes / GIB:g} GiB",
            settings.memory_limit_bytes == wanted,
        ),
        _never(
            "limit enforced by", f"{', '.join(methods) or 'nothing'} ({', '.join(verdicts) or 'no proof'})"
        ),
        _never("cache of weights", cache),
        _never(
            "page cache at the start", ", ".join(sorted({r.limit.start for r in records if r.limit})) or "-"
        ),
    ]


def _unstated(records: Sequence[RunRecord]) -> list[Condition]:
    record = _best(records)
    effective, settings, facts = record.effective, record.settings, record.facts
    governors = sorted({c.governor for c in facts.clusters if c.governor}) if facts else []
    n_ctx = effective.n_ctx if effective and effective.n_ctx else settings.n_ctx
    gates = sorted({r.gate.outcome for r in records if r.gate})
    return [
        _never("context", f"{n_ctx} tokens, {settings.kv_type} KV cache"),
        _never("repetitions and spread", f"{count(len(records), 'run')}, a process each"),
        _never("instruction set", (effective.isa if effective else "") or "not said"),
        _never(
            "clocks", f"governor {clean(', '.join(governors), 60)}" if governors else "no governor to read"
        ),
        _never("cooling", f"gate: {', '.join(gates)}" if gates else "not waited for"),
    ]


def _best(records: Sequence[RunRecord]) -> RunRecord:
    """The first that ended ok, else the first."""
    return next((record for record in records if record.status == "ok"), records[0])


def _of(name: str, published: str, here: str, same: bool) -> Condition:
    return Condition(name, published, here, SAME if same else DIFFERS)


def _never(name: str, here: str) -> Condition:
    return Condition(name, "", here, UNSTATED)
