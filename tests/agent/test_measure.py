"""Measuring: the token stream, and whole records of tiny models."""

from __future__ import annotations

import dataclasses
import itertools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stbench.agent import measure, model_file, wire
from stbench.agent.measure import token_stream
from stbench.agent.sbr import Library, NativeError
from stbench.agent.wire import JobSpec, ModelRef, Settings, Workload
from tests.agent.conftest import TINY, fake_job, run_job

SWITCHES: list[dict[str, bool]] = [
    {},
    {"sparse_ffn": True},
    {"sparse_lm_head": True},
    {"sparse_ffn": True, "sparse_lm_head": True},
]

SbrJob = Callable[..., JobSpec]


class Collector:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.parts: dict[str, Any] = {}

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def part(self, name: str, value: Any) -> None:
        self.parts[name] = value


# ---- the token stream ------------------------------------------------------------------------------


def test_the_stream_is_pinned() -> None:
    """Published numbers rest on these tokens: a change here is a change of every workload."""
    assert token_stream(0, 6, 151936) == [134206, 65564, 4016, 147511, 16157, 49732]
    assert token_stream(1, 6, 151936) == [65564, 4016, 147511, 16157, 49732, 26416]


@pytest.mark.parametrize("n_vocab", [2, 3, 512, 151936])
def test_the_stream_is_varied_and_within_the_vocabulary(n_vocab: int) -> None:
    tokens = token_stream(3, 2000, n_vocab)
    assert all(0 <= token < n_vocab for token in tokens)
    assert all(a != b for a, b in itertools.pairwise(tokens))
    assert len(set(tokens)) > min(n_vocab, 2000) * 0.6
    assert tokens[:100] == token_stream(3, 100, n_vocab)
    assert n_vocab < 3 or tokens != token_stream(4, 2000, n_vocab)
    assert n_vocab < 3 or tokens != token_stream(3, 2000, n_vocab, stream=1)


def test_odd_vocabularies() -> None:
    assert token_stream(0, 3, 1) == [0, 0, 0]
    with pytest.raises(ValueError, match="a vocabulary of 0 tokens"):
        token_stream(0, 1, 0)


# ---- records of the native engine ------------------------------------------------------------------


def test_a_record_holds_what_was_measured(sbr_job: SbrJob) -> None:
    job = sbr_job(Workload(n_prompt=10, n_gen=20, n_depth=5), threads=2, cpus=[0], n_batch=4)
    record = run_job(job)
    assert (record.status, record.detail, record.purpose) == ("ok", "", "measure")
    assert (record.id, record.workload, record.settings) == (job.id, job.workload, job.settings)
    assert record.samples is not None
    assert record.samples.prefill_tokens == [4, 4, 2]
    assert len(record.samples.prefill_ns) == 3
    assert record.samples.ttft_ns >= sum(record.samples.prefill_ns)
    assert len(record.samples.decode_ns) == 20
    assert all(ns > 0 for ns in record.samples.decode_ns)
    assert record.effective is not None
    assert record.effective.threads == 2
    assert record.effective.affinity == [[0], [0]]
    assert record.effective.isa != "auto"
    assert record.effective.down_layout == "transposed"
    assert record.shape is not None
    assert (record.shape.n_vocab, record.shape.n_layer) == (TINY.n_vocab, TINY.n_layer)
    assert record.counters is not None
    assert record.counters.prefill.tokens == 10
    assert record.counters.decode.tokens == 20
    assert len(record.counters.layer_neurons_active) == TINY.n_layer
    total = record.counters.prefill.neurons_active + record.counters.decode.neurons_active
    assert sum(record.counters.layer_neurons_active) == total
    assert record.memory is not None
    assert record.memory.baseline_rss_bytes is not None
    assert record.memory.peak_rss_bytes >= record.memory.baseline_rss_bytes
    assert record.memory.capture_bytes == 16 * TINY.n_vocab * 4
    assert record.telemetry is not None
    assert record.versions is not None
    assert len(record.versions.library_sha256) == 64
    assert record.facts is not None
    assert "scalar" in record.facts.isas
    assert record.check is not None
    assert record.check.verdict == "unchecked"


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "+".join(s) or "dense")
def test_every_instruction_set_equals_the_reference_to_the_bit(
    sbr_job: SbrJob, library: Library, switches: dict[str, bool]
) -> None:
    job = sbr_job(**switches)
    reference = run_job(dataclasses.replace(job, purpose="reference")).reference
    assert reference is not None
    assert len(reference.positions) == 16
    for isa in (isa.name for isa in library.isas() if isa.supported):
        settings = dataclasses.replace(job.settings, isa=isa, threads=2, n_batch=3)
        check = run_job(dataclasses.replace(job, settings=settings, reference=reference)).check
        assert check is not None
        assert (check.verdict, check.bit_equal, check.kept_equal) == ("ok", 16, 16), (isa, check)


