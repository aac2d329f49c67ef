"""What the fleet's tests share: the program in a process of its own, its records, the aarch64 library."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from stbench.agent.wire import RunRecord
from stbench.records.store import read_records
from tests.boards.emulated import CPUS, EmulatedBoard, boot, kept_image
from tests.boards.image_files import Variant
from tests.boards.make_image import Image, ImageError
from tests.boards.sshd import Board
from tests.conftest import require

CHECKOUT = Path(__file__).resolve().parents[2]
# Zig's own default, before any test has another HOME: its C++ library, a minute's work, is shared with the
# other cross builds of the tests.
ZIG_CACHE = os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(Path("~/.cache/zig").expanduser()))


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it took of this machine."""

    code: int
    out: str
    err: str
    wall_s: float
    cpu_s: float
    peak_bytes: int


class Desk:
    """Where a user sits: a directory with a devices.yaml, and ``stbench`` typed there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def devices(self, entries: Mapping[str, Mapping[str, object]]) -> None:
        """Writes devices.yaml (JSON is YAML)."""
        (self.directory / "devices.yaml").write_text(json.dumps({"devices": entries}, indent=1) + "\n")

    @contextmanager
    def started(self, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
        """``stbench ARGV`` while the context lasts; stdout and stderr go to files."""
        command = [sys.executable, "-m", "stbench.cli", *argv]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "200"}
        with (self.directory / "out").open("wb") as out, (self.directory / "err").open("wb") as err:
            process = subprocess.Popen(
                command, cwd=self.directory, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(self, *argv: str, timeout_s: float = 300) -> Ended:
        """``stbench ARGV``, to its end."""
        with self.started(*argv) as process:
            return self.ended(process, timeout_s)

    def ended(self, process: subprocess.Popen[bytes], timeout_s: float = 300) -> Ended:
        """Waits for a started one."""
        begin, deadline = time.monotonic(), time.monotonic() + timeout_s
        peak = 0
        while (found := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            peak = max(peak, _peak_bytes(process.pid))
            assert time.monotonic() < deadline, f"no end within {timeout_s:g} s:\n{self.read('err')[-3000:]}"
            time.sleep(0.05)
        _, status, usage = found
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu_s = usage.ru_utime + usage.ru_stime
        wall_s = time.monotonic() - begin
        return Ended(process.returncode, self.read("out"), self.read("err"), wall_s, cpu_s, peak)

    def read(self, name: str) -> str:
        return (self.directory / name).read_text(errors="replace")

    def records(self, campaign: str = "c") -> list[RunRecord]:
        """What is stored; none before the sweep began."""
        folder = self.directory / "results" / campaign
        return read_records(folder).records if (folder / "records.jsonl").exists() else []

    def wait_for_records(self, device: str, count: int, process: subprocess.Popen[bytes]) -> None:
        """Until a device has so many records."""
        deadline = time.monotonic() + 180
        while sum(record.device == device for record in self.records()) < count:
            assert process.poll() is None, f"the sweep ended first:\n{self.read('err')[-3000:]}"
            assert time.monotonic() < deadline, f"no record of {device}:\n{self.read('err')[-3000:]}"
            time.sleep(0.05)


def _peak_bytes(pid: int) -> int:
    """So far. Not ru_maxrss: that begins with the peak of whoever started the process."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) << 10
    return 0


def is_measuring(board: Board) -> bool:
    """A job was started there that has no record yet."""
    started = list((board.work_dir / "spool").glob("*.started"))
    return any(not path.with_suffix(".record").exists() for path in started)


def entry_of(board: EmulatedBoard, **keys: object) -> dict[str, object]:
    """Its keys of devices.yaml."""
    found: dict[str, object] = {
        "connector": "ssh",
        "host": board.host,
        "port": board.port,
        "user": board.user,
    }
    return {**found, "key": str(board.image.key), "threads": 2, "timeout": 120, **keys}


def made_image(request: pytest.FixtureRequest, variant: Variant) -> Image:
    """The image of this variant; says on the terminal how long it took."""
    folder = request.config.cache.mkdir("emulated-board")
    try:
        image, took = kept_image(Path(folder), variant)
    except ImageError as error:
        require(False, str(error))
        raise
    _say(request, f"image {variant.name}: {took}")
    return image


@contextmanager
def booted(
    request: pytest.FixtureRequest, variant: Variant, cpu: str, *append: str
) -> Iterator[EmulatedBoard]:
    """A running board; says on the terminal how long its boot took."""
    with boot(made_image(request, variant), cpu, *append) as board:
        _say(request, f"boot {variant.name} {CPUS[cpu]}: {board.boot_s:g} s")
        yield board


def aarch64_library(request: pytest.FixtureRequest) -> Path:
    """The cache in which ``stbench build --target aarch64-linux-gnu`` put its library."""
    cache = Path(request.config.cache.mkdir("emulated-build"))
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "XDG_CACHE_HOME": str(cache)}
    environment["ZIG_GLOBAL_CACHE_DIR"] = ZIG_CACHE
    command = [sys.executable, "-m", "stbench.cli", "build", "--target", "aarch64-linux-gnu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=2400)
    require("ziglang" not in done.stderr or done.returncode == 0, "no ziglang: pip install ziglang")
    assert done.returncode == 0, done.stderr
    _say(request, f"stbench build --target aarch64-linux-gnu: {time.monotonic() - begin:.1f} s")
    return cache


def _say(request: pytest.FixtureRequest, text: str) -> None:
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(text)
