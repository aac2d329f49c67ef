"""What a person sees while a campaign runs: on a terminal a bar, and with several devices a line for each; a
line per result elsewhere. All on stderr."""

from __future__ import annotations

import statistics
import threading
import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live as Screen
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from stbench.agent.wire import JobSpec, RunRecord
from stbench.campaigns.ledger import Progress as Standing
from stbench.campaigns.live_rows import Row, rows_table
from stbench.campaigns.live_rows import duration as duration
from stbench.yamlfile import printable

# Without a terminal: how often the same work before the jobs is worth a line.
_LOG_INTERVAL_S = 10.0


class Live:
    """A :class:`stbench.campaigns.ledger.Observer`; use it as a context manager. One lock holds for its
    state; nothing is printed with it held, because the screen's own thread asks for the state while it
    holds the screen."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._lock = threading.Lock()
        self._screen: Screen | None = None
        self._progress = Progress(
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
        )
        self._task = self._progress.add_task("preparing", total=None)
        self._logged: dict[str, float] = {}
        self._tokens_per_s: dict[str, list[float]] = {}
        self._rows: dict[str, Row] = {}

    def __enter__(self) -> Live:
        if self.console.is_terminal and not self.console.quiet:
            self._screen = Screen(
                get_renderable=self._rendered, console=self.console, transient=True, refresh_per_second=4
            )
            self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._screen is not None:
            self._screen.stop()

    def _rendered(self) -> RenderableType:
        """The bar, and below it a line per device where there are several."""
        with self._lock:
            table = (
                rows_table(list(self._rows.values()), self.console.height) if len(self._rows) > 1 else None
            )
        return Group(self._progress, table) if table is not None else self._progress

    def note(self, text: str) -> None:
        """A line of its own."""
        self.console.print(escape(printable(text)), soft_wrap=True)

    def step(self, text: str, done: float, total: float, device: str = "") -> None:
        """Work before the jobs."""
        share = f" {100 * done / total:.0f} %" if total else ""
        with self._lock:
            if device:
                self._row(device).activity = printable(text.removeprefix(f"{device}: ")) + share
            several = len(self._rows) > 1
            now = time.monotonic()
            is_new = now - self._logged.get(text, -_LOG_INTERVAL_S) >= _LOG_INTERVAL_S
            if self._screen is None and is_new:
                self._logged[text] = now
        if self._screen is None:
            if is_new:
                self.note(f"{text}:{share}" if share else text)
        elif not (device and several):
            self._progress.update(self._task, description=escape(printable(text)) + share)

    def job_started(self, job: JobSpec, standing: Standing) -> None:
        """Shows the running cell, its speed so far and the time that is left."""
        with self._lock:
            row = self._row(job.device)
            row.activity, row.index, row.total = printable(job.case), standing.index, standing.total
            row.eta = time.monotonic() + standing.left_s
            known = self._tokens_per_s.get(job.label)
            row.tokens_per_s = statistics.median(known) if known else None
            several, speed = len(self._rows) > 1, row.tokens_per_s
        text = f"{escape(printable(job.label))}"
        if speed is not None:
            text += f"  {speed:.1f} tokens/s so far"
        left = f"about {duration(standing.all_left_s)} left"
        self._progress.update(
            self._task,
            total=standing.of_all,
            completed=standing.done,
            description=left if several else f"{text}  {left}",
        )

    def job_ended(self, record: RunRecord) -> None:
        """A line with the result."""
        speed = tokens_per_s(record)
        with self._lock:
            row = self._row(record.device)
            row.temperature_c = hottest_c(record) if record.telemetry is not None else row.temperature_c
            row.failures += record.status != "ok"
            if speed is not None:
                self._tokens_per_s.setdefault(record.label, []).append(speed)
        again = " again" if record.attempt else ""
        self.note(f"{record.label} #{record.replicate + 1}{again}: {_result(record, speed)}")

    def device_ended(self, device: str, why: str) -> None:
        """Its line goes into the summary."""
        with self._lock:
            row = self._row(device)
            row.ended, row.lost = True, printable(why)

    def _row(self, device: str) -> Row:
        return self._rows.setdefault(device, Row(printable(device)))


def tokens_per_s(record: RunRecord) -> float | None:
    """The speed of a good record, decoding where it decoded, else prefill. None where there is none."""
    if record.status != "ok" or record.samples is None:
        return None
    samples = record.samples
    try:
        if sum(samples.decode_ns) > 0:
            tokens = sum(samples.decode_tokens) or len(samples.decode_ns)
            return tokens / (sum(samples.decode_ns) * 1e-9)
        if sum(samples.prefill_ns) > 0:
            return sum(samples.prefill_tokens) / (sum(samples.prefill_ns) * 1e-9)
    except OverflowError:
        # Integers of a device may have any number of digits.
        return None
    return None


def hottest_c(record: RunRecord) -> float | None:
    """The highest temperature after the run, degrees Celsius. None where no sensor says something that a
    board survives."""
    found = record.telemetry.temperature_mc_after.values() if record.telemetry is not None else ()
    believable = [value / 1000 for value in found if -60_000 < value < 200_000]
    return max(believable, default=None)


def _result(record: RunRecord, speed: float | None) -> str:
    if record.status != "ok":
        detail = record.detail if len(record.detail) <= 160 else record.detail[:157] + "..."
        return f"{record.status}: {detail}"
    check = record.check.verdict if record.check is not None else "unchecked"
    text = f"{speed:.2f} tokens/s" if speed is not None else "ok"
    return text if check == "ok" else f"{text} (outputs {check})"