def test_a_reference_of_other_switches_is_noticed(sbr_job: SbrJob) -> None:
    dense = run_job(dataclasses.replace(sbr_job(), purpose="reference"))
    record = run_job(dataclasses.replace(sbr_job(sparse_lm_head=True), reference=dense.reference))
    assert record.status == "wrong-output"
    assert record.check is not None
    assert record.check.verdict == "wrong"
    assert record.detail.startswith("step 0:")
    assert record.samples is not None, "kept for diagnosis"


def test_a_reference_record_has_no_speed(sbr_job: SbrJob) -> None:
    record = run_job(dataclasses.replace(sbr_job(sparse_lm_head=True, isa="auto"), purpose="reference"))
    assert (record.status, record.purpose) == ("ok", "reference")
    assert record.samples is None
    assert record.effective is not None
    assert record.effective.isa == "scalar"
    assert record.reference is not None
    assert record.reference.positions[0].n_kept > 0


def test_a_prompt_alone_is_checked_at_its_end(sbr_job: SbrJob) -> None:
    job = sbr_job(Workload(n_prompt=20, n_gen=0))
    reference = run_job(dataclasses.replace(job, purpose="reference")).reference
    assert reference is not None
    assert [position.step for position in reference.positions] == [-1]
    record = run_job(dataclasses.replace(job, reference=reference))
    assert record.status == "ok"
    assert record.check is not None
    assert record.check.bit_equal == 1
    assert record.samples is not None
    assert record.samples.decode_ns == []


def test_generation_alone_has_no_first_token_time(sbr_job: SbrJob) -> None:
    record = run_job(sbr_job(Workload(n_prompt=0, n_gen=3)))
    assert record.samples is not None
    assert (record.samples.ttft_ns, record.samples.prefill_ns) == (0, [])
    assert record.check is not None
    assert record.check.positions == 3


@pytest.mark.parametrize(
    ("change", "status", "detail"),
    [
        ({"model": ModelRef("m", "/nonexistent.gguf")}, "failed", "/nonexistent.gguf"),
        ({"library": "/nonexistent.so"}, "failed", "there is no library at /nonexistent.so"),
        ({"settings": Settings(n_ctx=10)}, "failed", "the workload is 28 tokens and n_ctx 10"),
        ({"settings": Settings(n_ctx=64, isa="mmx")}, "unsupported", 'instruction set "mmx"'),
        ({"settings": Settings(n_ctx=64, threads=1, cpus=[4000])}, "failed", "4000"),
        ({"workload": Workload(0, 0)}, "failed", "evaluates no tokens"),
        ({"engine": "gpu"}, "failed", 'engine "gpu": expected one of fake, sbr'),
        ({"purpose": "fun"}, "failed", "expected measure, reference or search"),
    ],
)
def test_what_cannot_run_says_why(sbr_job: SbrJob, change: dict[str, Any], status: str, detail: str) -> None:
    record = run_job(dataclasses.replace(sbr_job(), **change))
    assert record.status == status
    assert detail in record.detail
    assert record.facts is not None
    assert record.samples is None


def test_an_isa_that_this_cpu_lacks_is_unsupported(sbr_job: SbrJob, library: Library) -> None:
    missing = [isa.name for isa in library.isas() if not isa.supported]
    foreign = "avx2" if platform.machine() == "aarch64" else "neon"
    assert run_job(sbr_job(isa=(*missing, foreign)[0])).status == "unsupported"


def test_the_digest_comes_from_the_sidecar(sbr_job: SbrJob, tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_model.read_bytes())
    known = model_file.digest(str(path), lambda message: None, lambda: False)
    job = dataclasses.replace(sbr_job(), model=ModelRef("tiny", str(path)))
    assert run_job(job).model.digest == known.sha256
    record = run_job(dataclasses.replace(job, model=ModelRef("tiny", str(path), digest="0" * 64)))
    assert record.status == "failed"
    assert "the job asks for 000000000000" in record.detail


def test_a_reference_of_another_file_is_refused(sbr_job: SbrJob, tmp_path: Path, tiny_model: Path) -> None:
    reference = wire.Reference("k", "f" * 64, [])
    job = sbr_job()
    job = dataclasses.replace(job, reference=reference, model=dataclasses.replace(job.model, digest="e" * 64))
    record = run_job(job)
    assert record.status == "failed"
    assert "another model file" in record.detail


# ---- the order of things, with the fake engine -----------------------------------------------------


def test_phases_come_in_order() -> None:
    report = Collector()
    measure.measure(fake_job("vocab=64"), report)
    assert report.phases == ["start", "load", "warm-up", "depth", "prefill", "decode", "results", "check"]
    assert list(report.parts)[-5:] == ["samples", "memory", "counters", "telemetry", "check"]
    assert report.parts["counters"].decode.tokens == 20, "warm-up and prefill do not count"


def test_no_warm_up_when_none_is_asked_for() -> None:
    report = Collector()
    measure.measure(fake_job("vocab=64", warmup_tokens=0), report)
    assert "warm-up" not in report.phases


def test_an_engine_is_closed_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr("stbench.agent.fake.FakeEngine.close", lambda self: closed.append(1))
    with pytest.raises(NativeError):
        measure.measure(fake_job("unsupported"), Collector())
    assert closed == [1]
