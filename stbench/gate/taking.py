"""Results -> a baseline, or why they are none: what failed, was disturbed or proves nothing is no measure of
later builds.

On a machine that others use, too, all runs may be disturbed, and still a gate is wanted. Such runs are taken
on request and keep their mark. Their numbers are then held against nothing: a check runs the baseline's build
and this one by turns, where what comes and goes hits either alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import stbench
from stbench.agent.wire import RunRecord
from stbench.atomic import write_atomically
from stbench.comparison.compare import judge, prepare
from stbench.comparison.inference import FEWEST
from stbench.comparison.matching import unlike
from stbench.errors import CellsFailed, Inconclusive, InputError
from stbench.gate.baseline_file import Baseline, BaselineCase, case_of
from stbench.gate.judging import directed
from stbench.gate.thresholds import METRICS
from stbench.records import store
from stbench.records.sides import read_side, split
from stbench.tables import cells
from stbench.wording import case_label, clean, count, number


def take(results: Sequence[str], *, allow_disturbed: bool = False) -> tuple[Baseline, list[str]]:
    """A baseline of RESULTS[:GLOB] as typed, and a note on every run that is left out.

    Raises :class:`CellsFailed` where a case failed, computed wrong output or has an unproven limit,
    :class:`Inconclusive` where fewer than 6 replicates are left, undisturbed ones unless ``allow_disturbed``,
    :class:`InputError` for what cannot be read and where runs of one label differ in build or settings."""
    cases: list[BaselineCase] = []
    records: list[RunRecord] = []
    sweeps: list[dict[str, Any]] = []
    notes: list[str] = []
    for text in results:
        path, _ = split(text)
        frame = read_side(text).frame
        records += store.read_records(path).latest()
        described = store.read_campaign(path if path.is_dir() else path.parent)
        sweep = described.get("sweep") if described else None
        if isinstance(sweep, dict) and sweep not in sweeps:
            sweeps.append(sweep)
        number_of_sweep = sweeps.index(sweep) if isinstance(sweep, dict) else None
        for label, rows in frame.groupby("label", sort=True):
            good = _counted(case_label(label), rows, notes, allow_disturbed)
            cases.append(_alike(case_label(label), good, case_of(good, number_of_sweep)))
    _distinct(cases)
    return Baseline(stbench.__version__, *_provenance(records, cases), tuple(sweeps), tuple(cases)), notes


def _counted(label: str, rows: pd.DataFrame, notes: list[str], allow_disturbed: bool) -> pd.DataFrame:
    if cells.is_wrong(rows):
        raise CellsFailed(
            f"{label}: computed wrong output, which is nothing to hold others against",
            hint="find out why before anything is compared with it",
        )
    failed = rows[~rows["usable"]]
    if len(failed):
        first = failed.iloc[0]
        why = clean(str(first["detail"] or first["problem"] or first["status"]), 120)
        raise CellsFailed(
            f"{label}: {count(len(failed), 'run')} of {len(rows)} failed: {why}",
            hint="stbench sweep --resume --retry-failed; or name other cases with RESULTS:GLOB",
        )
    unproven = rows[(rows["memory_limit_bytes"] > 0) & (rows["limit_verdict"] != "held")]
    if len(unproven):
        raise CellsFailed(f"{label}: the memory limit of {count(len(unproven), 'run')} is not proven to hold")
    calm = rows[~rows["disturbed"]]
    n_disturbed = len(rows) - len(calm)
    if len(calm) >= FEWEST:
        if n_disturbed:
            notes.append(f"{label}: {count(n_disturbed, 'disturbed run')} left out")
        return calm
    if len(rows) < FEWEST or not n_disturbed:
        raise Inconclusive(
            f"{label}: {count(len(rows), 'replicate')}; below {FEWEST} nothing can be decided by them",
            hint="measure more: stbench sweep -r 10",
        )
    if not allow_disturbed:
        raise Inconclusive(
            f"{label}: {count(len(calm), 'undisturbed replicate')} of {len(rows)}; below {FEWEST} nothing "
            "can be decided by them",
            hint="measure more (stbench sweep -r 10) while nothing else runs; where that never is, "
            "--allow-disturbed: a check then runs both builds by turns and trusts no stored number",
        )
    notes.append(
        f"{label}: {n_disturbed} of {count(len(rows), 'run')} disturbed, and taken: a check of it needs this "
        "build, to run both by turns"
    )
    return rows


def _alike(label: str, rows: pd.DataFrame, made: BaselineCase) -> BaselineCase:
    """The case, if its settings are those of all its rows: they are stored once, and samples of another build
    would be attributed to that of the first row."""
    differing = unlike(rows, made.settings)
    if differing:
        raise InputError(
            f"{label}: {'; '.join(differing)} among its runs, and a case of a baseline is of one build and "
            "one set of settings",
            hint="name other RESULTS, or measure it anew: stbench sweep --campaign NAME -r 10",
        )
    return made


def _distinct(cases: Sequence[BaselineCase]) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.label in seen:
            raise CellsFailed(
                f"{case.label} is in several of these results: which of them counts?",
                hint="name one of them, or take parts with RESULTS:GLOB",
            )
        seen.add(case.label)


def _provenance(
    records: Iterable[RunRecord], cases: Sequence[BaselineCase]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """What the devices are, and what built the libraries, as far as these cases have them."""
    used = {str(case.settings["library"]) for case in cases}
    boards = {str(case.settings["fingerprint"]) for case in cases}
    devices: dict[str, dict[str, Any]] = {}
    builds: dict[str, dict[str, Any]] = {}
    for record in records:
        facts, versions = record.facts, record.versions
        if facts is not None and facts.fingerprint in boards:
            devices[record.device] = {
                "fingerprint": facts.fingerprint,
                "cpu_model": clean(facts.cpu_model, 80),
                "machine": clean(facts.machine, 40),
                "n_cpus": facts.n_cpus,
                "memory_bytes": facts.memory_bytes,
                "kernel": clean(facts.kernel, 80),
                "os": clean(facts.os, 80),
            }
        if versions is not None and versions.library_sha256 in used:
            said: dict[str, Any] = {
                key: clean(str(versions.runtime[key]), 120)
                for key in ("version", "compiler", "build_type", "target")
                if key in versions.runtime
            }
            builds[versions.library_sha256] = {"agent": clean(versions.agent, 40), **said}
    return devices, builds


@dataclass(frozen=True)
class Change:
    """What `update` does to a case: ``kind`` is "added", "replaced" or "same"; ``text`` says it of its
    numbers."""

    label: str
    kind: str
    text: str


def updated(old: Baseline, new: Baseline) -> tuple[Baseline, list[Change]]:
    """``old`` with the cases of ``new`` in place of its own; cases that are only in ``old`` stay."""
    known = {case.label: case for case in old.cases}
    changes = [_change(known.get(case.label), case) for case in new.cases]
    sweeps = list(new.sweeps)
    kept: list[BaselineCase] = []
    replaced = {case.label for case in new.cases}
    for case in old.cases:
        if case.label in replaced:
            continue
        place = None
        if case.sweep is not None:
            sweep = old.sweeps[case.sweep]
            if sweep not in sweeps:
                sweeps.append(sweep)
            place = sweeps.index(sweep)
        kept.append(dataclasses.replace(case, sweep=place))
    libraries = {str(case.settings["library"]) for case in (*kept, *new.cases)}
    builds = {key: value for key, value in {**old.builds, **new.builds}.items() if key in libraries}
    names = {str(case.settings["device"]) for case in (*kept, *new.cases)}
    devices = {key: value for key, value in {**old.devices, **new.devices}.items() if key in names}
    return Baseline(new.stbench, devices, builds, tuple(sweeps), (*kept, *new.cases)), changes


def _change(before: BaselineCase | None, after: BaselineCase) -> Change:
    if before is None:
        return Change(after.label, "added", f"{count(len(after.samples), 'replicate')}")
    if before == after:
        return Change(after.label, "same", "")
    marks = [f"{one.disturbed} of {len(one.samples)}" for one in (before, after)]
    by_turns = bool(before.disturbed or after.disturbed)
    said = [
        f"{name} is {clean(str(after.settings[name]), 40) or 'unknown'}, "
        f"was {clean(str(before.settings[name]), 40) or 'unknown'}"
        for name in after.settings
        if after.settings[name] != before.settings[name] and name not in ("campaign", "library")
    ]
    if by_turns:
        said.append(f"disturbed: {marks[1]} replicates, were {marks[0]}")
    a = Baseline("", {}, {}, (), (dataclasses.replace(before, sweep=None),)).side("before").frame
    b = Baseline("", {}, {}, (), (dataclasses.replace(after, sweep=None),)).side("after").frame
    for metric in METRICS.values():
        if a[metric.name].isna().any() or b[metric.name].isna().any():
            continue
        prepared = prepare(after.label, a, b, metric.name, [], None)
        if prepared is None:
            continue
        (found,) = judge([prepared], None)
        values = f"{number(found.a.median)} → {number(found.b.median)}"
        if metric.unit == "bytes":
            values = f"{found.a.median / 2**20:.1f} → {found.b.median / 2**20:.1f} MiB"
        verdict = directed(found.verdict, metric)
        unit = "" if metric.unit == "bytes" else f" {metric.unit}"
        said.append(f"{metric.text} {values}{unit} ({verdict})")
    return Change(after.label, "replaced", "; ".join(said))


def baseline_library(baseline: Baseline, labels: Iterable[str]) -> set[str]:
    """The library digests of these cases."""
    wanted = set(labels)
    return {str(case.settings["library"]) for case in baseline.cases if case.label in wanted}


# ---- the baseline's build ---------------------------------------------------------------------------------


def kept_library(digest: str, root: Path) -> Path:
    """Where this machine keeps the library of a baseline, whether it is there or not."""
    return root / "libraries" / "baselines" / digest / "libsbr.so"


def keep_library(digest: str, source: Path, root: Path) -> Path:
    """Keeps a copy of a baseline's library, so that `check` can run it again. Raises OSError."""
    path = kept_library(digest, root)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, source.read_bytes())
    return path
