"""One measurement of a test: its processes, its rounds, and whether it may pass at all.

A round of pytest-benchmark is one of our replicates, a process of its own. Its duration is what the process
measured: the mean time of a token in seconds, so OPS is tokens/s. The time to start the process and to load
the model is no part of it, which is why the rounds go by a clock that only tokens move.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stbench.agent.wire import RunRecord

ROUNDS = 5
_LOCAL = "devices:\n  local: {enabled: true, connector: local}\n"


class Clock:
    """Reads as many seconds as were added to it."""

    def __init__(self) -> None:
        self.now = 0.0

    @staticmethod
    def of(item: pytest.Item) -> Clock:
        """The clock of a test."""
        return item.stash.setdefault(_CLOCK, Clock())

    def timer(self) -> Callable[[], float]:
        """What pytest-benchmark asks for the time: a function, whose name it stores."""

        def seconds_of_tokens() -> float:
            return self.now

        return seconds_of_tokens


_CLOCK: pytest.StashKey[Clock] = pytest.StashKey()


@dataclass(frozen=True)
class Measured:
    """What was measured. ``tokens_per_s`` is the median of the rounds that count, ``low`` and ``high`` are
    the ends of its interval (of fewer than 6 rounds: the range)."""

    tokens_per_s: float
    low: float
    high: float
    records: tuple[RunRecord, ...]


class Gate:
    """What the fixture is: call it once in a test."""

    def __init__(self, benchmark: Any, clock: Clock, root: Path, scratch: Path) -> None:
        self._benchmark, self._clock, self._root, self._scratch = benchmark, clock, root, scratch
        self._used = False

    def __call__(
        self,
        model: str | Path,
        *,
        n_gen: int = 64,
        n_prompt: int = 0,
        n_depth: int = 0,
        rounds: int = ROUNDS,
        threads: int | None = None,
        device: str = "",
        devices: Path | None = None,
        options: Sequence[str] = (),
    ) -> Measured:
        """Decodes ``n_gen`` tokens behind a prompt, or with ``n_gen=0`` computes the prompt alone, in
        ``rounds`` processes. ``devices``: a devices.yaml (the root directory's; without one, this machine),
        ``device`` one of its names. ``options`` are further words for ``stbench sweep``.

        The test fails where a run does not end ok, and where its output is wrong."""
        if self._used:
            pytest.fail("one measurement per test: parametrise the test for more", pytrace=False)
        self._used = True
        if min(n_gen, n_prompt, n_depth) < 0 or not n_gen + n_prompt or rounds < 1:
            pytest.fail(
                f"stbench(n_gen={n_gen}, n_prompt={n_prompt}, rounds={rounds}): nothing to measure",
                pytrace=False,
            )
        words = ["--models", str(model), "-r", str(rounds if self._benchmark.enabled else 1)]
        words += ["-pg", f"{n_prompt},{n_gen}"] if n_prompt and n_gen else []
        words += ["-p", str(n_prompt)] if not n_gen else ["-n", str(n_gen)] if not n_prompt else []
        words += ["-d", str(n_depth)] if n_depth else []
        words += ["-t", str(threads)] if threads is not None else []
        words += ["--device", device] if device else []
        words += ["--devices", str(self._devices(devices))]
        records = self._run([*words, *options])
        return self._judged(records, "decode" if n_gen else "prefill")

    def decode(self, model: str | Path, n_gen: int = 64, **keywords: Any) -> Measured:
        """Tokens/s of decoding."""
        return self(model, n_gen=n_gen, **keywords)

    def prefill(self, model: str | Path, n_prompt: int = 512, **keywords: Any) -> Measured:
        """Tokens/s of computing a prompt."""
        return self(model, n_gen=0, n_prompt=n_prompt, **keywords)

    def _devices(self, given: Path | None) -> Path:
        if given is not None:
            return given
        if (self._root / "devices.yaml").is_file():
            return self._root / "devices.yaml"
        path = self._scratch / "devices.yaml"
        path.write_text(_LOCAL, encoding="utf-8")
        return path

    def _run(self, words: Iterable[str]) -> list[RunRecord]:
        from stbench.records.store import read_records

        results = self._scratch / "results"
        command = [sys.executable, "-m", "stbench.pytest_plugin.measuring", *words]
        command += ["--results", str(results), "--campaign", "pytest", "--quiet"]
        done = subprocess.run(
            command, cwd=self._root, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.fail(
                f"nothing was measured (exit code {done.returncode}):\n{done.stderr.strip()}", pytrace=False
            )
        return read_records(results / "pytest").latest()

    def _judged(self, records: Sequence[RunRecord], phase: str) -> Measured:
        from stbench.exchange.pytest_benchmark import extra_info
        from stbench.exchange.selection import select

        found = select(records)
        bad = [
            f"{run.record.label}: replicate {run.record.replicate}: {run.record.status}: "
            f"{run.record.detail or run.row['problem'] or 'no result'}"
            for run in found.runs
            if not run.row["usable"] or run.row["check"] == "wrong"
        ]
        if bad:
            pytest.fail("\n".join(["a run has no result that counts:", *bad]), pytrace=False)
        if len(found.cases) != 1:
            cases = ", ".join(case.label for case in found.cases)
            pytest.fail(f"one case per test, and this made {len(found.cases)}: {cases}", pytrace=False)
        (case,) = found.cases
        speeds = case.values(f"{phase}_tps")
        estimate = case.estimate(f"{phase}_tps")
        assert estimate is not None, "usable runs have a speed"
        left = iter(speeds)

        def next_round() -> None:
            self._clock.now += 1 / next(left)

        self._benchmark.extra_info.update(json.loads(json.dumps(extra_info(case, phase))))
        self._benchmark.pedantic(next_round, rounds=len(speeds), iterations=1)
        return Measured(estimate.median, estimate.low, estimate.high, tuple(run.record for run in case.runs))
