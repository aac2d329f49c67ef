"""Bundles as the agent makes them: the bytes, what is reused or refused, and how a writer may die."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from stbench.agent import pagecache, sbr, wire
from stbench.agent.wire import BundleRequest, ModelFile, SynthSpec
from tests.agent import bundle_reader
from tests.agent.conftest import TINY, run_agent, start_agent
from tests.conftest import require

QWEN3 = dataclasses.replace(
    TINY, architecture="qwen3", n_expert=0, n_expert_used=0, transposed_down=False, predictor_rank=0,
    zero_share=None, hot_experts=0, hot_share=0, lm_head_keep=0, tied_output=True,
)  # fmt: skip
SPECS = {
    "smallthinker": TINY,
    "standard": dataclasses.replace(TINY, transposed_down=False),
    "qwen3moe": dataclasses.replace(QWEN3, architecture="qwen3moe", n_expert=6, n_expert_used=2),
    "qwen3": QWEN3,
    "llama": dataclasses.replace(QWEN3, architecture="llama", weight_type="q8_0"),
}
# SHA-256 of the bundle of each, for a dense and a sparse FFN where that differs.
GOLDEN = {
    ("smallthinker", 0): "4b1b08bbb67de49b9a7acbb15a0ce00d8e9f1523c0d630d0d2546177f1b2fd00",
    ("smallthinker", 1): "90eb1ba4429605a41955839ae6e8fd0bc9872087737ba364641d59d485bdeead",
    ("standard", 0): "7364c8bad9d40c74093170bab42c30c0043d78a6a68f2a4a90b3be49221c02cc",
    ("qwen3moe", 0): "1dd8e57f7dcb8ec9f6f1de530f5599f0fecacdc2c9278b776aa368658dcfd790",
    ("qwen3", 0): "ff0838e8fb3e25640050b22e8c92f310fbca3348bab01c0245cfa1a72cec3d57",
    ("llama", 0): "c784c895f3c9c9e75f702926c02e5266125bd4d676cc2ec947e829128539f10f",
}
# 50 MB: a writer can be caught at work.
LARGE = dataclasses.replace(TINY, n_layer=8, n_embd=512, n_ff=448, n_expert=16, zero_share=[500] * 8)
# Of another model than this file's.
OTHER = "0" * 64


@pytest.fixture(scope="module")
def library(library_path: Path) -> sbr.Library:
    return sbr.load(str(library_path))


def synthesise(library: sbr.Library, spec: SynthSpec, path: Path) -> Path:
    sbr.synth_write(library, dataclasses.asdict(spec), str(path))
    return path


@pytest.fixture
def model(library: sbr.Library, tmp_path: Path) -> Path:
    return synthesise(library, TINY, tmp_path / "m.gguf")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 KB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(path)]
    require(subprocess.run(command, capture_output=True).returncode == 0, "tmpfs cannot be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def request(library: sbr.Library, model: Path, path: Path, digest: str = "", gathers: int = 0) -> str:
    return wire.dumps(BundleRequest(str(path), library.path, str(model), digest, gathers)) + "\n"


def last(text: str) -> ModelFile:
    return wire.loads(ModelFile, text.splitlines()[-1])


def bundled(library: sbr.Library, model: Path, path: Path, digest: str = "", gathers: int = 0) -> ModelFile:
    return last(run_agent("bundle", stdin=request(library, model, path, digest, gathers)).stdout)


def left(folder: Path) -> list[str]:
    """Bundles and unfinished ones."""
    return sorted(path.name for path in folder.iterdir() if ".bundle" in path.name and path.suffix != ".lock")


# ---- the bytes ---------------------------------------------------------------------------------------


def compare(model: Path, bundle: Path) -> bundle_reader.Contents:
    """Every unit of a bundle against the tensors of its model's file."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(model).tensors}
    found = bundle_reader.read(bundle.read_bytes())
    experts = found.header["kind"] == 1
    for layer, parts in enumerate(found.parts):
        for part in parts:
            tensor = tensors[f"blk.{layer}.{part.role}{'_exps' * experts}.weight"]
            raw = tensor.data.tobytes()
            units = found.units[layer]
            size = len(raw) // len(units)
            assert part.type % 32 == tensor.tensor_type
            assert part.offset % 64 == 0
            for number, unit in enumerate(units):
                rows = bundle_reader.rows_of(unit, part, size // part.rows)
                assert rows == raw[number * size : (number + 1) * size], (layer, part.role, number)
    return found


@pytest.mark.parametrize(("name", "gathers"), GOLDEN)
def test_a_second_reader_finds_the_models_weights(
    library: sbr.Library, tmp_path: Path, name: str, gathers: int
) -> None:
    model = synthesise(library, SPECS[name], tmp_path / "m.gguf")
    path = tmp_path / "m.bundle"
    sbr.bundle_write(library, str(model), "d16e57", gathers, str(path))
    found = compare(model, path)
    spec, described = SPECS[name], sbr.bundle_describe(library, str(path))
    assert found.shape == (
        *(spec.n_layer, spec.n_embd, spec.n_head, spec.n_head_kv, spec.head_dim, spec.n_ff),
        *(spec.n_expert, spec.n_vocab, int(spec.transposed_down)),
    )
    assert (found.architecture, found.digest, found.header["gathers"]) == (
        spec.architecture,
        "d16e57",
        gathers,
    )
    assert (described.layout, described.model_digest) == (found.layout, found.digest)
    assert described._replace(model_digest="") == sbr.bundle_plan(library, str(model), gathers)
    sbr.bundle_verify(library, str(path))
    assert sha256(path) == GOLDEN[name, gathers]


def test_types_may_differ_from_layer_to_layer(library: sbr.Library, tmp_path: Path) -> None:
    """As in files of llama.cpp's q4_k_m: some layers have v and down in q6_k."""
    spec = dataclasses.replace(QWEN3, n_layer=2, n_embd=256, n_ff=512, n_head=8, weight_type="f32")
    plain = gguf.GGUFReader(synthesise(library, spec, tmp_path / "f32.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3")
    for field in plain.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            item = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=item)
    random = np.random.default_rng(5)
    for tensor in plain.tensors:
        if tensor.name.startswith("blk.") and "norm" not in tensor.name:
            six = tensor.name.startswith("blk.1.") and ("down" in tensor.name or "attn_v" in tensor.name)
            kind = gguf.GGMLQuantizationType.Q6_K if six else gguf.GGMLQuantizationType.Q4_K
            n_bytes = int(tensor.n_elements) // 256 * (210 if six else 144)
            rows = int(tensor.shape[1])
            data = random.integers(0, 256, (rows, n_bytes // rows), dtype=np.uint8)
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path = tmp_path / "m.bundle"
    sbr.bundle_write(library, str(tmp_path / "m.gguf"), "", 0, str(path))
    found = compare(tmp_path / "m.gguf", path)
    types: list[dict[str, int]] = [{part.role: part.type for part in parts} for parts in found.parts]
    assert types[0] == dict.fromkeys(bundle_reader.ROLES, 12 + 32)
    # One run of rows is dealt out: q and k keep theirs where v has to.
    assert [types[1][role] for role in bundle_reader.ROLES] == [12, 12, 14, 44, 44, 44, 14]
    assert found.layout == "q,k q4_k_x16/q4_k; v q4_k_x16/q6_k; output,gate,up q4_k_x16; down q4_k_x16/q6_k"


def test_what_was_written_is_not_left_in_the_page_cache(library: sbr.Library, tmp_path: Path) -> None:
    """Its pages would count for the writer's control group, and make a later limit void."""
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True, check=True
    )
    require(kind.stdout.strip() not in ("tmpfs", "ramfs"), "the tests' directory lies in memory")
    path = tmp_path / "m.bundle"
    model = synthesise(library, LARGE, tmp_path / "m.gguf")
    sbr.bundle_write(library, str(model), "", 0, str(path))
    assert pagecache.cached_bytes(str(path)) == 0
    sbr.bundle_verify(library, str(path))
    assert pagecache.cached_bytes(str(path)) == 0


# ---- reused, made again, left alone ------------------------------------------------------------------


def test_made_once(library: sbr.Library, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.bundle"
    done = run_agent("bundle", stdin=request(library, model, path))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
    assert [line["stage"] for line in lines if line["stage"] != "hash"] != []
    assert {line["stage"] for line in lines} <= {"hash", "bundle"}
    assert lines[-1]["done_bytes"] == lines[-1]["total_bytes"] == path.stat().st_size
    assert last(done.stdout) == ModelFile("ok", str(path), bytes=path.stat().st_size)
    assert sbr.bundle_describe(library, str(path)).model_digest == sha256(model)

    before = path.stat()
    again = bundled(library, model, path, sha256(model))
    assert again == ModelFile("ok", str(path), bytes=before.st_size, already_there=True)
    assert path.stat() == before


def damaged(path: Path, how: str, library: sbr.Library, model: Path) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[-1:]
    elif how == "version":
        data[8] = 2
    elif how == "header":
        data[3000] ^= 1
    elif how == "digest":
        sbr.bundle_write(library, str(model), OTHER, 0, str(path))
        return
    else:
        sbr.bundle_write(library, str(model), sha256(model), 1, str(path))
        return
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("truncated", "is truncated: it has"),
        ("version", "is a bundle of version 2, this library reads version 1"),
        ("header", "has a damaged header"),
        ("digest", f"its model_digest is {OTHER}"),
        ("purpose", "its gathers is 1, 0 is wanted"),
    ],
)
def test_one_that_does_not_fit_is_made_again(
    library: sbr.Library, model: Path, tmp_path: Path, how: str, why: str
) -> None:
    path = tmp_path / "m.bundle"
    assert bundled(library, model, path).detail == ""
    good = path.read_bytes()
    damaged(path, how, library, model)
    assert path.read_bytes() != good
    found = bundled(library, model, path)
    assert (found.status, found.already_there) == ("ok", False)
    assert found.detail.startswith("made again: ")
    assert why in found.detail
    assert path.read_bytes() == good


def test_a_file_that_is_no_bundle_is_left_alone(library: sbr.Library, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "thesis.bundle"
    for content in (b"my thesis, the only copy", b""):
        path.write_bytes(content)
        found = bundled(library, model, path)
        assert found.status == "failed"
        assert "is not a bundle and is left alone: remove it, or give the bundle another name" in found.detail
        assert path.read_bytes() == content
    onto_itself = bundled(library, model, model)
    assert (onto_itself.status, "is not a bundle" in onto_itself.detail) == ("failed", True)


def test_the_model_must_be_the_one_that_is_meant(library: sbr.Library, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.bundle"
    for _ in range(2):  # the second time the digest is known
        found = bundled(library, model, path, OTHER)
        assert found.status == "failed"
        assert f"has the digest {sha256(model)[:12]}" in found.detail
        assert left(tmp_path) == []
    absent = bundled(library, tmp_path / "none.gguf", path, OTHER)
    assert (absent.status, "No such file" in absent.detail) == ("failed", True)
    (tmp_path / "no.gguf").write_bytes(b"GGUF?")
    broken = bundled(library, tmp_path / "no.gguf", path)
    assert (broken.status, "no.gguf" in broken.detail) == ("failed", True)


# ---- no room, no permission --------------------------------------------------------------------------


def test_a_full_disk_is_noticed_before_anything_is_written(
    library: sbr.Library, model: Path, mounted: Path
) -> None:
    (mounted / "else").write_bytes(bytes(100_000))
    found = bundled(library, model, mounted / "m.bundle")
    needed = sbr.bundle_plan(library, str(model), 0).file_bytes
    assert found.status == "failed"
    assert f"needs {needed} bytes, but its file system has only" in found.detail
    assert "bytes of free space" in found.detail
    assert left(mounted) == []


def test_a_directory_that_cannot_be_written(library: sbr.Library, model: Path, mounted: Path) -> None:
    small = dataclasses.replace(TINY, n_layer=1, n_expert=4, zero_share=[500])
    other = synthesise(library, small, model.with_name("small.gguf"))
    assert bundled(library, other, mounted / "small.bundle").status == "ok"
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    found = bundled(library, model, mounted / "m.bundle")
    assert found.status == "failed"
    assert "m.bundle: a bundle cannot be written there: Read-only file system" in found.detail
    assert bundled(library, other, mounted / "small.bundle").already_there
    with pytest.raises(sbr.NativeError, match="cannot be created: Read-only file system"):
        sbr.bundle_write(library, str(model), "", 0, str(mounted / "n.bundle"))


# ---- writers that die, and two at once ---------------------------------------------------------------


def test_kill_9_leaves_no_bundle_and_the_next_writer_succeeds(library: sbr.Library, tmp_path: Path) -> None:
    model = synthesise(library, LARGE, tmp_path / "m.gguf")
    good, path = tmp_path / "good.bundle", tmp_path / "m.bundle"
    assert bundled(library, model, good).status == "ok"
    expected = sha256(good)
    good.unlink()
    caught = 0
    # More where all came too late: this machine has other work.
    for pause in (0.0, 0.01, 0.02, 0.04, 0.08, *[0.0] * 20):
        if caught and not pause:
            break
        path.unlink(missing_ok=True)
        process = start_agent("bundle")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(request(library, model, path))
        process.stdin.flush()
        while '"bundle"' not in (line := process.stdout.readline()):
            assert line, process.communicate()[1]
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        if path.exists():  # it was done: whole, or not there
            assert sha256(path) == expected
        else:
            caught += 1
            assert left(tmp_path) == ["m.bundle.part"]
    assert caught > 0
    path.unlink(missing_ok=True)
    (tmp_path / "m.bundle.part").write_bytes(b"\xaa" * (path_bytes := 60 << 20))
    assert bundled(library, model, path).bytes < path_bytes
    assert sha256(path) == expected
    assert left(tmp_path) == ["m.bundle"]


def test_a_stopped_writer_leaves_nothing(library: sbr.Library, tmp_path: Path) -> None:
    model = synthesise(library, LARGE, tmp_path / "m.gguf")
    process = start_agent("bundle")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request(library, model, tmp_path / "m.bundle"))
    process.stdin.flush()
    while '"bundle"' not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    found = last(process.communicate(timeout=60)[0])
    # It may have been done just then.
    assert found.status in ("cancelled", "ok")
    assert left(tmp_path) == (["m.bundle"] if found.status == "ok" else [])


def test_two_that_want_the_same_bundle_take_turns(library: sbr.Library, tmp_path: Path) -> None:
    model = synthesise(library, LARGE, tmp_path / "m.gguf")
    path = tmp_path / "m.bundle"
    processes = [start_agent("bundle") for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(request(library, model, path))
        process.stdin.flush()
    found = [last(process.communicate(timeout=120)[0]) for process in processes]
    assert [one.status for one in found] == ["ok"] * 3
    assert sorted(one.already_there for one in found) == [False, True, True]
    sbr.bundle_verify(library, str(path))


def test_writers_that_do_not_wait_never_spoil_each_others_file(library: sbr.Library, tmp_path: Path) -> None:
    """The library itself, without the agent's lock: one writes, the others are told."""
    model = synthesise(library, LARGE, tmp_path / "m.gguf")
    path = tmp_path / "m.bundle"
    writers: list[int] = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            code = 9
            try:
                sbr.bundle_write(library, str(model), "", 0, str(path))
                code = 0
            except sbr.NativeError as error:
                code = 1 if "is being written by another process" in str(error) else 2
            finally:
                os._exit(code)
        writers.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in writers]
    refused = codes.count(1)
    assert codes.count(0) + refused == len(codes), codes
    assert codes.count(0) >= 1
    sbr.bundle_verify(library, str(path))
    assert left(tmp_path) == ["m.bundle"]
