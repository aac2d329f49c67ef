"""Big files: whole, verified, resumed after a cut, and refused before there is too little room."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from stbench.connectors import ssh_boardside, ssh_files
from stbench.connectors.ssh import SshConnector
from stbench.errors import DeviceError, LinkLost, NoSpace
from tests.boards.conftest import Boards, device_of
from tests.boards.sshd import ROOT, Board, wait_until
from tests.boards.test_ssh_faults import ROOT_OF_TESTS
from tests.conftest import require

MIB = 1 << 20


@pytest.fixture
def connector(board: Board) -> Iterator[SshConnector]:
    made = SshConnector(device_of(board, silence_s=2.0, connect_s=20.0, reconnect_s=60.0))
    made.connect()
    yield made
    made.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.gguf"
    path.write_bytes(os.urandom(MIB) * 32 + b"end")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Progress:
    """Keeps what ``on_bytes`` got, and does something once at half."""

    def __init__(self, at_half: Callable[[], object] = lambda: None) -> None:
        self.seen: list[int] = []
        self.total = -1
        self._at_half = at_half
        self._half = False

    def __call__(self, done: int, total: int) -> None:
        self.seen.append(done)
        self.total = total
        if not self._half and 2 * done >= total:
            self._half = True
            self._at_half()

    def restarts(self) -> list[int]:
        """Where sending began anew."""
        return [b for a, b in zip(self.seen, self.seen[1:], strict=False) if b < a]


def parts(path: str) -> list[Path]:
    return sorted(Path(path).parent.glob("*.part"))


def test_a_file_arrives_once(connector: SshConnector, source: Path) -> None:
    path = f"{connector.work_dir}/models/a b.gguf"
    progress = Progress()
    connector.put(source, path, sha256(source), progress)
    assert Path(path).read_bytes() == source.read_bytes()
    assert parts(path) == []
    size = source.stat().st_size
    assert (progress.seen[0], progress.seen[-1], progress.total) == (0, size, size)
    assert len(progress.seen) > 4
    before = os.stat(path)
    again = Progress()
    connector.put(source, path, sha256(source), again)
    assert again.seen == [size], "nothing is sent of what is there"
    assert os.stat(path).st_ino == before.st_ino
    # Same size, other content: not taken for the same.
    source.write_bytes(source.read_bytes()[:-1] + b"D")
    connector.put(source, path, sha256(source), again)
    assert Path(path).read_bytes() == source.read_bytes()


def test_an_empty_file(connector: SshConnector, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    connector.put(tmp_path / "empty", f"{connector.work_dir}/empty", hashlib.sha256().hexdigest(), Progress())
    assert Path(f"{connector.work_dir}/empty").read_bytes() == b""


def test_a_cut_at_half_goes_on_from_there(boards: Boards, source: Path) -> None:
    """The board never hears of the cut, so that its receiver waits on; a second one takes over."""
    board = boards("far", cable=True)
    connector = SshConnector(device_of(board, silence_s=2.0, connect_s=20.0, reconnect_s=60.0))
    connector.connect()

    def cut() -> None:
        board.cut()
        link = connector._link
        assert link is not None

        def mend() -> None:
            # Later than what was on its way is given up (4 s).
            time.sleep(6.0)
            wait_until(lambda: not link.alive, "the loss is noticed")
            board.mend()

        threading.Thread(target=mend).start()

    path = f"{connector.work_dir}/model"
    progress = Progress(cut)
    connector.put(source, path, sha256(source), progress)
    assert Path(path).read_bytes() == source.read_bytes()
    (restart,) = progress.restarts()
    # Less than half by what was on its way (channel window and socket buffers) and by the step back.
    assert restart > source.stat().st_size / 2 - 12 * MIB
    connector.close()
    wait_until(lambda: not board.processes(), "no receiver stays")


def test_sshd_dies_at_half_and_comes_back(board: Board, connector: SshConnector, source: Path) -> None:
    def stop() -> None:
        board.stop_sshd()
        threading.Timer(1.0, board.start_sshd).start()

    path = f"{connector.work_dir}/model"
    progress = Progress(stop)
    connector.put(source, path, sha256(source), progress)
    assert Path(path).read_bytes() == source.read_bytes()
    assert progress.restarts()
    assert progress.restarts()[0] > source.stat().st_size / 2 - 12 * MIB


def test_a_link_that_stays_away_is_an_error_in_time(board: Board, source: Path) -> None:
    connector = SshConnector(device_of(board, silence_s=2.0, connect_s=20.0, reconnect_s=1.5))
    connector.connect()
    path = f"{connector.work_dir}/model"
    with pytest.raises(DeviceError, match="cannot be reached: Connection refused"):
        connector.put(source, path, sha256(source), Progress(board.stop_sshd))
    board.start_sshd()
    connector.connect()
    (part,) = parts(path)
    assert part.stat().st_size > source.stat().st_size / 4
    again = Progress()
    connector.put(source, path, sha256(source), again)
    assert again.seen[0] > source.stat().st_size / 4, "it went on"
    assert Path(path).read_bytes() == source.read_bytes()
    connector.close()


def test_a_killed_controller_goes_on_where_it_was(
    board: Board, connector: SshConnector, source: Path
) -> None:
    path = f"{connector.work_dir}/model"
    code = f"""
