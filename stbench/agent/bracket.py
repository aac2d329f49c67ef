"""What memory and storage give right before and right after a job: one probe, as a child of its own.

Memory bandwidth of a shared machine moves by a factor within minutes, so a speed means something only beside
the bandwidth of its own minute. A probe runs in a process apart from the measuring one, so that its buffer is
never in the job's peak memory, with the job's threads and CPUs. It reports raw bytes and ns; what counts as
disturbed is decided when records are read (stbench/records/disturbance.py).

Storage is probed beside jobs with a cache of units or a memory limit, by the very readers that the runtime
reads units with and with as many reads at a time as these ever have (``sbr_probe_reads``). A probe with fewer
is no yardstick: runs reached 105 to 170 % of what 4 readers with one unit each gave.
"""

import os
from dataclasses import dataclass, replace
from typing import Dict, Optional, Sequence

from . import fake, probe, sbr
from .wire import Bandwidth, Bracket, JobSpec, Settings

# The working set: four times the last-level cache, which leaves a stream at most a few per cent of hits, but
# 64 MiB at least, since not every cache can be seen from inside a virtual machine, and 256 MiB at most, since
# its pages have to be made each time, untimed (128 MiB: 10 ms in huge pages, 90 ms in small ones). Twice the
# cache where that is more.
CACHE_MULTIPLE = 4
MIN_BUFFER_BYTES = 64 << 20
MAX_BUFFER_BYTES = 256 << 20
# A job is about to need the memory that is free.
MEMORY_SHARE = 8
# The gathers take this part of a probe's time on top; they are wanted for a limit, not for a verdict.
GATHER_SHARE = 0.5
# Per thread: the first-level cache of every core has 32 KiB, and two hyperthreads share it.
CORE_BYTES = 16 << 10
# What the cores do takes this part of a probe's time on top. On a virtual machine whose cores others shared,
# windows of 4 ms lay at 48 to 52 GB/s or at 81 to 85.
CORE_SHARE = 0.25
# Storage takes this part of a probe's time: 150 ms each for io_uring and pread where memory takes 200 ms. At
# 1.5 GB/s that is a hundred experts of SmallThinker 4B.
STORAGE_SHARE = 1.5
# Of that, on top, units one by one: what the first miss of a layer costs, for predictions.
ONE_SHARE = 0.5
# Read at a time from a model file that no bundle stands beside.
FILE_UNIT_BYTES = 1 << 20
# A probe that hangs ends this long after its time, seconds: making the buffer takes part of it, and reads
# that are under way when the time is up.
PATIENCE_S = 10.0


@dataclass(frozen=True)
class StorageProbe:
    """One measurement of storage; ``problem`` in place of it where it could not be made."""

    read: Optional[Bandwidth] = None
    one: Optional[Bandwidth] = None
    unit_bytes: int = 0
    io: str = ""
    direct: Optional[bool] = None
    problem: str = ""


@dataclass(frozen=True)
class Probe:
    """One side of a bracket, as it goes through the pipe."""

    threads: int
    buffer_bytes: int
    read: Bandwidth
    gather: Optional[Bandwidth] = None
    row_bytes: int = 0
    storage: Optional[StorageProbe] = None
    core: Optional[Bandwidth] = None


def uses_storage(settings: Settings) -> bool:
    """Whether storage is probed beside a job."""
    return bool(settings.cache) or settings.memory_limit_bytes > 0


def timeout_s(job: JobSpec) -> float:
    """The longest that one side of a bracket may take, seconds."""
    share = 2.0 + (STORAGE_SHARE * (1 + ONE_SHARE) if uses_storage(job.settings) else 0.0)
    return PATIENCE_S + share * job.bracket_ms / 1000


def measure(job: JobSpec, after: bool) -> Probe:
    """Probes the memory for a job. Raises NativeError, OSError and ValueError when that cannot be done."""
    if job.engine == "fake":
        made_up = Bandwidth(int(fake.gb_per_s(job, after) * 1e8), 10**8)
        stored = _fake_storage(job, after) if uses_storage(job.settings) else None
        return Probe(max(job.settings.threads, 1), MIN_BUFFER_BYTES, made_up, storage=stored)
    if not job.library:
        raise ValueError("the job names no library to probe with")
    library = sbr.load(job.library)
    facts = probe.probe()
    size = buffer_bytes(facts.caches, facts.memory_available_bytes)
    threads, cpus = job.settings.threads, job.settings.cpus
    duration_ns = job.bracket_ms * 1000000
    read = sbr.probe_read(library, threads, size, duration_ns, cpus)
    rows = row_bytes(library, job.model.path)
    gathered = None
    if rows:
        done = sbr.probe_gather(library, threads, size, rows, int(duration_ns * GATHER_SHARE), cpus)
        gathered = Bandwidth(done.bytes, done.ns)
    stored = _storage(library, job, int(duration_ns * STORAGE_SHARE)) if uses_storage(job.settings) else None
    core = _core(library, read.threads, int(duration_ns * CORE_SHARE), cpus)
    return Probe(read.threads, size, Bandwidth(read.bytes, read.ns), gathered, rows, stored, core)


