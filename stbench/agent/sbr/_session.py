"""Models and sessions: the handles of libsbr, each freed once."""

import array
import ctypes
import os
import weakref
from typing import Any, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

from . import _abi, _abi_timeline
from ._load import Library, NativeError
from ._names import (
    DIRECT_MODES,
    IO_KINDS,
    LOAD_MODES,
    LOGITS_MODES,
    POLICIES,
    PREFETCH_MODES,
    SKIPPED,
    SPARSE_FFN,
    SPLITS,
    TYPES,
    VERIFY_MODES,
    number,
    sized,
    uint32s,
)


def _tokens(tokens: Iterable[int]) -> Any:
    """Tokens as a ctypes int32 array, sharing memory where they already are one."""
    if isinstance(tokens, ctypes.Array):
        return tokens
    try:
        view = memoryview(tokens)  # type: ignore[arg-type]
    except TypeError:
        view = memoryview(array.array("i", tokens))
    if view.format != "i" or view.ndim != 1 or not view.c_contiguous or view.readonly:
        view = memoryview(array.array("i", view.tolist()))
    return (ctypes.c_int32 * len(view)).from_buffer(view)


def _floats(count: int) -> Any:
    return (ctypes.c_float * count)()


class Model:
    """A loaded model; several sessions may share it. Closing it closes its sessions.

    ``load`` "repack" interleaves the rows of matrices except those that sessions will gather, so that
    ``sparse_ffn`` and ``sparse_lm_head`` must be what sessions are going to ask for. ``bundle`` is the path
    of a bundle made for the same (with "repack" only): its units stay on storage, and each session reads them
    into a cache of ``cache_bytes``. ``digest``: what the bundle must say of the model's; "": anything."""

    def __init__(
        self,
        library: Library,
        path: str,
        load: str = "mmap",
        requantise_down: bool = False,
        populate: bool = False,
        sparse_ffn: bool = False,
        sparse_lm_head: bool = False,
        bundle: str = "",
        digest: str = "",
    ) -> None:
        options = sized(_abi.ModelOptions)
        library.sbr_model_options_init(ctypes.byref(options))
        options.load_mode = number(LOAD_MODES, load, "load")
        options.requantise_down = int(requantise_down)
        options.populate = int(populate)
        options.gathers = sparse_ffn * _abi.GATHER_UP | sparse_lm_head * _abi.GATHER_OUTPUT
        if bundle:
            options.bundle = os.fsencode(bundle)
            options.digest = digest.encode() or None
        self.library = library
        self._handle: Optional[ctypes.c_void_p] = None
        self._sessions: "weakref.WeakSet[Session]" = weakref.WeakSet()
        handle = ctypes.c_void_p()
        library.call("sbr_model_load", os.fsencode(path), ctypes.byref(options), ctypes.byref(handle))
        self._handle = handle
        self.info = sized(_abi.ModelInfo)
        library.call("sbr_model_get_info", handle, ctypes.byref(self.info))

    @property
    def n_vocab(self) -> int:
        """Rows of the output matrix."""
        return int(self.info.n_vocab)

    @property
    def handle(self) -> ctypes.c_void_p:
        """The ``sbr_model*``. Raises NativeError once closed."""
        if self._handle is None:
            raise NativeError(_abi.ERR_STATE, "the model is closed")
        return self._handle

    def warnings(self) -> List[str]:
        """What loading had to assume, a sentence each."""
        text: bytes = self.library.sbr_model_warnings(self.handle)
        return text.decode("utf-8", "replace").splitlines()

    def close(self) -> None:
        """Frees the model and its sessions; twice is fine."""
        for session in list(self._sessions):
            session.close()
        if self._handle is not None:
            self.library.sbr_model_free(self._handle)
            self._handle = None

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_exc: Any) -> None:
        self.close()


class Prefilled(NamedTuple):
    """``logits``: ctypes floats, [n_vocab] or [n_tokens * n_vocab] row-major, or None. ``batches``: begin and
    end in ns of each batch."""

    logits: Any
    batches: List[Tuple[int, int]]


