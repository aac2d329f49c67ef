"""Files that are replaced whole: whoever reads or writes them at the same time, and whatever goes wrong."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stbench.agent.spool import _sync
from stbench.atomic import sync_directory, write_atomically
from stbench.connectors import ssh_boardside


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "x", b"old")

    def refuse(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize(
    "sync", [sync_directory, _sync, lambda path: ssh_boardside.sync_directory(f"{path}/x")]
)
def test_a_file_system_that_cannot_sync_a_directory_is_none_that_fails(sync: Callable[[Path], None]) -> None:
    handle = os.open("/proc", os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(handle)
    os.close(handle)
    sync(Path("/proc"))


def test_two_writers_and_a_reader_see_whole_files(tmp_path: Path) -> None:
    """As of two sweeps that note the same file of a shared cache."""
    texts = [bytes([letter]) * (100_000 + letter) for letter in b"ab"]
    path = write_atomically(tmp_path / "x", texts[0])
    failures: list[BaseException] = []

    def write(text: bytes) -> None:
        try:
            for _ in range(50):
                write_atomically(path, text)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in texts
    for writer in writers:
        writer.join()
    assert not failures
    assert os.listdir(tmp_path) == ["x"]
