"""The ctypes binding: loading, its errors, models, sessions, synthetic files and probes."""

from __future__ import annotations

import array
import ctypes
import dataclasses
import math
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from stbench.agent import sbr, wire
from stbench.agent.sbr import Library, LoadError, Model, NativeError, Session, _abi
from tests.agent.conftest import TINY
from tests.conftest import require


def compile_library(directory: Path, text: str) -> Path:
    compiler = shutil.which("cc")
    require(compiler is not None, "no C compiler")
    source, path = directory / "other.c", directory / "libother.so"
    source.write_text(text)
    subprocess.run([str(compiler), "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    return path


# ---- loading ---------------------------------------------------------------------------------------


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"there is no library at .*/libsbr\.so"):
        sbr.load(str(tmp_path / "libsbr.so"))


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / "libsbr.so"
    path.write_text("hello")
    with pytest.raises(LoadError, match="it is not an ELF library"):
        sbr.load(str(path))


def test_a_library_of_another_machine(tmp_path: Path) -> None:
    path = tmp_path / "libsbr.so"
    path.write_bytes(
        b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + (40).to_bytes(2, "little") + bytes(200)
    )
    with pytest.raises(LoadError, match="built for arm and this machine is"):
        sbr.load(str(path))


def test_another_abi_version_is_refused(tmp_path: Path) -> None:
    path = compile_library(tmp_path, "unsigned sbr_abi_version(void) { return 77; }")
    with pytest.raises(LoadError, match=f"ABI version 77, this agent speaks {_abi.ABI_VERSION}"):
        sbr.load(str(path))


def test_a_library_without_the_functions(tmp_path: Path) -> None:
    path = compile_library(tmp_path, "int x;")
    with pytest.raises(LoadError, match="is not libsbr"):
        sbr.load(str(path))
    path = compile_library(tmp_path / ".", f"unsigned sbr_abi_version(void) {{ return {_abi.ABI_VERSION}; }}")
    copy = path.with_name("libsecond.so")
    shutil.copy(path, copy)
    with pytest.raises(LoadError, match="lacks the function sbr_build_info"):
        sbr.load(str(copy))


# ---- the library -----------------------------------------------------------------------------------


def test_build_info_and_instruction_sets(library: Library) -> None:
    assert library.build_info()["version"]
    isas = library.isas()
    assert isas[0].name == "scalar"
    assert isas[0].supported
    assert sum(isa.is_auto for isa in isas) == 1
    assert library.isa_number("scalar") == _abi.ISA_SCALAR
    with pytest.raises(NativeError, match='instruction set "mmx" is not in this library') as caught:
        library.isa_number("mmx")
    assert caught.value.status == _abi.ERR_UNSUPPORTED
    assert caught.value.name == "unsupported"


def test_synthetic_files_are_as_large_as_said_and_report_progress(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "a model.gguf"
    calls: list[tuple[int, int]] = []
    sbr.synth_write(library, wire.to_json(TINY), str(path), lambda done, total: calls.append((done, total)))
    assert path.stat().st_size == sbr.synth_size(library, wire.to_json(TINY))
    assert calls[-1] == (path.stat().st_size, path.stat().st_size)
    described = sbr.describe(library, str(path))
    assert described["file_bytes"] == path.stat().st_size
    assert any(item["key"] == "general.architecture" for item in described["metadata"])


def test_a_progress_callback_stops_the_writing(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(NativeError) as caught:
        sbr.synth_write(library, wire.to_json(TINY), str(path), lambda done, total: True)
    assert caught.value.status == _abi.ERR_CANCELLED
    assert list(tmp_path.iterdir()) == []


def test_impossible_specs_are_refused_before_the_call(library: Library) -> None:
    with pytest.raises(NativeError, match=r"weight_type: expected one of .*q4_0"):
        sbr.synth_size(library, wire.to_json(dataclasses.replace(TINY, weight_type="q2_k")))
    with pytest.raises(NativeError, match="architecture: at most 31 bytes"):
        sbr.synth_size(library, wire.to_json(dataclasses.replace(TINY, architecture="x" * 40)))
    with pytest.raises(NativeError, match="zero_share: 2 numbers for 3 layers"):
        sbr.synth_size(library, wire.to_json(dataclasses.replace(TINY, zero_share=[1, 2])))


def test_probes_measure_something(library: Library, tiny_model: Path) -> None:
    read = sbr.probe_read(library, 1, 1 << 24, 20_000_000)
    assert read.threads == 1
    assert read.bytes > 0
    assert read.ns > 0
    gather = sbr.probe_gather(library, 1, 1 << 24, 864, 20_000_000, cpus=[])
    assert gather.bytes == gather.operations * 864
    with pytest.raises(NativeError) as caught:
        sbr.probe_reads(library, "/nonexistent", 20_000_000, 4096)
    assert caught.value.status == _abi.ERR_IO


# ---- models and sessions ---------------------------------------------------------------------------


def test_model_info_and_errors(library: Library, tiny_model: Path) -> None:
    with Model(library, str(tiny_model)) as model:
        assert model.info.n_layer == TINY.n_layer
        assert model.info.architecture == b"smallthinker"
        assert model.n_vocab == TINY.n_vocab
        assert sbr.DOWN_LAYOUTS[model.info.down_layout] == "transposed"
        assert model.warnings() == []
    with pytest.raises(NativeError, match="the model is closed"):
        model.warnings()
    with pytest.raises(NativeError) as caught:
        Model(library, "/nonexistent.gguf")
    assert caught.value.status == _abi.ERR_IO
    assert "/nonexistent.gguf" in str(caught.value)


def test_closing_a_model_closes_its_sessions(library: Library, tiny_model: Path) -> None:
    model = Model(library, str(tiny_model))
    session = Session(model, n_ctx=16)
    model.close()
    model.close()
    with pytest.raises(NativeError, match="the session is closed"):
        session.info()
    session.close()


def test_prefill_equals_decode_and_buffers_are_shared(library: Library, tiny_model: Path) -> None:
    tokens = np.array([5, 17, 300, 2, 44], dtype=np.int32)
    with Model(library, str(tiny_model)) as model, Session(model, n_ctx=32, n_batch=2) as session:
        everything = np.empty((5, model.n_vocab), dtype=np.float32)
        out = np.ctypeslib.as_ctypes(everything.reshape(-1))
        done = session.prefill(tokens, "all", logits_out=out)
        assert done.logits is out
        assert len(done.batches) == 3
        assert all(end >= begin for begin, end in done.batches)
        assert session.n_past == 5
        session.rewind(0)
        decoded = session.decode(array.array("i", tokens.tolist()), capture=[0, 4])
        rows = np.frombuffer(decoded.logits, dtype=np.float32).reshape(2, -1)
        assert np.array_equal(rows[0].view(np.uint32), everything[0].view(np.uint32))
        assert np.array_equal(rows[1].view(np.uint32), everything[4].view(np.uint32))
        assert decoded.scores is None
        assert len(decoded.times) == 5


def test_counters_scores_and_experts(library: Library, tiny_model: Path) -> None:
    with (
        Model(library, str(tiny_model)) as model,
        Session(model, n_threads=2, n_ctx=32, sparse_ffn=True, sparse_lm_head=True) as session,
    ):
        decoded = session.decode([1, 2, 3], capture=[2], scores=True)
        kept = sum(map(math.isfinite, decoded.logits))
        assert kept == sum(score > 0 for score in decoded.scores)
        counters = session.counters()
        assert counters.tokens == 3
        assert counters.lm_head_rows < 3 * model.n_vocab
        layers = session.layer_counters()
        assert sum(examined for examined, _ in layers) == counters.neurons_examined
        assert sum(active for _, active in layers) == counters.neurons_active
        assert sum(session.expert_counts(0)) == 3 * TINY.n_expert_used
        assert len(session.thread_ids()) == 2
        session.reset_counters()
        assert session.counters().tokens == 0


def test_errors_of_a_session_leave_it_usable(library: Library, tiny_model: Path) -> None:
    with Model(library, str(tiny_model)) as model:
        with pytest.raises(NativeError) as caught:
            Session(model, n_ctx=16, isa="mmx")
        assert caught.value.status == _abi.ERR_UNSUPPORTED
        with Session(model, n_ctx=4) as session:
            with pytest.raises(NativeError) as caught:
                session.decode([1, 2, 3, 4, 5])
            assert caught.value.status == _abi.ERR_STATE
            with pytest.raises(NativeError) as caught:
                session.prefill([TINY.n_vocab])
            assert caught.value.status == _abi.ERR_ARGUMENT
            with pytest.raises(NativeError, match="room for 3 floats"):
                session.decode([1], capture=[0], logits_out=(ctypes.c_float * 3)())
            session.rewind(0)
            assert len(session.decode([1, 2]).times) == 2


def decode_often(session: Session, tokens: list[int]) -> None:
    for _ in range(100):
        session.rewind(0)
        session.decode(tokens)


def test_cancel_from_another_thread(library: Library, tiny_model: Path) -> None:
    with Model(library, str(tiny_model)) as model, Session(model, n_ctx=4096) as session:
        tokens = [1 + i % 500 for i in range(4000)]
        stop = threading.Event()

        def cancel() -> None:
            while not stop.wait(0.001):
                session.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            with pytest.raises(NativeError) as caught:
                decode_often(session, tokens)
        finally:
            stop.set()
            thread.join()
        assert caught.value.status == _abi.ERR_CANCELLED
