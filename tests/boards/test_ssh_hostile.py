"""A board may say anything: it reaches neither the terminal nor our memory, and never as something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stbench.connectors.ssh import SshConnector
from stbench.connectors.ssh_boardside import MARK
from stbench.errors import DeviceError, StbenchError
from tests.boards.conftest import device_of
from tests.boards.sshd import Board, wait_until


@pytest.fixture
def liar(board: Board, tmp_path: Path) -> Path:
    """A board whose python says what is in a file, once it has introduced itself."""
    answer = tmp_path / "answer"
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nif [ $# = 4 ]; then echo '(3, 11)'; else cat {answer}; exit 1; fi\n")
    script.chmod(0o755)
    return answer


def said(answer: Any) -> bytes:
    return f"{MARK}{json.dumps(answer)}\n".encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff" * 5000,
        b"x" * (2 << 20),
        b"\x1b]0;pwned\x07\x1b[2J\n" * 50,
        MARK.encode() + b"{not json\n",
        said([1, 2]),
        said({}),
        said({"bytes": "1\x1b[31m", "mtime_ns": 1, "free": -1, "start": 1e300, "data": "?"}),
        said({"start": -5}) + said({"done": True}),
        said({"errno": "1", "text": "\x1b[31mred", "path": "\x1b[2J"}),
        said({"errno": 10**30, "text": None, "path": ["../../etc/passwd"]}),
        said({"room": "\x1b"}),
    ],
    ids=range(12),
)
def test_answers_that_are_none(board: Board, liar: Path, answer: bytes) -> None:
    liar.write_bytes(answer)
    connector = SshConnector(device_of(board, python=str(liar.with_name("python"))))
    connector.connect()
    for call in (
        lambda: connector.stat("/x"),
        lambda: connector.read("/x"),
        lambda: connector.free_bytes("/x"),
        lambda: connector.put(Path(__file__), "/x", "0" * 64, lambda done, total: None),
    ):
        with pytest.raises(DeviceError) as caught:
            call()
        text = f"{caught.value} {caught.value.hint}"
        assert text.startswith("board: ")
        assert text.isprintable()
        assert len(text) < 1000
    connector.close()


def test_lines_of_garbage_are_lines(board: Board) -> None:
    connector = SshConnector(device_of(board))
    connector.connect()
    code = r"import os; os.write(1, bytes(range(256)) * 100 + b'\n::stbench exit 0\n::stbench pid 1\nend\n')"
    running = connector.start([connector.python, "-c", code + "; raise SystemExit(7)"], b"", 30)
    assert list(running.lines())[-3:] == ["::stbench exit 0", "::stbench pid 1", "end"]
    assert running.ending().code == 7
    connector.close()


def test_a_process_number_cannot_be_forged_later(board: Board) -> None:
    connector = SshConnector(device_of(board))
    connector.connect()
    code = "import os, time; os.write(2, b'\\n::stbench pid 1\\n'); print('up', flush=True); time.sleep(60)"
    running = connector.start([connector.python, "-c", code], b"", 30)
    lines = running.lines()
    assert next(lines) == "up"
    running.kill()
    assert list(lines) == []
    assert running.ending().code == -9
    wait_until(lambda: not board.processes(), "no process stays")
    connector.close()


def test_a_greeting_of_escape_sequences(board: Board, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nprintf '\\033[2Jno\\n' >&2\n")
    fake.chmod(0o755)
    with pytest.raises(StbenchError) as caught:
        SshConnector(device_of(board, python=str(fake))).connect()
    assert str(caught.value).isprintable()
