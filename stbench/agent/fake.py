"""An engine without native code that misbehaves on request, so that the host's pipeline can be tested.

It reads options from the model's name, ``fake:crash`` or ``fake:load=0.1,step=2000000``:

=================  ==========================================================================================
``vocab=N``        vocabulary (512)
``step=NS``        reported ns per decoded token, plus up to 5 % seeded by token (1000000)
``load=S``         seconds slept while loading
``sleep=S``        seconds slept while decoding
``hang``           sleeps for ever while decoding
``until=FILE``     sleeps while decoding until that file is there
``crash[=NAME]``   dies by a signal while decoding (``SIGSEGV``)
``exit[=CODE]``    ends the process without a result (3)
``oom``            raises MemoryError
``unsupported``    refuses as an engine does that lacks an instruction set
``fail``           raises an ordinary exception
``wrong``          computes other logits than its own scalar reference
``noise``          computes logits within the tolerance, not equal to the last bit
``disturbed[=N]``  the first N attempts (1) report half the memory bandwidth after the run
``disk=GB/s``      what storage probes are made up to say (2)
``slower[=N]``     the first N attempts (1) report half the storage rate after the run
``scale=N``        steps are shorter with more threads, up to N, and a tenth longer with each beyond that
``slow=CPU``       CPUs with smaller numbers than this take five times as long, and all threads wait for them
``absent=CPU``     refuses to run on this CPU
``unit=BYTES``     size of one of its 64 units, of which a cache takes four at least (65536)
=================  ==========================================================================================
"""

import dataclasses
import os
import signal
import struct
import sys
import time
from array import array
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import cachesize
from .engine import CACHE_COUNTER_NAMES, COUNTER_NAMES, Decode, Prefill
from .routing import Routing
from .sbr import NativeError, Timeline, _abi
from .wire import (
    CacheCounters,
    CacheUse,
    Effective,
    JobSpec,
    MemoryAccount,
    ModelRef,
    ModelShape,
    PhaseCounters,
    Settings,
)

# What a quiet machine's brackets are made up to say, GB/s.
_QUIET_GB_PER_S = 20.0
_DISK_GB_PER_S = 2.0

# A made-up bundle: 2 layers of 32 experts, 4 of which a token uses.
UNIT_BYTES = 65536
_UNITS, _LAYERS, _USED = 64, 2, 4
_KV_BYTES, _SCRATCH_BYTES = 64, 4096


def gb_per_s(job: JobSpec, after: bool) -> float:
    """The made-up read bandwidth beside a job."""
    disturbed = _options(job.model.name).get("disturbed")
    falls = disturbed is not None and job.attempt < int(disturbed or 1)
    return _QUIET_GB_PER_S / 2 if after and falls else _QUIET_GB_PER_S


def storage_gb_per_s(job: JobSpec, after: bool) -> float:
    """The made-up storage rate beside a job."""
    options = _options(job.model.name)
    rate = float(options.get("disk") or _DISK_GB_PER_S)
    slower = options.get("slower")
    falls = slower is not None and job.attempt < int(slower or 1)
    return rate / 2 if after and falls else rate


def _options(model_name: str) -> Dict[str, str]:
    head, _, text = model_name.partition(":")
    parts = [part.partition("=") for part in text.split(",")] if head == "fake" and text else []
    return {key: value for key, _, value in parts}


