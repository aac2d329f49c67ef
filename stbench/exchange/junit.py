"""Runs -> JUnit XML, one test case per process: what went wrong shows where test results are shown.

Only elements and attributes that the common readers of the format know (Surefire, Jenkins, GitLab).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from stbench.exchange.selection import METRICS, Run, Selection

# Characters that XML 1.0 cannot hold, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_FAILURES = ("wrong-output",)
_SKIPPED = ("unsupported", "cancelled")


def junit(selection: Selection) -> str:
    """A suite per device: wrong output is a failure, what a device cannot do is skipped, and every other end
    without a result is an error. Speeds stand in the case's output: the format has no place for numbers."""
    suites: dict[str, list[Run]] = {}
    for run in selection.runs:
        suites.setdefault(run.record.device, []).append(run)
    root = ElementTree.Element("testsuites", name="stbench")
    for device in sorted(suites):
        _suite(root, device, suites[device])
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(root: ElementTree.Element, device: str, runs: Sequence[Run]) -> None:
    outcomes = [_outcome(run) for run in runs]
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=_xml(device),
        tests=str(len(runs)),
        failures=str(outcomes.count("failure")),
        errors=str(outcomes.count("error")),
        skipped=str(outcomes.count("skipped")),
        time=f"{sum(run.record.wall_s for run in runs):.3f}",
        timestamp=_xml(min(run.record.started_at for run in runs)[:19]),
        hostname=_xml(next((run.record.facts.hostname for run in runs if run.record.facts), "unknown")),
    )
    for run, outcome in zip(runs, outcomes, strict=True):
        record = run.record
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=_xml(f"{record.device}.{record.engine}"),
            name=_xml(f"{record.label} replicate {record.replicate}"),
            time=f"{record.wall_s:.3f}",
        )
        if outcome != "ok":
            reason = str(run.row["problem"]) or record.detail or record.status
            element = ElementTree.SubElement(case, outcome, message=_xml(reason[:500]))
            if outcome != "skipped":
                element.set("type", _xml(record.status))
                element.text = _xml(reason)
        ElementTree.SubElement(case, "system-out").text = _xml(_output(run))


def _outcome(run: Run) -> str:
    if run.record.status in _FAILURES or run.row["check"] == "wrong":
        return "failure"
    if run.record.status in _SKIPPED:
        return "skipped"
    return "ok" if run.row["usable"] else "error"


def _output(run: Run) -> str:
    lines = [
        f"{name}: {float(run.row[metric]):.4f} {unit}"
        for metric, name, unit in METRICS
        if math.isfinite(float(run.row[metric]))
    ]
    lines += [f"output check: {run.row['check']}", f"record: {run.record.id}"]
    if run.row["disturbed"]:
        lines.append(f"disturbed: {run.row['disturbance']}")
    if run.row["memory_limit_bytes"] > 0:
        lines.append(f"memory limit: {run.row['limit_verdict'] or 'unproved'}")
    return "\n".join([*lines, *(f"warning: {text}" for text in run.record.warnings)])


def _xml(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
