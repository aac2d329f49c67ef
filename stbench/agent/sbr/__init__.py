"""libsbr from Python: models, sessions, synthetic files, probes; ctypes only.

>>> library = load("/path/to/libsbr.so")
>>> with Model(library, "model.gguf") as model, Session(model, n_threads=2) as session:
...     logits = session.prefill([1, 2, 3], "last").logits  # numpy.frombuffer(logits, "f4")
...     decoded = session.decode([4, 5], capture=[1])

Logits and scores are ctypes arrays: they own their memory and speak the buffer protocol, so numpy wraps them
without a copy. Tokens are any iterable of integers; a writable int32 buffer (array("i"), numpy) is not
copied. One session belongs to one thread at a time; :meth:`Session.cancel` may come from any.
"""

from ._bench import KernelBench
from ._bundles import BundleInfo, bundle_describe, bundle_plan, bundle_verify, bundle_write
from ._files import (
    ProbeResult,
    ReadsResult,
    describe,
    probe_gather,
    probe_read,
    probe_reads,
    synth_size,
    synth_write,
)
from ._load import Isa, Library, LoadError, NativeError, load
from ._names import (
    BUNDLE_KINDS,
    DOWN_LAYOUTS,
    IO_KINDS,
    ISA_AUTO,
    KERNELS,
    LOGITS_MODES,
    POLICIES,
    PREFETCH_MODES,
    SPARSITIES,
    TYPES,
)
from ._session import Decoded, Model, Prefilled, Session, Timeline, plan_session
from ._simulate import SIMULATED_POLICIES, Clock, Simulated, simulate

__all__ = [
    "BUNDLE_KINDS",
    "DOWN_LAYOUTS",
    "IO_KINDS",
    "ISA_AUTO",
    "KERNELS",
    "LOGITS_MODES",
    "POLICIES",
    "PREFETCH_MODES",
    "SIMULATED_POLICIES",
    "SPARSITIES",
    "TYPES",
    "BundleInfo",
    "Clock",
    "Decoded",
    "Isa",
    "KernelBench",
    "Library",
    "LoadError",
    "Model",
    "NativeError",
    "Prefilled",
    "ProbeResult",
    "ReadsResult",
    "Session",
    "Simulated",
    "Timeline",
    "bundle_describe",
    "bundle_plan",
    "bundle_verify",
    "bundle_write",
    "describe",
    "load",
    "plan_session",
    "probe_gather",
    "probe_read",
    "probe_reads",
    "simulate",
    "synth_size",
    "synth_write",
]
