"""Which thread counts and CPU sets ``-t auto`` tries on a device. Pure: facts in, a short list out.

CPUs are gathered into *groups* of equal speed (an RK3588's four Cortex-A76 are one, though their two
frequency policies differ by 2 %). Then, each set once and at most :data:`MOST` of them, in this order:

1. all of the fastest group; all groups; the groups from the fastest down (fastest two, ...),
2. where cores have two hardware threads, all hardware threads of the fastest group, and of the device; every
   other candidate takes one per core,
3. half of the fastest group; one CPU of it,
4. the remaining sets of groups.

A device with one kind of CPU, one hardware thread per core and no ``cpus:`` in devices.yaml is not pinned, as
with a number of threads: its scheduler has nothing to choose wrongly. In every other case thread i runs on
the i-th CPU, fastest first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from stbench.agent.wire import Candidate, CpuCluster, DeviceFacts

MOST = 8

# CPUs of one model whose largest frequencies and capacities are within this of each other are of equal speed:
# bins of one design (favoured cores, two policies of one cluster) differ by less, kinds of cores by more.
EQUAL_SPEED = 0.10


@dataclass(frozen=True)
class Group:
    """CPUs of equal speed; ``cores`` has one of each physical core."""

    name: str
    cpus: tuple[int, ...]
    cores: tuple[int, ...]

    @property
    def has_smt(self) -> bool:
        """Whether cores have several hardware threads that may be used."""
        return len(self.cores) < len(self.cpus)


def candidates(facts: DeviceFacts, cpus: Sequence[int] = ()) -> list[Candidate]:
    """What to try on a device; ``cpus`` are those of devices.yaml, empty: all that are allowed. At least one,
    at most :data:`MOST`."""
    found = groups(facts, cpus)
    if len(found) <= 1 and not cpus and not any(group.has_smt for group in found):
        n = len(found[0].cpus) if found else 1
        return [Candidate(_count(k, found), k) for k in dict.fromkeys((n, (n + 1) // 2, 1))]
    made: dict[tuple[int, ...], Candidate] = {}
    for name, used in _sets(found):
        made.setdefault(tuple(sorted(used)), Candidate(name, len(used), list(used)))
    return list(made.values())[:MOST]


def groups(facts: DeviceFacts, cpus: Sequence[int] = ()) -> list[Group]:
    """The usable CPUs by speed, fastest first."""
    usable = set(cpus or facts.allowed_cpus or range(facts.n_cpus))
    merged: list[list[CpuCluster]] = []
    for cluster in sorted(facts.clusters, key=_speed, reverse=True):
        alike = next((group for group in merged if _alike(group[0], cluster)), None)
        if alike is None:
            merged.append([cluster])
        else:
            alike.append(cluster)
    known = {cpu for cluster in facts.clusters for cpu in cluster.cpus}
    if rest := sorted(usable - known):
        merged.append([CpuCluster(rest, facts.cpu_model or "CPU")])
    return [group for clusters in merged if (group := _group(clusters, usable)).cpus]


def _speed(cluster: CpuCluster) -> tuple[int, int, bool]:
    return cluster.capacity or 0, cluster.max_khz or 0, cluster.kind == "core"


def _alike(one: CpuCluster, other: CpuCluster) -> bool:
    same = (one.model, one.kind) == (other.model, other.kind)
    return same and _close(one.capacity, other.capacity) and _close(one.max_khz, other.max_khz)


def _close(one: int | None, other: int | None) -> bool:
    if not one or not other:
        return one == other
    return abs(one - other) <= EQUAL_SPEED * max(one, other)


def _group(clusters: Sequence[CpuCluster], usable: set[int]) -> Group:
    cpus = [cpu for cluster in clusters for cpu in cluster.cpus if cpu in usable]
    cores = [cpu for cluster in clusters for cpu in _cores(cluster) if cpu in usable]
    kinds = {"core": "P-core", "atom": "E-core"}
    kind = kinds.get(clusters[0].kind, clusters[0].model)
    # A core of which only the second hardware thread may be used is missing from `cores`.
    return Group(kind, tuple(cpus), tuple(cores) if cores else tuple(cpus))


def _cores(cluster: CpuCluster) -> list[int]:
    return cluster.cores or cluster.cpus


def _sets(found: Sequence[Group]) -> list[tuple[str, tuple[int, ...]]]:
    """Name and CPUs of every candidate, the most promising first; some sets occur twice."""
    fastest = found[0]
    half = fastest.cores[: (len(fastest.cores) + 1) // 2]
    down = [found[:n] for n in range(1, len(found) + 1)]
    promising = [down[0], down[-1], *down[1:-1]]
    sets = [_joined(chosen) for chosen in promising]
    if any(group.has_smt for group in found):
        every = tuple(cpu for group in found for cpu in group.cpus)
        sets.append((f"{fastest.name}s with all hardware threads", fastest.cpus))
        sets.append(("all hardware threads", every))
    sets += [(f"{len(part)} x {fastest.name}", part) for part in (half, fastest.cores[:1])]
    for n in range(1, len(found)):
        sets += [_joined(chosen) for chosen in itertools.combinations(found, n)]
    return sets


def _joined(chosen: Sequence[Group]) -> tuple[str, tuple[int, ...]]:
    name = " + ".join(f"{len(group.cores)} x {group.name}" for group in chosen)
    return name, tuple(cpu for group in chosen for cpu in group.cores)


def _count(n: int, found: Sequence[Group]) -> str:
    return f"{n} x {found[0].name}" if found else f"{n} x CPU"
