"""Was the machine the same for every run? Judged when records are read; a record keeps only measurements.

A run is *disturbed* when one of these holds. The limits are constants below, with their reasons.

1. Memory bandwidth just before and just after it differ by more than 10 %: something came or went. Where all
   weights fit into the last-level cache, memory says nothing: there, and in 2., the rate counts at which the
   cores read their own caches. It falls with their clocks, and where a hypervisor lends the other hyperthread
   of a core to somebody else (by two fifths, with no stolen time to tell by).
2. Either differs by more than 10 % from the campaign's own level for that device, its CPUs and its thread
   count: something was there all along. A run above the level counts, too: it does not compare with
   the others.
3. Other processes, or a hypervisor, took more than 10 % of one CPU's time from the run's CPUs while it was
   timed.
4. The storage rate just before and just after it differ by more than 20 %, and reading what it read from
   storage while it was timed takes at least a fifth of that time at the larger rate. A run that found its
   weights in memory is not disturbed by a disk.

The level must be what the undisturbed machine gives, found without knowing which runs were undisturbed:

- Not the mean and not the maximum: one wrong probe would move them.
- Not the median: a hog that starts after a third of the sweep and stays has most of the probes, the median is
  the hogged machine, and just the clean third would be marked.
- Not a high percentile: with 5 % of noise the 90th percentile lies 6 % above the middle, so that a limit of
  10 % would mark every fifth probe of a machine that nothing disturbs.

So probes are gathered into *plateaus*: the centre that has most probes within 10 % of it takes these, then
the rest is searched again. Noise alone makes one plateau, at its middle. A hog makes two, and what takes
bandwidth away makes the lower one: the level is the highest plateau with at least a fifth of all probes (and
four, two runs). A hog that starts and stays is so marked until it has had four fifths of the sweep. A machine
that drifts has several plateaus: the runs of the highest count and the others are marked, because cells that
mix both would compare speeds of different machines; where everything drifts, that is what the table says.

A machine that keeps changing between levels has runs that were steady but *off level* (2. alone). They do not
go into a cell, whose replicates must be of one machine; but two neighbours that saw the same bandwidth within
10 % are a fair pair at any level, so :func:`stbench.comparison.compare.prepare` takes them where it compares
pairs.

What this cannot see: something that takes the same share of the bandwidth, and little CPU time, from before
the first run until after the last one. Compare with another campaign of the device for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from stbench.agent.wire import Bandwidth, Bracket, RunRecord

Floats: TypeAlias = "npt.NDArray[np.float64]"

# Of a bandwidth. Probes of 200 ms that nothing disturbed lay within 3 % of their middle on a 2-core virtual
# machine, disturbed ones 25 to 50 % below it. A speed that is bound by memory moves as much as the bandwidth
# does, so this is also the largest error that an unmarked run may have from it.
BANDWIDTH_LIMIT = 0.10

# What a run is held against: the probes of one or the other. Its column of rates, and its name in sentences.
MEMORY = "memory"
CORES = "cores"
RATES = {MEMORY: "read_gb_per_s", CORES: "core_gb_per_s"}
_TOLD = {MEMORY: "memory bandwidth", CORES: "the cores' rate in their own caches"}

# Of one CPU, over the run's window. A busy loop beside as many threads as there are CPUs gets its fair share,
# a third of a CPU or more; on a free CPU all of it. Monitoring daemons, interrupts and this program's own
# progress bar take a few per cent at most.
OTHER_CPU_LIMIT = 0.10
# The kernel counts in ticks of 10 ms on many systems, so that the difference of four counters may be wrong by
# several of them: what is less than this says nothing in a short run, seconds.
CPU_RESOLUTION_S = 0.05

# Of a storage rate. Probes of 150 ms of a virtual disk with a neighbour on each of two CPUs lay within 6 % of
# their middle (2.55 to 2.79 GB/s); in another hour the two sides of a run lay up to 27 % apart. A flash card
# whose garbage collector wakes up, or a quota that runs out, takes half and more. A run that storage bounds
# wholly has at most this error from it, one at the limit below a fifth of it.
STORAGE_LIMIT = 0.20
# Of the timed part of a run: what its reads take at least at the rate of its probes. Less, and a disk at half
# its speed is less than the 10 % that bandwidth may move.
STORAGE_SHARE = 0.20

# A plateau counts from this share of the probes, and this many, on.
PLATEAU_SHARE = 0.2
PLATEAU_PROBES = 4


@dataclass(frozen=True)
class Verdict:
    """``judged``: the record has something to judge by. ``reasons``: why it is disturbed, for people; empty
    when it is not. ``off_level``: only because of what the bandwidth was elsewhere in the campaign; the run
    itself was steady."""

    judged: bool
    reasons: tuple[str, ...] = ()
    off_level: bool = False

    @property
    def disturbed(self) -> bool:
        """Whether the run's speed is not to be counted."""
        return bool(self.reasons)


