"""How weights reach memory: what "auto" becomes, and that loading holds them once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stbench.agent import wire
from stbench.agent.loading import SPARE_BYTES, choose_load
from stbench.agent.sbr import Library, Model, NativeError, Session, synth_write
from stbench.agent.tree import Tree
from stbench.agent.wire import JobSpec, ModelRef, Settings, Workload
from tests.agent.conftest import TINY, fake_job, run_job
from tests.tinythinker import twin
from tests.tinythinker.measure import FIXTURE

MIB = 1 << 20


def machine(root: Path, available: int, **files: str) -> Tree:
    contents = {"proc/meminfo": f"MemTotal: 99999999 kB\nMemAvailable: {available // 1024} kB\n", **files}
    for name, text in contents.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(root)


def model_of(tmp_path: Path, size: int) -> str:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.truncate(size)
    return str(path)


def test_auto_repacks_where_the_memory_allows_it(tmp_path: Path) -> None:
    path = model_of(tmp_path, 100 * MIB)
    just = 110 * MIB + SPARE_BYTES
    assert choose_load("auto", path, machine(tmp_path / "a", just)) == ("repack", "")
    load, why = choose_load("auto", path, machine(tmp_path / "b", just - MIB))
    assert load == "mmap"
    assert "0.6 GiB with reserve" in why
    assert "decode is slower" in why


@pytest.mark.parametrize("asked", ["mmap", "read", "repack"])
def test_what_was_asked_for_is_done(tmp_path: Path, asked: str) -> None:
    assert choose_load(asked, "/nonexistent", machine(tmp_path, 0)) == (asked, "")


def test_limits_of_control_groups_count(tmp_path: Path) -> None:
    path = model_of(tmp_path, 100 * MIB)
    v2 = {
        "proc/self/cgroup": "0::/job/step\n",
        "sys/fs/cgroup/job/memory.max": f"{200 * MIB}\n",
        "sys/fs/cgroup/job/step/memory.max": "max\n",
    }
    assert choose_load("auto", path, machine(tmp_path / "v2", 64 << 30, **v2))[0] == "mmap"
    v1 = {
        "proc/self/cgroup": "5:cpu:/\n4:memory:/job\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{300 * MIB}\n",
    }
    assert choose_load("auto", path, machine(tmp_path / "v1", 64 << 30, **v1))[0] == "mmap"
    v1["sys/fs/cgroup/memory/job/memory.limit_in_bytes"] = f"{4096 * MIB}\n"
    assert choose_load("auto", path, machine(tmp_path / "wide", 64 << 30, **v1))[0] == "repack"


def test_a_machine_that_says_nothing_is_trusted(tmp_path: Path) -> None:
    assert choose_load("auto", model_of(tmp_path, MIB), Tree(tmp_path)) == ("repack", "")


@pytest.fixture(scope="module")
def large_model(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Some 100 MB, so that 5 % of it is more than what an interpreter takes meanwhile."""
    spec = dataclasses.replace(
        TINY, n_layer=8, n_embd=512, n_ff=384, n_vocab=16384, n_expert=32, zero_share=[700] * 8
    )
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    synth_write(library, wire.to_json(spec), str(path))
    yield path
    path.unlink()


@pytest.mark.parametrize("load", ["mmap", "read", "repack"])
@pytest.mark.parametrize("sparse", [False, True])
def test_loading_holds_the_weights_once(
    library_path: Path, large_model: Path, load: str, sparse: bool
) -> None:
    """Peak memory is the file, the KV cache and the buffers that the record states, within 5 %."""
    record = run_job(
        fake_job(
            engine="sbr",
            library=str(library_path),
            model=ModelRef("large", str(large_model)),
            workload=Workload(n_prompt=8, n_gen=4),
            settings=Settings(threads=1, n_ctx=4096, load=load, sparse_ffn=sparse),
        )
    )
    assert record.status == "ok", record.detail
    assert record.memory is not None
    assert record.effective is not None
    assert record.shape is not None
    assert record.effective.load == load
    assert record.effective.weights_repacked is (load == "repack")
    assert (record.effective.load_ns or 0) > 0
    stated = record.shape.file_bytes + record.effective.kv_bytes + record.effective.scratch_bytes
    held = (
        record.memory.peak_rss_bytes - (record.memory.baseline_rss_bytes or 0) - record.memory.capture_bytes
    )
    assert held == pytest.approx(stated, rel=0.05)


def test_the_runtime_chooses_sparse_layers_and_says_so(sbr_job: Callable[..., JobSpec]) -> None:
    """In three steps each way; the result is the fixed one's, to the bit."""
    fixed, chosen = (
        run_job(
            sbr_job(
                workload=Workload(n_prompt=8, n_gen=24), sparse_ffn=True, sparse_ffn_auto=auto, load="repack"
            )
        )
        for auto in (False, True)
    )
    assert fixed.effective is not None
    assert chosen.effective is not None
    assert fixed.effective.sparse_ffn == "full"
    assert re.fullmatch(r"auto: full in [0-3] of 3 layers", chosen.effective.sparse_ffn)
    assert fixed.check is not None
    assert chosen.check is not None
    assert chosen.check.output_hash == fixed.check.output_hash


def test_one_layer_of_another_type_does_not_hide_what_the_others_lack(
    library: Library, tmp_path: Path
) -> None:
    """F16 is never interleaved. With a first layer of it all rows of the model seemed to lie together."""
    file = twin.read(FIXTURE)
    _, values = file.tensors["blk.0.ffn_up_exps.weight"]
    file.tensors["blk.0.ffn_up_exps.weight"] = ("f16", values)
    path = tmp_path / "mixed.gguf"
    file.write(path)
    with (
        Model(library, str(path), load="repack") as model,
        pytest.raises(NativeError, match="repacked without SBR_GATHER_UP"),
    ):
        Session(model, sparse_ffn="on")
    with Model(library, str(path), load="repack", sparse_ffn=True) as model, Session(model, sparse_ffn="on"):
        pass
