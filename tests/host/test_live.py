"""What a person sees of many devices: bounded, safe to show, and plain lines without a terminal."""

from __future__ import annotations

import io
import threading
from dataclasses import replace

import pytest
from rich.console import Console

from stbench.agent.wire import RunRecord
from stbench.campaigns.ledger import Progress
from stbench.campaigns.live import Live, hottest_c, tokens_per_s
from stbench.campaigns.live_rows import MOST_ROWS
from tests.host.test_plan import plan
from tests.tables import factory

JOB = plan().jobs[0]


def live(*, terminal: bool, height: int = 40) -> tuple[Live, io.StringIO]:
    file = io.StringIO()
    return Live(
        Console(file=file, force_terminal=terminal, width=100, height=height, color_system=None)
    ), file


def screen(shown: Live) -> list[str]:
    console = Console(file=io.StringIO(), width=100, height=shown.console.height, color_system=None)
    console.print(shown._rendered())
    return str(console.file.getvalue()).rstrip().splitlines()  # type: ignore[attr-defined]


def start(shown: Live, device: str, index: int = 1) -> None:
    job = replace(JOB, device=device, label=f"{device}:{JOB.case}")
    shown.job_started(job, Progress(index, 9, 60.0 + index, index - 1, 99, 120.0))


def test_a_line_per_board(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, _ = live(terminal=True)
    start(shown, "rpi5", 2)
    assert JOB.case in screen(shown)[0], "one device: the bar says it all"
    start(shown, "rock", 3)
    lines = screen(shown)
    assert "about 2 min left" in lines[0]
    assert [line.split()[:2] for line in lines[1:]] == [["rock", "3/9"], ["rpi5", "2/9"]]
    assert all("62 s left" in line or "63 s left" in line or "61 s left" in line for line in lines[1:])
    shown.step("rpi5: making tiny", 1, 2, "rpi5")
    assert "making tiny 50 %" in screen(shown)[2]


@pytest.mark.parametrize("height", [24, 8, 4])
def test_hundreds_of_boards_stay_on_the_screen(height: int) -> None:
    shown, _ = live(terminal=True, height=height)
    for number in range(300):
        start(shown, f"b{number:03}", 1)
    shown.device_ended("b000", "")
    shown.device_ended("b001", "b001: \x1b[2Jgone")
    lines = screen(shown)
    assert len(lines) <= min(MOST_ROWS + 2, max(height - 3, 3))
    assert lines[1].startswith("b002"), "those that run come first"
    assert lines[-1].startswith(f"and {300 - (len(lines) - 2)} more: ")
    assert "1 done; 1 ended early" in lines[-1]


def test_nothing_of_a_board_reaches_the_terminal_unseen() -> None:
    shown, file = live(terminal=True)
    start(shown, "b\x1b[2J1")
    start(shown, "b2")
    shown.device_ended("b2", "[bold]\x1b]0;title\x07")
    shown.note("\x1b[31mred [bold]")
    assert "\x1b[2J" not in "".join(screen(shown))
    assert "ended early: [bold]?]0;title?" in "".join(screen(shown))
    assert "?[31mred [bold]" in file.getvalue()


def test_without_a_terminal_the_same_work_is_one_line() -> None:
    shown, file = live(terminal=False)
    for number in range(50):
        shown.step("waiting for references that other boards compute", 0, 0, f"b{number}")
        shown.step("b1: making tiny", number, 50, "b1")
    assert len(file.getvalue().splitlines()) == 2


def test_numbers_that_no_board_can_mean() -> None:
    record: RunRecord = factory.record()
    assert record.samples is not None
    huge = replace(record.samples, decode_ns=[10**400], decode_tokens=[])
    assert tokens_per_s(replace(record, samples=huge)) is None
    telemetry = factory.telemetry() if hasattr(factory, "telemetry") else record.telemetry
    assert telemetry is not None
    hot = replace(telemetry, temperature_mc_after={"cpu": 61_000, "broken": 10**400, "off": -273_000})
    assert hottest_c(replace(record, telemetry=hot)) == 61


def test_threads_may_tell_it_things_at_once() -> None:
    shown, _ = live(terminal=True)
    with shown:
        threads = [
            threading.Thread(target=lambda n=n: [start(shown, f"b{n}", i + 1) for i in range(50)])
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(screen(shown)) == 9