UNJUDGED = Verdict(False)


@dataclass(frozen=True)
class Evidence:
    """What a record itself says of it. ``machine``: what probes have to share to be compared; rates of
    ``yardstick`` in GB/s, NaN where nothing was measured; ``cpu`` None: nothing was counted."""

    ok: bool
    machine: str
    yardstick: str
    before: float
    after: float
    cpu: tuple[str, ...] | None
    disk: tuple[str, ...]


def evidence_of(record: RunRecord) -> Evidence:
    """Of one record, without its campaign."""
    ok, held = record.status == "ok", yardstick(record)
    before, after = _sides(record.bracket, held) if record.bracket is not None else (None, None)
    return Evidence(
        ok,
        _machine(record, held),
        held,
        gb_per_s(before) or math.nan,
        gb_per_s(after) or math.nan,
        _cpu_reasons(record) if ok else None,
        _storage_reasons(record) if ok else (),
    )


def yardstick(record: RunRecord) -> str:
    """MEMORY or CORES: the cores where the weights are known to fit into the last-level cache, and the cores
    were probed."""
    found = record.bracket
    return (
        CORES if found is not None and found.core_before and found.core_after and in_cache(record) else MEMORY
    )


def _sides(found: Bracket, held: str) -> tuple[Bandwidth | None, Bandwidth | None]:
    return (found.core_before, found.core_after) if held == CORES else (found.read_before, found.read_after)


def in_cache(record: RunRecord) -> bool:
    """Whether all weights fit into the last-level cache, as far as the machine shows it."""
    weights = record.shape.weight_bytes if record.shape else 0
    return 0 < weights <= last_level_cache(record)


def last_level_cache(record: RunRecord) -> int:
    """Bytes; 0 where the machine shows none."""
    return max(record.facts.caches.values(), default=0) if record.facts else 0


def judge(records: Sequence[RunRecord]) -> list[Verdict]:
    """A verdict per record, in their order. Campaigns are judged each by its own level. Only runs that ended
    "ok" are judged: others have no speed that could be disturbed."""
    found = [evidence_of(record) for record in records]
    known = levels(found)
    return [verdict(one, known.get(one.machine)) for one in found]


def levels(found: Iterable[Evidence]) -> dict[str, float]:
    """The undisturbed rate, GB/s, per campaign, device, CPUs, threads and yardstick."""
    probes: dict[str, list[float]] = {}
    for one in found:
        if one.ok:
            rates = [rate for rate in (one.before, one.after) if rate > 0]
            if rates:
                probes.setdefault(one.machine, []).extend(rates)
    return {machine: level(rates) for machine, rates in probes.items()}


def level(rates: Sequence[float]) -> float:
    """The highest plateau of bandwidths; see the module's text. Raises ValueError without any."""
    if not len(rates):
        raise ValueError("no bandwidth to take a level of")
    plateaus: list[Floats] = []
    rest = np.sort(np.asarray(rates, dtype=np.float64))
    while len(rest):
        begin, end = _densest(rest)
        plateaus.append(rest[begin:end])
        rest = np.concatenate([rest[:begin], rest[end:]])
    quorum = max(PLATEAU_PROBES, PLATEAU_SHARE * len(rates))
    large = [plateau for plateau in plateaus if len(plateau) >= quorum]
    return max(float(np.median(plateau)) for plateau in large or [plateaus[0]])


def _densest(rates: Floats) -> tuple[int, int]:
    """Of sorted rates those in the fullest window of centre +- BANDWIDTH_LIMIT, from the one to before the
    other place; the highest of equals."""
    width = (1 + BANDWIDTH_LIMIT) / (1 - BANDWIDTH_LIMIT)
    ends = np.searchsorted(rates, rates * width, side="right")
    sizes = ends - np.arange(len(rates))
    begin = len(rates) - 1 - int(np.argmax(sizes[::-1]))
    return begin, int(ends[begin])


def gb_per_s(bandwidth: Bandwidth | None) -> float | None:
    """1e9 bytes/s; None where nothing was measured."""
    return bandwidth.bytes / bandwidth.ns if bandwidth is not None and bandwidth.ns > 0 else None


def read_gb_per_s(record: RunRecord) -> float | None:
    """The read bandwidth beside a run: the mean of before and after."""
    found = record.bracket
    return _mean(found.read_before, found.read_after) if found is not None else None


def gather_gb_per_s(record: RunRecord) -> float | None:
    """The same of gathered rows."""
    found = record.bracket
    return _mean(found.gather_before, found.gather_after) if found is not None else None


