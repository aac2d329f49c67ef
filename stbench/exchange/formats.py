"""The formats that ``stbench export`` knows, each with what it cannot hold (docs/exchange.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stbench.exchange import continuous, junit, llama_rows, parquet, pytest_benchmark
from stbench.exchange.selection import Selection


@dataclass(frozen=True)
class Format:
    """``write`` gives text, or bytes for a file that is none. ``whole``: also runs without a number are in
    it. ``lost``: what it cannot hold, in one sentence."""

    write: Callable[[Selection], str | bytes]
    whole: bool
    lost: str


FORMATS = {
    "llama-bench-jsonl": Format(
        llama_rows.jsonl,
        False,
        "single tokens, checks of output, proof of limits, telemetry, failed runs; time to first token",
    ),
    "llama-bench-sql": Format(
        llama_rows.sql, False, "what llama-bench-jsonl cannot, samples, and which run a row is of"
    ),
    "pytest-benchmark": Format(
        pytest_benchmark.pytest_benchmark,
        False,
        "single tokens, proof of limits, telemetry, failed runs; a round is a process's mean time of a token",
    ),
    "github-action-benchmark": Format(
        continuous.github_action_benchmark,
        False,
        "replicates: one median per case, with its interval as text; first token and memory, of which less "
        "is better; failed runs",
    ),
    "bencher": Format(
        continuous.bencher, False, "replicates, units, marks (synthetic, disturbed, unchecked); failed runs"
    ),
    "junit": Format(junit.junit, True, "numbers, other than as text of a case's output; samples"),
    "parquet": Format(parquet.parquet, True, "nothing: the column record has each record as JSON"),
}
