"""What is said of the number of threads on devices that were published with four."""

from __future__ import annotations

from stbench.tables.grid import build_tables
from tests.tables.factory import record


def said(*measured: tuple[str, int]) -> str:
    """Of cells with these models and threads, on a device whose published numbers are of four threads."""
    records = [
        record(model, device="i9-14900", threads=threads, replicate=i)
        for model, threads in measured
        for i in range(6)
    ]
    (note,) = [note for note in build_tables(records)[0].notes if "affinity" in note]
    return note


def test_as_published_is_said_of_what_was_measured_so() -> None:
    assert "threads 4 in every cell (4 as published)" in said(("smallthinker-4b", 4), ("smallthinker-4b", 2))
    other = "threads 2 in every cell (4 are published and were not measured; the fastest number that was)"
    assert other in said(("smallthinker-4b", 2))
    mixed = (
        "threads 2, 4 by cell (4 as published; where these were not measured, the fastest number that was)"
    )
    assert mixed in said(("smallthinker-4b", 4), ("qwen3-0.6b", 2))
