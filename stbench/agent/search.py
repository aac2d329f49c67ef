"""``-t auto``: which of a few thread counts and CPU sets decodes fastest, measured on one loaded model.

On a board with big and little cores, or a PC with performance and efficiency cores, "all" is often slower
than the big ones alone, and memory may be saturated by half of them. Candidates come from the host
(:mod:`stbench.sweeps.candidates`) and take turns in several rounds, so that a slow minute hits all alike; one
that is hopeless in the first two is not measured again. Model and settings are those of the job; the context
is short."""

import dataclasses
import statistics
import time
from typing import Any, Callable, Dict, List, Sequence

from . import monitor
from .engine import Engine
from .sbr import NativeError, _abi
from .wire import Candidate, JobSpec, ThreadSearch
from .wiresearch import TriedCandidate

# Rows are shared between threads by the speed that they showed in the 8 steps before (base/balance.h of the
# runtime): untimed steps, and rounds on the same sessions, let threads of unequal speed find their shares.
ROUNDS = 5
WARMUP_TOKENS = 4
DECODE_TOKENS = 12
# No round begins later than this, seconds, but so many are always measured.
BUDGET_S = 60.0
FEWEST_ROUNDS = 2
# What took this many times as long as the fastest in the better of its first two rounds has lost: unequal
# threads that have not found their shares yet lose less, and a busy moment does not hit both.
HOPELESS = 2.0
# Of candidates whose time is within this of the shortest, the one with the fewest threads is taken: medians
# of five turns scatter by a few per cent, and threads that add nothing take power and CPUs from others.
TIE = 0.03

# Room for a turn's tokens.
_N_CTX = 64


def run(job: JobSpec, engine: Engine, report: Any, stream: Callable[[int, int], List[int]]) -> None:
    """Searches and reports the parts "search" and "telemetry". ``stream(count, n_vocab)`` gives tokens;
    ``report`` is a :class:`stbench.agent.measure.Report`. Raises ValueError without candidates, and
    NativeError when none of them could run."""
    if not job.candidates:
        raise ValueError("the search has no candidates")
    report.phase("load")
    n_batch = min(job.settings.n_batch, _N_CTX)
    settings = dataclasses.replace(job.settings, threads=1, cpus=[], n_ctx=_N_CTX, n_batch=n_batch)
    shape = engine.open(job.model, settings)
    report.part("shape", shape)
    report.part("warnings", engine.warnings())
    report.phase("search")
    tokens = stream(WARMUP_TOKENS + DECODE_TOKENS, shape.n_vocab)
    before = monitor.snapshot()
    tried = _race(engine, job.candidates, tokens)
    telemetry = monitor.telemetry(before, monitor.snapshot())
    if job.engine == "fake":
        # Made-up durations are not disturbed by what others do meanwhile.
        telemetry = dataclasses.replace(telemetry, other_cpu_s=None, steal_s=None)
    report.part("telemetry", telemetry)
    report.part("search", choose(tried))


def _race(engine: Engine, candidates: Sequence[Candidate], tokens: List[int]) -> List[TriedCandidate]:
    """All candidates, measured in turns."""
    rounds: Dict[int, List[List[int]]] = {index: [] for index in range(len(candidates))}
    failures: Dict[int, NativeError] = {}
    racing = list(rounds)
    begin = time.monotonic()
    for done in range(ROUNDS):
        if done >= FEWEST_ROUNDS and time.monotonic() - begin > BUDGET_S:
            break
        # There and back, so that no candidate always runs first.
        for index in racing if done % 2 == 0 else racing[::-1]:
            try:
                rounds[index].append(_turn(engine, candidates[index], tokens))
            except NativeError as error:
                if error.status == _abi.ERR_CANCELLED:
                    raise
                failures[index] = error
        racing = [index for index in racing if index not in failures]
        if not racing:
            raise next(iter(failures.values()))
        if done == FEWEST_ROUNDS - 1:
            shown = {index: min(statistics.median(times) for times in rounds[index]) for index in racing}
            racing = [index for index in racing if shown[index] <= HOPELESS * min(shown.values())]
    return [
        TriedCandidate(
            candidate,
            rounds[index],
            0 if index in failures else _median(rounds[index]),
            str(failures[index]) if index in failures else "",
        )
        for index, candidate in enumerate(candidates)
    ]


def _turn(engine: Engine, candidate: Candidate, tokens: List[int]) -> List[int]:
    engine.use_threads(candidate.threads, candidate.cpus)
    engine.decode(tokens[:WARMUP_TOKENS], [], False)
    return engine.decode(tokens[WARMUP_TOKENS:], [], False).token_ns


def _median(rounds: List[List[int]]) -> int:
    return int(statistics.median(statistics.median(times) for times in rounds))


def choose(tried: Sequence[TriedCandidate]) -> ThreadSearch:
    """The fastest, or the one with the fewest threads among those within TIE of it. Raises ValueError when
    nothing was measured."""
    measured = [index for index, one in enumerate(tried) if one.median_ns > 0]
    if not measured:
        raise ValueError("no candidate was measured")
    fastest = min(measured, key=lambda index: tried[index].median_ns)
    limit = (1 + TIE) * tried[fastest].median_ns
    tied = [index for index in measured if tried[index].median_ns <= limit]
    chosen = min(tied, key=lambda index: (tried[index].candidate.threads, tried[index].median_ns))
    return ThreadSearch(list(tried), chosen, _why(tried, fastest, chosen))


def _why(tried: Sequence[TriedCandidate], fastest: int, chosen: int) -> str:
    rule = "the fastest"
    if tried[chosen].candidate.threads < tried[fastest].candidate.threads:
        rule = "within %g %% of the fastest with fewer threads" % (100 * TIE)
    others = [_said(one) for index, one in enumerate(tried) if index != chosen]
    text = "%s, %s" % (_said(tried[chosen]), rule)
    return text + ("; tried, too: %s" % ", ".join(others) if others else "")


def _said(one: TriedCandidate) -> str:
    if not one.median_ns:
        return "%s failed (%s)" % (described(one.candidate), one.detail)
    return "%s at %.3g ms a token" % (described(one.candidate), one.median_ns / 1e6)


def described(candidate: Candidate) -> str:
    """ "4 threads on CPUs 4,5,6,7 (4 x Cortex-A76)"."""
    threads = "%d thread%s" % (candidate.threads, "" if candidate.threads == 1 else "s")
    if not candidate.cpus:
        return threads
    plural = "" if len(candidate.cpus) == 1 else "s"
    return "%s on CPU%s %s (%s)" % (threads, plural, ",".join(map(str, candidate.cpus)), candidate.name)
