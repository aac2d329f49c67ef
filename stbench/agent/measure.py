"""One job, measured: load, warm up, prefill, teacher-forced decode, check.

Runs in a process of its own (:mod:`stbench.agent.supervise`) and reports each part as soon as it has it, so a
crash keeps what was known before. The order of phases:

1. *load*: model and session; every page of weights and KV cache is touched when the settings say so.
2. *warm-up*: ``warmup_tokens`` prefilled and as many decoded from a stream of their own, then forgotten; of
   a warm start round after round, until the cache of units is full.
3. *depth*: ``n_depth`` tokens, untimed.
4. *prefill*: the prompt, timed per batch.
5. *decode*: timed per token. A cache of units is as warm as the tokens before left it: its counters of this
   phase are of the timed tokens alone.
6. *check*: logits kept at fixed positions are compared with the reference. Memory is read before this, after
   the last timed token.
"""

import dataclasses
import hashlib
import os
import time
from typing import Any, Dict, List, Optional, Protocol, Tuple

from . import (
    __version__,
    affinity,
    engines,
    model_file,
    monitor,
    probe,
    programs,
    replay,
    search,
    timelines,
    verify,
)
from .engine import Decode, Engine, Prefill
from .routing import Routing
from .tree import Tree
from .wire import CacheCounters, Counters, JobSpec, Memory, ModelShape, PhaseCounters, Samples, Versions

# Streams of one seed that share no state.
_WORKLOAD_STREAM = 0
_WARMUP_STREAM = 1

# A warm start: rounds of so many tokens prefilled and as many decoded, at most so many. A cache is full when
# it evicts; one that never has to is as warm as it gets when it misses less than this share.
_WARM_TOKENS, _WARM_ROUNDS, _WARM_MISSES = 32, 16, 0.01


class Report(Protocol):
    """Where results go while a job runs."""

    def phase(self, name: str) -> None:
        """What is being done from now on."""
        ...

    def part(self, name: str, value: Any) -> None:
        """A field of the record: a wire message, or plain JSON."""
        ...


def token_stream(seed: int, count: int, n_vocab: int, stream: int = _WORKLOAD_STREAM) -> List[int]:
    """``count`` token ids below ``n_vocab``, never the same twice in a row; equal on every machine and for
    every engine.

    The generator is splitmix64, its state starting at ``seed * 0x9E3779B97F4A7C15 + stream`` (mod 2^64). A
    64-bit number x gives the id ``x * n_vocab >> 64``; an id equal to the one before becomes ``(id + 1) %
    n_vocab``. Varied on purpose: one repeated token would use the same experts again and again, and what a
    random model generates by itself soon runs in circles.

    Raises ValueError for an empty vocabulary.
    """
    if n_vocab < 1:
        raise ValueError("a vocabulary of %d tokens" % n_vocab)
    state = (seed * 0x9E3779B97F4A7C15 + stream) & ((1 << 64) - 1)
    tokens: List[int] = []
    last = -1
    for _ in range(count):
        state, number = verify.splitmix64(state)
        token = number * n_vocab >> 64
        if token == last:
            token = (token + 1) % n_vocab
        tokens.append(token)
        last = token
    return tokens


def measure(job: JobSpec, report: Report) -> None:
    """Does the whole job; one whose engine is a program in :mod:`stbench.agent.programs`. What goes wrong is
    raised: NativeError, OSError, MemoryError, ValueError."""
    if job.program is not None:
        programs.measure(job, report)
        return
    report.phase("start")
    work_path = job.model.path if os.path.exists(job.model.path) else "/"
    report.part("facts", probe.probe(work_path=work_path))
    baseline = _resident().get("VmHWM")
    engine = engines.create(job.engine, job.library)
    try:
        report.part("facts", probe.probe(isas=engine.isas(), work_path=work_path))
        report.part("versions", Versions(__version__, engine.build_info(), _file_digest(job.library)))
        if job.purpose == "search":
            report.part("model", model_file.with_digest(job.model))
            search.run(job, engine, report, lambda count, n_vocab: _search_stream(job, count, n_vocab))
        else:
            _Run(job, engine, report, baseline).run()
    finally:
        engine.close()


def _search_stream(job: JobSpec, count: int, n_vocab: int) -> List[int]:
    return token_stream(job.workload.seed, count, n_vocab, _WARMUP_STREAM)