def storage_gb_per_s(record: RunRecord) -> float | None:
    """The same of units from storage, by the runtime's readers at their deepest."""
    found = record.bracket
    return _mean(found.storage_before, found.storage_after) if found is not None else None


def _mean(before: Bandwidth | None, after: Bandwidth | None) -> float | None:
    rates = [rate for rate in (gb_per_s(before), gb_per_s(after)) if rate]
    return sum(rates) / len(rates) if len(rates) == 2 else None


def other_cpu_share(record: RunRecord) -> float | None:
    """CPU time of other processes over the run's window, in CPUs; None where the device does not say."""
    telemetry = record.telemetry
    return _share(telemetry.other_cpu_s, telemetry.window_s) if telemetry is not None else None


def _share(seconds: float | None, window_s: float | None) -> float | None:
    return seconds / window_s if seconds is not None and window_s else None


def rates_beside(record: RunRecord) -> dict[str, float | None]:
    """Of memory, of gathered rows and of the cores' own caches, by column."""
    found = record.bracket
    return {
        "read_gb_per_s": read_gb_per_s(record),
        "gather_gb_per_s": gather_gb_per_s(record),
        "core_gb_per_s": _mean(found.core_before, found.core_after) if found else None,
    }


def _machine(record: RunRecord, held: str) -> str:
    """What probes have to share to be compared. Not the buffer's size: it follows the free memory, and all
    sizes exceed the caches."""
    threads = record.bracket.threads if record.bracket else 0
    fingerprint = record.facts.fingerprint if record.facts else ""
    return repr((record.campaign, record.device, fingerprint, tuple(record.settings.cpus), threads, held))


def verdict(found: Evidence, level: float | None) -> Verdict:
    """``level``: the rate of the run's campaign on its machine, None where nothing was probed."""
    if not found.ok:
        return UNJUDGED
    probed = level is not None and found.before > 0 and found.after > 0
    moved = _moved(found) if probed else ()
    off = _off_level(found, level) if probed and level is not None and not moved else ()
    judged = probed or found.cpu is not None
    alone = bool(off) and not found.cpu and not found.disk
    return Verdict(judged, (*moved, *off, *(found.cpu or ()), *found.disk), alone)


def same_bandwidth(one: float, other: float) -> bool:
    """Whether two runs, by the bandwidths beside them, saw the same machine; not where one is NaN."""
    return abs(one - other) <= BANDWIDTH_LIMIT * max(one, other)


def _moved(found: Evidence) -> tuple[str, ...]:
    if same_bandwidth(found.before, found.after):
        return ()
    change = "fell" if found.after < found.before else "rose"
    return (
        f"{_TOLD[found.yardstick]} {change} from {found.before:.1f} to {found.after:.1f} GB/s during the run",
    )


def _off_level(found: Evidence, level: float) -> tuple[str, ...]:
    worst = max((found.before, found.after), key=lambda rate: abs(rate / level - 1))
    if abs(worst / level - 1) <= BANDWIDTH_LIMIT:
        return ()
    return (f"{_TOLD[found.yardstick]} {worst:.1f} GB/s beside the run, {level:.1f} in the campaign",)


def _storage_reasons(record: RunRecord) -> tuple[str, ...]:
    found, samples = record.bracket, record.samples
    if found is None or samples is None:
        return ()
    before, after = gb_per_s(found.storage_before), gb_per_s(found.storage_after)
    if not before or not after or abs(before - after) <= STORAGE_LIMIT * max(before, after):
        return ()
    if _read_while_timed(record) / max(before, after) < STORAGE_SHARE * sum(samples.decode_ns):
        return ()
    change = "fell" if after < before else "rose"
    return (f"the storage rate {change} from {before:.2f} to {after:.2f} GB/s during the run",)


def _read_while_timed(record: RunRecord) -> float:
    """Bytes from storage while tokens were timed. Without a cache only the group's total is known: what goes
    beyond two passes over the file, one to load it and one to warm up, was read by timed tokens, prompt
    included."""
    if record.cache is not None:
        return record.cache.decode.bytes_read
    proof, account = record.limit, record.account
    if proof is None or proof.read_bytes is None or account is None:
        return 0.0
    return max(proof.read_bytes - 2 * account.model_file, 0)


def _cpu_reasons(record: RunRecord) -> tuple[str, ...] | None:
    telemetry = record.telemetry
    if telemetry is None or not telemetry.window_s:
        return None
    found = (("other processes", telemetry.other_cpu_s), ("the hypervisor", telemetry.steal_s))
    if all(seconds is None for _, seconds in found):
        return None
    return tuple(
        f"{who} took {100 * seconds / telemetry.window_s:.0f} % of a CPU"
        for who, seconds in found
        if seconds is not None
        and seconds > CPU_RESOLUTION_S
        and seconds / telemetry.window_s > OTHER_CPU_LIMIT
    )
