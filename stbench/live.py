"""What a person sees while a campaign runs: a bar on a terminal, a line per result elsewhere. All on
stderr."""

from __future__ import annotations

import statistics
import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from stbench.agent.wire import JobSpec, RunRecord
from stbench.yamlfile import printable

# Without a terminal: how often work before the jobs is worth a line.
_LOG_INTERVAL_S = 10.0


class Live:
    """A :class:`stbench.campaign.Observer`; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._text = ""
        self._logged = 0.0
        self._tokens_per_s: dict[str, list[float]] = {}

    def __enter__(self) -> Live:
        if self.console.is_terminal and not self.console.quiet:
            columns = (
                BarColumn(24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
            )
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._task = self._progress.add_task("preparing", total=None)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def note(self, text: str) -> None:
        """A line of its own."""
        self.console.print(escape(printable(text)), soft_wrap=True)

    def step(self, text: str, done: float, total: float) -> None:
        """Work before the jobs."""
        if self._progress is not None and self._task is not None:
            share = f" {100 * done / total:.0f} %" if total else ""
            self._progress.update(self._task, description=escape(printable(text)) + share)
        elif text != self._text or time.monotonic() - self._logged > _LOG_INTERVAL_S:
            self.note(f"{text}: {100 * done / total:.0f} %" if total else text)
            self._text, self._logged = text, time.monotonic()

    def job_started(self, job: JobSpec, index: int, total: int, left_s: float) -> None:
        """Shows the running cell, its speed so far and the time that is left."""
        if self._progress is None or self._task is None:
            return
        known = self._tokens_per_s.get(job.label)
        speed = f"  {statistics.median(known):.1f} tokens/s so far" if known else ""
        self._progress.update(
            self._task,
            total=total,
            completed=index - 1,
            description=f"{escape(job.label)}{speed}  about {duration(left_s)} left",
        )

    def job_ended(self, record: RunRecord) -> None:
        """A line with the result."""
        speed = tokens_per_s(record)
        if speed is not None:
            self._tokens_per_s.setdefault(record.label, []).append(speed)
        again = " again" if record.attempt else ""
        self.note(f"{record.label} #{record.replicate + 1}{again}: {_result(record, speed)}")


def tokens_per_s(record: RunRecord) -> float | None:
    """The speed of a good record, decoding where it decoded, else prefill. None where there is none."""
    if record.status != "ok" or record.samples is None:
        return None
    samples = record.samples
    if sum(samples.decode_ns) > 0:
        tokens = sum(samples.decode_tokens) or len(samples.decode_ns)
        return tokens / (sum(samples.decode_ns) * 1e-9)
    if sum(samples.prefill_ns) > 0:
        return sum(samples.prefill_tokens) / (sum(samples.prefill_ns) * 1e-9)
    return None


def _result(record: RunRecord, speed: float | None) -> str:
    if record.status != "ok":
        detail = record.detail if len(record.detail) <= 160 else record.detail[:157] + "..."
        return f"{record.status}: {detail}"
    check = record.check.verdict if record.check is not None else "unchecked"
    text = f"{speed:.2f} tokens/s" if speed is not None else "ok"
    return text if check == "ok" else f"{text} (outputs {check})"


def duration(seconds: float) -> str:
    """``45 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