class Decoded(NamedTuple):
    """``times``: begin and end in ns per token. ``logits``, ``scores``: ctypes floats [steps * n_vocab], or
    None."""

    times: List[Tuple[int, int]]
    logits: Any
    scores: Any


class Timeline(NamedTuple):
    """The first ``n_events`` of ``events`` (``sbr_timeline_event`` structures) are each thread's in their
    order, then storage's; ``n_lost`` were overwritten by later ones. There is room for ``capacity`` each."""

    events: Any
    n_events: int
    n_lost: int
    capacity: int


def _session_options(
    library: Library,
    n_threads: int = 1,
    cpus: Sequence[int] = (),
    isa: str = "auto",
    n_ctx: int = 4096,
    n_batch: int = 64,
    kv_type: str = "f16",
    kv_touch: bool = False,
    sparse_ffn: Union[bool, str] = False,
    sparse_lm_head: bool = False,
    lm_head_threshold: float = 0.0,
    lm_head_skipped: str = "excluded",
    phase_timing: bool = True,
    row_split: str = "measured",
    cache_bytes: int = 0,
    cache_policy: str = "auto",
    io: str = "auto",
    io_threads: int = 0,
    io_direct: str = "auto",
    prefetch: str = "auto",
    verify: str = "first",
    record_routing: bool = False,
    timeline_events: int = 0,
) -> Any:
    options = sized(_abi.SessionOptions)
    library.sbr_session_options_init(ctypes.byref(options))
    options.n_threads = n_threads
    if cpus:
        options.cpus = uint32s(cpus)
        options.n_cpus = len(cpus)
    options.isa = library.isa_number(isa)
    options.n_ctx = n_ctx
    options.n_batch = n_batch
    options.kv_type = number(TYPES, kv_type, "kv_type")
    options.kv_touch = int(kv_touch)
    word = sparse_ffn if isinstance(sparse_ffn, str) else ("on" if sparse_ffn else "off")
    options.sparse_ffn = number(SPARSE_FFN, word, "sparse_ffn")
    options.sparse_lm_head = int(sparse_lm_head)
    options.lm_head_threshold = lm_head_threshold
    options.lm_head_skipped = number(SKIPPED, lm_head_skipped, "lm_head_skipped")
    options.phase_timing = int(phase_timing)
    options.row_split = number(SPLITS, row_split, "row_split")
    options.cache_bytes = cache_bytes
    options.cache_policy = number(POLICIES, cache_policy, "cache_policy")
    options.io = number(IO_KINDS, io, "io")
    options.io_threads = io_threads
    options.io_direct = number(DIRECT_MODES, io_direct, "io_direct")
    options.prefetch = number(PREFETCH_MODES, prefetch, "prefetch")
    options.verify = number(VERIFY_MODES, verify, "verify")
    options.record_routing = int(record_routing)
    options.timeline_events = timeline_events
    return options


def plan_session(model: Model, **settings: Any) -> Any:
    """What a :class:`Session` with these settings would allocate, allocating nothing: an ``sbr_session_info``
    structure of which ``kv_bytes``, ``scratch_bytes``, ``cache_bytes``, ``cache_bytes_min``, ``n_threads``,
    ``n_ctx`` and ``n_batch`` are set. A ``cache_bytes`` below the minimum is no error here. Raises
    NativeError."""
    info = sized(_abi.SessionInfo)
    options = _session_options(model.library, **settings)
    model.library.call("sbr_session_plan", model.handle, ctypes.byref(options), ctypes.byref(info))
    return info


