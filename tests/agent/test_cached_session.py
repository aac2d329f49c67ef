"""Sessions whose weights stay on storage, and routing, through the ctypes binding."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stbench.agent import sbr
from stbench.agent.sbr import Library, Model, NativeError, Session, _abi
from tests.agent.conftest import ROOT, TINY

TOKENS = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38]


@pytest.fixture
def files(library: Library, tmp_path: Path) -> tuple[str, str]:
    """A model's path and that of a bundle of its experts."""
    model, bundle = tmp_path / "tiny.gguf", tmp_path / "tiny.bundle"
    sbr.synth_write(library, dataclasses.asdict(TINY), str(model))
    sbr.bundle_write(library, str(model), "abc", 0, str(bundle))
    return str(model), str(bundle)


def decoded(session: Session) -> bytes:
    return bytes(session.decode(TOKENS, capture=range(len(TOKENS))).logits)


def test_a_cached_session_computes_what_a_resident_one_does(library: Library, files: tuple[str, str]) -> None:
    path, bundle = files
    with Model(library, path) as resident, Session(resident, n_ctx=32, record_routing=True) as session:
        expected, routing = decoded(session), list(session.routing())
        assert session.cache_counters().requests == 0
    with Model(library, path, load="repack", bundle=bundle, digest="abc") as model:
        assert model.info.bundle_kind == _abi.BUNDLE_EXPERTS
        unit, sets = int(model.info.unit_bytes), len(TOKENS) * TINY.n_layer
        assert model.info.bundle_bytes == unit * TINY.n_layer * TINY.n_expert
        plan = sbr.plan_session(model, n_ctx=32)
        assert (plan.cache_bytes, plan.cache_bytes_min) == (0, unit)
        with pytest.raises(NativeError, match=f"at least {unit}"):
            Session(model, n_ctx=32, cache_bytes=unit - 1)
        settings = dict(n_ctx=32, cache_bytes=3 * unit, cache_policy="lru", io="pread", io_direct="off")
        assert sbr.plan_session(model, **settings).cache_bytes == 3 * unit
        with Session(model, 2, record_routing=True, verify="every", **settings) as session:
            info = session.info()
            assert (info.cache_units, info.cache_policy, info.io) == (3, _abi.CACHE_LRU, _abi.IO_PREAD)
            assert (info.io_direct, info.prefetch) == (_abi.DIRECT_OFF, _abi.PREFETCH_NEXT_2_LAYERS)
            assert decoded(session) == expected
            assert list(session.routing()) == routing
            counters = session.cache_counters()
            assert counters.requests == sets * TINY.n_expert_used
            assert counters.bytes_read == counters.loads * unit
            assert counters.verified == counters.loads


@pytest.mark.parametrize("prefetch", ["exact", "next-layer", "next-2", "next-4"])
def test_whatever_is_read_ahead_the_tokens_are_the_same(
    library: Library, files: tuple[str, str], prefetch: str
) -> None:
    path, bundle = files
    with Model(library, path) as resident, Session(resident, n_ctx=32) as session:
        expected = decoded(session)
    with Model(library, path, load="repack", bundle=bundle) as model:
        cache = model.info.unit_bytes * TINY.n_layer * TINY.n_expert // 2
        with Session(model, 2, n_ctx=32, cache_bytes=cache, prefetch=prefetch) as session:
            assert session.info().prefetch == sbr.PREFETCH_MODES[prefetch]
            for _ in range(3):
                session.rewind(0)
                assert decoded(session) == expected
            counters = session.cache_counters()
    named = 0 if prefetch == "exact" else 3 * len(TOKENS) * (TINY.n_layer - 1) * TINY.n_expert_used
    assert counters.predicted == named
    assert counters.guesses_used + counters.guesses_cancelled <= counters.guesses


def test_a_routing_is_replayed(library: Library, files: tuple[str, str]) -> None:
    with Model(library, files[0]) as model, Session(model, n_ctx=32, record_routing=True) as session:
        own = decoded(session)
        per_token = TINY.n_layer * TINY.n_expert_used
        table = list(range(TINY.n_expert_used)) * TINY.n_layer
        session.reset_counters()
        session.rewind(0)
        session.replay_routing(table)
        assert decoded(session) != own
        assert list(session.routing()) == table * len(TOKENS)
        session.rewind(0)
        session.replay_routing(None)
        assert decoded(session) == own
        with pytest.raises(NativeError, match="is not a number of tokens"):
            session.replay_routing(table[: per_token - 1])
        with pytest.raises(NativeError, match="must ascend"):
            session.replay_routing(table[::-1])


def test_wrong_settings_are_named(library: Library, files: tuple[str, str]) -> None:
    path, bundle = files
    with pytest.raises(NativeError, match="digest"):
        Model(library, path, load="repack", bundle=bundle, digest="another")
    with pytest.raises(NativeError, match="needs options->load_mode 2"):
        Model(library, path, bundle=bundle)
    with Model(library, path) as model:
        with pytest.raises(NativeError, match="cache_bytes is for models whose weights stay on storage"):
            Session(model, cache_bytes=1 << 20)
        with pytest.raises(NativeError, match="cache_policy: expected one of auto, lfu, lru, reuse"):
            Session(model, cache_policy="belady")


KILLED = """
import os, sys
from stbench.agent import sbr
library = sbr.load(sys.argv[1])
model = sbr.Model(library, sys.argv[2], load="repack", bundle=sys.argv[3])
session = sbr.Session(model, 2, n_ctx=32, cache_bytes=2 * model.info.unit_bytes)
print("decoding", flush=True)
while True:
    session.rewind(0)
    session.decode(list(range(20)))
"""


def test_two_processes_share_a_bundle_and_one_is_killed(
    library: Library, files: tuple[str, str], library_path: Path
) -> None:
    """kill -9 while it decodes: the bundle is only read, so that nothing of it is lost to the other."""
    path, bundle = files
    before = Path(bundle).read_bytes()
    with Model(library, path) as resident, Session(resident, n_ctx=32) as session:
        expected = decoded(session)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(library_path), path, bundle],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"decoding\n"
        with (
            Model(library, path, load="repack", bundle=bundle) as model,
            Session(model, 2, n_ctx=32, cache_bytes=2 * model.info.unit_bytes) as session,
        ):
            assert decoded(session) == expected
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
            session.rewind(0)
            assert decoded(session) == expected
    finally:
        process.kill()
        process.wait()
    assert Path(bundle).read_bytes() == before
