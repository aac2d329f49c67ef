"""Records made by hand that have something for every kind of chart."""

from __future__ import annotations

import dataclasses
from typing import Any

from stbench.agent.wire import (
    Bandwidth,
    Bracket,
    CacheCounters,
    CacheUse,
    Counters,
    Energy,
    LimitProof,
    RunRecord,
    Samples,
)
from tests.tables.factory import phase, record

MIB = 1 << 20
GIB = 1 << 30
LAYERS = 32

# Board names as published, and one that is not.
BOARDS = (
    "i9-14900",
    "snapdragon-8-elite",
    "rk3588",
    "rk3576",
    "raspberry-pi-5",
    "rdk-x5",
    "rk3566",
    "local",
)

# What may come from a board or a file's name: formulas, markup, direction marks, lines, no glyph, no end.
HOSTILE = (
    r"a$x^{2$ \frac{1}{0}$ _b_$ \$",
    "<script>alert(1)</script>&amp;]]>--><svg/onload=x>",
    "\u202egnp.exe\u200f\u2066 \u05d0\u05d1 \u0627\u0628",
    "line\nbreak\ttab\x00\x1b[31m",
    "\u6f22\u5b57\U0001f600 \ud7ff",
    "W" * 1_000_000,
    "_hidden",
    "%s {x} \\",
)


def timed(tps: float, n_gen: int, salt: int) -> Samples:
    """Tokens around ``1/tps``, a slow one among them, the same every time."""
    ns = [round(1e9 / tps * (1 + 0.02 * ((7 * i + salt) % 11 - 5) / 5)) for i in range(n_gen)]
    ns[salt % n_gen] *= 3
    return Samples(10**8, [10**8], [39], ns)


def full(model: str = "smallthinker-4b", tps: float = 30.0, *, salt: int = 0, **given: Any) -> RunRecord:
    """A record whose samples, counters of time and of layers look like those of a real run."""
    n_gen = given.pop("n_gen", 16)
    limit, cache, depth = given.pop("limit", 0), given.pop("cache", 0), given.pop("depth", 0)
    verdict = given.pop("limit_verdict", "held")
    joules, gb_per_s = given.pop("joules", 0.0), given.pop("gb_per_s", 0.0)
    made = record(model, tps=tps, n_gen=n_gen, **given)
    if made.samples is None:
        return made
    samples = timed(tps, n_gen, salt + made.replicate)
    total = sum(samples.decode_ns)
    relu = model.startswith("smallthinker")
    parts = {"ns_attention": 25, "ns_router": 4, "ns_ffn": 50, "ns_lm_head": 12, "ns_barrier": 8}
    decode = dataclasses.replace(
        phase(n_gen, 400, 0.3 if relu else 1.0, 1000),
        ns_total=total,
        **{name: total * share // 100 for name, share in parts.items()},
    )
    counters = Counters(
        phase(39, 900, 1.0, 1000),
        decode,
        [1000] * LAYERS,
        [(30 * (i + 1) if i < 4 else 380 - 3 * i) if relu else 1000 for i in range(LAYERS)],
    )
    changes: dict[str, Any] = {"samples": samples, "counters": counters}
    changes["workload"] = dataclasses.replace(made.workload, n_depth=depth)
    settings = dataclasses.replace(
        made.settings,
        memory_limit_bytes=limit,
        cache=str(cache) if cache else "",
        bundle="b" if cache else "",
    )
    if limit:
        changes["limit"] = LimitProof("cgroup-v1", limit, verdict, "", limit, start="cold")
    if cache:
        hits = round(1000 * cache / (700 * MIB))
        counted = CacheCounters(
            1000,
            hits,
            0,
            1000 - hits,
            (1000 - hits) * 600_000,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            total // 3,
            total // 2,
            0,
        )
        changes["cache"] = CacheUse(
            "experts", "b", cache, 8 * MIB, 100, 600_000, 700 * MIB, "lru", "pread", True, "exact",
            counted, counted, static_hits=min(hits + 100, 1000),
        )  # fmt: skip
    if joules:
        changes["energy"] = Energy("powercap:package-0", joules * n_gen, 1.0, n_gen, 2)
    if gb_per_s:
        read, gather = (Bandwidth(round(rate * 1e8), 10**8) for rate in (gb_per_s, gb_per_s / 2))
        changes["bracket"] = Bracket(made.settings.threads, 1 << 28, read, read, gather, gather, 864)
    label = f"{made.label}@d{depth}/mem{limit}/cache{cache}"
    return dataclasses.replace(
        made, settings=settings, label=label, id=f"{made.id}-{depth}-{limit}-{cache}", **changes
    )


def everything(device: str = "local", model: str = "smallthinker-4b", n: int = 6) -> list[RunRecord]:
    """Something for every kind, ``n`` replicates each."""
    out = []
    for i in range(n):
        for ffn, tps in ((True, 60.0), (False, 30.0)):
            common: dict[str, Any] = {"ffn": ffn, "head": ffn, "replicate": i, "device": device}
            speed = tps * (1 + 0.004 * i)
            out += [
                full(model, speed * t**0.8, threads=t, joules=2.5 / t, gb_per_s=12.0 * t, **common)
                for t in (1, 2)
            ]
            out += [full(model, speed / (1 + d / 4000), depth=d, **common) for d in (512, 2048)]
            out += [full(model, speed / 8 * c, limit=GIB, cache=c * 128 * MIB, **common) for c in (1, 2, 4)]
            out.append(full(model, speed * 1.6, campaign="c2", minute=5, **common))
        out.append(full("qwen3-0.6b", 70.0 + i, replicate=i, device=device, joules=1.5))
        out.append(full("qwen3-1.7b", 25.0 + i / 4, replicate=i, device=device))
    return out
