"""Findings for programs: JUnit XML, and the annotations of GitHub's workflow log."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from stbench.gate.judging import FAILED, INCONCLUSIVE, REGRESSED, Finding, ordered
from stbench.gate.summary import named, sentence
from stbench.wording import clean


def junit(findings: Sequence[Finding], *, inconclusive_fails: bool) -> str:
    """A suite per device, a test per case and metric. What regressed is a failure, what has no number an
    error; what has no verdict is skipped, or an error where it fails the check."""
    root = ElementTree.Element("testsuites", name="stbench check")
    for device in sorted({finding.device for finding in findings}):
        mine = [finding for finding in ordered(findings) if finding.device == device]
        suite = ElementTree.SubElement(root, "testsuite", name=_text(device or "baseline"))
        counts = {"tests": len(mine), "failures": 0, "errors": 0, "skipped": 0}
        for finding in mine:
            name = finding.metric.name if finding.metric else "case"
            test = ElementTree.SubElement(
                suite, "testcase", classname=_text(finding.label), name=name, time="0"
            )
            kind = _kind(finding, inconclusive_fails=inconclusive_fails)
            said = _text(sentence(finding))
            if kind:
                counts[{"failure": "failures", "error": "errors", "skipped": "skipped"}[kind]] += 1
                child = ElementTree.SubElement(test, kind, message=said)
                if kind != "skipped":
                    child.set("type", finding.verdict)
                    child.text = said
            else:
                ElementTree.SubElement(test, "system-out").text = said
        for key, value in counts.items():
            suite.set(key, str(value))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _kind(finding: Finding, *, inconclusive_fails: bool) -> str:
    if finding.verdict == REGRESSED:
        return "failure"
    if finding.verdict == FAILED:
        return "error"
    if finding.verdict == INCONCLUSIVE:
        return "error" if inconclusive_fails else "skipped"
    return ""


def _text(text: str) -> str:
    # What is printable is a character of XML.
    return clean(text, 600)


def github(findings: Sequence[Finding], *, inconclusive_fails: bool) -> list[str]:
    """A workflow command per finding that is not unchanged: errors for what fails the check."""
    lines = []
    for finding in ordered(findings):
        kind = _kind(finding, inconclusive_fails=inconclusive_fails)
        if kind or finding.verdict == "improved":
            level = {"failure": "error", "error": "error", "skipped": "warning", "": "notice"}[kind]
            title = _property(f"stbench: {named(finding)}")
            lines.append(f"::{level} title={title}::{_data(sentence(finding))}")
    return lines


def _data(text: str) -> str:
    return clean(text, 600).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
