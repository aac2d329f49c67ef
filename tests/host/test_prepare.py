"""Many devices at once, some of them not there; models as a board has them or gets them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from stbench.agent.wire import Program
from stbench.builds.build import Library, describe, find_library
from stbench.campaigns.agentclient import Agent
from stbench.campaigns.deploy import deploy
from stbench.connectors.base import Connector
from stbench.connectors.local import LocalConnector
from stbench.devices.engine_entries import EngineEntry
from stbench.devices.inventory import Device
from stbench.errors import BuildError, BusyError, DeviceError, LinkLost, ModelError, StbenchError, Unreachable
from stbench.sweeps import prepare
from stbench.sweeps.plan import DeviceModel
from stbench.sweeps.prepare import prepared
from stbench.sweeps.sweep import Traits
from tests.boards.conftest import Boards, boards, controller
from tests.host.conftest import Sandbox
from tests.host.test_deploy import over_ssh

__all__ = ["boards", "controller"]


def ignore(_stage: str, _done: int, _total: int) -> None:
    """No progress is shown."""


@pytest.fixture
def library(library_path: Path) -> Library:
    return find_library(library_path)


@pytest.fixture
def tiny(sandbox: Sandbox, library_path: Path) -> Path:
    """A GGUF file of this machine."""
    path = sandbox.directory / "tiny.gguf"
    argv = ("models", "make", "tiny-smallthinker", "-o", str(path), "--library", str(library_path))
    code, _, err = sandbox.run(*argv)
    assert code == 0, err
    return path


# ---- many at once -----------------------------------------------------------------------------------------


class Far(LocalConnector):
    """A board played by this machine."""

    on_connect: Callable[[Far], None] = staticmethod(lambda self: None)
    closed: ClassVar[list[str]]

    @property
    def remote(self) -> bool:
        return True

    def connect(self, *, lease: bool = True) -> None:
        super().connect(lease=False)
        type(self).on_connect(self)

    def close(self) -> None:
        self.closed.append(self.device.name)
        super().close()


@pytest.fixture
def far(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> type[Far]:
    """The connector of all devices with ``connector: ssh``; local ones are themselves."""

    class Mine(Far):
        closed: ClassVar[list[str]] = []

    def connector_for(device: Device) -> Connector:
        return Mine(device) if device.connector == "ssh" else LocalConnector(device)

    monkeypatch.setattr(prepare, "connector_for", connector_for)
    return Mine


def fleet(count: int, sandbox: Sandbox) -> list[Device]:
    return [
        Device(f"b{i}", connector="ssh", host="h", work_dir=str(sandbox.directory / f"b{i}"))
        for i in range(count)
    ]


def test_boards_are_connected_at_the_same_time(sandbox: Sandbox, far: type[Far]) -> None:
    """Each waits until all are being connected: one after the other, they would wait for ever."""
    together = threading.Barrier(12)
    far.on_connect = staticmethod(lambda self: together.wait(60) and None)
    devices = [Device("here"), *fleet(12, sandbox)]
    with prepared(devices, ["fake:"], None, ignore) as ready:
        assert [one.target.device.name for one in ready] == [device.name for device in devices]
    assert sorted(far.closed) == sorted(device.name for device in devices[1:])


def test_a_program_in_a_boards_home_directory_gets_its_full_path(sandbox: Sandbox, far: type[Far]) -> None:
    program = Program("llama-bench", ["~/bin/llama-bench", "-fa", "1"])
    (board,) = fleet(1, sandbox)
    board = replace(board, engines={"llama-bench": EngineEntry("llama-bench", program)})
    with prepared([board], ["fake:"], None, ignore, engines=["llama-bench"]) as (ready,):
        command = ready.target.programs["llama-bench"].program.command
    assert command == [str(Path.home() / "bin/llama-bench"), "-fa", "1"]
    assert far.closed == ["b0"]


def failing(names: dict[str, StbenchError]) -> Callable[[Far], None]:
    def connect(self: Far) -> None:
        if self.device.name in names:
            raise names[self.device.name]

    return connect


def test_boards_that_are_not_there_are_told_and_left_out(sandbox: Sandbox, far: type[Far]) -> None:
    wrong: dict[str, StbenchError] = {"b0": Unreachable("b0: off"), "b2": BusyError("b2: busy")}
    far.on_connect = staticmethod(failing(wrong))
    told: list[tuple[str, StbenchError]] = []
    devices = fleet(4, sandbox)
    with prepared(
        devices, ["fake:"], None, ignore, on_unreachable=lambda name, error: told.append((name, error))
    ) as ready:
        assert [one.target.device.name for one in ready] == ["b1", "b3"]
        assert dict(told) == wrong
        assert {"b0", "b2"} <= set(far.closed)
        assert not {"b1", "b3"} & set(far.closed)


def test_when_none_is_left_the_first_error_is_raised(sandbox: Sandbox, far: type[Far]) -> None:
    far.on_connect = staticmethod(failing({"b0": Unreachable("b0: off"), "b1": Unreachable("b1: off")}))
    told: list[str] = []
    with (
        pytest.raises(Unreachable, match="off"),
        prepared(
            fleet(2, sandbox), ["fake:"], None, ignore, on_unreachable=lambda name, _error: told.append(name)
        ),
    ):
        pytest.fail("nothing was prepared")
    assert sorted(told) == ["b0", "b1"]


def test_one_error_ends_all_when_nobody_is_told(sandbox: Sandbox, far: type[Far]) -> None:
    """Also a board that is in the middle of something long: it stops at its next sign of progress."""
    busy = threading.Event()

    def connect(self: Far) -> None:
        if self.device.name == "b1":
            assert busy.wait(60)
            raise Unreachable("b1: off")

    far.on_connect = staticmethod(connect)
    seen: list[int] = []
    finished: list[str] = []

    def on_bytes(_stage: str, done: int, _total: int) -> None:
        busy.set()
        seen.append(done)

    class Endless:
        @staticmethod
        def resolve(
            device: Device, agent: Agent, name: str, _lib: object, tell: prepare.OnBytes
        ) -> DeviceModel:
            for step in range(20_000):
                tell("hash", step, 20_000)
                threading.Event().wait(0.001)
            finished.append(device.name)
            raise AssertionError("it was not stopped")

    patched = pytest.MonkeyPatch()
    patched.setattr(prepare, "resolve", Endless.resolve)
    try:
        with (
            pytest.raises(Unreachable, match="b1: off"),
            prepared(fleet(2, sandbox), ["fake:"], None, on_bytes),
        ):
            pytest.fail("nothing was prepared")
    finally:
        patched.undo()
    assert seen
    assert not finished
    assert {"b0", "b1"} <= set(far.closed)


def test_progress_of_several_devices_has_their_names(sandbox: Sandbox, far: type[Far], tiny: Path) -> None:
    said: set[str] = set()
    devices = [replace(device, models={"m": str(tiny)}) for device in fleet(2, sandbox)]
    tiny.with_name("tiny.gguf.json").unlink()
    with prepared(devices, ["m"], None, lambda stage, done, total: said.add(stage)) as ready:
        assert len(ready) == 2
    assert said <= {"b0: hash", "b1: hash"}
    assert said


# ---- the library of each ----------------------------------------------------------------------------------


def board_says(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    ask = prepare.board.ask

    def other(connector: Connector, name: str) -> prepare.board.Board:
        found = ask(connector, name)
        return replace(found, machine=machine) if connector.remote else found

    monkeypatch.setattr(prepare.board, "ask", other)


def test_a_board_of_another_machine_needs_its_own_library(
    sandbox: Sandbox, far: type[Far], library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    board_says(monkeypatch, "aarch64")
    with (
        pytest.raises(BuildError, match="b0 needs the runtime for aarch64-linux-gnu") as caught,
        prepared(fleet(1, sandbox), ["fake:"], replace(library, given=False), ignore),
    ):
        pytest.fail("nothing was prepared")
    assert caught.value.hint == "stbench build --target aarch64-linux-gnu"


def test_a_library_that_was_named_for_nobody(
    sandbox: Sandbox, far: type[Far], library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    board_says(monkeypatch, "aarch64")
    monkeypatch.setattr(prepare, "library_for", lambda machine, given, **_: describe(other))
    other = tmp_path / "other.so"
    other.write_bytes(library.path.read_bytes() + b"other")
    with (
        pytest.raises(BuildError, match=r"libsbr\.so is for x86_64, and none of these devices is"),
        prepared(fleet(1, sandbox), ["fake:"], library, ignore),
    ):
        pytest.fail("it was prepared")


# ---- models on a board ------------------------------------------------------------------------------------


def test_a_file_of_this_machine_is_sent_once(
    boards: Boards, sandbox: Sandbox, library: Library, tiny: Path
) -> None:
    device = over_ssh(boards())
    with prepared([device], [str(tiny)], library, ignore) as (ready,):
        model = ready.target.models["tiny"]
        assert (model.to_make, model.source, model.traits) == (True, str(tiny), Traits(True, True, True))
        assert model.file_bytes == tiny.stat().st_size
        assert model.ref.path == f"{device.work_dir}/models/tiny-{model.ref.digest[:16]}.gguf"
        assert not Path(model.ref.path).exists(), "planning sends nothing"
        said: list[tuple[str, int, int]] = []
        made = prepare.make(ready.agent, model, lambda stage, done, total: said.append((stage, done, total)))
        assert not made.to_make
        assert Path(model.ref.path).read_bytes() == tiny.read_bytes()
        assert said[-1][1:] == (model.file_bytes, model.file_bytes)
        assert said[-1][0].startswith("send tiny.gguf (")
        assert prepare.known_digest(ready.agent, model.ref.path) == model.ref.digest
        # Nobody reads the copy again to know its digest.
        assert ready.agent.digest(model.ref.path, ignore).already_there
    with prepared([device], [str(tiny)], library, ignore) as (ready,):
        assert not ready.target.models["tiny"].to_make
    Path(model.ref.path).write_bytes(b"damaged")
    with prepared([device], [str(tiny)], library, ignore) as (ready,):
        model = ready.target.models["tiny"]
        assert model.to_make
        prepare.make(ready.agent, model, ignore)
        assert Path(model.ref.path).read_bytes() == tiny.read_bytes()


def test_a_file_on_the_board_is_described_there(
    boards: Boards, sandbox: Sandbox, library: Library, tiny: Path
) -> None:
    made = boards()
    (made.home / "own.gguf").write_bytes(tiny.read_bytes())
    device = replace(over_ssh(made), models={"mine": "~/own.gguf", "none": "/nothing.gguf"})
    with prepared([device], ["mine"], library, ignore) as (ready,):
        model = ready.target.models["mine"]
        assert (model.to_make, model.source, model.traits) == (False, "", Traits(True, True, True))
        here = LocalConnector(Device("here"))
        local = Agent("here", here, deploy(here, library))
        assert model.sizes == prepare.resolve(Device("here"), local, str(tiny), library, ignore).sizes
        assert model.ref.path == str(made.home / "own.gguf")
    with (
        pytest.raises(ModelError, match=r"/nothing\.gguf: no such file on rpi5"),
        prepared([device], ["none"], library, ignore),
    ):
        pytest.fail("it was prepared")
    (made.home / "own.gguf").write_bytes(b"no model at all")
    with pytest.raises(ModelError, match=r"rpi5: .*own\.gguf"), prepared([device], ["mine"], library, ignore):
        pytest.fail("it was prepared")
    with (
        pytest.raises(ModelError, match=r"no such file on this machine, from where rpi5 would get it"),
        prepared([device], ["./absent.gguf"], library, ignore),
    ):
        pytest.fail("it was prepared")


def test_a_synthetic_model_is_made_on_the_board(boards: Boards, sandbox: Sandbox, library: Library) -> None:
    device = over_ssh(boards())
    with prepared([device], ["tiny-llama"], library, ignore) as (ready,):
        model = ready.target.models["tiny-llama"]
        assert (model.to_make, model.source) == (True, "")
        made = prepare.make(ready.agent, model, ignore)
        assert made.ref.path.startswith(f"{device.work_dir}/models/")
        assert Path(made.ref.path).stat().st_size > model.file_bytes
        sidecar = json.loads(Path(f"{made.ref.path}.json").read_text())
        assert sidecar["sha256"] == made.ref.digest
    with prepared([device], ["tiny-llama"], library, ignore) as (ready,):
        assert not ready.target.models["tiny-llama"].to_make


def test_a_link_that_breaks_while_a_model_is_sent(
    sandbox: Sandbox, far: type[Far], library: Library, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is not taken for one that is there."""
    with prepared(fleet(1, sandbox), [str(tiny)], library, ignore) as (ready,):
        model = ready.target.models["tiny"]
        put = LocalConnector.put

        def cut(*_: object) -> None:
            raise LinkLost("b0: the link was lost")

        monkeypatch.setattr(LocalConnector, "put", cut)
        with pytest.raises(DeviceError, match="lost"):
            prepare.make(ready.agent, model, ignore)
        assert prepare.known_digest(ready.agent, model.ref.path) is None
        monkeypatch.setattr(LocalConnector, "put", put)
        assert not prepare.make(ready.agent, model, ignore).to_make
