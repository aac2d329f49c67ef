"""A session that replays a routing with a cache counts the hits that the simulator says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from stbench.agent import sbr
from stbench.agent.routing import Routing
from stbench.caches import routings, simulate
from stbench.models import catalogue

N_LAYER, N_EXPERT, N_USED, N_TOKENS = 4, 32, 4, 90
TOKENS = [7 * i % 100 for i in range(N_TOKENS)]


@pytest.fixture(scope="module")
def library(library_path: Path) -> sbr.Library:
    return sbr.load(str(library_path))


@pytest.fixture(scope="module")
def model(library: sbr.Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sbr.Model]:
    folder = tmp_path_factory.mktemp("simulated")
    spec = dataclasses.replace(
        catalogue.lookup("tiny-smallthinker").spec,
        n_layer=N_LAYER,
        n_expert=N_EXPERT,
        n_expert_used=N_USED,
        hot_experts=0,
        hot_share=0,
        zero_share=[700] * N_LAYER,
    )
    path, bundle = str(folder / "m.gguf"), str(folder / "m.bundle")
    sbr.synth_write(library, dataclasses.asdict(spec), path)
    sbr.bundle_write(library, path, "", 0, bundle)
    with sbr.Model(library, path, load="repack", bundle=bundle) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def trace() -> Routing:
    return routings.make("hot", N_LAYER, N_EXPERT, N_USED, N_TOKENS, stay=0.2, tasks=2)


def session(model: sbr.Model, units: int, policy: str, prefetch: str = "exact") -> sbr.Session:
    size = units * int(model.info.unit_bytes)
    return sbr.Session(model, n_ctx=2 * N_TOKENS, cache_bytes=size, cache_policy=policy, prefetch=prefetch)


@pytest.mark.parametrize("policy", ["lru", "lfu", "reuse"])
@pytest.mark.parametrize("units", [4, 30, 70, 128])
def test_decoding_hits_exactly_what_was_simulated(
    library: sbr.Library, model: sbr.Model, trace: Routing, policy: str, units: int
) -> None:
    with session(model, units, policy) as running:
        assert running.info().cache_units == units
        running.replay_routing(list(trace.experts))
        running.decode(TOKENS)
        counters = running.cache_counters()
    found = simulate.native(library, policy)(trace, units, 0)
    assert (counters.requests, counters.hits) == (found.requests, found.hits)
    assert counters.loads == found.requests - found.hits


@pytest.mark.parametrize("prefetch", ["exact", "next-layer"])
def test_after_a_prompt_and_with_guesses_it_is_close(
    library: sbr.Library, model: sbr.Model, trace: Routing, prefetch: str
) -> None:
    """A prompt in batches leaves the cache in another state than its tokens one by one, and guesses evict."""
    with session(model, 60, "lru", prefetch) as running:
        running.replay_routing(list(trace.experts))
        running.prefill(TOKENS[:30])
        running.reset_counters()
        running.decode(TOKENS[30:])
        counters = running.cache_counters()
    found = simulate.native(library, "lru")(trace, 60, 30)
    assert counters.requests == found.requests
    there = counters.hits + counters.hits_on_the_way
    assert there / counters.requests == pytest.approx(
        found.hit_rate, abs=0.02 if prefetch == "exact" else 0.1
    )


def test_a_recorded_routing_is_the_replayed_one(model: sbr.Model, trace: Routing) -> None:
    with sbr.Session(model, n_ctx=2 * N_TOKENS, cache_bytes=1 << 20, record_routing=True) as running:
        running.replay_routing(list(trace.experts))
        running.decode(TOKENS)
        assert list(running.routing()) == list(trace.experts)
