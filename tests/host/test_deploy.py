"""What lies on a device: put there whole or again, cleaned when it is old, asked before anything else."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
import zipfile
from pathlib import Path

import pytest

from stbench.agent import lease, model_file
from stbench.agent.housekeeping import STALE_S
from stbench.builds.build import find_library
from stbench.campaigns.deploy import clean, deploy
from stbench.connectors import connector_for
from stbench.connectors.local import LocalConnector
from stbench.devices import board
from stbench.devices.inventory import Device
from stbench.errors import AgentError, BusyError, DeviceError
from stbench.sweeps.prepare import connected
from tests.boards.conftest import Boards, boards, controller
from tests.boards.sshd import Board
from tests.host.conftest import Sandbox

__all__ = ["boards", "controller"]


def with_own_lease(boards: Boards, tmp_path: Path) -> Board:
    """A board that shares its lease with no other one of this machine."""
    return boards(config=f"SetEnv STBENCH_LEASE={tmp_path / 'lease'}")


def over_ssh(made: Board) -> Device:
    keys = made.device_keys()
    return Device(
        "rpi5",
        connector="ssh",
        host=str(keys["host"]),
        port=made.port,
        user=made.user,
        key=str(made.key),
        work_dir=str(made.work_dir),
    )


# ---- deploying --------------------------------------------------------------------------------------------


def test_a_damaged_file_of_the_right_size_is_replaced(sandbox: Sandbox, library_path: Path) -> None:
    connector = LocalConnector(Device("local"))
    library = find_library(library_path)
    first = deploy(connector, library)
    for path in (first.agent, first.library):
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[:-100] + bytes(100))
        deploy(connector, library)
        assert Path(path).read_bytes() == whole


def test_what_runs_is_what_was_deployed(sandbox: Sandbox, tmp_path: Path) -> None:
    """Also beside an stbench that is installed in editable mode, whose finder comes before the zip file."""
    agent = tmp_path / "agent.pyz"
    with zipfile.ZipFile(agent, "w") as archive:
        archive.writestr("stbench/__init__.py", "")
        archive.writestr("stbench/agent.py", "")
        archive.writestr("__main__.py", "import stbench.agent\nprint(stbench.agent.__file__)\n")
    connector = LocalConnector(Device("local"))
    running = connector.start(board.agent_argv(connector, str(agent)), b"", 60.0)
    assert list(running.lines()) == [f"{agent}/stbench/agent.py"]
    assert running.ending().code == 0


def test_a_board_gets_agent_and_library_once(boards: Boards, library_path: Path) -> None:
    made = boards()
    connector = connector_for(over_ssh(made))
    library = find_library(library_path)
    agent = connected(over_ssh(made), connector, library, lease=True)
    folder = made.work_dir / "deployed"
    assert agent.deployment.library_sha256 == library.sha256
    assert (folder / f"libsbr-{library.sha256[:16]}.so").read_bytes() == library_path.read_bytes()
    assert sorted(agent.deployment.board.files if agent.deployment.board else ()) == []
    assert agent.facts().isas
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(before) == sorted([Path(agent.deployment.agent).name, Path(agent.deployment.library).name])
    Path(agent.deployment.library).write_bytes(bytes(library_path.stat().st_size))
    again = connected(over_ssh(made), connector, library, lease=True)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after[Path(again.deployment.agent).name] == before[Path(agent.deployment.agent).name]
    assert Path(again.deployment.library).read_bytes() == library_path.read_bytes()
    connector.close()


def python_that_says(tmp_path: Path, said: str, code: int = 0) -> str:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


GOOD = {
    "python": [3, 9, 2],
    "machine": "aarch64",
    "libc": "glibc 2.31",
    "bits": 64,
    "home": "/root",
    "files": {},
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"python": [3, 7, 3]}, "is Python 3.7.3, which is too old"),
        ({"bits": 32}, "is a 32-bit program on aarch64"),
        ({"machine": "\x1b[2Jarm"}, "reports a machine"),
        ({"machine": None}, "reports a machine"),
        ({"home": "relative"}, "reports a machine"),
        ({"files": 3}, "answered what cannot be understood"),
    ],
)
def test_a_python_that_does_not_fit_is_explained(
    tmp_path: Path, sandbox: Sandbox, changed: dict[str, object], said: str
) -> None:
    python = python_that_says(tmp_path, json.dumps({**GOOD, **changed}))
    with pytest.raises(AgentError) as caught:
        board.ask(LocalConnector(Device("rpi5", python=python)), "rpi5")
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_good_answer_and_what_is_around_it(tmp_path: Path, sandbox: Sandbox) -> None:
    python = python_that_says(tmp_path, "Welcome!\n" + json.dumps(GOOD))
    found = board.ask(LocalConnector(Device("rpi5", python=python)), "rpi5")
    assert (found.machine, found.libc, found.python) == ("aarch64", "glibc 2.31", "3.9.2")
    assert (found.path("~/m.gguf"), found.path("/m.gguf")) == ("/root/m.gguf", "/m.gguf")


def test_no_python_and_a_babbling_one(tmp_path: Path, sandbox: Sandbox) -> None:
    with pytest.raises(DeviceError, match="cannot start nothing-of-that-name"):
        board.ask(LocalConnector(Device("d", python="nothing-of-that-name")), "d")
    for text, code, said in (("x", 127, "there is no"), ("x", 3, "failed"), ("x", 0, "cannot be understood")):
        connector = LocalConnector(Device("d", python=python_that_says(tmp_path, text, code)))
        with pytest.raises(AgentError, match=said) as caught:
            board.ask(connector, "d")
        assert caught.value.hint


# ---- cleaning ---------------------------------------------------------------------------------------------


def litter(work_dir: Path, models_dir: Path) -> dict[str, Path]:
    """Old and new files of ours, and what is nobody's business."""
    found = {
        "old agent": work_dir / "deployed" / f"agent-{'0' * 16}.pyz",
        "old library": work_dir / "deployed" / f"libsbr-{'0' * 16}.so",
        "old part": work_dir / "deployed" / "libsbr.so.123.part",
        "fresh part": models_dir / "b.gguf.part",
        "old model part": models_dir / "a.gguf.part",
        "compiled": work_dir / "build" / "build" / "CMakeFiles" / "x.o",
        "record": work_dir / "spool" / "job" / "record.json",
        "stranger": work_dir / "deployed" / "notes.txt",
        "model": models_dir / "m.gguf",
        "digest": models_dir / "m.gguf.json",
        "bundle": models_dir / f"m-{hashlib.sha256(bytes(1000)).hexdigest()[:16]}-sparse.bundle",
        "old bundle": models_dir / f"m-{'0' * 16}-dense.bundle",
        "old bundle's lock": models_dir / f"m-{'0' * 16}-dense.bundle.lock",
        "sent trace": work_dir / "routing" / f"{'0' * 16}.routing",
        "recorded trace": work_dir / "routing" / f"{'1' * 16}-0.routing",
        "timeline": work_dir / "routing" / f"{'2' * 16}-0.timeline",
        "their own trace": work_dir / "routing" / "mine.routing",
    }
    for path in found.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
    model_file.note(str(found["model"]), hashlib.sha256(bytes(1000)).hexdigest())
    long_ago = time.time() - 2 * STALE_S
    for name in ("old part", "old model part"):
        os.utime(found[name], (long_ago, long_ago))
    outside = work_dir.parent / "outside.gguf"
    outside.write_bytes(b"mine")
    found["link"] = models_dir / "linked.gguf"
    found["link"].symlink_to(outside)
    return found


