"""Model files: made once, hashed once, recognised afterwards."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
from pathlib import Path

import pytest

from stbench.agent import model_file, wire
from stbench.agent.wire import MakeRequest, ModelFile, ModelRef
from tests.agent.conftest import TINY, run_agent, start_agent

LARGE = dataclasses.replace(TINY, n_layer=8, n_embd=1024, n_ff=768, n_expert=64, zero_share=[500] * 8)


def last(text: str) -> ModelFile:
    return wire.loads(ModelFile, text.splitlines()[-1])


def request(path: Path, library: Path, spec: wire.SynthSpec = TINY) -> str:
    return wire.dumps(MakeRequest(str(path), str(library), spec)) + "\n"


def test_make_writes_once(library_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "models" / "m.gguf"
    done = run_agent("make", stdin=request(path, library_path))
    assert done.returncode == 0, done.stderr
    stages = [json.loads(line)["stage"] for line in done.stdout.splitlines()[:-1]]
    assert stages == sorted(stages, key=["write", "hash"].index)
    assert set(stages) == {"write", "hash"}
    made = last(done.stdout)
    assert made.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (made.status, made.bytes, made.already_there) == ("ok", path.stat().st_size, False)
    sidecar = json.loads(Path(f"{path}.json").read_text())
    assert sidecar["size"] == path.stat().st_size
    assert sidecar["mtime_ns"] == path.stat().st_mtime_ns
    assert sidecar["sha256"] == made.sha256
    assert wire.from_json(wire.SynthSpec, sidecar["spec"]) == TINY

    before = path.stat()
    again = run_agent("make", stdin=request(path, library_path))
    assert last(again.stdout) == dataclasses.replace(made, already_there=True)
    assert len(again.stdout.splitlines()) == 1
    assert path.stat() == before


@pytest.mark.parametrize("damage", ["touch", "truncate", "sidecar", "garbage", "spec"])
def test_make_repairs(library_path: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "m.gguf"
    made = last(run_agent("make", stdin=request(path, library_path)).stdout)
    spec = TINY
    if damage == "touch":
        os.utime(path, ns=(1, 1))
    elif damage == "truncate":
        os.truncate(path, 1000)
    elif damage == "sidecar":
        Path(f"{path}.json").unlink()
    elif damage == "garbage":
        Path(f"{path}.json").write_text("[1, 2")
    else:
        spec = dataclasses.replace(TINY, seed=8)
    again = last(run_agent("make", stdin=request(path, library_path, spec)).stdout)
    assert (again.status, again.already_there) == ("ok", False)
    assert (again.sha256 == made.sha256) == (damage != "spec")
    assert again.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_two_makers_of_one_file_take_turns(library_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    processes = [start_agent("make") for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(request(path, library_path))
        process.stdin.flush()
    results = [last(process.communicate(timeout=120)[0]) for process in processes]
    assert [result.status for result in results] == ["ok"] * 3
    assert sorted(result.already_there for result in results) == [False, True, True]
    assert len({result.sha256 for result in results}) == 1


def test_a_stopped_make_leaves_nothing_unfinished(library_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for _ in range(5):
        process = start_agent("make")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(request(path, library_path, LARGE))
        process.stdin.flush()
        first = json.loads(process.stdout.readline())
        assert first["stage"] == "write"
        assert first["done_bytes"] < first["total_bytes"]
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
        result = last(out)
        if result.status != "ok":
            break
        path.unlink()  # it was done before the signal came: this machine has other work
        path.with_name(path.name + ".json").unlink()
    assert process.returncode == 1
    assert result.status == "cancelled"
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".lock")] == []


def test_make_says_what_is_wrong(library_path: Path, tmp_path: Path) -> None:
    bad = dataclasses.replace(TINY, n_embd=33)
    done = run_agent("make", stdin=request(tmp_path / "m.gguf", library_path, bad))
    assert done.returncode == 1
    assert last(done.stdout).status == "failed"
    assert "33" in last(done.stdout).detail
    blocked = run_agent("make", stdin=request(Path("/proc/m.gguf"), library_path))
    assert (blocked.returncode, last(blocked.stdout).status) == (1, "failed")
    missing = run_agent("make", stdin=wire.dumps(MakeRequest(str(tmp_path / "m"))) + "\n")
    assert missing.returncode == 2
    assert "MakeRequest.spec: missing" in missing.stderr


def test_digest_of_a_file_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(os.urandom(3 << 20))
    text = wire.dumps(MakeRequest(str(path))) + "\n"
    found = last(run_agent("digest", stdin=text).stdout)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not found.already_there
    assert last(run_agent("digest", stdin=text).stdout).already_there
    absent = run_agent("digest", stdin=wire.dumps(MakeRequest(str(tmp_path / "none"))) + "\n")
    assert absent.returncode == 1
    assert "No such file" in last(absent.stdout).detail


def test_a_changed_file_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"a" * 100)
    model_file.digest(str(path), lambda message: None, lambda: False)
    assert model_file.with_digest(ModelRef("m", str(path))).digest
    written = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == written:  # a file's time moves with the kernel's ticks
        path.write_bytes(b"b" * 100)
    assert model_file.known(str(path)) is None
    assert model_file.with_digest(ModelRef("m", str(path))).digest == ""


def test_hashing_can_be_stopped(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(2 << 20))
    with pytest.raises(model_file.Cancelled):
        model_file.digest(str(path), lambda message: None, lambda: True)
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_model_where_nobody_may_write_is_hashed_all_the_same(tmp_path: Path) -> None:
    """A directory in the sidecar's place: as root, nothing else refuses."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    Path(f"{path}.json").mkdir()
    found = model_file.digest(str(path), lambda message: None, lambda: False)
    assert found.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert sorted(child.name for child in tmp_path.iterdir()) == ["model.gguf", "model.gguf.json"]
