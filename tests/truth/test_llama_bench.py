"""The real llama-bench beside our engine: one table, three ways to measure, and its real refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from stbench.agent import wire
from stbench.agent.sbr import Library, synth_write
from stbench.agent.wire import JobSpec, ModelRef, Program, RunRecord, Settings, Workload
from stbench.builds.peer import Peer
from stbench.models.catalogue import lookup
from stbench.records.store import read_records
from tests.agent.conftest import fake_job, run_job
from tests.host.conftest import ROOT, Sandbox
from tests.host.conftest import sandbox as sandbox


def model(library: Library, folder: Path, name: str) -> Path:
    path = folder / f"{name.replace(':', '-')}.gguf"
    synth_write(library, wire.to_json(lookup(name).spec), str(path))
    return path


def bench_job(peer: Peer, path: Path, **changes: object) -> JobSpec:
    values = {
        "engine": "llama-bench",
        "program": Program("llama-bench", [str(peer.bench)]),
        "model": ModelRef(path.stem, str(path)),
        "workload": Workload(8, 16),
    }
    return fake_job(**{**values, **changes})


def documented_example(peer: Peer) -> str:
    """The example of docs/engines.md that runs, with this machine's path."""
    blocks = (ROOT / "docs" / "engines.md").read_text().split("```yaml\n")[1:]
    (block,) = [block.partition("```")[0] for block in blocks if "bench-by-hand" in block]
    return block.replace("/path/to/llama-bench", str(peer.bench)).replace(
        "engines:\n", f"engines:\n  llama-bench: {{path: {peer.bench}}}\n", 1
    )


def test_three_engines_in_one_table(sandbox: Sandbox, peer: Peer, library_path: Path) -> None:
    sandbox.write("devices.yaml", documented_example(peer).replace("connector: local", "threads: 1"))
    axes = ["--models", "tiny-smallthinker,tiny-qwen3", "--engines", "sbr,llama-bench,bench-by-hand"]
    axes += [
        "-pg",
        "8,16",
        "-r",
        "1",
        "--sparse-ffn",
        "on,off",
        "--library",
        str(library_path),
        "--bracket-ms",
        "0",
    ]
    code, out, err = sandbox.run("sweep", *axes, "--campaign", "c")
    assert code == 0, err
    found = read_records(sandbox.directory / "results" / "c").latest()
    assert {record.status for record in found} == {"ok"}
    assert {record.label for record in found} == {
        f"local:{name}/{how}/t1/pp8+tg16"
        for name in ("tiny-smallthinker", "tiny-qwen3")
        for how in ("dense", "llama-bench", "bench-by-hand")
    } | {"local:tiny-smallthinker/sparse/t1/pp8+tg16"}
    for label in {record.label for record in found}:
        assert label in out
    by_label = {record.label: record for record in found}
    ours = by_label["local:tiny-smallthinker/dense/t1/pp8+tg16"]
    theirs = by_label["local:tiny-smallthinker/llama-bench/t1/pp8+tg16"]
    assert (ours.model.name, theirs.model.name) == ("tiny-smallthinker", "tiny-smallthinker:standard")
    for record in (theirs, by_label["local:tiny-smallthinker/bench-by-hand/t1/pp8+tg16"]):
        assert record.samples is not None
        assert (record.samples.prefill_tokens, record.samples.decode_tokens) == ([8], [16])
        assert record.check is not None
        assert record.check.verdict == "unchecked"
        assert record.memory is not None
        assert record.memory.peak_rss_bytes > 1 << 20
    assert ours.check is not None
    assert ours.check.verdict == "ok"
    assert len(list((sandbox.directory.parent / "cache" / "stbench" / "references").glob("*"))) == 3


def test_what_llama_bench_says_of_itself(library: Library, peer: Peer, tmp_path: Path) -> None:
    path = model(library, tmp_path, "tiny-llama")

    def run(load: str, *arguments: str) -> RunRecord:
        settings = Settings(threads=1, n_ctx=256, load=load)
        program = Program("llama-bench", [str(peer.bench), *arguments])
        return run_job(bench_job(peer, path, settings=settings, program=program, workload=Workload(8, 4, 32)))

    mapped, read = run("mmap"), run("read", "--repack", "0", "-ub", "16")
    for record, load in ((mapped, "mmap"), (read, "read")):
        assert record.status == "ok", record.detail
        assert record.effective is not None
        assert (record.effective.load, record.effective.threads, record.effective.kv_type) == (load, 1, "f16")
        assert record.effective.n_ctx >= 44
        assert record.versions is not None
        assert record.versions.runtime["build_commit"] == peer.commit
        assert "built with" in record.versions.runtime["version"]
    assert mapped.effective is not None
    assert read.effective is not None
    assert (mapped.effective.n_batch, read.effective.n_batch) == (512, 16)
    assert read.effective.weights_repacked is False
    # Which CPUs have a layout to repack to is llama.cpp's business; that it is told is ours.
    assert mapped.effective.weights_repacked is not None


@pytest.mark.parametrize(
    ("damage", "status", "said"),
    [
        ("transposed", "unsupported", "has wrong shape"),
        ("architecture", "unsupported", "unknown model architecture"),
        ("type", "unsupported", "invalid ggml type"),
        ("cut", "failed", "exit code 1; last lines:"),
        ("missing", "failed", "exit code 1; last lines:"),
    ],
)
def test_its_refusals_have_a_status(
    library: Library, peer: Peer, tmp_path: Path, damage: str, status: str, said: str
) -> None:
    path = model(library, tmp_path, "tiny-smallthinker" if damage == "transposed" else "tiny-llama")
    data = bytearray(path.read_bytes())
    if damage == "architecture":
        data = data.replace(b"llama", b"lxama")
    elif damage == "type":
        at = data.index(b"token_embd.weight") + len(b"token_embd.weight")
        n_dims = int.from_bytes(data[at : at + 4], "little")
        data[at + 4 + 8 * n_dims] = 99
    elif damage == "cut":
        del data[len(data) // 2 :]
    path.write_bytes(data)
    if damage == "missing":
        path.unlink()
    record = run_job(bench_job(peer, path))
    assert (record.status, said in record.detail) == (status, True), record.detail
    assert record.samples is None


def test_a_failed_allocation_is_out_of_memory(library: Library, peer: Peer, tmp_path: Path) -> None:
    """A context for four million tokens in 200 MB of address space."""
    path = model(library, tmp_path, "tiny-llama")
    limited = tmp_path / "llama-bench"
    limited.write_text(f'#!/bin/sh\nulimit -v 200000\nexec {peer.bench} "$@"\n')
    limited.chmod(0o755)
    program = Program("llama-bench", [str(limited)])
    record = run_job(bench_job(peer, path, program=program, workload=Workload(0, 4, 4_000_000)))
    assert record.status == "out-of-memory", record.detail