TRACES = {"sent trace", "recorded trace", "timeline"}
BUNDLES = {"old bundle", "old bundle's lock"}
OLD = {"old agent", "old library", "old part", "old model part", "compiled"} | TRACES | BUNDLES


def left(found: dict[str, Path]) -> set[str]:
    return {name for name, path in found.items() if path.is_symlink() or path.exists()}


def test_old_files_go_and_records_and_models_stay(boards: Boards, sandbox: Sandbox, tmp_path: Path) -> None:
    made = with_own_lease(boards, tmp_path)
    (sandbox.directory / "devices.yaml").write_text(f"devices:\n{made.device_yaml('rpi5')}")
    found = litter(made.work_dir, made.work_dir / "models")
    code, out, err = sandbox.run("devices", "clean", "rpi5", "--dry-run")
    assert code == 0, err
    assert left(found) == set(found)
    assert f"rpi5: would free 0.0 MB in {len(OLD)} files" in out
    code, out, err = sandbox.run("devices", "clean", "rpi5", "--json")
    assert code == 0, err
    (answer,) = json.loads(out)
    assert answer["freed_bytes"] == 1000 * len(OLD)
    assert left(found) == set(found) - OLD
    assert len(list((made.work_dir / "deployed").glob("agent-*.pyz"))) == 1, "the agent in use stays"
    assert sandbox.run("devices", "clean", "--all", "--models")[0] == 0
    assert left(found) == set(found) - OLD - {"model", "digest", "fresh part", "bundle"}
    assert (made.work_dir.parent / "outside.gguf").read_bytes() == b"mine"


