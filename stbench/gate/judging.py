"""A baseline and what was measured now -> a finding per case and metric. Every judgement is of
:mod:`stbench.comparison`; here it gets a direction, and a reason where there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from stbench.comparison import compare, inference
from stbench.comparison.compare import Comparison, Prepared
from stbench.comparison.matching import NAMES, differences, matched, pairing
from stbench.comparison.noise import Noise
from stbench.errors import EXIT_CELLS_FAILED, EXIT_INCONCLUSIVE, EXIT_OK, EXIT_REGRESSION, InputError
from stbench.gate.thresholds import METRICS, Metric, Thresholds, floor_for
from stbench.records.sides import Side
from stbench.tables import cells
from stbench.wording import case_label, clean, count

IMPROVED, REGRESSED = inference.IMPROVED, inference.REGRESSED
UNCHANGED, INCONCLUSIVE = inference.UNCHANGED, inference.INCONCLUSIVE
# The case has no number that counts now: runs of it failed, or computed wrong output.
FAILED = "failed"
# The machine went down under a run each time that it was begun: the one end that is not the build's.
_NOT_THE_BUILD = "lost"

# Worst first: how findings are listed, and which decides the exit code.
VERDICTS = (REGRESSED, FAILED, INCONCLUSIVE, IMPROVED, UNCHANGED)


@dataclass(frozen=True)
class Finding:
    """What is said of a case's ``metric`` (None: of the case as a whole). ``comparison`` is the one that the
    verdict rests on, None where nothing could be compared; ``reason`` says why a verdict is not what the
    numbers alone would say; ``first`` is the comparison that raised the suspicion, where another was
    measured after it (None too where that one compared nothing); ``again``: nothing could be compared, but
    another measurement may change that; ``measured_again``: this is what the second measurement says."""

    device: str
    label: str
    metric: Metric | None
    verdict: str
    comparison: Comparison | None = None
    reason: str = ""
    first: Comparison | None = None
    again: bool = False
    measured_again: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What it is of."""
        return self.label, self.metric.name if self.metric else ""


@dataclass(frozen=True)
class Judge:
    """Thresholds and noise floors that all judgements of one check share."""

    thresholds: Thresholds
    noise: Sequence[Noise]

    def findings(
        self, a: Side, b: Side, *, expected: bool = True, only: Collection[tuple[str, str]] | None = None
    ) -> list[Finding]:
        """A the baseline, B now. ``expected``: a case of A that B lacks has no verdict instead of not being
        asked for; ``only``: these keys alone, which were judged before."""
        notes: list[str] = []
        try:
            pairs = matched(a, b, "", list(NAMES), notes)
        except InputError as error:
            return [Finding("", clean(a.name, 120), None, INCONCLUSIVE, reason=str(error))]
        found: list[Finding] = []
        ready: dict[str, list[Prepared]] = {}
        for case, rows_a, rows_b in pairs:
            device = str(rows_b["device"].iloc[0])
            unlike = differences(case, a, b, rows_a, rows_b, ())
            if unlike:
                said = "; ".join(line.removeprefix(f"{case}: ") for line in unlike)
                found.append(Finding(device, case, None, INCONCLUSIVE, reason=said))
                continue
            why, verdict = _without_number(rows_b)
            if why:
                found.append(Finding(device, case, None, verdict, reason=why))
                continue
            for metric in self.thresholds.metrics(device):
                if only is not None and (case, metric.name) not in only:
                    continue
                prepared = _prepared(case, rows_a, rows_b, metric, found, device)
                if prepared is not None:
                    ready.setdefault(metric.name, []).append(prepared)
        for name, cases in ready.items():
            found += self._judged(METRICS[name], cases)
        if expected:
            found += _missing(a, b, pairs)
        return found

    def _judged(self, metric: Metric, prepared: Sequence[Prepared]) -> list[Finding]:
        threshold, floor = self.thresholds.threshold(metric.name), floor_for(self.noise, metric.name)
        return [
            Finding(str(case.row["device"]), one.case, metric, directed(one.verdict, metric), one)
            for case, one in zip(prepared, compare.judge(prepared, threshold, floor), strict=True)
        ]


