"""Engines by name: ``sbr`` is the native runtime, ``fake`` a stand-in for tests (:mod:`stbench.agent.fake`).

Programs that time themselves (llama-bench, an external command) do not fit
:class:`stbench.agent.engine.Engine` and are run by :mod:`stbench.agent.programs`.
"""

import os
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from . import affinity, cachesize, replay, sbr, static_cache, timelines
from .engine import CACHE_COUNTER_NAMES, COUNTER_NAMES, Decode, Engine, Prefill
from .fake import FakeEngine
from .loading import REPACK, choose_load
from .routing import Routing
from .sbr import _abi
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


class SbrEngine:
    """libsbr through ctypes. Raises :class:`stbench.agent.sbr.LoadError` when it cannot be loaded."""

    def __init__(self, library: str) -> None:
        self._library = sbr.load(library)
        self._names = {isa.number: isa.name for isa in self._library.isas()}
        self._model: Optional[sbr.Model] = None
        self._session: Optional[sbr.Session] = None
        self._sessions: Dict[Tuple[int, ...], sbr.Session] = {}
        self._settings = Settings()
        self._allowed = os.sched_getaffinity(0)
        self._load = self._load_note = ""
        self._digest = ""
        # The size of the cache once it is known, and the trace that is replayed.
        self._chosen: Optional[cachesize.Chosen] = None
        self._replayed: Optional[Routing] = None
        self._used = static_cache.Usage()

    def build_info(self) -> Dict[str, Any]:
        """See :class:`stbench.agent.engine.Engine`."""
        return self._library.build_info()

    def isas(self) -> List[str]:
        """See :class:`stbench.agent.engine.Engine`."""
        return [isa.name for isa in self._library.isas() if isa.supported]

    def open(self, model: ModelRef, settings: Settings) -> ModelShape:
        """See :class:`stbench.agent.engine.Engine`."""
        if settings.cache and not settings.bundle:
            raise ValueError("the job asks for a cache and names no bundle to read units from")
        self._load, self._load_note = choose_load(
            settings.load,
            model.path,
            limit_bytes=settings.memory_limit_bytes,
            cached=bool(settings.cache),
        )
        self._model = sbr.Model(
            self._library,
            model.path,
            load=self._load,
            requantise_down=settings.requantise_down,
            populate=settings.populate,
            sparse_ffn=settings.sparse_ffn,
            sparse_lm_head=settings.sparse_lm_head,
            bundle=settings.bundle if settings.cache else "",
            digest=model.digest,
        )
        self._settings, self._digest = settings, model.digest
        self._replayed = replay.loaded(settings, self._model.info)
        self._session = self._new_session(self._model, settings.threads, settings.cpus)
        info = self._model.info
        return ModelShape(
            architecture=info.architecture.decode("utf-8", "replace"),
            n_layer=info.n_layer,
            n_embd=info.n_embd,
            n_head=info.n_head,
            n_head_kv=info.n_head_kv,
            head_dim=info.head_dim,
            n_ff=info.n_ff,
            n_expert=info.n_expert,
            n_expert_used=info.n_expert_used,
            n_vocab=info.n_vocab,
            down_layout=sbr.DOWN_LAYOUTS.get(info.down_layout, str(info.down_layout)),
            lm_head_predictor_rank=info.lm_head_predictor_rank,
            n_params=info.n_params,
            n_params_active=info.n_params_active,
            file_bytes=info.file_bytes,
            weight_bytes=info.weight_bytes,
        )

    def _new_session(self, model: sbr.Model, threads: int, cpus: Sequence[int]) -> sbr.Session:
        settings = self._settings
        options: Dict[str, Any] = {
            "n_threads": threads,
            "cpus": cpus,
            "isa": settings.isa,
            "n_ctx": settings.n_ctx,
            "n_batch": settings.n_batch,
            "kv_type": settings.kv_type,
            "kv_touch": settings.kv_touch,
            "sparse_ffn": "auto" if settings.sparse_ffn and settings.sparse_ffn_auto else settings.sparse_ffn,
            "sparse_lm_head": settings.sparse_lm_head,
            "lm_head_threshold": settings.lm_head_threshold,
            "record_routing": bool(settings.record_routing) and model.info.n_expert > 0,
            "timeline_events": timelines.EVENTS if settings.timeline else 0,
        }
        if settings.cache:
            options.update(
                cache_policy=settings.cache_policy,
                io=settings.io,
                io_direct=settings.io_direct,
                prefetch=settings.prefetch,
            )
            if self._chosen is None:
                self._chosen = self._choose_cache(model, options)
            options["cache_bytes"] = self._chosen.bytes
        session = sbr.Session(model, **options)
        if self._replayed is not None:
            session.replay_routing(self._replayed.experts)
        return session

    def _choose_cache(self, model: sbr.Model, options: Dict[str, Any]) -> cachesize.Chosen:
        planned = sbr.plan_session(model, **dict(options, cache_bytes=model.info.bundle_bytes))
        needs = cachesize.Needs(
            kv_bytes=int(planned.kv_bytes),
            scratch_bytes=int(planned.scratch_bytes),
            minimum=int(planned.cache_bytes_min),
            unit_bytes=int(model.info.unit_bytes),
            total_bytes=int(model.info.bundle_bytes),
        )
        there = cachesize.room(self._settings.memory_limit_bytes)
        return cachesize.choose(self._settings.cache, needs, there, model.n_vocab)

    def use_threads(self, threads: int, cpus: Sequence[int]) -> None:
        """See :class:`stbench.agent.engine.Engine`."""
        model, _ = self._opened()
        # A session with CPUs leaves this thread on the first of them, and older libraries, which may be
        # compared with this one, let no other session go beyond it then.
        os.sched_setaffinity(0, self._allowed)
        key = (threads, *cpus)
        if key not in self._sessions:
            if self._settings.cache and self._session is not None:
                # Each session has a cache of its own, and two of the largest that fits do not fit.
                self._session.close()
                self._sessions = {}
            self._sessions[key] = self._new_session(model, threads, cpus)
        self._session = self._sessions[key]
        self._session.rewind(0)

    def _opened(self) -> Tuple[sbr.Model, sbr.Session]:
        if self._model is None or self._session is None:
            raise sbr.NativeError(_abi.ERR_STATE, "no model is open")
        return self._model, self._session

    def warnings(self) -> List[str]:
        """See :class:`stbench.agent.engine.Engine`."""
        return self._opened()[0].warnings() + ([self._load_note] if self._load_note else [])

    def effective(self) -> Effective:
        """See :class:`stbench.agent.engine.Engine`."""
        model, session = self._opened()
        info, threads = session.info(), session.thread_ids()
        types = {number: name for name, number in sbr.TYPES.items()}
        return Effective(
            threads=info.n_threads,
            affinity=[affinity.allowed_cpus(thread) for thread in threads],
            last_cpus=[cpu for cpu in map(affinity.last_cpu, threads) if cpu is not None],
            isa=self._names.get(info.isa, str(info.isa)),
            n_ctx=info.n_ctx,
            n_batch=info.n_batch,
            kv_type=types.get(info.kv_type, str(info.kv_type)),
            kv_bytes=info.kv_bytes,
            scratch_bytes=info.scratch_bytes,
            sparse_ffn=_sparsity(session),
            sparse_lm_head=bool(info.sparse_lm_head),
            down_layout=sbr.DOWN_LAYOUTS.get(model.info.down_layout, str(model.info.down_layout)),
            load=self._load,
            weights_repacked=self._load == REPACK,
            load_ns=model.info.load_ns,
        )

    def prefill(self, tokens: Sequence[int], logits: bool) -> Prefill:
        """See :class:`stbench.agent.engine.Engine`."""
        _, session = self._opened()
        done = session.prefill(tokens, "last" if logits else "none")
        n_batch = int(session.info().n_batch)
        sizes = [min(n_batch, len(tokens) - i * n_batch) for i in range(len(done.batches))]
        return Prefill([end - begin for begin, end in done.batches], sizes, done.logits)

    def decode(self, tokens: Sequence[int], steps: Sequence[int], scores: bool) -> Decode:
        """See :class:`stbench.agent.engine.Engine`."""
        model, session = self._opened()
        done = session.decode(tokens, capture=steps, scores=scores)
        n_steps = len(steps)
        return Decode(
            [end - begin for begin, end in done.times],
            _rows(done.logits, n_steps, model.n_vocab),
            _rows(done.scores, n_steps, model.n_vocab),
        )

    def rewind(self) -> None:
        """See :class:`stbench.agent.engine.Engine`."""
        self._opened()[1].rewind(0)

    def reset_counters(self) -> None:
        """See :class:`stbench.agent.engine.Engine`."""
        model, session = self._opened()
        if self._settings.cache and model.info.n_expert:
            self._used.reset(session)
        session.reset_counters()

    def counters(self) -> Tuple[PhaseCounters, List[Tuple[int, int]]]:
        """See :class:`stbench.agent.engine.Engine`."""
        _, session = self._opened()
        native = session.counters()
        return PhaseCounters(
            **{name: getattr(native, name) for name in COUNTER_NAMES}
        ), session.layer_counters()

    def cache_counters(self) -> Optional[CacheCounters]:
        """See :class:`stbench.agent.engine.Engine`."""
        if not self._settings.cache:
            return None
        native = self._opened()[1].cache_counters()
        return CacheCounters(**{name: getattr(native, name) for name in CACHE_COUNTER_NAMES})

    def cache_use(self, prefill: CacheCounters, decode: CacheCounters) -> CacheUse:
        """See :class:`stbench.agent.engine.Engine`."""
        model, session = self._opened()
        info = session.info()
        return CacheUse(
            kind=sbr.BUNDLE_KINDS.get(model.info.bundle_kind, str(model.info.bundle_kind)),
            bundle=self._settings.bundle,
            bytes=info.cache_bytes,
            bytes_min=info.cache_bytes_min,
            units=info.cache_units,
            unit_bytes=model.info.unit_bytes,
            total_bytes=model.info.bundle_bytes,
            policy=_word(sbr.POLICIES, info.cache_policy),
            io=_word(sbr.IO_KINDS, info.io),
            direct=info.io_direct == _abi.DIRECT_ON,
            prefetch=_word(sbr.PREFETCH_MODES, info.prefetch),
            prefill=prefill,
            decode=decode,
            chosen=self._chosen.why if self._chosen is not None else "",
            static_hits=self._used.hits(session, info.cache_units) if model.info.n_expert else None,
        )

    def account(self, n_tokens: int) -> MemoryAccount:
        """See :class:`stbench.agent.engine.Engine`."""
        model, session = self._opened()
        info = session.info()
        used = info.n_ctx if self._settings.kv_touch else min(n_tokens, info.n_ctx)
        return MemoryAccount(
            model_file=model.info.file_bytes,
            weights=model.info.anonymous_bytes,
            kv_allocated=info.kv_bytes,
            kv_touched=info.kv_bytes * used // max(info.n_ctx, 1),
            scratch=info.scratch_bytes,
            cache=info.cache_bytes,
        )

    def routing(self) -> Optional[Routing]:
        """See :class:`stbench.agent.engine.Engine`."""
        model, session = self._opened()
        return replay.recorded(session, model.info, self._digest) if model.info.n_expert else None

    def timeline(self) -> Optional[sbr.Timeline]:
        """See :class:`stbench.agent.engine.Engine`."""
        return self._opened()[1].timeline()

    def shift_replay(self, tokens: int) -> None:
        """See :class:`stbench.agent.engine.Engine`."""
        if self._replayed is not None:
            self._opened()[1].replay_routing(replay.shifted(self._replayed, tokens).experts)

    def close(self) -> None:
        """See :class:`stbench.agent.engine.Engine`."""
        if self._model is not None:
            self._model.close()
            self._model = self._session = None
            self._sessions = {}