def _noise(number: int) -> int:
    """32 well mixed bits of an integer."""
    number &= 0xFFFFFFFF
    number = ((number ^ (number >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    number = ((number ^ (number >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return number ^ (number >> 16)


class FakeEngine:
    """Deterministic logits and times from integers; see the module's text for how it is made to misbehave."""

    def __init__(self, _library: str = "") -> None:
        self._options: Dict[str, str] = {}
        self._settings = Settings()
        self._past: List[int] = []
        self._tokens = 0
        self._wrong = 0.0
        self._cache = cachesize.Chosen(0, "")

    def build_info(self) -> Dict[str, Any]:
        """See :class:`stbench.agent.engine.Engine`."""
        return {"engine": "fake"}

    def isas(self) -> List[str]:
        """See :class:`stbench.agent.engine.Engine`."""
        return ["scalar"]

    def _number(self, key: str, absent: float) -> float:
        return float(self._options.get(key) or absent)

    def open(self, model: ModelRef, settings: Settings) -> ModelShape:
        """See :class:`stbench.agent.engine.Engine`."""
        self._options = _options(model.name)
        self._settings = settings
        time.sleep(self._number("load", 0.0))
        if "unsupported" in self._options:
            raise NativeError(_abi.ERR_UNSUPPORTED, "the fake engine was asked to refuse")
        if "fail" in self._options:
            raise RuntimeError("the fake engine was asked to fail")
        if "oom" in self._options:
            raise MemoryError("the fake engine was asked to run out of memory")
        self._n_vocab = int(self._number("vocab", 512))
        if settings.cache:
            unit = int(self._number("unit", UNIT_BYTES))
            needs = cachesize.Needs(
                settings.n_ctx * _KV_BYTES, _SCRATCH_BYTES, _USED * unit, unit, _UNITS * unit
            )
            there = cachesize.room(settings.memory_limit_bytes)
            self._cache = cachesize.choose(settings.cache, needs, there, self._n_vocab)
        if settings.isa != "scalar":
            self._wrong = 1.0 if "wrong" in self._options else 1e-4 if "noise" in self._options else 0.0
        return ModelShape(
            architecture="fake",
            n_layer=2,
            n_embd=32,
            n_head=1,
            n_head_kv=1,
            head_dim=32,
            n_ff=64,
            n_expert=0,
            n_expert_used=0,
            n_vocab=self._n_vocab,
            down_layout="none",
            lm_head_predictor_rank=8,
            n_params=1000,
            n_params_active=1000,
            file_bytes=0,
            weight_bytes=4000,
        )

    def use_threads(self, threads: int, cpus: Sequence[int]) -> None:
        """See :class:`stbench.agent.engine.Engine`."""
        absent = self._number("absent", -1)
        if absent in cpus:
            raise NativeError(_abi.ERR_ARGUMENT, "the fake engine was asked to do without CPU %d" % absent)
        self._settings = dataclasses.replace(self._settings, threads=threads, cpus=list(cpus))
        self.rewind()

    def _step_ns(self) -> float:
        step_ns, threads = self._number("step", 1e6), self._settings.threads or 1
        if "scale" in self._options:
            used = min(threads, self._number("scale", 1))
            step_ns *= (1 + 0.1 * (threads - used)) / used
        slow = self._number("slow", 0)
        return step_ns * (5 if any(cpu < slow for cpu in self._settings.cpus[:threads]) else 1)

    def warnings(self) -> List[str]:
        """See :class:`stbench.agent.engine.Engine`."""
        return ["this is the fake engine: its numbers are made up"]

    def effective(self) -> Effective:
        """See :class:`stbench.agent.engine.Engine`."""
        settings = self._settings
        return Effective(
            threads=settings.threads or 1,
            affinity=[sorted(os.sched_getaffinity(0))] * (settings.threads or 1),
            isa="scalar",
            n_ctx=settings.n_ctx,
            n_batch=settings.n_batch,
            kv_type=settings.kv_type,
            kv_bytes=settings.n_ctx * _KV_BYTES,
            scratch_bytes=_SCRATCH_BYTES,
            sparse_ffn="full" if settings.sparse_ffn else "off",
            sparse_lm_head=settings.sparse_lm_head,
            down_layout="none",
            load=settings.load,
        )

    def _row(self, position: int, token: int) -> "Tuple[array[float], array[float]]":
        """Logits and predictor scores of one step: sums of four uniform numbers, so a bell."""
        seed = _noise(position * 0x9E3779B9 + token)
        logits, scores = array("f"), array("f")
        for row in range(self._n_vocab):
            bits = _noise(seed + row)
            value = sum(struct.pack("<I", bits)) / 128.0 - 4.0
            logits.append(value + self._wrong * ((bits >> 3 & 255) / 255.0))
            scores.append((_noise(bits) & 0xFFFF) / 32768.0 - 1.0)
        return logits, scores

    def prefill(self, tokens: Sequence[int], logits: bool) -> Prefill:
        """See :class:`stbench.agent.engine.Engine`."""
        sizes = [
            min(self._settings.n_batch, len(tokens) - begin)
            for begin in range(0, len(tokens), self._settings.n_batch)
        ]
        self._past.extend(tokens)
        self._tokens += len(tokens)
        row = self._row(len(self._past), tokens[-1])[0] if logits else None
        return Prefill([size * 100000 for size in sizes], sizes, row)

    def decode(self, tokens: Sequence[int], steps: Sequence[int], scores: bool) -> Decode:
        """See :class:`stbench.agent.engine.Engine`."""
        self._misbehave()
        step_ns = self._step_ns()
        times, rows, score_rows = [], [], []
        for i, token in enumerate(tokens):
            self._past.append(token)
            times.append(int(step_ns * (1.0 + _noise(token) % 1000 / 20000.0)))
            if i in steps:
                logits, predictor = self._row(len(self._past), token)
                if self._settings.sparse_lm_head:
                    for row, score in enumerate(predictor):
                        if not score > self._settings.lm_head_threshold:
                            logits[row] = float("-inf")
                    if scores:
                        score_rows.append(predictor)
                rows.append(logits)
        self._tokens += len(tokens)
        return Decode(times, rows, score_rows)

    def _misbehave(self) -> None:
        time.sleep(self._number("sleep", 0.0))
        while "until" in self._options and not os.path.exists(self._options["until"]):
            time.sleep(0.02)
        if "hang" in self._options:
            sys.stderr.write("hanging as asked\n")
            sys.stderr.flush()
            while True:
                time.sleep(3600.0)
        if "crash" in self._options:
            sys.stderr.write("crashing as asked\n")
            sys.stderr.flush()
            os.kill(os.getpid(), getattr(signal, self._options["crash"] or "SIGSEGV"))
        if "exit" in self._options:
            os._exit(int(self._number("exit", 3)))

    def rewind(self) -> None:
        """See :class:`stbench.agent.engine.Engine`."""
        self._past = []

    def reset_counters(self) -> None:
        """See :class:`stbench.agent.engine.Engine`."""
        self._tokens = 0

    def counters(self) -> Tuple[PhaseCounters, List[Tuple[int, int]]]:
        """See :class:`stbench.agent.engine.Engine`."""
        values = {name: 0 for name in COUNTER_NAMES}
        values.update(
            tokens=self._tokens, weight_bytes=4000 * self._tokens, neurons_examined=128 * self._tokens
        )
        values["neurons_active"] = 40 * self._tokens
        return PhaseCounters(**values), [(64 * self._tokens, 20 * self._tokens)] * 2

    def cache_counters(self) -> Optional[CacheCounters]:
        """See :class:`stbench.agent.engine.Engine`. Hits are the share of units that the cache holds."""
        if not self._settings.cache:
            return None
        unit = int(self._number("unit", UNIT_BYTES))
        requests = self._tokens * _LAYERS * _USED
        hits = requests * (self._cache.bytes // unit) // _UNITS
        values = dict.fromkeys(CACHE_COUNTER_NAMES, 0)
        values.update(requests=requests, hits=hits, loads=requests - hits, verified=requests - hits)
        values["bytes_read"] = unit * (requests - hits)
        return CacheCounters(**values)

    def cache_use(self, prefill: CacheCounters, decode: CacheCounters) -> CacheUse:
        """See :class:`stbench.agent.engine.Engine`."""
        settings, unit = self._settings, int(self._number("unit", UNIT_BYTES))
        return CacheUse(
            kind="experts",
            bundle=settings.bundle,
            bytes=self._cache.bytes // unit * unit,
            bytes_min=_USED * unit,
            units=self._cache.bytes // unit,
            unit_bytes=unit,
            total_bytes=_UNITS * unit,
            policy=settings.cache_policy,
            io=settings.io,
            direct=settings.io_direct == "on",
            prefetch=settings.prefetch,
            prefill=prefill,
            decode=decode,
            chosen=self._cache.why,
            static_hits=decode.hits + (decode.requests - decode.hits) // 4,
        )

    def account(self, n_tokens: int) -> MemoryAccount:
        """See :class:`stbench.agent.engine.Engine`."""
        kv_bytes = self._settings.n_ctx * _KV_BYTES
        used = self._settings.n_ctx if self._settings.kv_touch else n_tokens
        return MemoryAccount(0, 0, kv_bytes, used * _KV_BYTES, _SCRATCH_BYTES, self._cache.bytes)

    def routing(self) -> Optional[Routing]:
        """See :class:`stbench.agent.engine.Engine`. The same experts for every token."""
        experts = array("H", list(range(_USED)) * _LAYERS * self._tokens)
        return Routing(_LAYERS, _UNITS // _LAYERS, _USED, experts, "fake") if experts else None

    def timeline(self) -> Optional[Timeline]:
        """See :class:`stbench.agent.engine.Engine`."""
        return None

    def shift_replay(self, tokens: int) -> None:
        """See :class:`stbench.agent.engine.Engine`. Nothing that it computes depends on experts."""

    def close(self) -> None:
        """See :class:`stbench.agent.engine.Engine`."""
