"""The commands of docs/boards.md, for a test that types them as its reader would."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.boards.emulated import EmulatedBoard
from tests.boards.fleet import CHECKOUT

PAGE = CHECKOUT / "docs" / "boards.md"
# What a test does not type: it would change this machine, or make the environment that the test runs in.
SETTING_UP = ("sudo apt ", "python3 -m venv ", "pip install ", "ssh-keygen ", "cat ~/.ssh/")


@dataclass(frozen=True)
class Command:
    """A line of a ``sh`` block, and the heading that it stands under."""

    section: str
    line: str


def commands() -> list[Command]:
    """Those from step 1 to "When something breaks", without comments, in the page's order."""
    found = []
    for part in re.split(r"(?m)^## ", PAGE.read_text(encoding="utf-8"))[1:]:
        section, _, text = part.partition("\n")
        for block in re.findall(r"(?ms)^```sh\n(.*?)^```$", text):
            lines = re.sub(r"\s+#.*", "", block.replace("\\\n", " ")).splitlines()
            found += [Command(section, line.strip()) for line in lines]
        if section == "When something breaks":
            return found
    raise AssertionError(f"{PAGE}: no section 'When something breaks'")


def settle_in(desk: Path, home: Path, board: EmulatedBoard) -> dict[str, str]:
    """What steps 2 and 3 ask for in words: a key that lets in, known names, an entry that is enabled.
    Returns the PATH that finds this checkout's stbench, and an ssh that reads this home's files."""
    config = home / ".ssh" / "config"
    # Not the one that stbench reads, which would then ask nothing.
    known = home / ".ssh" / "known_to_ssh"
    hosts = "Host raspberry-pi-5.local raspberry-pi-4.local\n"
    keys = f"HostName {board.host}\nPort {board.port}\nIdentityFile {board.image.key}\nIdentitiesOnly yes\n"
    config.write_text(hosts + keys)
    tools = home / "bin"
    tools.mkdir()
    # OpenSSH asks the password file for the home, not HOME; and its first question is not ours to test.
    asked = f"-o UserKnownHostsFile={known} -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR"
    for name, line in (
        ("ssh", f"{shutil.which('ssh')} -F {config} {asked}"),
        ("stbench", f"{sys.executable} -m stbench.cli"),
    ):
        (tools / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        (tools / name).chmod(0o755)
    shipped = (CHECKOUT / "devices.yaml").read_text()
    before = "  raspberry-pi-5:\n    enabled: false\n"
    assert before in shipped
    entry = shipped.replace(before, before.replace("false", "true")).replace(
        "user: pi\n", f"user: {board.user}\n"
    )
    (desk / "devices.yaml").write_text(entry)
    return {"PATH": f"{tools}:/usr/bin:/bin", "PYTHONPATH": str(CHECKOUT), "COLUMNS": "200"}
