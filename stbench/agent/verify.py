"""Did a run compute the right thing? Its logits against those of a slow reference run.

A *reference* is what the scalar kernels compute for the same model, token stream and sparsity switches. At
up to 16 decode steps it keeps a small part of the logits: the 16 largest rows and 240 rows drawn once from
a fixed pseudo-random sequence, each with 9 significant digits, which is enough to give back the same
float32.

A run is right when on these rows ``|delta logit| <= 1e-2 * sd(logits)``, when its largest logit is the
reference's wherever the reference's two largest are further apart than that, and when the lm_head predictor
kept the same rows, rows whose score lies within ``1e-2 * sd(scores)`` of the threshold excepted.

All kernels of the runtime compute the same floats (docs/arithmetic.md), so how many positions are equal to
the last bit is reported beside the verdict, and ``output_hash`` can be compared between machines.

Pure Python on purpose (the agent has no numpy): about 50 ms per position of 151936 rows on a desktop core,
after the timed part.
"""

import dataclasses
import hashlib
import heapq
import json
import math
import operator
import sys
from array import array
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

from .wire import Check, JobSpec, Reference, ReferencePosition, Settings, to_json

TOLERANCE = 1e-2
MAX_POSITIONS = 16
TOP_ROWS = 16
RANDOM_ROWS = 240
# A predictor that keeps 1 % leaves one finite row in a hundred draws; beyond this the sample is just smaller.
MAX_DRAWS = 64 * RANDOM_ROWS
# The step number of "the end of the prompt", the only position of a workload that generates nothing.
PROMPT_END = -1

_NEGATIVE_INFINITY = float("-inf")
_MASK = (1 << 64) - 1


class Captured(NamedTuple):
    """What a run kept for the check: one row of ``n_vocab`` float32 per step, in step order. ``scores`` is
    empty when the predictor did not run or was not asked for."""

    steps: List[int]
    n_vocab: int
    logits: Sequence[Any]
    scores: Sequence[Any] = ()


def splitmix64(state: int) -> Tuple[int, int]:
    """The generator behind everything seeded here: returns (next state, 64-bit number)."""
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return state, z ^ (z >> 31)