class _Run:
    def __init__(self, job: JobSpec, engine: Engine, report: Report, baseline: Optional[int]) -> None:
        self.job = job
        self.engine = engine
        self.report = report
        self.baseline = baseline
        self.is_reference = job.purpose == "reference"
        if job.purpose not in ("measure", "reference"):
            raise ValueError('purpose "%s": expected measure, reference or search' % job.purpose)
        settings = job.settings
        self.settings = verify.reference_settings(settings) if self.is_reference else settings
        self.is_limited = bool(self.settings.memory_limit_bytes or self.settings.cache)
        self.warmed = 0
        self.before_turn: Optional[CacheCounters] = None

    def run(self) -> None:
        job, engine, report = self.job, self.engine, self.report
        model = model_file.with_digest(job.model)
        report.part("model", model)
        workload = job.workload
        total = self._n_tokens()
        if min(workload.n_depth, workload.n_prompt, workload.n_gen) < 0 or total == 0:
            raise ValueError("the workload evaluates no tokens")
        if total > self.settings.n_ctx:
            raise ValueError("the workload is %d tokens and n_ctx %d" % (total, self.settings.n_ctx))

        report.phase("load")
        shape = engine.open(model, self.settings)
        report.part("shape", shape)
        report.part("warnings", engine.warnings())
        tokens = token_stream(workload.seed, total, shape.n_vocab)
        if not self.is_reference:
            self._warm_up(shape)
        report.part("effective", engine.effective())

        report.phase("depth")
        prompt_begin, prompt_end = workload.n_depth, workload.n_depth + workload.n_prompt
        if workload.n_depth:
            engine.prefill(tokens[:prompt_begin], False)
        captured = self._timed(shape, tokens[prompt_begin:prompt_end], tokens[prompt_end:])
        # With what was chosen and where threads went meanwhile.
        effective = engine.effective()
        kept, strays = affinity.judged(self.settings, effective)
        report.part("effective", dataclasses.replace(effective, affinity_kept=kept))
        if strays:
            report.part("warnings", [*engine.warnings(), *strays])

        report.phase("check")
        if self.is_reference:
            key = verify.reference_key(dataclasses.replace(job, model=model))
            threshold = self.settings.lm_head_threshold
            report.part("reference", verify.make_reference(captured, key, model.digest, threshold))
        else:
            reference = job.reference
            if reference is not None and model.digest and reference.model_digest not in ("", model.digest):
                raise ValueError("the reference is of another model file")
            report.part("check", verify.check(captured, reference))

    def _warm_up(self, shape: ModelShape) -> None:
        count, rounds = self.job.warmup_tokens, 1
        if self.settings.start == "warm" and self.settings.cache:
            count, rounds = max(count, _WARM_TOKENS), _WARM_ROUNDS
        count = min(count, self.settings.n_ctx // 2)
        if count < 1:
            return
        self.report.phase("warm-up")
        tokens = token_stream(self.job.workload.seed, 2 * count * rounds, shape.n_vocab, _WARMUP_STREAM)
        while tokens and not self._is_warm():
            turn, tokens = tokens[: 2 * count], tokens[2 * count :]
            self.warmed += len(turn)
            self.before_turn = self.engine.cache_counters()
            # What is replayed here is what comes before the run's first token in the trace, so that a cache
            # is not warmed with the very experts that are timed next.
            self.engine.shift_replay(self.warmed)
            self.engine.prefill(turn[:count], True)
            self.engine.decode(turn[count:], [], False)
            self.engine.rewind()
        self.engine.shift_replay(0)

    def _is_warm(self) -> bool:
        """Whether the last round of the warm-up found the cache full."""
        now, before = self.engine.cache_counters(), self.before_turn
        if now is None or before is None:
            return False
        missed = (now.requests - now.hits) - (before.requests - before.hits)
        return now.evictions > before.evictions or missed <= _WARM_MISSES * (now.requests - before.requests)

    def _timed(self, shape: ModelShape, prompt: List[int], generated: List[int]) -> verify.Captured:
        engine, report = self.engine, self.report
        steps = verify.positions(len(generated))
        want_scores = self.is_reference and self.settings.sparse_lm_head
        before = monitor.snapshot()

        report.phase("prefill")
        engine.reset_counters()
        ttft_ns, prefilled = 0, Prefill([], [], None)
        if prompt:
            begin = time.monotonic_ns()
            prefilled = engine.prefill(prompt, True)
            ttft_ns = time.monotonic_ns() - begin
        prefill_counters, prefill_layers = engine.counters()
        prefill_cache, chosen = engine.cache_counters(), [self._chosen()]

        report.phase("decode")
        engine.reset_counters()
        decoded = Decode([], [], [])
        if generated:
            decoded = engine.decode(generated, steps, want_scores)
        # Ends the phase for whoever watches: what follows is not decoding.
        report.phase("results")
        decode_counters, decode_layers = engine.counters()
        decode_cache = engine.cache_counters()
        chosen.append(self._chosen())

        memory = self._memory(len(steps) * shape.n_vocab * 4 * (2 if want_scores else 1))
        if not self.is_reference:
            after = monitor.snapshot()
            samples = Samples(ttft_ns, prefilled.batch_ns, prefilled.batch_tokens, decoded.token_ns)
            report.part("samples", samples)
            report.part("memory", memory)
            report.part(
                "counters", _counters(prefill_counters, decode_counters, prefill_layers, decode_layers)
            )
            telemetry = monitor.telemetry(before, after)
            if self.job.engine == "fake":
                # Made-up durations are not disturbed by what others do meanwhile.
                telemetry = dataclasses.replace(telemetry, other_cpu_s=None, steal_s=None)
            report.part("telemetry", telemetry)
            if prefill_cache is not None and decode_cache is not None:
                used = engine.cache_use(prefill_cache, decode_cache)
                report.part("cache", dataclasses.replace(used, warmup_tokens=self.warmed))
            if self.is_limited:
                report.part("account", engine.account(self._n_tokens()))
            self._keep_routing(chosen)
            self._keep_timeline()
        if generated:
            return verify.Captured(steps, shape.n_vocab, decoded.logits, decoded.scores)
        if prompt:
            return verify.Captured([verify.PROMPT_END], shape.n_vocab, [prefilled.logits])
        return verify.Captured([], shape.n_vocab, [])

    def _n_tokens(self) -> int:
        workload = self.job.workload
        return workload.n_depth + workload.n_prompt + workload.n_gen

    def _chosen(self) -> Optional[Routing]:
        """The routing of a phase that just ended, where it is recorded."""
        return self.engine.routing() if self.settings.record_routing else None

    def _keep_routing(self, chosen: List[Optional[Routing]]) -> None:
        path = self.settings.record_routing
        if not path:
            return
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        kept = replay.kept(path, chosen, "recorded by %s" % self.job.label)
        if kept is not None:
            self.report.part("routing", kept)

    def _keep_timeline(self) -> None:
        path = self.settings.timeline
        if not path:
            return
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        threads = self.engine.effective().threads
        kept = timelines.kept(path, self.engine.timeline(), threads, self.job.label)
        if kept is not None:
            self.report.part("profile", kept)

    def _memory(self, capture_bytes: int) -> Memory:
        now = _resident()
        return Memory(
            peak_rss_bytes=now.get("VmHWM", 0),
            rss_anon_bytes=now.get("RssAnon"),
            rss_file_bytes=now.get("RssFile"),
            baseline_rss_bytes=self.baseline,
            capture_bytes=capture_bytes,
        )


def _counters(
    prefill: PhaseCounters,
    decode: PhaseCounters,
    prefill_layers: List[Tuple[int, int]],
    decode_layers: List[Tuple[int, int]],
) -> Counters:
    pairs = list(zip(prefill_layers, decode_layers))
    return Counters(
        prefill=prefill,
        decode=decode,
        layer_neurons_examined=[a[0] + b[0] for a, b in pairs],
        layer_neurons_active=[a[1] + b[1] for a, b in pairs],
    )


def _resident() -> Dict[str, int]:
    """Memory lines of /proc/self/status in bytes."""
    tree = Tree()
    fields = tree.fields("proc/self/status")
    sizes = {key: tree.kibibytes(fields, key) for key in ("VmHWM", "RssAnon", "RssFile")}
    return {key: size for key, size in sizes.items() if size is not None}


def _file_digest(path: str) -> str:
    """SHA-256 of a small file; "" when there is none."""
    if not path:
        return ""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""