def test_traces_stay_while_jobs_lie_in_the_spool(boards: Boards, sandbox: Sandbox, tmp_path: Path) -> None:
    """A record there may name one that nobody fetched yet, and a campaign that goes on may replay one."""
    made = with_own_lease(boards, tmp_path)
    (sandbox.directory / "devices.yaml").write_text(f"devices:\n{made.device_yaml('rpi5')}")
    found = litter(made.work_dir, made.work_dir / "models")
    waiting = made.work_dir / "spool" / f"{'a' * 32}.record"
    waiting.write_text("{}\n")
    assert sandbox.run("devices", "clean", "rpi5")[0] == 0
    assert left(found) == set(found) - OLD | TRACES
    waiting.unlink()
    assert sandbox.run("devices", "clean", "rpi5")[0] == 0
    assert left(found) == set(found) - OLD


def test_a_bundle_of_a_model_that_lies_elsewhere_stays(
    boards: Boards, sandbox: Sandbox, tmp_path: Path
) -> None:
    made = with_own_lease(boards, tmp_path)
    elsewhere = made.home / "mine.gguf"
    elsewhere.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    model_file.note(str(elsewhere), digest)
    bundle = made.work_dir / "models" / f"mine-{digest[:16]}-dense.bundle"
    bundle.parent.mkdir(parents=True)
    bundle.write_bytes(b"")
    entry = made.device_yaml("rpi5", models={"mine": str(elsewhere)})
    (sandbox.directory / "devices.yaml").write_text(f"devices:\n{entry}")
    assert sandbox.run("devices", "clean", "rpi5")[0] == 0
    assert bundle.exists()
    elsewhere.write_bytes(b"other weights")
    assert sandbox.run("devices", "clean", "rpi5")[0] == 0
    assert not bundle.exists()


def test_the_local_device_is_cleaned_too(sandbox: Sandbox) -> None:
    connector = LocalConnector(Device("local"))
    found = litter(Path(connector.work_dir), Path(connector.models_dir))
    code, out, err = sandbox.run("devices", "clean", "local")
    assert code == 0, err
    assert f"{found['old agent']}: 1000 bytes" in out
    assert left(found) == set(found) - OLD


def test_nothing_goes_while_a_job_runs(boards: Boards, tmp_path: Path) -> None:
    made = with_own_lease(boards, tmp_path)
    connector = connector_for(over_ssh(made))
    agent = connected(over_ssh(made), connector, None, lease=True)
    found = litter(made.work_dir, made.work_dir / "models")
    descriptor = lease.try_take(str(tmp_path / "lease"))
    assert descriptor is not None
    try:
        with pytest.raises(BusyError, match="rpi5: in use by"):
            clean("rpi5", connector, agent.deployment, models=True, dry_run=False)
        assert left(found) == set(found)
    finally:
        os.close(descriptor)
    clean("rpi5", connector, agent.deployment, models=False, dry_run=False)
    assert left(found) == set(found) - OLD
    connector.close()


def test_which_devices_must_be_said(sandbox: Sandbox) -> None:
    for argv, said in (
        ([], "which devices?"),
        (["local", "--all"], "which devices?"),
        (["locl"], "did you mean local?"),
    ):
        code, _, err = sandbox.run("devices", "clean", *argv)
        assert code == 2
        assert said in err


def test_a_file_that_cannot_be_removed_is_told(sandbox: Sandbox) -> None:
    """On a read-only work directory, as an ordinary user: here told by the agent's function itself."""
    connector = LocalConnector(Device("local"))
    deployed = Path(connector.work_dir) / "deployed"
    deployed.mkdir(parents=True)
    (deployed / f"agent-{'0' * 16}.pyz").write_bytes(b"x")
    from stbench.agent import housekeeping

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    patched = pytest.MonkeyPatch()
    patched.setattr(os, "unlink", refuse)
    try:
        result = housekeeping.clean(housekeeping.CleanRequest(connector.work_dir, connector.models_dir))
    finally:
        patched.undo()
    assert [(file.bytes, file.problem) for file in result.removed] == [(0, "Permission denied")]
    assert stat.S_ISREG((deployed / f"agent-{'0' * 16}.pyz").stat().st_mode)
