"""What ``stbench check`` measures: the cases of a baseline, and again those that look worse."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import glob
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stbench import errors
from stbench.commands._sweep_options import new_campaign_name, planned, sweep_of, typed_axes
from stbench.commands.sweep import measure
from stbench.console import stderr_console

if TYPE_CHECKING:
    from stbench.agent.wire import RunRecord
    from stbench.builds.build import Library
    from stbench.gate.baseline_file import Baseline
    from stbench.gate.judging import Finding
    from stbench.records.sides import Side
    from stbench.sweeps.sweep import Sweep

# Axes that say how to measure, and how long, not what: they go onto the stored sweep.
_HOW = ("max_time", "max_failures", "max_reruns", "replicates", "bracket_ms", "sample_hz")
_PUT_ON = ("max_failures", "max_reruns", "bracket_ms", "sample_hz")

_DISTURBED = (
    "the baseline's runs were disturbed (baseline set --allow-disturbed): its numbers decide nothing, only "
    "both builds run by turns do"
)


class Runs:
    """The campaigns of one check. Time runs from here on."""

    def __init__(self, args: argparse.Namespace, baseline: Baseline) -> None:
        from stbench.sweeps.sweep import build_sweep

        self._args, self._baseline = args, baseline
        limit = build_sweep({"max_time": args.axis_max_time}).max_time_s
        self._deadline = time.monotonic() + (limit or 0.0)
        self._campaign = args.campaign or new_campaign_name("check", args.results)
        self._typed = {key: value for key, value in typed_axes(args).items() if key not in _HOW}
        # Labels of what was planned, and the libraries behind RESULTS that were given, by label.
        self._planned: set[str] = set()
        self._measured_by: dict[str, set[str]] = {}
        self._log = stderr_console(quiet=args.quiet)
        self._taken_sweep: Sweep | None = None

    @property
    def left_s(self) -> float:
        """Seconds until --max-time is over."""
        return self._deadline - time.monotonic()

    def current(self) -> tuple[Side, bool]:
        """What is judged, and whether all cases of the baseline are expected in it."""
        from stbench.records.sides import read_side, side_of

        if self._args.taken:
            if self._typed:
                raise errors.UsageError(
                    f"--{next(iter(self._typed)).replace('_', '-')} says what to measure, but RESULTS are "
                    "given, which are taken as they are"
                )
            side = read_side(self._args.taken)
            for problem in side.problems:
                self._log.print(problem, markup=False, soft_wrap=True)
            self._taken_sweep = self._sweep_of_results()
            for label, library in zip(side.frame["label"], side.frame["library"], strict=True):
                self._measured_by.setdefault(str(label), set()).update({str(library)} - {""})
            return side, side.name == self._args.taken and not self._has_glob()
        records: list[RunRecord] = []
        sweeps = self._sweeps()
        for i, sweep in enumerate(sweeps):
            name = self._campaign if i == 0 else f"{self._campaign}-{i + 1}"
            records += self.measured(sweep, name, None, first=True)
        side = side_of(self._campaign, records)
        if not len(side.frame):
            raise errors.CellsFailed("nothing was measured within --max-time")
        return side, True

    def baseline_side(self, current: Side) -> Side:
        """The baseline's samples; where only part of its cases is asked for, of that part."""
        from stbench.gate.baseline_file import restricted

        baseline = self._baseline
        labels: set[str] = set()
        if self._args.taken and self._has_glob():
            labels = set(current.frame["label"])
        elif self._typed or self._args.device:
            labels = self._planned
        part = restricted(baseline, labels)
        return (part if part.cases else baseline).side(str(self._args.baseline))

    def benches(self, waiting: Sequence[Finding], notes: list[str]) -> Iterator[tuple[_Bench, list[Finding]]]:
        """How each suspicion can be measured again; what can not is said in ``notes``."""
        from stbench.campaigns.agentclient import needs_library

        cases = {case.label: case for case in self._baseline.cases}
        labels = {finding.label for finding in waiting}
        by_library: dict[str, list[Finding]] = {}
        for finding in waiting:
            settings = cases[finding.label].settings
            ours = needs_library(str(settings["engine"]))
            by_library.setdefault(str(settings["library"]) if ours else "", []).append(finding)
        if shaky := self._disturbed(labels):
            notes.append(f"{', '.join(shaky)}: {_DISTURBED}")
        for digest, part in by_library.items():
            bench, part = self._bench(digest, part, notes)
            if bench is not None:
                yield bench, part

    def _bench(
        self, digest: str, part: list[Finding], notes: list[str]
    ) -> tuple[_Bench | None, list[Finding]]:
        """What measures these again, which one build of the baseline measured ("": a program), and which of
        them it can settle."""
        from stbench.builds.build import find_library

        labels = sorted({finding.label for finding in part})
        sweeps = self._sweeps(labels)
        if not sweeps:
            notes.append(f"{', '.join(labels)}: how to measure it again is not known: no campaign.json")
            return None, []
        current = find_library(self._args.library) if digest else None
        stale = {library for label in labels for library in self._measured_by.get(label, ())}
        if current is not None and stale - {current.sha256}:
            notes.append(
                f"{', '.join(labels)}: measured by library {', '.join(sorted(one[:12] for one in stale))}, "
                f"and the one at hand is {current.sha256[:12]}: nothing is measured again (--library PATH)"
            )
            return None, []
        before = self._baseline_library(digest, notes) if digest else None
        alone = "" if before is not None else "its build is not at hand (--baseline-library PATH)"
        if before is not None and current is not None and before.sha256 == current.sha256:
            before, alone = None, "this is its build, byte for byte"
        shaky = self._disturbed(labels)
        if alone and shaky:
            notes.append(f"{', '.join(shaky)}: not measured again: {alone}")
            part = [finding for finding in part if finding.label not in shaky]
            if not part:
                return None, []
            sweeps = self._sweeps([finding.label for finding in part])
        name = f"{self._campaign}-again-{digest[:8] or len(notes) + len(labels)}"
        return _Bench(self, sweeps, name, before, current), part

    def _disturbed(self, labels: Collection[str]) -> list[str]:
        return [case.label for case in self._baseline.cases if case.disturbed and case.label in labels]

    def _baseline_library(self, digest: str, notes: list[str]) -> Library | None:
        from stbench.builds.build import find_library
        from stbench.gate.taking import kept_library
        from stbench.paths import cache_dir

        if self._args.baseline_library is not None:
            found = find_library(self._args.baseline_library)
            if found.sha256 != digest:
                notes.append(
                    f"--baseline-library is {found.sha256[:12]}, the baseline was measured with "
                    f"{digest[:12]}: another build of the same source has other bytes, too"
                )
            return found
        path = kept_library(digest, cache_dir())
        if not path.is_file():
            return None
        found = find_library(path)
        if found.sha256 != digest:
            notes.append(f"{path}: not the library that was kept there; it is not used")
            return None
        return found

    # ---- sweeps --------------------------------------------------------------------------------------

    def _sweep_of_results(self) -> Sweep | None:
        from stbench.records.sides import split
        from stbench.records.store import read_campaign
        from stbench.sweeps.sweep import sweep_from_json

        path, _ = split(self._args.taken)
        directory = path if path.is_dir() else path.parent
        described = read_campaign(directory)
        return sweep_from_json(described.get("sweep"), directory) if described else None

    def _has_glob(self) -> bool:
        from stbench.records.sides import split

        return bool(split(self._args.taken)[1])

    def _sweeps(self, labels: Sequence[str] | None = None) -> list[Sweep]:
        """The sweeps of these cases; without ``labels`` of what the options leave of the baseline's. Empty
        where none is stored."""
        from stbench.gate.narrowing import fitting, narrowed
        from stbench.sweeps.sweep import sweep_from_json

        if self._args.taken:
            whole = self._taken_sweep
            return [_only(whole, labels or [])] if whole is not None else []
        where, typed = str(self._args.baseline), dict(self._typed)
        asked, globs = labels, typed.pop("filter", "")
        if labels is None and globs:
            asked = fitting([case.label for case in self._baseline.cases], globs, where)
        cases = [case for case in self._baseline.cases if asked is None or case.label in asked]
        lone = [case.label for case in cases if case.sweep is None]
        by_sweep: dict[int, list[str]] = {}
        for case in cases:
            if case.sweep is not None:
                by_sweep.setdefault(case.sweep, []).append(case.label)
        if lone and not by_sweep and typed.keys() & {"models", "preset"}:
            return [_only(sweep_of(self._args), lone)]
        if lone and labels is None:
            raise errors.UsageError(
                f"{where} does not say how {lone[0]} was measured",
                hint="name RESULTS" + ("" if by_sweep else ", or how to measure it: --models and other axes"),
            )
        stored = [sweep_from_json(self._baseline.sweeps[place], self._args.baseline) for place in by_sweep]
        parts = narrowed(stored, typed, where) if typed and labels is None else stored
        found = zip(parts, by_sweep.values(), strict=True)
        return [_only(part, mine) for part, mine in found if part is not None]

    # ---- measuring -----------------------------------------------------------------------------------

    def measured(
        self, sweep: Sweep, campaign: str, library: Path | None, *, first: bool = False
    ) -> list[RunRecord]:
        """Runs what has no record yet in ``campaign``; all of its records."""
        from stbench.campaigns.live import Live
        from stbench.records.store import validate_campaign_name

        args = copy.copy(self._args)
        args.resume = not first
        args.library = library or self._args.library
        typed = {key: value for key, value in typed_axes(args).items() if key in _PUT_ON}
        if first and args.axis_replicates:
            typed["replicates"] = args.axis_replicates
        sweep = dataclasses.replace(sweep, max_time_s=max(self.left_s, 1.0), **typed)
        with (
            Live(stderr_console(quiet=args.quiet)) as live,
            planned(
                args,
                sweep,
                validate_campaign_name(campaign),
                lambda stage, done, total: live.step(stage, done, total),
                lease=True,
            ) as ready,
        ):
            if first:
                self._refuse_other_boards(ready.devices)
                self._planned |= {job.label for job in ready.plan.jobs}
            outcome, records = measure(args, campaign, sweep, ready, live)
        if outcome.interrupted:
            raise errors.Interrupted(f"interrupted; what was measured is in {args.results / campaign}")
        return records

    def _refuse_other_boards(self, devices: Sequence[object]) -> None:
        """Before minutes are spent on numbers that nothing can be said of."""
        from stbench.sweeps.prepare import Prepared

        for device in devices:
            assert isinstance(device, Prepared)
            name, facts = device.target.device.name, device.target.facts
            known = self._baseline.devices.get(name)
            if known is not None and known.get("fingerprint") != facts.fingerprint:
                raise errors.Inconclusive(
                    f"{self._args.baseline} is of another device: the fingerprint of {name} is "
                    f"{known.get('fingerprint')} there ({known.get('cpu_model', 'unknown')}) and "
                    f"{facts.fingerprint} here ({facts.cpu_model})",
                    hint="stbench baseline set makes one of this device",
                )


