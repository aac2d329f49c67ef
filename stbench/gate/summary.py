"""Findings as a table, as the Markdown of a pull request, and as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stbench.comparison.compare import Comparison
from stbench.comparison.verdict_table import n_text, ratio_text
from stbench.gate.baseline_file import Baseline
from stbench.gate.judging import FAILED, IMPROVED, INCONCLUSIVE, REGRESSED, UNCHANGED, Finding, ordered
from stbench.gate.thresholds import Metric
from stbench.tables import render
from stbench.tables.table import Cell, Column, Row, Table
from stbench.wording import clean, count, number

_COLUMNS = (
    Column("case", "Case", "label"),
    Column("metric", "metric", "text"),
    Column("a", "baseline", "text"),
    Column("b", "now", "text"),
    Column("ratio", "now / baseline", "ratio"),
    Column("n", "n", "text"),
    Column("threshold", "threshold", "text"),
    Column("verdict", "verdict", "text"),
)

# What a pull request shows without unfolding.
_TELLING = (REGRESSED, FAILED, INCONCLUSIVE, IMPROVED)


def table(findings: Sequence[Finding], title: str, notes: Sequence[str] = ()) -> Table:
    """One row per finding, the worst first, with the reasons below."""
    listed = ordered(findings)
    rows = tuple(Row(f"finding:{i}", one.label, _cells(one)) for i, one in enumerate(listed))
    reasons = [f"{named(one)}: {one.reason}" for one in listed if one.reason]
    floors = [one.comparison.floor for one in listed if one.comparison is not None]
    if floors and not any(floors):
        reasons.append("The device's noise is not known for these cases (`stbench noise` measures it).")
    return Table("check", title, _COLUMNS, rows, (*reasons, *notes))


def named(finding: Finding) -> str:
    """Case and metric in words."""
    return f"{finding.label} {finding.metric.text}" if finding.metric else finding.label


def sentence(finding: Finding) -> str:
    """What was found, with its numbers, in one line."""
    found, metric = finding.comparison, finding.metric
    if found is None or metric is None:
        return clean(f"{finding.verdict}: {finding.reason}", 400)
    numbers = f"{amount(found.a.median, metric)} → {amount(found.b.median, metric)}"
    ratio = ratio_text(found.ratio, found.low, found.high, found.kind, found.n)
    threshold = f"threshold {100 * found.threshold:.2g} %"
    text = f"{finding.verdict}: {metric.text} {numbers}, now / baseline {ratio}, {threshold}"
    return clean(f"{text}; {finding.reason}" if finding.reason else text, 600)


def verdict_line(findings: Sequence[Finding]) -> str:
    """How many of which verdict: ``1 regressed, 3 unchanged``."""
    counts = Counter(finding.verdict for finding in findings)
    order = (REGRESSED, FAILED, INCONCLUSIVE, IMPROVED, UNCHANGED)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in order if counts[verdict]) or "no case"


def markdown(findings: Sequence[Finding], baseline: Baseline, title: str, notes: Sequence[str] = ()) -> str:
    """For a pull request: the verdict, what changed, and all of the rest folded away."""
    told = [one for one in findings if one.verdict in _TELLING]
    lines = [f"## {title}: {verdict_line(findings)}", ""]
    if told:
        lines += [render.markdown([table(told, "What a reviewer should see", notes)]).rstrip(), ""]
    rest = [one for one in findings if one.verdict not in _TELLING]
    if rest:
        body = render.markdown([table(rest, "Unchanged", () if told else notes)]).rstrip()
        lines += [f"<details><summary>{count(len(rest), 'unchanged number')}</summary>", "", body, ""]
        lines += ["</details>", ""]
    return "\n".join([*lines, _provenance(baseline), ""])


def _provenance(baseline: Baseline) -> str:
    boards = [
        f"{clean(name, 40)} ({clean(str(about.get('cpu_model', '')), 60)})"
        for name, about in sorted(baseline.devices.items())
    ]
    libraries = sorted({str(case.settings["library"])[:12] for case in baseline.cases} - {""})
    campaigns = sorted({clean(str(case.settings["campaign"]), 60) for case in baseline.cases})
    shaky = sum(bool(case.disturbed) for case in baseline.cases)
    return (
        f"Baseline: {', '.join(campaigns)} on {', '.join(boards) or 'a device that is not known'}, "
        f"library {', '.join(libraries) or 'not known'}."
        + (f" The runs of {count(shaky, 'case')} were disturbed when it was taken." if shaky else "")
    )


def json_of(findings: Sequence[Finding], code: int, notes: Sequence[str]) -> dict[str, Any]:
    """All findings, JSON-ready."""
    return {
        "exit_code": code,
        "findings": [
            {
                "device": one.device,
                "case": one.label,
                "metric": one.metric.name if one.metric else None,
                "higher_is_better": one.metric.higher_is_better if one.metric else None,
                "verdict": one.verdict,
                "reason": one.reason,
                "comparison": _json(one.comparison),
                "first": _json(one.first),
            }
            for one in ordered(findings)
        ],
        "notes": list(notes),
    }


def _json(found: Comparison | None) -> dict[str, Any] | None:
    # Its verdict is on B / A, without the metric's direction: only the finding's counts.
    return None if found is None else {**dataclasses.asdict(found), "test": found.test}


def amount(value: float, metric: Metric) -> str:
    """A number with its unit; memory in MiB."""
    if metric.unit == "bytes":
        return f"{value / 2**20:.1f} MiB"
    return f"{number(value)} {metric.unit}"


def _cells(finding: Finding) -> dict[str, Cell]:
    found, metric = finding.comparison, finding.metric
    verdict = finding.verdict
    if found is None or metric is None:
        return {"metric": Cell(metric.text if metric else "—"), "verdict": Cell(verdict)}
    if verdict == INCONCLUSIVE and found.repetitions is not None:
        verdict = f"{verdict}, about {found.repetitions} replicates would settle it"
    if finding.measured_again:
        verdict += ", measured again"
    return {
        "metric": Cell(metric.text),
        "a": Cell(amount(found.a.median, metric), value=found.a.median),
        "b": Cell(amount(found.b.median, metric), value=found.b.median),
        "ratio": Cell(ratio_text(found.ratio, found.low, found.high, found.kind, found.n), value=found.ratio),
        "n": Cell(n_text(found)),
        "threshold": Cell(f"{100 * found.threshold:.2g} %"),
        "verdict": Cell(verdict),
    }
