"""Messages of the agent's other commands: make and digest a model file, measure the machine's limits."""

from dataclasses import dataclass, field
from typing import List, Optional

from .wirespec import SynthSpec


@dataclass(frozen=True)
class MakeRequest:
    """Stdin of ``make`` (all of it) and of ``digest`` (``path`` only)."""

    path: str
    library: str = ""
    spec: Optional[SynthSpec] = None


@dataclass(frozen=True)
class BundleRequest:
    """Stdin of ``bundle``: the bundle of the model file at ``model`` is wanted at ``path``; one that is there
    and was made from a file of this ``digest`` for these ``gathers`` (SBR_GATHER_*) stays. Answered like
    ``make``: Progress lines (stage "bundle"), then a ModelFile."""

    path: str
    library: str
    model: str
    digest: str = ""
    gathers: int = 0


@dataclass(frozen=True)
class LimitProbe:
    """One measurement of what the machine can do. ``kind`` is "read" (streaming), "gather" (whole rows in
    random order) or "storage" (random reads of ``path``). ``cpus`` as in Settings; ``row_bytes`` is one
    gathered row or one read (a multiple of 4096); ``threads`` of storage: reads at a time, 0 for as many as a
    session has; ``direct`` bypasses the page cache."""

    kind: str
    threads: int = 0
    cpus: List[int] = field(default_factory=list)
    row_bytes: int = 0
    buffer_bytes: int = 0
    duration_s: float = 1.0
    path: str = ""
    direct: bool = False


@dataclass(frozen=True)
class LimitsRequest:
    """Stdin of ``rooflines``."""

    library: str
    probes: List[LimitProbe]


@dataclass(frozen=True)
class Progress:
    """A line of ``make``, ``bundle`` and ``digest`` before the last one. ``stage`` is "write", "bundle" or
    "hash"."""

    stage: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class ModelFile:
    """The last line of ``make``, ``bundle`` and ``digest``; ``status`` "ok" or another one of STATUSES.
    Bundles have no ``sha256``: they carry checksums of their own."""

    status: str
    path: str
    detail: str = ""
    bytes: int = 0
    sha256: str = ""
    already_there: bool = False


@dataclass(frozen=True)
class LimitResult:
    """A line of ``rooflines`` per probe. bytes / ns is GB/s; ``operations`` are rows gathered or reads."""

    probe: LimitProbe
    status: str
    detail: str = ""
    threads: int = 0
    bytes: int = 0
    ns: int = 0
    operations: int = 0
