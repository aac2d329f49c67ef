"""The idle level of every device: how cool it was when a thermal gate opened, and how free its clock.

Learned from records and sent along with jobs; the device itself remembers nothing. A device that became
cooler than the level sets a new one, and so does one whose temperature stopped falling above it: a warmer
room must not cost every job the time in which nothing falls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from stbench.agent.wire import JobSpec, RunRecord, ThermalState


class IdleLevels:
    """Levels by device; ``records`` are earlier ones in their order."""

    def __init__(self, records: Iterable[RunRecord] = ()) -> None:
        self._levels: dict[str, ThermalState] = {}
        for record in records:
            self.learn(record)

    def learn(self, record: RunRecord) -> None:
        """Takes what a record's gate saw at its end."""
        if record.gate is None or record.gate.outcome not in ("cool", "settled"):
            return
        now, known = record.gate.after, self._levels.get(record.device)
        if known is None:
            self._levels[record.device] = replace(now, cooling={})
            return
        warmer = record.gate.outcome == "settled"
        self._levels[record.device] = ThermalState(
            temperature_mc=now.temperature_mc if warmer else _least(known.temperature_mc, now.temperature_mc),
            cpu_khz=now.cpu_khz if warmer else _least(known.cpu_khz, now.cpu_khz),
            # A clock that is held down is never its idle level.
            limit_khz={
                **now.limit_khz,
                **{k: max(v, now.limit_khz.get(k, v)) for k, v in known.limit_khz.items()},
            },
        )

    def sent_with(self, job: JobSpec) -> JobSpec:
        """The job with its device's level, as far as one is known."""
        return replace(job, idle=self._levels.get(job.device)) if job.cool_down_s > 0 else job


def _least(known: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    return {**now, **{key: min(value, now.get(key, value)) for key, value in known.items()}}
