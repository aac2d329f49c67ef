"""The page's sections about devices: what each says of itself, how its runs went, the doctor's findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stbench.agent.wire import CpuCluster, DeviceFacts
from stbench.doctor.findings import SEVERITIES, Finding
from stbench.report.markup import Markup, element, joined
from stbench.report.texts import decimal, mib, text
from stbench.tables.table import TIMES
from stbench.wording import count

_MOST_FINDINGS = 100


def recorded_findings(data: Any) -> dict[str, list[Finding]]:
    """What ``stbench devices doctor --json`` printed -> device name and findings. Raises ValueError for
    anything else."""
    out: dict[str, list[Finding]] = {}
    entries = data.get("devices") if isinstance(data, dict) else data
    if not isinstance(entries, list):
        raise ValueError("expected the list that `stbench devices doctor --json` prints")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("findings"), list):
            raise ValueError("expected objects with a device and its findings")
        if entry.get("problem"):
            continue  # not examined
        found = out.setdefault(str(entry.get("device", "")), [])
        found += [_finding(one) for one in entry["findings"][:_MOST_FINDINGS]]
    return out


def _finding(data: Any) -> Finding:
    names = ("name", "severity", "text", "mend")
    if not isinstance(data, dict) or data.get("severity") not in SEVERITIES:
        raise ValueError("a finding without name, severity, text and mend")
    return Finding(*(str(data.get(name, "")) for name in names))


@dataclass(frozen=True)
class Board:
    """A device of the results. ``frame``: its runs."""

    device: str
    facts: DeviceFacts | None
    frame: pd.DataFrame
    findings: Sequence[Finding] | None


def boards(
    frame: pd.DataFrame,
    facts: Mapping[tuple[str, str], DeviceFacts],
    findings: Mapping[str, Sequence[Finding]],
) -> list[Board]:
    """One per device and board; runs that never said which board they ran on belong to the device's only one,
    or to one without facts."""
    out = []
    for device, rows in frame.groupby("device", sort=True):
        marks = sorted(set(rows["fingerprint"]) - {""})
        owner = rows["fingerprint"].replace("", marks[0]) if len(marks) == 1 else rows["fingerprint"]
        for mark, group in rows.groupby(owner, sort=True):
            known = facts.get((str(device), str(mark)))
            out.append(Board(str(device), known, group, findings.get(str(device))))
    return out


def section(board: Board, number: int) -> Markup:
    """One device."""
    identifier = f"device-{number}"
    return element(
        "section",
        element("h3", board.device or "unnamed", id=f"{identifier}-title"),
        element(
            "div",
            element("div", element("h4", "What it reports"), _facts(board.facts)),
            element("div", element("h4", "How its runs went"), _runs(board.frame)),
            class_="columns",
        ),
        element("h4", "What the doctor found"),
        _findings(board.findings),
        _fine_print(board.facts),
        class_="device",
        id=identifier,
        aria_labelledby=f"{identifier}-title",
    )


def _facts(facts: DeviceFacts | None) -> Markup:
    if facts is None:
        return element("p", "No run got far enough to report anything of the device.")
    pairs = [
        ("Board", facts.board),
        ("Processor", facts.cpu_model),
        ("CPUs", f"{len(facts.allowed_cpus)} of {text(facts.n_cpus)} usable"),
        ("Clusters", "; ".join(_cluster(cluster) for cluster in facts.clusters[:16])),
        ("Instruction sets", ", ".join(text(name) for name in facts.isas[:32])),
        ("Memory", f"{mib(facts.memory_bytes)}, {mib(facts.memory_available_bytes)} of it available"),
        ("Swap", mib(facts.swap_bytes) if facts.swap_bytes else "none"),
        ("Storage", facts.storage),
        (
            "Caches",
            ", ".join(f"{text(name)} {_kib(size)}" for name, size in sorted(facts.caches.items())[:16]),
        ),
        ("System", f"{text(facts.os)}, kernel {text(facts.kernel)}, {text(facts.machine)}"),
        ("Virtual machine", facts.virtualisation),
        ("Fingerprint", facts.fingerprint),
        ("Could not be read", "; ".join(text(note) for note in facts.notes[:20])),
    ]
    return _pairs([(name, text(value)) for name, value in pairs])


def _cluster(cluster: CpuCluster) -> str:
    parts = [f"{len(cluster.cpus)} {TIMES} {text(cluster.model)}"]
    if cluster.max_khz:
        parts.append(f"up to {decimal(cluster.max_khz, 2, 1e6)} GHz")
    if cluster.governor:
        parts.append(f"governor {text(cluster.governor)}")
    return " ".join(parts)


def _kib(size: int) -> str:
    return f"{decimal(size, 0, 1024)} KiB"


def _runs(frame: pd.DataFrame) -> Markup:
    usable = frame[frame["usable"]]
    read = usable["read_gb_per_s"].dropna()
    waits = usable["gate_waited_s"].dropna()
    pairs = [
        ("Runs", f"{count(len(frame), 'run')}, {len(usable)} usable"),
        ("Ended as", _counted(frame["status"])),
        ("Engines", _counted(frame["engine"])),
        ("Output", _counted(usable["check"])),
        ("Disturbed", f"{int(usable['disturbed'].sum())} of {count(len(usable), 'usable run')}"),
        ("Throttled", _counted(usable["throttled"])),
        (
            "Memory bandwidth beside the runs",
            f"{read.min():.1f} to {read.max():.1f} GB/s, median {read.median():.1f}" if len(read) else "",
        ),
        ("Thermal gate", _counted(usable["gate"])),
        ("Longest wait until cool", f"{waits.max():.0f} s" if len(waits) else ""),
    ]
    return _pairs(pairs)


def _counted(column: pd.Series[Any]) -> str:
    found = Counter(text(value) for value in column if value != "")
    return ", ".join(f"{name} {n}" for name, n in sorted(found.items())[:12])


def _findings(findings: Sequence[Finding] | None) -> Markup:
    if findings is None:
        return element(
            "p",
            "Nothing is recorded. ",
            element("code", "stbench devices doctor --json > results/NAME/doctor.json"),
            " before the sweep keeps its findings with the results.",
            class_="quiet",
        )
    if not findings:
        return element("p", "The doctor found nothing wrong.")
    rows = [
        element(
            "li",
            element("strong", finding.severity, class_=f"kind-{_KINDS[finding.severity]}"),
            " ",
            text(finding.text),
            *((" ", element("code", text(finding.mend))) if finding.mend else ()),
        )
        for finding in findings
    ]
    return element("ul", *rows, class_="findings")


_KINDS = dict(zip(SEVERITIES, ("bad", "caution", "fact"), strict=True))


def _fine_print(facts: DeviceFacts | None) -> Markup:
    if facts is None or not facts.features:
        return Markup()
    features = " ".join(text(name) for name in facts.features[:400])
    return element(
        "details",
        element("summary", f"Processor features ({len(facts.features)})"),
        # By piece: one text of all of them would be cut short.
        element("p", *(Markup(element("span", word) + " ") for word in features.split()), class_="features"),
    )


def _pairs(pairs: Sequence[tuple[str, str]]) -> Markup:
    return element(
        "dl",
        *(joined(element("dt", name), element("dd", value)) for name, value in pairs if value),
        class_="pairs",
    )
