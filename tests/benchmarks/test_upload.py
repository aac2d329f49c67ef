"""Uploading to a board beside ``scp`` with its fastest cipher, in turn over the same loopback link.

``scp`` neither hashes nor syncs what it writes; an upload does both.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stbench.connectors.ssh import SshConnector
from stbench.devices.inventory import Device
from tests.boards.conftest import Boards, Controller, boards, controller
from tests.boards.sshd import tool

pytestmark = pytest.mark.quiet

__all__ = ["boards", "controller"]


def test_upload_beside_scp(
    benchmark: Any,
    speed: Callable[..., None],
    full: bool,
    boards: Boards,
    controller: Controller,
    tmp_path: Path,
) -> None:
    megabytes, rounds = (512, 7) if full else (16, 1)
    board = boards()
    source = tmp_path / "model.gguf"
    source.write_bytes(os.urandom(1 << 20) * megabytes)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    connector = SshConnector(Device("board", connector="ssh", host=board.host, port=board.port))
    connector.connect()
    target = f"{connector.work_dir}/model.gguf"
    options = {
        "IdentityFile": controller.key,
        "UserKnownHostsFile": controller.known_hosts,
        "Ciphers": "aes128-gcm@openssh.com",
        "BatchMode": "yes",
    }
    scp = [tool("scp"), "-q", "-F", "none", "-P", str(board.port)]
    scp += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    def upload() -> float:
        connector.remove(target)
        begin = time.perf_counter()
        connector.put(source, target, sha256, lambda done, total: None)
        return time.perf_counter() - begin

    def copy() -> float:
        begin = time.perf_counter()
        subprocess.run([*scp, source, f"{board.user}@{board.host}:{board.home}/by-scp"], check=True)
        return time.perf_counter() - begin

    ours, theirs = [], []

    def once() -> None:
        ours.append(upload())
        theirs.append(copy())

    once()
    ours.clear(), theirs.clear()
    benchmark.pedantic(once, rounds=rounds)
    connector.close()
    if not ours:  # --benchmark-disable
        return
    pairs = [b / a for a, b in zip(ours, theirs, strict=True)]
    speed(
        mb_s=megabytes * 1.048576 / statistics.median(ours),
        scp_mb_s=megabytes * 1.048576 / statistics.median(theirs),
        ratio=statistics.median(pairs),
    )
