"""What :mod:`stbench.agent.measure` asks of an engine that evaluates tokens."""

from typing import Any, Dict, List, NamedTuple, Optional, Protocol, Sequence, Tuple

from .routing import Routing
from .sbr import Timeline
from .wire import (
    CacheCounters,
    CacheUse,
    Effective,
    MemoryAccount,
    ModelRef,
    ModelShape,
    PhaseCounters,
    Settings,
)

# Names of PhaseCounters are names of sbr_counters.
COUNTER_NAMES = tuple(PhaseCounters.__annotations__)
# The same of CacheCounters and sbr_cache_counters.
CACHE_COUNTER_NAMES = tuple(CacheCounters.__annotations__)


class Prefill(NamedTuple):
    """``batch_ns[i]`` for ``batch_tokens[i]`` tokens; ``logits``: one row of floats, or None."""

    batch_ns: List[int]
    batch_tokens: List[int]
    logits: Any


class Decode(NamedTuple):
    """``token_ns`` per token; ``logits`` and ``scores``: a row of floats per captured step."""

    token_ns: List[int]
    logits: List[Any]
    scores: List[Any]


class Engine(Protocol):
    """Evaluates tokens of one model under one set of settings. Calls come in this order: open, then any of
    the others, then close. Errors are :class:`stbench.agent.sbr.NativeError`, OSError or MemoryError."""

    def build_info(self) -> Dict[str, Any]:
        """Version, compiler, flags; known before ``open``."""
        ...

    def isas(self) -> List[str]:
        """Instruction sets that this CPU can run; known before ``open``."""
        ...

    def open(self, model: ModelRef, settings: Settings) -> ModelShape:
        """Loads the model and allocates everything."""
        ...

    def use_threads(self, threads: int, cpus: Sequence[int]) -> None:
        """Evaluates with these from now on, on the loaded model and with the same settings otherwise. What
        the threads of earlier calls have learnt of each other's speed is kept for when they are used again.
        Forgets all tokens."""
        ...

    def warnings(self) -> List[str]:
        """What loading had to assume."""
        ...

    def effective(self) -> Effective:
        """Settings in force; affinity as the kernel has it at this moment."""
        ...

    def prefill(self, tokens: Sequence[int], logits: bool) -> Prefill:
        """Appends a prompt; its last logits when asked."""
        ...

    def decode(self, tokens: Sequence[int], steps: Sequence[int], scores: bool) -> Decode:
        """Appends tokens one by one, each with its logits; those of ``steps`` are kept."""
        ...

    def rewind(self) -> None:
        """Forgets all tokens."""
        ...

    def reset_counters(self) -> None:
        """Sets the counters to 0."""
        ...

    def counters(self) -> Tuple[PhaseCounters, List[Tuple[int, int]]]:
        """Sums since the last reset, and neurons (examined, active) per layer."""
        ...

    def cache_counters(self) -> Optional[CacheCounters]:
        """The cache's, since the last reset; None without one."""
        ...

    def cache_use(self, prefill: CacheCounters, decode: CacheCounters) -> CacheUse:
        """The cache that is there, with the counters of both phases. Only with a cache."""
        ...

    def account(self, n_tokens: int) -> MemoryAccount:
        """What is kept in memory, ``n_tokens`` having been evaluated."""
        ...

    def routing(self) -> Optional[Routing]:
        """Experts chosen since the last reset of counters; None without tokens or experts. Only where
        settings say to record it."""
        ...

    def timeline(self) -> Optional[Timeline]:
        """What was done since the last reset of counters; None: this engine cannot say. Only where settings
        say to record it."""
        ...

    def shift_replay(self, tokens: int) -> None:
        """From now on the token at position p replays that at position p - ``tokens`` of the trace, which
        begins again at its end; nothing where none is replayed."""
        ...

    def close(self) -> None:
        """Frees everything; also after a failed ``open``."""
        ...