import os, signal
from pathlib import Path
from stbench.connectors.ssh import SshConnector
from stbench.devices.inventory import Device
def on_bytes(done, total):
    if 2 * done > total:
        os.kill(os.getpid(), signal.SIGKILL)
connector = SshConnector(Device(**{vars(device_of(board))!r}))
connector.put(Path({str(source)!r}), {path!r}, {sha256(source)!r}, on_bytes)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT_OF_TESTS, check=False)
    wait_until(lambda: not board.processes(), "the receiver ends")
    (part,) = parts(path)
    assert part.stat().st_size > source.stat().st_size / 4
    progress = Progress()
    connector.put(source, path, sha256(source), progress)
    assert progress.seen[0] > 8 * MIB
    assert Path(path).read_bytes() == source.read_bytes()
    assert parts(path) == []


def test_a_damaged_part_is_thrown_away(connector: SshConnector, source: Path) -> None:
    path = f"{connector.work_dir}/model"
    digest = sha256(source)
    part = Path(f"{path}.{digest[:16]}.part")
    part.write_bytes(b"x" * (20 * MIB))
    progress = Progress()
    connector.put(source, path, digest, progress)
    assert progress.seen[0] == 20 * MIB - ssh_boardside.BACK_OFF
    assert progress.restarts() == [0]
    assert Path(path).read_bytes() == source.read_bytes()
    assert parts(path) == []


def test_another_receiver_may_end_before_it_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tmp_path / "part"
    ended: list[int] = []

    def kill(pid: int, number: int) -> None:
        ended.append(pid)
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", kill)
    with part.open("wb") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as other:
        ssh_boardside.end_other_writers(str(part))
    assert ended == [other.pid]


def test_a_source_that_changed_is_no_success(connector: SshConnector, source: Path) -> None:
    path = f"{connector.work_dir}/model"
    with pytest.raises(DeviceError, match=r"arrives with another digest than .*source\.gguf should have"):
        connector.put(source, path, "0" * 64, Progress())
    assert not Path(path).exists()
    assert parts(path) == []


def test_what_on_bytes_raises_ends_it(board: Board, connector: SshConnector, source: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        connector.put(source, f"{connector.work_dir}/model", sha256(source), Progress(interrupt))
    wait_until(lambda: not board.processes(), "no receiver stays")
    assert connector.stat("/") is not None


@pytest.fixture
def small_disk(board: Board, connector: SshConnector) -> str:
    """32 MiB of room."""
    require(ROOT, "mounting a small file system needs root")
    path = board.directory / "small"
    path.mkdir()
    board.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", path])
    return str(path)


def test_no_space_is_known_before(
    board: Board, connector: SshConnector, source: Path, small_disk: str
) -> None:
    path = f"{small_disk}/deep/model"
    with pytest.raises(NoSpace, match=rf"^board: {path} needs \d+ bytes; 335\d+ are free$") as caught:
        connector.put(source, path, sha256(source), Progress())
    assert "free some space" in caught.value.hint
    assert board.run(["find", small_disk, "-type", "f"]) == ""
    assert connector.free_bytes(path) == 32 * MIB


def test_the_disk_fills_up_meanwhile(
    board: Board, connector: SshConnector, tmp_path: Path, small_disk: str
) -> None:
    medium = tmp_path / "medium"
    medium.write_bytes(os.urandom(24 * MIB))
    path = f"{small_disk}/model"
    filler = ["dd", "if=/dev/zero", f"of={small_disk}/other", "bs=1M", "count=20", "status=none"]
    with pytest.raises(NoSpace, match=r"^board: .*no space left on the board$"):
        connector.put(
            medium,
            path,
            sha256(medium),
            Progress(lambda: subprocess.run([*board._enter(), *filler], check=False)),
        )
    board.run(["rm", f"{small_disk}/other"])
    with pytest.raises(NoSpace, match="no space left on the board"):
        connector.write(f"{small_disk}/small", os.urandom(40 * MIB))
    connector.put(medium, path, sha256(medium), Progress())
    assert connector.stat(path) is not None
    assert board.run(["ls", small_disk]) == "model\n"


def test_a_lost_link_without_progress_is_lost(
    board: Board, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board that ends every connection at once is not asked for ever."""
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(ssh_files, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    connector = SshConnector(device_of(board, reconnect_s=20.0))
    calls = []

    def refuse(*, lease: bool) -> None:
        calls.append(lease)
        raise LinkLost("board: the link is lost")

    monkeypatch.setattr(connector, "connect", refuse)
    with pytest.raises(LinkLost):
        connector.put(source, "/nowhere", sha256(source), Progress())
    assert len(calls) == 6, "after 0, 0.5, 1.5, 3.5, 7.5 and 15.5 s"
