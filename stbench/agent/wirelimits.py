"""Memory limits and what runs under one: messages that :mod:`.wire` re-exports."""

from dataclasses import dataclass, field
from typing import List, Optional

# How a memory limit was enforced. Only the first three are comparable with each other.
LIMIT_METHODS = ("cgroup-v2", "cgroup-v1", "boot", "ballast", "none")

# "void": the limit held for the group, but shows nothing: weights lay in page cache that was charged to
# somebody else, or memory could be swapped out.
LIMIT_VERDICTS = ("held", "exceeded", "void", "not-enforced")


@dataclass(frozen=True)
class LimitProof:
    """What shows that a memory limit held (docs/memory-limits.md). ``limit_bytes`` is as the kernel says it
    after the run (None: no limit could be set). ``peak_bytes`` is of the group (``peak_sampled``: the largest
    of regular looks, where the kernel keeps none); ``anon_bytes`` and ``file_bytes`` are its parts after the
    last timed token, of a program when it was looked at last. ``read_bytes`` is what the run read from
    storage, ``refaults`` how many file pages came back that had been evicted. ``cached_before_bytes`` and
    ``cached_after_bytes``: of the weights' files, what lay in the page cache before the run entered the group
    and when it had ended. ``start``: "cold" when next to nothing of them did, else "warm". ``swap_off``: the
    group may not swap. None: not known."""

    method: str
    requested_bytes: int
    verdict: str
    detail: str = ""
    limit_bytes: Optional[int] = None
    group: str = ""
    peak_bytes: Optional[int] = None
    peak_sampled: bool = False
    anon_bytes: Optional[int] = None
    file_bytes: Optional[int] = None
    read_bytes: Optional[int] = None
    refaults: Optional[int] = None
    oom_kills: Optional[int] = None
    swap_off: Optional[bool] = None
    cached_before_bytes: Optional[int] = None
    cached_after_bytes: Optional[int] = None
    start: str = ""


@dataclass(frozen=True)
class CacheCounters:
    """``sbr_cache_counters`` of one phase: units (experts, or layers) of a bundle."""

    requests: int
    hits: int
    hits_on_the_way: int
    loads: int
    bytes_read: int
    evictions: int
    guesses: int
    guesses_used: int
    guesses_cancelled: int
    predicted: int
    predicted_right: int
    late: int
    ns_wait: int
    ns_io_busy: int
    verified: int


@dataclass(frozen=True)
class CacheUse:
    """A run whose weights did not stay in memory. ``kind`` is "experts" or "layers"; ``bytes`` and ``units``
    are what the cache holds, ``bytes_min`` the least it works with, ``unit_bytes`` what one unit takes and
    ``total_bytes`` all of them; ``policy``, ``io``, ``direct`` and ``prefetch`` are as effective. ``chosen``
    says how "auto" came to its size. ``static_hits``: of the requests of ``decode``, how many a cache of this
    size would have met that always holds the experts that this run used most, prompt and warm-up included
    (None: not known, or no experts). ``warmup_tokens``: untimed ones that were evaluated before the prompt
    (0: none, or not known)."""

    kind: str
    bundle: str
    bytes: int
    bytes_min: int
    units: int
    unit_bytes: int
    total_bytes: int
    policy: str
    io: str
    direct: bool
    prefetch: str
    prefill: CacheCounters
    decode: CacheCounters
    chosen: str = ""
    static_hits: Optional[int] = None
    warmup_tokens: int = 0


@dataclass(frozen=True)
class MemoryAccount:
    """What a limited run keeps in memory, in bytes: the model's file (of which mapped pages may come and go),
    weights held outside the page cache, the KV cache as allocated and as touched, activations, the cache of
    units. Of an engine that is a program only the file is known, and its KV cache where it says that; the
    rest is 0."""

    model_file: int
    weights: int
    kv_allocated: int
    kv_touched: int
    scratch: int
    cache: int


@dataclass(frozen=True)
class RoutingTrace:
    """Which experts a run chose (docs/routing.md): ``path`` of the file beside the records, its SHA-256."""

    path: str
    sha256: str
    n_tokens: int
    warnings: List[str] = field(default_factory=list)


@dataclass(frozen=True)
class TimelineTrace:
    """What each thread of a run did and when, of its decoded tokens (docs/profile.md): ``path`` of the file
    beside the records, its SHA-256; of the events ``n_lost`` were overwritten by later ones."""

    path: str
    sha256: str
    n_events: int
    n_lost: int
