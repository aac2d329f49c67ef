"""Records in which every text that a board could send is an attack."""

from __future__ import annotations

import dataclasses
from typing import Any

from stbench.agent import wire
from stbench.agent.wire import (
    Bandwidth,
    Bracket,
    CacheCounters,
    CacheUse,
    Energy,
    Gate,
    LimitProof,
    RunRecord,
    Settings,
    ThermalState,
    Timeline,
)
from tests.tables.factory import record

# Each sets window.attacked where it runs; the others would break the page's structure or its layout.
ATTACKS = (
    "<script>window.attacked=1</script>",
    "</script><script>window.attacked=2</script>",
    '"><img src=x onerror="window.attacked=3">',
    "'><svg onload=window.attacked=4>",
    "<!--<script>window.attacked=5</script>",
    "-->]]></style></title></textarea><iframe srcdoc='<script>parent.attacked=6</script>'>",
    "javascript:window.attacked=7",
    "\u202e\u2066evil\u202c \u200f\u05d0\u05d1\u05d2\u0627\u0644\u0639",
    "nul\x00 bell\x07 \x1b[31mred\x1b[0m \x9b31m \r\n\t\u2028\u2029\ufeff",
    "{{7*7}} ${7*7} $\\frac{1}{0}$ %s %n &lt;b&gt; &#60;i&#62;",
    "W" * 1_000_000,
    "\U0001f600" * 3 + "\u0301" * 500,
)

# These decide how a record is read at all.
_KEPT = ("schema", "purpose", "status", "verdict")

# A line of eighty megabytes is refused as a whole; these are the texts that stand in most places.
_LONG = ("label", "device", "detail", "throttled_by")


def full_record(**common: Any) -> RunRecord:
    """A limited run with every part that the page shows."""
    counters = CacheCounters(100, 60, 2, 40, 4 << 20, 10, 5, 4, 1, 20, 10, 3, 10**7, 10**8, 1)
    cool = ThermalState({"cpu": 41000}, {"cpu0": 1_500_000}, {"cpu0": 2_400_000}, {})
    timeline = Timeline(
        every_s=0.1,
        looks=200,
        cost_s=0.01,
        cpus=[1],
        apart=True,
        at_ms=list(range(0, 20_000, 100)),
        phase_ms={"load": 500, "decode": 9000},
        cpu_khz={"cpu0": [2_400_000 - 100_000 * (i % 7) for i in range(200)]},
        temperature_mc={"thermal": [40_000 + 100 * i for i in range(200)]},
        rss_bytes=[1 << 30] * 200,
        power_mw=[3500 + i for i in range(200)],
    )
    probe = Bandwidth(20_000_000, 1_000_000)
    made = record(n_gen=64, **common)
    samples = made.samples
    assert samples is not None
    # One slow token among its likes: what thinning must not lose.
    return dataclasses.replace(
        made,
        settings=Settings(threads=2, memory_limit_bytes=1 << 30, cache="auto", bundle="/b"),
        samples=dataclasses.replace(samples, decode_ns=[*samples.decode_ns[:-1], 10**9]),
        bracket=Bracket(2, 1 << 26, probe, probe),
        limit=LimitProof("cgroup-v2", 1 << 30, "held", "as asked", 1 << 30, "/s", 1 << 30, start="cold"),
        cache=CacheUse(
            "experts", "/b", 1 << 28, 1 << 24, 64, 1 << 22, 1 << 30, "lru", "pread", True, "exact",
            counters, counters,
        ),
        gate=Gate("cool", 3.0, cool, cool),
        energy=Energy("ina219", 12.0, 2.0, 64, 20),
        timeline=timeline,
        warnings=["careful"],
    )  # fmt: skip


def hostile_records() -> list[RunRecord]:
    """One record per attack, with the attack in every text and in every key that a board chooses."""
    made = []
    for i, attack in enumerate(ATTACKS):
        data = wire.to_json(full_record(replicate=i, minute=i))
        attacked = _attacked(data, attack)
        attacked["id"] = f"{i}{attack}"
        made.append(wire.from_json(RunRecord, attacked))
    return made


def _attacked(value: Any, attack: str, name: str = "") -> Any:
    if isinstance(value, dict):
        chosen = name in ("cpu_khz", "temperature_mc", "phase_ms", "caches", "runtime")
        return {
            (attack + key if chosen else key): _attacked(part, attack, key) for key, part in value.items()
        }
    if isinstance(value, list):
        return [_attacked(part, attack, name) for part in value]
    if not isinstance(value, str) or name in _KEPT:
        return value
    return attack if len(attack) < 10_000 or name in _LONG else attack[:10_000]