def _core(library: sbr.Library, threads: int, duration_ns: int, cpus: Sequence[int]) -> Optional[Bandwidth]:
    """None for a library of before so little could be probed: two builds may be compared."""
    try:
        done = sbr.probe_read(library, threads, CORE_BYTES * threads, duration_ns, cpus)
    except sbr.NativeError:
        return None
    return Bandwidth(done.bytes, done.ns)


def _storage(library: sbr.Library, job: JobSpec, duration_ns: int) -> StorageProbe:
    """Always past the page cache where that is possible, whatever the job asks for: what comes from the page
    cache is no storage."""
    settings = job.settings
    try:
        if settings.cache:
            path, unit = settings.bundle, 0
        else:
            path = job.model.path
            unit = min(FILE_UNIT_BYTES, os.path.getsize(path) // 4096 * 4096) or 4096
        done = sbr.probe_reads(library, path, duration_ns, unit, settings.io)
        one = sbr.probe_reads(library, path, int(duration_ns * ONE_SHARE), unit, done.io, 1)
    except (sbr.NativeError, OSError) as error:
        return StorageProbe(problem=str(error))
    read, alone = Bandwidth(done.bytes, done.ns), Bandwidth(one.bytes, one.ns)
    return StorageProbe(read, alone, done.unit_bytes, done.io, done.direct)


def _fake_storage(job: JobSpec, after: bool) -> StorageProbe:
    rate = fake.storage_gb_per_s(job, after)
    read, one = Bandwidth(int(rate * 1e8), 10**8), Bandwidth(int(rate * 1e8), 2 * 10**8)
    return StorageProbe(read, one, fake.UNIT_BYTES, "pread", True)


def last_level_cache(caches: Dict[str, int]) -> int:
    """Bytes of the largest cache that the machine shows; 0 when it shows none."""
    return max(caches.values(), default=0)


def buffer_bytes(caches: Dict[str, int], available_bytes: int) -> int:
    """The working set of a probe. Raises ValueError when too little memory is free for one that no cache
    holds."""
    cache = last_level_cache(caches)
    wanted = max(min(max(CACHE_MULTIPLE * cache, MIN_BUFFER_BYTES), MAX_BUFFER_BYTES), 2 * cache)
    fits = available_bytes // MEMORY_SHARE
    if fits < max(2 * cache, MIN_BUFFER_BYTES // 4):
        raise ValueError(
            "%d MiB of free memory are too few to probe bandwidth beside a job" % (available_bytes >> 20)
        )
    return min(wanted, fits)


def row_bytes(library: sbr.Library, model_path: str) -> int:
    """Bytes of one neuron's row, for models whose experts have neurons to skip (ReLU); 0 for all others and
    for a file that cannot be read, which the job itself will say."""
    try:
        described = sbr.describe(library, model_path, 0)
    except sbr.NativeError:
        return 0
    tensors = {tensor["name"]: tensor for tensor in described["tensors"]}
    up = tensors.get("blk.0.ffn_up_exps.weight")
    names = [entry["value"] for entry in described["metadata"] if entry["key"] == "general.architecture"]
    if names != ["smallthinker"] or up is None or len(up["shape"]) < 2:
        return 0
    rows = 1
    for extent in up["shape"][1:]:
        rows *= extent
    return int(up["bytes"] // rows)


def joined(before: Probe, after: Probe) -> Bracket:
    """What the record keeps; storage only where both sides have it."""
    made = Bracket(
        threads=before.threads,
        buffer_bytes=before.buffer_bytes,
        read_before=before.read,
        read_after=after.read,
        gather_before=before.gather,
        gather_after=after.gather,
        row_bytes=before.row_bytes,
        core_before=before.core,
        core_after=after.core,
    )
    one, other = before.storage, after.storage
    if one is None or other is None or one.read is None or other.read is None:
        return made
    return replace(
        made,
        storage_before=one.read,
        storage_after=other.read,
        storage_unit_bytes=one.unit_bytes,
        storage_io=_faster(one, other).io,
        storage_direct=bool(one.direct and other.direct),
        storage_one_before=one.one,
        storage_one_after=other.one,
    )


def _faster(one: StorageProbe, other: StorageProbe) -> StorageProbe:
    return max((one, other), key=lambda probe: probe.read.bytes / probe.read.ns if probe.read else 0.0)


def storage_problem(before: Probe, after: Probe) -> str:
    """Why there is no storage rate though one was wanted; "" where there is."""
    problems = [side.storage.problem for side in (before, after) if side.storage is not None]
    return next((problem for problem in problems if problem), "")
