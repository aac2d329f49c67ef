"""The report of the methodology page is what the code gives, and says what is claimed."""

from __future__ import annotations

import numpy as np
import pytest

from stbench.comparison import inference, simulation
from stbench.comparison.simulation import BEGIN, DOCS, END, NOISE, put_between_markers, simulate, stale


def test_the_committed_report_is_of_this_code() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert not stale(page, trials=200, sizes=(6, 9, 14))


def test_a_page_of_other_numbers_is_stale() -> None:
    page = DOCS.read_text(encoding="utf-8")
    head, begin, report = page.partition(BEGIN)
    for wrong in (report.replace("| 9 | 9", "| 9 | 6", 1), report.replace("| 9 |", "| 99 |")):
        assert wrong != report
        assert stale(head + begin + wrong, trials=100, sizes=(9,))


def test_every_committed_number_keeps_the_claims() -> None:
    numbers = simulation._numbers(DOCS.read_text(encoding="utf-8"))
    error = 500 * (0.05 * 0.95 / simulation.TRIALS) ** 0.5
    coverage = [value for (table, *_), value in numbers.items() if table.startswith("Coverage")]
    alarms = [value for (table, *_), value in numbers.items() if table.startswith("False")]
    assert len(coverage) == len(simulation.SIZES) * (len(NOISE) + 2)
    assert min(coverage) >= 95 - error
    assert max(alarms) <= 5 + error
    power = {(n, column): value for (table, n, column), value in numbers.items() if table == "Power"}
    assert power["10", 1] >= 80
    assert power["12", 1 + len(NOISE)] >= 80
    assert all(power["30", column] >= 80 for column in range(1, 2 * len(NOISE) + 1))


def test_tables_of_p_values_are_those_of_the_tests() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 5, 9))
    assert simulation.paired_ps(a, b) == pytest.approx([inference.signed_rank_p(d) for d in b - a])
    assert simulation.unpaired_ps(a, b) == pytest.approx(
        [inference.mann_whitney_p(x, y) for x, y in zip(a, b, strict=True)]
    )


def test_a_method_that_does_not_hold_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain percentile bootstrap at 7 replicates covers less than it says."""
    monkeypatch.setattr(inference, "_tail", lambda n, degrees: 0.025)
    assert simulate("log-normal", 7, 0.01, 0.02, paired=True, trials=1500).covered < 0.94


def test_only_what_is_between_the_markers_changes() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert put_between_markers(page, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    with pytest.raises(ValueError, match="lacks"):
        put_between_markers("a page", "new")
