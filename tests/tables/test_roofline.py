"""Bytes per token against the documented ones; bounds by hand; the command through a real agent."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, cast

import pytest

from stbench import cli
from stbench.agent.wire import LimitResult, LimitsRequest
from stbench.campaigns.agentclient import Agent
from stbench.errors import DeviceError, UsageError
from stbench.models import catalogue
from stbench.records import roofline
from stbench.records.roofline import Rate, Roofline, bounds, token_bytes
from tests.tables.factory import facts


class FakeAgent:
    """Answers like a device: 20 GB/s per thread up to 2 threads, gathers at a quarter of it."""

    name = "fake"
    deployment = types.SimpleNamespace(library="libsbr.so")

    def __init__(self, *, direct: bool = True, works: bool = True) -> None:
        self.direct, self.works = direct, works
        self.requests: list[LimitsRequest] = []

    def limits(self, request: LimitsRequest) -> list[LimitResult]:
        self.requests.append(request)
        return [self.answer(probe) for probe in request.probes]

    def answer(self, probe: Any) -> LimitResult:
        if not self.works or (probe.direct and not self.direct):
            return LimitResult(probe, "failed", "not here")
        rate = {"read": 20.0, "gather": 5.0, "storage": 1.0}[probe.kind] * min(probe.threads or 16, 2)
        return LimitResult(probe, "ok", "", probe.threads or 16, int(rate * 1e9), 10**9, 1000)


def measure(agent: FakeAgent, **options: Any) -> Roofline:
    return roofline.measure(cast(Agent, agent), facts(), **options)


@pytest.mark.parametrize(
    ("model", "ffn", "head", "megabytes"),
    [
        ("smallthinker-4b", False, False, 491.5),
        ("smallthinker-4b", True, False, 372.6),
        ("smallthinker-4b", True, True, 265.5),
        ("qwen3-0.6b", False, False, 335),
        ("qwen3-1.7b", False, False, 968),
    ],
)
def test_bytes_per_token(model: str, ffn: bool, head: bool, megabytes: float) -> None:
    """491.5, 335 and 968 MB are what llama.cpp-shaped files of these models hold per token; the sparse ones
    follow from the shares of the profile."""
    found = token_bytes(catalogue.lookup(model).spec, sparse_ffn=ffn, sparse_lm_head=head)
    assert found.total / 1e6 == pytest.approx(megabytes, rel=2e-3)
    assert (found.gather > 0) == (ffn or head)


def test_bytes_per_token_by_parts() -> None:
    spec = dataclasses.replace(catalogue.lookup("smallthinker-4b").spec, zero_share=[500] * 32)
    matrix = 663_552
    dense, sparse = token_bytes(spec), token_bytes(spec, sparse_ffn=True)
    assert dense.total - sparse.total == 32 * 4 * 2 * matrix * 0.5
    assert sparse.gather == 32 * 4 * 2 * matrix * 0.5
    standard = dataclasses.replace(spec, transposed_down=False)
    assert token_bytes(standard, sparse_ffn=True).gather == 32 * 4 * 1 * matrix * 0.5
    head = token_bytes(spec, sparse_lm_head=True)
    assert head.gather == pytest.approx(1536 * 151936 * 18 / 32 * 0.1)
    assert dense.stream - head.stream == pytest.approx((1536 * 151936 - 128 * (1536 + 151936)) * 18 / 32)


def test_switches_that_a_model_does_not_have() -> None:
    spec = catalogue.lookup("qwen3-0.6b").spec
    with pytest.raises(ValueError, match="no ReLU experts"):
        token_bytes(spec, sparse_ffn=True)
    with pytest.raises(ValueError, match="no lm_head predictor"):
        token_bytes(spec, sparse_lm_head=True)


def test_bounds_by_hand() -> None:
    rates = Roofline(
        "pi", "cpu", 1 << 28,
        (Rate(1, 0, 10.0, None), Rate(2, 0, 20.0, None), Rate(4, 0, 15.0, None)),
        (Rate(1, 864, 5.0, 1.0), Rate(2, 864, 8.0, 1.0), Rate(4, 864, 9.0, 1.0)),
        (), "",
    )  # fmt: skip
    found = {(b.model, b.switches): b for b in bounds(rates)}
    assert not any(model.startswith("tiny") for model, _ in found)
    dense = found["smallthinker-4b", "dense"]
    assert dense.threads == 2
    assert dense.tokens_per_s == pytest.approx(20e9 / dense.bytes.total)
    assert dense.tokens_per_s_gathered == pytest.approx(dense.tokens_per_s)
    full = found["smallthinker-4b", "sparse+lmhead"]
    assert full.tokens_per_s == pytest.approx(20e9 / full.bytes.total)
    assert full.tokens_per_s_gathered == pytest.approx(
        1 / (full.bytes.stream / 20e9 + full.bytes.gather / 8e9)
    )
    assert ("qwen3-0.6b", "sparse") not in found
    assert bounds(dataclasses.replace(rates, gather=())) == []


def test_measure_asks_for_every_thread_count_and_reads_storage_directly() -> None:
    agent = FakeAgent()
    found = measure(agent, storage_path="/models/m.gguf")
    assert [rate.threads for rate in found.read] == [1, 2]
    assert [rate.gb_per_s for rate in found.read] == [20.0, 40.0]
    assert {rate.row_bytes for rate in found.gather} == {864}
    assert [(rate.row_bytes, rate.threads, rate.direct) for rate in found.storage] == [
        (4096, 1, True),
        (4096, 8, True),
        (1990656, 1, True),
        (1990656, 16, True),
    ]


def test_storage_falls_back_to_the_page_cache_and_says_so() -> None:
    found = measure(FakeAgent(direct=False), storage_path="/models/m.gguf")
    assert all(rate.gb_per_s is not None and not rate.direct for rate in found.storage)


def test_nothing_works() -> None:
    with pytest.raises(DeviceError, match="not here"):
        measure(FakeAgent(works=False))


def test_working_set_exceeds_caches_and_fits() -> None:
    assert roofline.buffer_bytes(facts(caches={"L3": 100 << 20})) == 400 << 20
    assert roofline.buffer_bytes(facts()) == 256 << 20
    assert roofline.buffer_bytes(facts(memory_available_bytes=512 << 20)) == 128 << 20
    with pytest.raises(UsageError, match="too few"):
        roofline.buffer_bytes(facts(memory_available_bytes=64 << 20))


@pytest.mark.parametrize(("cpus", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_thread_counts(cpus: int, counts: list[int]) -> None:
    assert roofline.thread_counts(cpus) == counts


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "devices.yaml").write_text("devices:\n  here:\n    threads: all\n")
    return tmp_path


def test_command_through_a_real_agent(
    here: Path, library_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["roofline", "--library", str(library_path), "--no-storage", "--seconds", "0.05", "-t", "1"]
    assert cli.main([*words, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["device"] == "here"
    assert found["gather"][0]["gb_per_s"] > 0
    assert found["read"][0]["gb_per_s"] > 0
    assert {bound["model"] for bound in found["bounds"]} >= {"smallthinker-4b", "qwen3-0.6b"}
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "gather GB/s (864-byte rows)" in out
    assert "sparse+lmhead" in out


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--seconds", "1e9"], ["-t", "0"], ["-t", "x"]])
def test_command_refuses_impossible_options(
    here: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["roofline", *words]) == 2
    assert "expected" in capsys.readouterr().err