def directed(verdict: str, metric: Metric) -> str:
    """A verdict on B / A, which calls a larger number improved, as one on what the metric means."""
    if metric.higher_is_better:
        return verdict
    return {IMPROVED: REGRESSED, REGRESSED: IMPROVED}.get(verdict, verdict)


def exit_code(findings: Sequence[Finding], *, inconclusive_fails: bool) -> int:
    """1 where something regressed, 3 where a case failed, 5 where one has no verdict, else 0."""
    verdicts = {finding.verdict for finding in findings}
    if REGRESSED in verdicts:
        return EXIT_REGRESSION
    if FAILED in verdicts:
        return EXIT_CELLS_FAILED
    return EXIT_INCONCLUSIVE if INCONCLUSIVE in verdicts and inconclusive_fails else EXIT_OK


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first, then by case and metric."""
    names = ["", *METRICS]
    return sorted(findings, key=lambda f: (VERDICTS.index(f.verdict), f.label, names.index(f.key[1])))


def replaced(findings: Sequence[Finding], anew: Mapping[tuple[str, str], Finding]) -> list[Finding]:
    """Findings with those that were measured again in their place, and the first comparison kept."""
    return [
        dataclasses.replace(anew[finding.key], first=finding.comparison) if finding.key in anew else finding
        for finding in findings
    ]


def _prepared(
    case: str, a: pd.DataFrame, b: pd.DataFrame, metric: Metric, found: list[Finding], device: str
) -> Prepared | None:
    if metric.part and not (a[metric.part].iloc[0] and b[metric.part].iloc[0]):
        return None
    if a[metric.name].isna().all() and b[metric.name].isna().all():
        return None
    failed: list[str] = []
    together = pairing(a, b)
    made = compare.prepare(case, a, b, metric.name, failed, together)
    if together is not None and (made is None or len(made.values_a) < inference.FEWEST):
        # On a machine that others use, too. What comes and goes hits either build of a pair alike.
        made = compare.every_pair(case, a, b, metric.name, together) or made
    if made is None:
        said = failed[0].removeprefix(f"{case}: ").replace("A has", "the baseline has")
        said = said.replace("B has", "this run has")
        found.append(Finding(device, case, metric, INCONCLUSIVE, reason=said, again=True))
    return made


def _without_number(rows: pd.DataFrame) -> tuple[str, str]:
    """Why the rows of a case have no number that counts, and what that is; both "" where they have one.

    One run that did not end well is enough, whatever the speed of the others: a build that crashes in some of
    its runs is no good build, and a baseline refuses such a case, too. A run over its time counts as the
    build's, because those of the baseline ended within theirs, and so does one without memory. A lost run,
    under which the board rebooted each time, does not unless all were lost: what takes a board down is more
    often its power supply. Boards out of reach and stopped campaigns leave no row at all."""
    if cells.is_wrong(rows):
        return "computed wrong output, which has no speed", FAILED
    usable = rows[rows["usable"]]
    if not len(usable):
        return f"no run ended well: {_end(rows)}", FAILED
    failed = rows[~rows["usable"] & (rows["status"] != _NOT_THE_BUILD)]
    if len(failed):
        return f"{len(failed)} of {count(len(rows), 'run')} did not end well: {_end(failed)}", FAILED
    unproven = usable[(usable["memory_limit_bytes"] > 0) & (usable["limit_verdict"] != "held")]
    if len(unproven):
        said = clean(str(unproven["limit_verdict"].iloc[0] or "no proof"), 40)
        return f"its memory limit is not proven: {said}", INCONCLUSIVE
    return "", ""


def _end(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return clean(str(first["detail"] or first["problem"] or first["status"]), 160)


def _missing(a: Side, b: Side, pairs: Sequence[tuple[str, pd.DataFrame, pd.DataFrame]]) -> list[Finding]:
    here = {case for case, _, _ in pairs}
    rest = a.frame[~a.frame["label"].map(case_label).isin(here)].drop_duplicates("label")
    return [
        Finding(
            str(row["device"]),
            case_label(row["label"]),
            None,
            INCONCLUSIVE,
            reason=f"in the baseline, and not in {clean(b.name, 80)}",
        )
        for _, row in rest.iterrows()
    ]
