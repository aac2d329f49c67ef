"""The gates as a command: ``python -m tests.benchmarks.gate``.

Holds this tree's runtime against the previous commit's. Exit codes: 0 no regression (or nothing to compare,
with the reason), 1 regression, 2 usage, 5 no verdict: the stored baseline is of another device. ``--save``
and ``--baseline`` store and use speeds of this device instead of a second build; ``--accept REASON`` records
that this tree's rises of instruction counts are wanted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stbench.agent import probe
from tests.benchmarks import builds, counts, pairs
from tests.workshop import ROOT, Workshop, working_tree

OK, REGRESSED, NO_VERDICT = 0, 1, 5
ACCEPTED = ROOT / "tests" / "data" / "accepted_costs.json"


@dataclass(frozen=True)
class Builds:
    """Both libraries, and the commit of the earlier one."""

    commit: str
    before: Path
    now: Path
    driver: Path
    model: Path


def build_both(folder: Path) -> Builds:
    """Compiles what is to be compared. Raises :class:`builds.NothingToCompare`."""
    tree = working_tree()
    earlier = builds.earlier(tree)
    workshop = Workshop()
    before = workshop.library(earlier.files, folder / "before" / "libsbr.so")
    now = workshop.library(tree, folder / "now" / "libsbr.so")
    versions = builds.abi_version(before), builds.abi_version(now)
    if versions[0] != versions[1]:
        raise builds.NothingToCompare(f"the ABI version went from {versions[0]} to {versions[1]}")
    model = builds.write_model(now, folder / "gate.gguf")
    return Builds(earlier.commit, before, now, builds.compile_driver(folder / "driver"), model)


def accepted_rises(commit: str) -> dict[str, float]:
    """Measurement -> instructions that may be needed now, where the rise over ``commit`` was accepted."""
    entries = json.loads(ACCEPTED.read_text()) if ACCEPTED.exists() else []
    return {name: now for entry in entries if entry["over"] == commit for name, now in entry["now"].items()}


def unaccepted(rises: list[counts.Rise], commit: str) -> list[counts.Rise]:
    """Rises beyond what was accepted over this commit (and beyond the tolerance on top of it)."""
    accepted = accepted_rises(commit)
    return [rise for rise in rises if rise.now > accepted.get(rise.name, 0) * (1 + counts.TOLERANCE)]


def accept(rises: list[counts.Rise], commit: str, reason: str) -> None:
    """Adds an entry to the file of accepted rises; those over other commits no longer matter and go."""
    entry = {"over": commit, "because": reason, "now": {rise.name: rise.now for rise in rises}}
    ACCEPTED.write_text(json.dumps([entry] if rises else [], indent=2) + "\n")


def compare_counts(built: Builds, folder: Path) -> list[counts.Rise]:
    """Instructions of both builds by callgrind; what rose."""
    driver = builds.compile_driver(folder / "counting-driver", counting=True)
    before = counts.count(driver, built.before, built.model, folder / "counts-before")
    now = counts.count(driver, built.now, built.model, folder / "counts-now")
    return counts.rises(before, now)


def take_samples(built_library: Path, driver: Path, model: Path) -> dict[str, list[float]]:
    """Nanoseconds per token of this device, one value per process."""
    taken = [pairs.measure(driver, built_library, model, "auto") for _ in range(pairs.PAIRS)]
    return {name: [each[name] for each in taken] for name in taken[0]}


def against_stored(
    samples: dict[str, list[float]], stored: dict[str, object]
) -> list[pairs.Judgement] | None:
    """Judges samples by stored ones of the same device; None when they are of another."""
    if stored["fingerprint"] != probe.probe().fingerprint:
        return None
    before = stored["samples"]
    assert isinstance(before, dict)
    return [
        pairs.judge(name, before[name], values, paired=False)
        for name, values in sorted(samples.items())
        if name in before
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gate", description=__doc__)
    parser.add_argument("--save", type=Path, metavar="FILE", help="store this device's speeds")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="judge by stored speeds of this device")
    parser.add_argument("--accept", metavar="REASON", help="record this tree's instruction counts as wanted")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one gate and prints its judgement. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="stbench-gate-") as scratch:
        if arguments.save or arguments.baseline:
            return _stored(arguments.save, arguments.baseline, Path(scratch))
        return _previous(arguments.accept, Path(scratch))


def _stored(save: Path | None, baseline: Path | None, folder: Path) -> int:
    library = Workshop().library(working_tree(), folder / "libsbr.so")
    driver, model = (
        builds.compile_driver(folder / "driver"),
        builds.write_model(library, folder / "gate.gguf"),
    )
    samples = take_samples(library, driver, model)
    if save is not None:
        content = {"fingerprint": probe.probe().fingerprint, "samples": samples}
        save.write_text(json.dumps(content, indent=1) + "\n")
    if baseline is None:
        return OK
    judged = against_stored(samples, json.loads(baseline.read_text()))
    if judged is None:
        print(f"{baseline} is of another kind of device: no verdict")
        return NO_VERDICT
    return _report(judged, [])


def _previous(reason: str | None, folder: Path) -> int:
    try:
        built = build_both(folder)
    except builds.NothingToCompare as error:
        print(f"nothing to compare: {error}")
        return OK
    print(f"against commit {built.commit[:12]}")
    rises = compare_counts(built, folder)
    if reason is not None:
        accept(rises, built.commit, reason)
        print(f"{ACCEPTED.relative_to(ROOT)}: accepted {len(rises)} rises")
        return OK
    judged = pairs.interleave(built.driver, built.before, built.now, built.model)
    return _report(judged, unaccepted(rises, built.commit))


def _report(judged: list[pairs.Judgement], rises: list[counts.Rise]) -> int:
    for judgement in judged:
        print(judgement, "REGRESSED" if judgement.regressed else "")
    for rise in rises:
        print(rise, "RISEN")
    return REGRESSED if rises or any(judgement.regressed for judgement in judged) else OK


if __name__ == "__main__":
    sys.exit(main())