def _sparsity(session: sbr.Session) -> str:
    """How far the sparse FFN reaches, and what "auto" has chosen so far."""
    info = session.info()
    reach = sbr.SPARSITIES.get(info.sparse_ffn, str(info.sparse_ffn))
    if not info.sparse_ffn_auto:
        return reach
    chosen = session.sparse_layers()
    return "auto: %s in %d of %d layers" % (reach, sum(chosen), len(chosen))


def _word(names: Dict[str, int], number: int) -> str:
    """What a person types for a number of the header."""
    return next((name for name, known in names.items() if known == number), str(number))


def _rows(block: Any, n_rows: int, n_vocab: int) -> List[Any]:
    if block is None:
        return []
    view = memoryview(block).cast("B").cast("f")
    return [view[i * n_vocab : (i + 1) * n_vocab] for i in range(n_rows)]


ENGINES: Dict[str, Callable[[str], Engine]] = {"sbr": SbrEngine, "fake": FakeEngine}


def create(name: str, library: str) -> Engine:
    """The engine called ``name``. Raises ValueError for an unknown name, LoadError for a bad library."""
    if name not in ENGINES:
        raise ValueError('engine "%s": expected one of %s' % (name, ", ".join(sorted(ENGINES))))
    return ENGINES[name](library)