def positions(n_gen: int) -> List[int]:
    """Up to 16 of ``n_gen`` decode steps, evenly spread, the first and the last among them."""
    if n_gen <= MAX_POSITIONS:
        return list(range(n_gen))
    return [i * (n_gen - 1) // (MAX_POSITIONS - 1) for i in range(MAX_POSITIONS)]


def reference_key(job: JobSpec) -> str:
    """What a reference depends on: model, workload and every setting that changes results. Threads, ISA,
    batch and context size do not, nor do memory limits and caches; a routing that is replayed does. 16
    hexadecimal digits."""
    settings = job.settings
    identity = {
        "model": job.model.digest or job.model.name,
        "workload": to_json(job.workload),
        "kv_type": settings.kv_type,
        "sparse_ffn": settings.sparse_ffn,
        "sparse_lm_head": settings.sparse_lm_head,
        "lm_head_threshold": settings.lm_head_threshold if settings.sparse_lm_head else None,
        "requantise_down": settings.requantise_down,
        "tolerance": TOLERANCE,
    }
    if settings.routing_digest:
        identity["routing"] = settings.routing_digest
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def reference_settings(settings: Settings) -> Settings:
    """How the reference of a job with these settings is computed: by the scalar kernels, all weights in
    memory and no limit on it."""
    unlimited = Settings()
    return dataclasses.replace(
        settings,
        isa="scalar",
        load="mmap",
        memory_limit_bytes=0,
        cache="",
        bundle="",
        cache_policy=unlimited.cache_policy,
        io=unlimited.io,
        io_direct=unlimited.io_direct,
        prefetch=unlimited.prefetch,
        start=unlimited.start,
        record_routing="",
        timeline="",
    )


# ---- one position ------------------------------------------------------------------------------------


def _floats(row: Any) -> "array[float]":
    values = array("f")
    values.frombytes(memoryview(row).cast("B"))
    return values


def _hash(values: "array[Any]") -> str:
    if sys.byteorder == "big":
        values = array(values.typecode, values)
        values.byteswap()
    return hashlib.sha256(values).hexdigest()


def _spread(values: Sequence[float]) -> float:
    """The standard deviation. fsum is exact, so every Python gives the same digits."""
    n = len(values)
    if n == 0:
        return 0.0
    mean = math.fsum(values) / n
    return math.sqrt(max(0.0, math.fsum(map(operator.mul, values, values)) / n - mean * mean))


def _kept(row: "array[float]", borderline: Sequence[int]) -> Tuple[int, str]:
    """How many rows are not excluded, and a hash over their indices without the borderline ones."""
    kept = [i for i, value in enumerate(row) if value != _NEGATIVE_INFINITY]
    count = len(kept)
    if borderline:
        unsure = set(borderline)
        kept = [i for i in kept if i not in unsure]
    return count, _hash(array("I", kept))


def _sample_rows(row: "array[float]", top: Sequence[int], borderline: Sequence[int]) -> List[int]:
    chosen = dict.fromkeys(top)
    unsure = set(borderline)
    state = 0
    wanted = len(chosen) + min(RANDOM_ROWS, len(row) - len(chosen))
    for _ in range(MAX_DRAWS):
        if len(chosen) >= wanted:
            break
        state, number = splitmix64(state)
        index = number * len(row) >> 64
        if index not in unsure and math.isfinite(row[index]):
            chosen[index] = None
    return sorted(chosen)


def _digits(value: float) -> float:
    return float("%.9g" % value)


def _reference_position(
    step: int, row: "array[float]", scores: Optional["array[float]"], threshold: float
) -> ReferencePosition:
    finite = array("f", filter(math.isfinite, row))
    if len(finite) + row.count(_NEGATIVE_INFINITY) != len(row) or not finite:
        raise ValueError("the reference run computed logits that are not numbers at step %d" % step)
    borderline: List[int] = []
    n_kept, kept_hash = 0, ""
    if scores is not None:
        near = TOLERANCE * _spread(scores)
        borderline = [i for i, score in enumerate(scores) if abs(score - threshold) <= near]
        n_kept, kept_hash = _kept(row, borderline)
    elif len(finite) != len(row):
        raise ValueError("the reference run left rows out of a dense lm_head at step %d" % step)
    top = heapq.nlargest(min(TOP_ROWS, len(finite)), range(len(row)), key=row.__getitem__)
    margin = row[top[0]] - row[top[1]] if len(top) > 1 else 0.0
    rows = _sample_rows(row, top, borderline)
    return ReferencePosition(
        step=step,
        sd=_digits(_spread(finite)),
        argmax=top[0],
        margin=_digits(margin),
        rows=rows,
        logits=[_digits(row[i]) for i in rows],
        logits_hash=_hash(row),
        n_kept=n_kept,
        kept_hash=kept_hash,
        borderline=borderline,
    )


# ---- a run -------------------------------------------------------------------------------------------


def make_reference(captured: Captured, key: str, model_digest: str, threshold: float) -> Reference:
    """The reference that later runs are held against. Raises ValueError when the logits are no numbers."""
    found = []
    for i, step in enumerate(captured.steps):
        scores = _floats(captured.scores[i]) if captured.scores else None
        found.append(_reference_position(step, _floats(captured.logits[i]), scores, threshold))
    return Reference(key=key, model_digest=model_digest, positions=found)


def check(captured: Captured, reference: Optional[Reference]) -> Check:
    """Compares a run with its reference; "unchecked" when there is none.

    Raises ValueError when the reference is of other steps or of another vocabulary.
    """
    rows = [_floats(row) for row in captured.logits]
    hashes = [_hash(row) for row in rows]
    output_hash = hashlib.sha256("".join(hashes).encode()).hexdigest()
    if reference is None:
        return Check("unchecked", output_hash, len(rows), detail="no reference was given")
    if [position.step for position in reference.positions] != captured.steps:
        raise ValueError("the reference is of other decode steps than this run's")
    worst = 0.0
    argmax_equal = kept_equal = bit_equal = 0
    faults: List[str] = []
    for position, row, row_hash in zip(reference.positions, rows, hashes):
        if max(position.rows) >= captured.n_vocab:
            raise ValueError("the reference is of a model with a larger vocabulary")
        if row_hash == position.logits_hash:
            bit_equal += 1
            argmax_equal += 1
            kept_equal += 1
            continue
        distance, same_argmax, same_kept, found = _compare(position, row)
        worst = max(worst, distance)
        argmax_equal += same_argmax
        kept_equal += same_kept
        faults.extend("step %d: %s" % (position.step, fault) for fault in found)
    return Check(
        verdict="wrong" if faults else "ok",
        output_hash=output_hash,
        positions=len(rows),
        worst=_digits(worst) if math.isfinite(worst) else None,
        argmax_equal=argmax_equal,
        kept_equal=kept_equal,
        bit_equal=bit_equal,
        reference=reference.key,
        detail="; ".join(faults[:3]) + ("; and %d more" % (len(faults) - 3) if len(faults) > 3 else ""),
    )


def _compare(position: ReferencePosition, row: "array[float]") -> Tuple[float, bool, bool, List[str]]:
    """(largest difference in sd, argmax equal, kept rows equal, what is wrong)."""
    faults = []
    excluded = row.count(_NEGATIVE_INFINITY)
    if sum(map(math.isfinite, row)) + excluded != len(row):
        return math.inf, False, False, ["logits that are not numbers"]

    unsure = set(position.borderline)
    worst, worst_row = 0.0, -1
    for index, expected in zip(position.rows, position.logits):
        if index in unsure and row[index] == _NEGATIVE_INFINITY:
            continue
        difference = abs(row[index] - expected)
        if difference > 0.0:
            difference = difference / position.sd if position.sd > 0.0 else math.inf
        if difference > worst:
            worst, worst_row = difference, index
    if worst > TOLERANCE:
        faults.append("the logit of row %d is off by %.3g sd" % (worst_row, worst))

    argmax = row.index(max(row))
    decided = position.margin > TOLERANCE * position.sd and not unsure.intersection((argmax, position.argmax))
    if argmax != position.argmax and decided:
        faults.append("the largest logit is row %d, not %d" % (argmax, position.argmax))

    if position.kept_hash:
        n_kept, kept_hash = _kept(row, position.borderline)
        same_kept = kept_hash == position.kept_hash
        if not same_kept:
            faults.append("the lm_head kept other rows (%d, not %d)" % (n_kept, position.n_kept))
    else:
        same_kept = excluded == 0
        if not same_kept:
            faults.append("%d rows of a dense lm_head were left out" % excluded)
    return worst, argmax == position.argmax, same_kept, faults
