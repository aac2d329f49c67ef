"""Campaigns made by hand: a case in many processes, with speeds to order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stbench.agent import wire
from stbench.agent.wire import Bandwidth, Bracket, RunRecord, Samples
from stbench.records.sides import Side, side_of
from tests.tables.factory import record


def case(speeds: Sequence[float], *, start: int = 0, every: int = 1, **common: Any) -> list[RunRecord]:
    """One record per speed; their runs start at the seconds ``start``, ``start + every``, ..."""
    made = []
    for i, speed in enumerate(speeds):
        seconds = start + i * every
        at = f"2026-01-02T{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}Z"
        made.append(dataclasses.replace(record(tps=float(speed), replicate=i, **common), started_at=at))
    return made


def noisy(n: int, seed: int = 0, level: float = 50.0, noise: float = 0.01) -> list[float]:
    """Log-normal speeds."""
    rng = np.random.default_rng(seed)
    return [float(value) for value in level * np.exp(noise * rng.standard_normal(n))]


def side(*groups: Iterable[RunRecord], name: str = "A") -> Side:
    return side_of(name, [one for group in groups for one in group])


def another_build(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """The same jobs by another library, as a campaign has them that is resumed after an upgrade: the same
    labels and replicates, other ids."""
    made = []
    for one in runs:
        assert one.versions is not None
        versions = dataclasses.replace(one.versions, library_sha256="cd" * 32)
        made.append(dataclasses.replace(one, id=one.id + "-cd", versions=versions))
    return made


def disturbed(one: RunRecord) -> RunRecord:
    """The same run with half of the bandwidth gone while it ran."""
    before, after = Bandwidth(40_000_000, 1_000_000), Bandwidth(20_000_000, 1_000_000)
    return dataclasses.replace(one, bracket=Bracket(2, 1 << 26, before, after))


def beside(one: RunRecord, gb_per_s: float) -> RunRecord:
    """The same run beside a steady bandwidth."""
    rate = Bandwidth(round(gb_per_s * 1e6), 1_000_000)
    return dataclasses.replace(one, bracket=Bracket(2, 1 << 26, rate, rate))


def in_cache(one: RunRecord, core_gb_per_s: float) -> RunRecord:
    """The same run of weights that the caches hold, beside a steady rate of the cores."""
    assert one.facts is not None
    assert one.bracket is not None
    rate = Bandwidth(round(core_gb_per_s * 1e6), 1_000_000)
    return dataclasses.replace(
        one,
        facts=dataclasses.replace(one.facts, caches={"L3": 64 << 30}),
        bracket=dataclasses.replace(one.bracket, core_before=rate, core_after=rate),
    )


def prompt_only(one: RunRecord, tps: float) -> RunRecord:
    """A pp512 run of ``tps`` prompt tokens/s."""
    ns = round(512e9 / tps)
    return dataclasses.replace(
        one,
        id=one.id + "-pp",
        label=one.label.rpartition("/")[0] + "/pp512",
        case=one.case.rpartition("/")[0] + "/pp512",
        workload=dataclasses.replace(one.workload, n_prompt=512, n_gen=0),
        samples=Samples(ns, [ns], [512], []),
        counters=None,
    )


def write(directory: Path, records: Iterable[RunRecord]) -> str:
    """Stores a campaign; returns its directory as typed."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "records.jsonl").write_text("".join(wire.dumps(one) + "\n" for one in records))
    return str(directory)