class _Bench:
    """See :class:`stbench.gate.confirming.Bench`."""

    def __init__(
        self, runs: Runs, sweeps: Sequence[Sweep], campaign: str, before: Library | None, now: Library | None
    ) -> None:
        self.paired = before is not None
        self._runs, self._sweeps, self._campaign = runs, sweeps, campaign
        self._before, self._now = before, now
        self._rounds = 0

    def time_left(self) -> bool:
        """Whether another round may begin."""
        return self._runs.left_s > 0

    def more(self, labels: Sequence[str], replicates: int) -> tuple[Side, Side] | None:
        """Round after round, either build first by turns."""
        from stbench.records.sides import Side, side_of

        records: list[RunRecord] = []
        while self._rounds < replicates and self.time_left():
            records = []
            libraries = [self._before, self._now] if self.paired else [self._now]
            if self._rounds % 2:
                libraries.reverse()
            for i, sweep in enumerate(self._sweeps):
                sweep = dataclasses.replace(_only(sweep, labels), replicates=self._rounds + 1)
                name = f"{self._campaign}-{i + 1}"
                for library in libraries:
                    made = self._runs.measured(sweep, name, library.path if library else None)
                records += made
            self._rounds += 1
        if not records:
            return None
        side = side_of("measured again", records)
        if self._before is None or self._now is None:
            return self._runs.baseline_side(side), side
        frame = side.frame
        before, now = (
            Side(name, frame[frame["library"] == library.sha256])
            for name, library in (("the baseline's build", self._before), ("this build", self._now))
        )
        return (before, now) if len(before.frame) and len(now.frame) else None


def _only(sweep: Sweep, labels: Sequence[str]) -> Sweep:
    """The sweep, of these labels alone."""
    return dataclasses.replace(sweep, filter=tuple(glob.escape(label) for label in labels))
