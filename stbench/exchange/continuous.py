"""Cases -> what continuous-benchmarking services read: github-action-benchmark and Bencher.

Both want one number per name, so a case leaves as its median with the interval (under 6 replicates: the
range) that tables show.
"""

from __future__ import annotations

import json
from typing import Any

from stbench.exchange.selection import METRICS, Case, Selection


def github_action_benchmark(selection: Selection) -> str:
    """The JSON of its tool ``customBiggerIsBetter``: name, unit, value, range, extra."""
    entries = []
    for case in selection.cases:
        for metric, name, unit in METRICS:
            estimate = case.estimate(metric)
            if estimate is None:
                continue
            kind = "interval" if estimate.kind == "interval" else "range"
            entries.append(
                {
                    "name": f"{case.label} {name}",
                    "unit": unit,
                    "value": round(estimate.median, 4),
                    "range": f"{estimate.low:.4g}…{estimate.high:.4g}",
                    "extra": "\n".join([f"{kind} of {estimate.n} processes", *_facts(case)]),
                }
            )
    return json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def bencher(selection: Selection) -> str:
    """Bencher Metric Format: benchmark -> measure -> value with its lower and upper end. Thresholds, units
    and what is better belong to the measures of a Bencher project, which the documentation lists."""
    found: dict[str, Any] = {}
    for case in selection.cases:
        measures: dict[str, Any] = {}
        for metric, name, _ in METRICS:
            estimate = case.estimate(metric)
            if estimate is not None:
                measures[f"{name}-tokens-per-second"] = {
                    "value": round(estimate.median, 4),
                    "lower_value": round(estimate.low, 4),
                    "upper_value": round(estimate.high, 4),
                }
        for metric, name in (("ttft_ms", "time-to-first-token-ms"), ("peak_rss_bytes", "peak-rss-bytes")):
            estimate = case.estimate(metric)
            if estimate is not None:
                measures[name] = {"value": round(estimate.median, 4)}
        if measures:
            found[case.label] = measures
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _facts(case: Case) -> list[str]:
    """What a reader of a chart must know of the number."""
    rows = [run.row for run in case.runs]
    said = [f"output check: {', '.join(sorted({str(row['check']) for row in rows}))}"]
    if any(row["synthetic"] for row in rows):
        said.append("synthetic weights")
    if any(row["memory_limit_bytes"] > 0 for row in rows):
        said.append(
            f"memory limit: {', '.join(sorted({str(row['limit_verdict']) or 'unproved' for row in rows}))}"
        )
    throttled = sorted({str(row["throttled"]) for row in rows})
    said.append(f"throttled: {', '.join(throttled)}")
    if any(row["disturbed"] for row in rows):
        said.append("disturbed")
    if any(row["provenance"] == "imported" for row in rows):
        said.append("imported, not measured by stbench")
    return said