class Session:
    """A KV cache, its threads and its settings on a model. Settings are ``sbr_session_options`` by the names
    that a person types; ``sparse_ffn`` may be "auto". Those of caching (``cache_bytes``, ``cache_policy``,
    ``io``, ``io_threads``, ``io_direct``, ``prefetch``, ``verify``) are for models with a bundle. Raises
    NativeError."""

    def __init__(self, model: Model, n_threads: int = 1, **settings: Any) -> None:
        library = model.library
        options = _session_options(library, n_threads, **settings)
        self.model = model
        self.library = library
        self._handle: Optional[ctypes.c_void_p] = None
        handle = ctypes.c_void_p()
        library.call("sbr_session_create", model.handle, ctypes.byref(options), ctypes.byref(handle))
        self._handle = handle
        model._sessions.add(self)

    @property
    def handle(self) -> ctypes.c_void_p:
        """The ``sbr_session*``. Raises NativeError once closed."""
        if self._handle is None:
            raise NativeError(_abi.ERR_STATE, "the session is closed")
        return self._handle

    def info(self) -> Any:
        """Effective settings: an ``sbr_session_info`` structure."""
        info = sized(_abi.SessionInfo)
        self.library.call("sbr_session_get_info", self.handle, ctypes.byref(info))
        return info

    @property
    def n_past(self) -> int:
        """Tokens in the KV cache."""
        return int(self.info().n_past)

    def thread_ids(self) -> List[int]:
        """Operating-system ids of the session's threads, the caller's first."""
        count = ctypes.c_uint32()
        capacity = int(self.info().n_threads)
        ids = (ctypes.c_int32 * capacity)()
        self.library.call("sbr_session_thread_ids", self.handle, ids, capacity, ctypes.byref(count))
        return list(ids)[: count.value]

    def rewind(self, n_past: int = 0) -> None:
        """Forgets tokens from position ``n_past`` on."""
        self.library.call("sbr_session_rewind", self.handle, n_past)

    def cancel(self) -> None:
        """Makes the running call fail with ERR_CANCELLED; from any thread."""
        self.library.sbr_session_cancel(self.handle)

    def prefill(self, tokens: Iterable[int], logits: str = "none", logits_out: Any = None) -> Prefilled:
        """Evaluates a prompt. ``logits`` is "none", "last" or "all"; ``logits_out`` is a ctypes float array
        to write to instead of a new one."""
        native = _tokens(tokens)
        mode = number(LOGITS_MODES, logits, "logits")
        rows = {"none": 0, "last": 1, "all": len(native)}[logits]
        out = logits_out
        if rows and out is None:
            out = _floats(rows * self.model.n_vocab)
        if rows and len(out) < rows * self.model.n_vocab:
            raise NativeError(_abi.ERR_ARGUMENT, "logits_out has room for %d floats" % len(out))
        n_batch = int(self.info().n_batch)
        batches = (_abi.Interval * max(1, -(-len(native) // n_batch)))()
        self.library.call(
            "sbr_prefill", self.handle, native, len(native), mode, out if rows else None, batches
        )
        used = -(-len(native) // n_batch)
        return Prefilled(out if rows else None, [(b.begin_ns, b.end_ns) for b in batches[:used]])

    def decode(
        self,
        tokens: Iterable[int],
        capture: Sequence[int] = (),
        scores: bool = False,
        logits_out: Any = None,
        scores_out: Any = None,
    ) -> Decoded:
        """Evaluates tokens one by one. ``capture``: ascending steps whose logits (and predictor scores, when
        asked) are copied out, between the timed intervals."""
        native = _tokens(tokens)
        times = (_abi.Interval * len(native))()
        size = len(capture) * self.model.n_vocab
        wanted = None
        if capture:
            logits_out = _floats(size) if logits_out is None else logits_out
            if scores and scores_out is None:
                scores_out = _floats(size)
            for buffer in (logits_out, scores_out):
                if buffer is not None and len(buffer) < size:
                    raise NativeError(
                        _abi.ERR_ARGUMENT, "a capture buffer has room for %d floats" % len(buffer)
                    )
            wanted = sized(_abi.Capture, n_steps=len(capture), steps=uint32s(capture))
            wanted.logits = ctypes.cast(logits_out, ctypes.POINTER(ctypes.c_float))
            if scores_out is not None:
                wanted.scores = ctypes.cast(scores_out, ctypes.POINTER(ctypes.c_float))
        pointer = ctypes.byref(wanted) if wanted is not None else None
        self.library.call("sbr_decode", self.handle, native, len(native), times, pointer)
        return Decoded([(t.begin_ns, t.end_ns) for t in times], logits_out, scores_out)

    def counters(self) -> Any:
        """Sums since creation or the last reset: an ``sbr_counters`` structure."""
        counters = sized(_abi.Counters)
        self.library.call("sbr_session_get_counters", self.handle, ctypes.byref(counters))
        return counters

    def layer_counters(self) -> List[Tuple[int, int]]:
        """Neurons examined and active, per layer."""
        return [(layer.neurons_examined, layer.neurons_active) for layer in self._layers()]

    def sparse_layers(self) -> List[bool]:
        """Per layer, whether single tokens skip zero neurons: by option, or as "auto" has chosen so far."""
        return [bool(layer.sparse_ffn) for layer in self._layers()]

    def _layers(self) -> List[_abi.LayerCounters]:
        found = []
        for layer in range(self.model.info.n_layer):
            counters = sized(_abi.LayerCounters)
            self.library.call("sbr_session_get_layer_counters", self.handle, layer, ctypes.byref(counters))
            found.append(counters)
        return found

    def expert_counts(self, layer: int) -> List[int]:
        """How often each expert of a layer was selected."""
        n_expert = int(self.model.info.n_expert)
        counts = (ctypes.c_uint64 * max(1, n_expert))()
        self.library.call("sbr_session_get_expert_counts", self.handle, layer, counts, n_expert)
        return list(counts)[:n_expert]

    def cache_counters(self) -> Any:
        """Units of the bundle: an ``sbr_cache_counters`` structure, all zeros without one."""
        counters = sized(_abi.CacheCounters)
        self.library.call("sbr_session_get_cache_counters", self.handle, ctypes.byref(counters))
        return counters

    def routing(self) -> Any:
        """Experts chosen since creation or the last :meth:`reset_counters`, with ``record_routing``: ctypes
        uint16 [n_tokens][n_layer][n_expert_used] in one row, ascending in each set. Raises NativeError."""
        count = ctypes.c_uint64()
        self.library.call("sbr_session_get_routing", self.handle, None, 0, ctypes.byref(count))
        info = self.model.info
        experts = (ctypes.c_uint16 * (count.value * info.n_layer * info.n_expert_used))()
        self.library.call("sbr_session_get_routing", self.handle, experts, count.value, None)
        return experts

    def timeline(self) -> "Timeline":
        """What was done since creation or the last :meth:`reset_counters`, with ``timeline_events``. Raises
        NativeError."""
        info = sized(_abi_timeline.TimelineInfo)
        size = ctypes.sizeof(_abi_timeline.TimelineEvent)
        name = "sbr_session_get_timeline"
        self.library.call(name, self.handle, None, size, 0, ctypes.byref(info))
        # Reads may end meanwhile.
        events = (_abi_timeline.TimelineEvent * (info.n_events + 64))()
        self.library.call(name, self.handle, events, size, len(events), ctypes.byref(info))
        return Timeline(events, int(info.n_written), int(info.n_lost), int(info.capacity))

    def replay_routing(self, experts: Optional[Sequence[int]]) -> None:
        """From now on the token at position p uses set p modulo their number of ``experts``, laid out as
        :meth:`routing` returns it; None: the router chooses again. Raises NativeError."""
        if experts is None:
            self.library.call("sbr_session_replay_routing", self.handle, None, 0)
            return
        per_token = int(self.model.info.n_layer * self.model.info.n_expert_used)
        if per_token == 0 or not experts or len(experts) % per_token != 0:
            raise NativeError(
                _abi.ERR_ARGUMENT,
                "a routing of %d experts is not a number of tokens of %d each" % (len(experts), per_token),
            )
        native: Any = experts
        if not (isinstance(experts, ctypes.Array) and getattr(experts, "_type_", None) is ctypes.c_uint16):
            native = (ctypes.c_uint16 * len(experts))(*experts)
        self.library.call("sbr_session_replay_routing", self.handle, native, len(experts) // per_token)

    def reset_counters(self) -> None:
        """Sets every counter to 0."""
        self.library.call("sbr_session_reset_counters", self.handle)

    def close(self) -> None:
        """Frees the session and joins its threads; twice is fine."""
        if self._handle is not None:
            self.library.sbr_session_free(self._handle)
            self._handle = None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_exc: Any) -> None:
        self.close()
