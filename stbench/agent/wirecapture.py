"""What ``capture`` answers: files of /proc and /sys as they are, and what no file says."""

from dataclasses import dataclass, field
from typing import Dict, List, Optional


@dataclass(frozen=True)
class Capture:
    """A machine at one moment. ``files``: path below / -> content; ``denied``: paths that may not be read;
    ``cut``: files that were longer than what is here. ``commands``: command line -> its output. ``time_s``:
    the machine's clock, seconds since 1970. ``work_dir``: where our files lie or will lie; ``problem``: why
    nothing can be written there, "" where it can. ``busy_cpus``: CPUs in use by others over a moment, and
    ``busiest`` by which programs. ``private``: names and numbers that tell this machine and its owner from
    others, for taking them out. None and empty: nobody knows."""

    files: Dict[str, str] = field(default_factory=dict)
    denied: List[str] = field(default_factory=list)
    cut: List[str] = field(default_factory=list)
    commands: Dict[str, str] = field(default_factory=dict)
    python: str = ""
    time_s: Optional[float] = None
    work_dir: str = ""
    problem: str = ""
    free_bytes: Optional[int] = None
    total_bytes: Optional[int] = None
    busy_cpus: Optional[float] = None
    busiest: Dict[str, float] = field(default_factory=dict)
    private: List[str] = field(default_factory=list)
