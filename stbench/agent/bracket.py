"""What the memory gives right before and right after a job: one probe, as a child of its own.

Memory bandwidth of a shared machine moves by a factor within minutes, so a speed means something only beside
the bandwidth of its own minute. A probe runs in a process apart from the measuring one, so that its buffer is
never in the job's peak memory, with the job's threads and CPUs. It reports raw bytes and ns; what counts as
disturbed is decided when records are read (stbench/disturbance.py).
"""

from dataclasses import dataclass
from typing import Dict, Optional

from . import fake, probe, sbr
from .wire import Bandwidth, Bracket, JobSpec

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
# A probe that hangs ends this long after its time, seconds: making the buffer takes part of it.
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Probe:
    """One side of a bracket, as it goes through the pipe."""

    threads: int
    buffer_bytes: int
    read: Bandwidth
    gather: Optional[Bandwidth] = None
    row_bytes: int = 0


def measure(job: JobSpec, after: bool) -> Probe:
    """Probes the memory for a job. Raises NativeError, OSError and ValueError when that cannot be done."""
    if job.engine == "fake":
        made_up = Bandwidth(int(fake.gb_per_s(job, after) * 1e8), 10**8)
        return Probe(max(job.settings.threads, 1), MIN_BUFFER_BYTES, made_up)
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
    return Probe(read.threads, size, Bandwidth(read.bytes, read.ns), gathered, rows)


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
    """What the record keeps."""
    return Bracket(
        threads=before.threads,
        buffer_bytes=before.buffer_bytes,
        read_before=before.read,
        read_after=after.read,
        gather_before=before.gather,
        gather_after=after.gather,
        row_bytes=before.row_bytes,
    )
