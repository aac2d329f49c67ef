"""What one entry of the list of faults says."""

from __future__ import annotations

from dataclasses import dataclass

# Where handlings and tests are.
SSH = "stbench/connectors/"
AGENT = "stbench/agent/"
LINK = "tests/boards/test_ssh_faults.py"
TRUST = "tests/boards/test_ssh_trust.py"
UPLOAD = "tests/boards/test_ssh_upload.py"
CAMPAIGN = "tests/boards/test_board_faults.py"
FOLLOW = "tests/agent/test_follow.py"
SPOOL = "tests/agent/test_spool.py"
REMOTE = "tests/host/test_remote_run.py"


@dataclass(frozen=True)
class Fault:
    """``does``: the end of "stbench ...". ``file`` and ``function``: where it is handled. ``old`` occurs once
    in that file and becomes ``new``, which makes ``test`` (file::name) fail."""

    name: str
    fault: str
    does: str
    file: str
    function: str
    old: str
    new: str
    test: str
