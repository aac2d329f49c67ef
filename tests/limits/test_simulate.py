"""The simulator against slow and obvious ones: equal hits for every policy, size and trace."""

from __future__ import annotations

import array
import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stbench.agent import sbr
from stbench.agent.routing import Routing, from_sets
from stbench.caches import clock, frequent, routings, simulate, user_policy
from stbench.caches.clock import Machine
from stbench.errors import InputError, UsageError

Sets = list[list[list[int]]]


def sets_of(trace: Routing) -> Sets:
    """[token][layer] -> units."""
    experts = routings.experts_array(trace).tolist()
    return [[[layer * trace.n_expert + e for e in chosen] for layer, chosen in enumerate(t)] for t in experts]


class Lru:
    """Told of every use; of the units in the cache the one of least rank leaves."""

    def __init__(self, trace: Routing) -> None:
        self.last: dict[int, int] = {}
        self.clock = 0

    def used(self, unit: int) -> None:
        self.clock += 1
        self.last[unit] = self.clock

    def rank(self, unit: int) -> tuple[float, ...]:
        return (self.last[unit],)


class Lfu(Lru):
    """Counts up to 127, halved when the average unit has been used 8 times; those that are halved line up
    behind one another in the order of their counts."""

    def __init__(self, trace: Routing) -> None:
        super().__init__(trace)
        self.counts: Counter[int] = Counter()
        self.uses = 0
        self.period = 8 * trace.n_layer * trace.n_expert

    def used(self, unit: int) -> None:
        self.uses += 1
        if self.uses == self.period:
            self.uses = 0
            for each in sorted(self.last, key=self.rank):
                super().used(each)
            self.counts = Counter({each: n // 2 for each, n in self.counts.items()})
        super().used(unit)
        self.counts[unit] = min(self.counts[unit] + 1, 127)

    def rank(self, unit: int) -> tuple[float, ...]:
        return (self.counts[unit], self.last[unit])


# "reuse" is held against a plain loop over itself: runtime/tests/test_simulate.cpp.
REFERENCES: dict[str, Callable[[Routing], Lru]] = {"lru": Lru, "lfu": Lfu}


def reference(trace: Routing, policy: str, capacity: int, warmup: int = 0) -> list[int]:
    """Sets by misses."""
    tokens = sets_of(trace)
    flat = [units for token in tokens for units in token]
    counted = [0] * (trace.n_expert_used + 1)
    cached: set[int] = set()
    if policy == "static":
        uses = Counter(unit for units in flat for unit in units)
        every = range(trace.n_layer * trace.n_expert)
        cached = set(sorted(every, key=lambda unit: (-uses[unit], unit))[:capacity])
    books = REFERENCES[policy](trace) if policy in REFERENCES else None
    for place, units in enumerate(flat):
        token = place // trace.n_layer
        missing = [unit for unit in units if unit not in cached]
        counted[len(missing)] += token >= warmup
        if policy == "static":
            continue
        pinned = set()
        for unit in [*(u for u in units if u in cached), *missing]:
            if unit not in cached and len(cached) == capacity:
                free = (cached - pinned) or cached
                if not cached - pinned:
                    pinned.clear()
                if books is None:
                    cached.remove(max(free, key=lambda u: (next_use(flat, place, u), u)))
                else:
                    cached.remove(min(free, key=books.rank))
            cached.add(unit)
            pinned.add(unit)
            if books is not None:
                books.used(unit)
    return counted


def next_use(flat: Sequence[Sequence[int]], place: int, unit: int) -> int:
    """The place of the set that uses it next. A unit of the present set that has not been acquired yet is due
    at once."""
    return next((i for i in range(place, len(flat)) if unit in flat[i] and i > place), len(flat))


def cyclic(n_layer: int, n_tokens: int) -> Routing:
    """A model without experts: every layer is one unit."""
    return from_sets([[0]] * (n_layer * n_tokens), n_layer, 1, 1)


TRACES = {
    "uniform": routings.make("uniform", 3, 6, 2, 60),
    "hot": routings.make("hot", 2, 16, 2, 60, stay=0.3, tasks=3),
    "one layer": routings.make("uniform", 1, 9, 3, 80),
    "all used": routings.make("uniform", 2, 3, 3, 20),
    "cyclic": cyclic(8, 30),
}


@pytest.fixture(scope="module")
def library(library_path: Path) -> sbr.Library:
    return sbr.load(str(library_path))


@pytest.mark.parametrize("policy", [*REFERENCES, "static", "belady"])
@pytest.mark.parametrize("name", TRACES)
def test_native_equals_the_obvious_one(library: sbr.Library, policy: str, name: str) -> None:
    trace = TRACES[name]
    total = trace.n_layer * trace.n_expert
    run = simulate.native(library, policy)
    for capacity in sorted({1, 2, trace.n_expert_used, total // 3, total // 2, total - 1, total, total + 5}):
        if capacity < 1:
            continue
        for warmup in (0, 7):
            found = run(trace, capacity, warmup)
            expected = reference(trace, policy, min(capacity, total), warmup)
            assert list(found.sets_by_misses) == expected, (capacity, warmup)
            sets = (trace.n_tokens - warmup) * trace.n_layer
            assert found.requests == sets * trace.n_expert_used
            assert found.hits == found.requests - sum(m * n for m, n in enumerate(expected))


def test_auto_is_one_of_them(library: sbr.Library) -> None:
    trace = TRACES["hot"]
    found = {p: simulate.native(library, p)(trace, 10, 0).sets_by_misses for p in simulate.KNOWN_POLICIES}
    assert found["auto"] in (found["lru"], found["lfu"], found["reuse"])


def test_nobody_beats_belady(library: sbr.Library) -> None:
    for seed in range(5):
        trace = routings.make("hot", 4, 32, 4, 200, seed=seed)
        for capacity in (4, 16, 48, 100):
            hits = {p: simulate.native(library, p)(trace, capacity, 0).hits for p in simulate.POLICIES}
            assert max(hits[p] for p in ("lru", "lfu", "reuse")) <= hits["belady"]


def test_a_scan_that_lru_misses_altogether(library: sbr.Library) -> None:
    trace = cyclic(20, 200)
    rates = {p: simulate.native(library, p)(trace, 10, 100).hit_rate for p in ("lru", "reuse", "belady")}
    assert rates["lru"] == 0
    assert rates["belady"] == pytest.approx(9 / 19, abs=0.01)
    assert rates["reuse"] > 0.4


def test_a_long_trace_takes_little_memory_and_stays_exact(library: sbr.Library) -> None:
    """Belady's heap is rebuilt many times."""
    trace = routings.make("uniform", 2, 8, 2, 4000)
    run = simulate.native(library, "belady")
    whole = run(trace, 16, 0)
    assert sum(m * n for m, n in enumerate(whole.sets_by_misses)) == 16
    assert 0.6 < run(trace, 8, 0).hit_rate < whole.hit_rate


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 8], "token 0, layer 0: 8 is not below"),
        ([0, 1, 3, 2], "token 0, layer 1: 2 is not"),
        ([1, 1], "ascend"),
    ],
)
def test_damaged_routings_are_refused(library: sbr.Library, values: list[int], said: str) -> None:
    trace = Routing(len(values) // 2, 8, 2, array.array("H", values))
    with pytest.raises(UsageError, match=said):
        simulate.native(library, "lru")(trace, 4, 0)


def test_impossible_calls_are_refused(library: sbr.Library) -> None:
    experts = array.array("H", [0, 1])
    for change, said in [
        ({"capacity": 0}, "capacity is 0"),
        ({"policy": "mru"}, "policy: expected one of"),
        ({"n_expert_used": 9}, "whole tokens"),
        ({"n_expert": 0}, "n_expert is 0"),
        ({"n_expert": 70_000}, "n_expert is 70000"),
        ({"n_expert": 1}, "n_expert_used is 2"),
        ({"warmup_tokens": 1}, "warmup_tokens is 1"),
        ({"n_layer": 0}, "whole tokens"),
    ]:
        shape = {"n_layer": 1, "n_expert": 8, "n_expert_used": 2, "policy": "lru", "capacity": 4, **change}
        with pytest.raises((sbr.NativeError, ValueError), match=said):
            sbr.simulate(library, experts, **shape)  # type: ignore[arg-type]


# ---- a policy of the user's own ----

MINE = """
from collections import OrderedDict, UserDict

class Mine:
    def __init__(self, shape):
        self.order, self.shape = [], shape
        assert shape.capacity > 0 and shape.units_per_token == 2
    def used(self, unit):
        if unit in self.order:
            self.order.remove(unit)
        self.order.append(unit)
    def evict(self, held):
        victim = next(unit for unit in self.order if not held[unit])
        self.order.remove(victim)
        return victim

class Plain(Mine):
    def __init__(self):
        self.order = []

class OfBuiltIn(OrderedDict):
    def used(self, unit):
        self[unit] = True
        self.move_to_end(unit)
    def evict(self, held):
        victim = next(unit for unit in self if not held[unit])
        del self[victim]
        return victim

class WithShape(OfBuiltIn):
    def __init__(self, shape):
        super().__init__()
        assert shape.units_per_token == 2

class OfLibrary(UserDict):
    def used(self, unit):
        self.pop(unit, None)
        self[unit] = True
    evict = OfBuiltIn.evict
"""


@pytest.mark.parametrize("kind", ["Mine", "Plain", "OfBuiltIn", "WithShape", "OfLibrary"])
@pytest.mark.parametrize("name", ["uniform", "hot"])
def test_a_least_recently_used_of_ones_own_equals_the_built_in(
    library: sbr.Library, tmp_path: Path, kind: str, name: str
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    mine = user_policy.load(f"{tmp_path}/mine.py:{kind}")
    for capacity in (1, 2, 5, 100):
        found = mine(TRACES[name], capacity, 3)
        built_in = simulate.native(library, "lru")(TRACES[name], capacity, 3)
        assert (found.hits, found.sets_by_misses) == (built_in.hits, built_in.sets_by_misses)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class P\n", r"p\.py:1: "),
        ("import nothing_like_it\n", r"p\.py:1: .*ModuleNotFoundError"),
        ("P = 3\n", "has no class P"),
        ("class Q:\n    pass\n", "has no class P"),
        ("\nclass P:\n    def used(self, unit): pass\n", r"p\.py:2: P has no method evict"),
        ("class P:\n    def used(self, unit):\n        raise KeyError(unit)\n    evict = print\n",
         r"p\.py:3: P\.used\(\d+\): KeyError"),
        ("class P:\n    def __init__(self, shape):\n        shape.x\n    used = evict = print\n",
         r"p\.py:3: P\(\): AttributeError"),
        ("class P:\n    used = evict = print\n"
         "    def __init__(self, shape): pass\n    __init__.__signature__ = 3\n",
         r"p\.py: P\(\): TypeError"),
        ("class P:\n    def used(self, unit): pass\n    def evict(self, held): return 1 // 0\n",
         r"p\.py:3: P\.evict\(\): ZeroDivisionError"),
        ("class P:\n    def used(self, unit): pass\n    def evict(self, held): return None\n",
         r"p\.py:1: P\.evict\(\) returned None, expected a unit, 0 to 17"),
        ("class P:\n    def used(self, unit): pass\n    def evict(self, held): return 18\n", "returned 18"),
        ("class P:\n    def used(self, u): self.u = u\n    def evict(self, held): return self.u\n", "held"),
        ("class P:\n    def used(self, unit): pass\n"
         "    def evict(self, held): return max(u for u in range(18) if not held[u])\n", "not in the cache"),
    ],
)  # fmt: skip
def test_what_a_file_does_wrong_is_named_with_its_line(tmp_path: Path, source: str, said: str) -> None:
    path = tmp_path / "p.py"
    path.write_text(source)
    with pytest.raises((InputError, UsageError), match=said):
        user_policy.load(f"{path}:P")(TRACES["uniform"], 3, 0)


@pytest.mark.parametrize("text", ["p.py", "nowhere.py:P", ":P", "p.py:a b"])
def test_what_names_no_class_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--policy"):
        user_policy.load(text)


# ---- sizes and speed ----


def test_sizes_as_typed() -> None:
    assert simulate.capacities("25%,512,1GiB,2MiB", 1024, 4, 1 << 20) == [2, 256, 512, 1024]
    assert simulate.capacities("", 1024, 4, None)[0] == 4
    assert simulate.capacities("", 1024, 4, None)[-1] == 1024
    assert simulate.capacities("", 8, 8, None) == [8]
    for text in ("x", "-1", "0", "101%", "0%", "1k", "256MiB,", "1e9"):
        with pytest.raises(UsageError, match="--cache"):
            simulate.capacities(text, 1024, 4, 1 << 20)
    with pytest.raises(UsageError, match="depends on their size"):
        simulate.capacities("256MiB", 1024, 4, None)


def test_the_predicted_time_by_hand() -> None:
    """10 ms a token, half of it outside of its 2 layers: 2.5 ms a layer. A miss takes 1 ms, the first 0.5 ms
    more; a fifth of a layer precedes the choice, and an expert is a tenth of it, computed when all that
    arrive together have arrived."""
    machine = Machine(1e9, 0.010, outside=0.5, lead=0.2, tail=0.1, latency_s=0.0005)

    def seconds(*sets: int) -> float:
        return simulate.seconds_per_token(simulate.Outcome(1, 1, sets, 0.0), 2, 1_000_000, machine)

    assert seconds(5, 0) == pytest.approx(0.010)
    # 0.5 + 0.5 + 1 ms hide behind the layer's 2.25 before its last expert.
    assert seconds(0, 5) == pytest.approx(0.010)
    assert seconds(0, 0, 5) == pytest.approx(0.005 + 2 * (0.0005 + 0.0005 + 0.002 + 2 * 0.00025))
    # Without a miss nothing is waited for, however slow storage is to answer.
    slow = Machine(1e9, 0.010, latency_s=1.0)
    assert simulate.seconds_per_token(simulate.Outcome(1, 1, (5, 0), 0.0), 2, 1, slow) == pytest.approx(0.010)
    assert seconds(1, 0, 0, 0, 1) == pytest.approx(0.005 + 0.0025 + 0.0005 + 0.0005 + 0.004 + 4 * 0.00025)
    # A reader that has 2 of them under way at a time computes those while the next two are read.
    few = dataclasses.replace(machine, pieces_at_once=4)
    outcome = simulate.Outcome(1, 1, (0, 0, 0, 0, 5), 0.0)
    assert simulate.seconds_per_token(outcome, 2, 1_000_000, few) == pytest.approx(
        0.005 + 2 * (0.0005 + 0.0005 + 0.004 + 2 * 0.00025)
    )


def test_the_native_clock_is_the_formula(library: sbr.Library) -> None:
    """Of runs without guesses; with right ones a token is faster, and with wrong ones more is read."""
    trace = routings.make("hot", 6, 32, 4, 120)
    machine = Machine(1.5e9, 0.010, outside=0.1, lead=0.2, tail=0.1, router=0.01, latency_s=1e-4)
    size = 1_500_000

    def run(prefetch: str, right: float = 0.0, policy: str = "reuse") -> simulate.Outcome:
        made = clock.clock_of(machine, 6, 4, size, prefetch, right)
        return simulate.native(library, policy, made)(trace, 60, 20)

    plain, exact = simulate.native(library, "reuse")(trace, 60, 20), run("exact")
    assert exact.sets_by_misses == plain.sets_by_misses
    assert exact.loads == plain.requests - plain.hits
    by_hand = simulate.seconds_per_token(plain, 6, size, machine)
    assert exact.token_s == pytest.approx(by_hand, rel=1e-6)
    right, wrong = run("next-2", 1.0), run("next-2", 0.0)
    assert right.token_s is not None
    assert wrong.loads is not None
    assert right.token_s < by_hand
    assert right.hits > plain.hits
    assert wrong.loads > exact.loads
    with pytest.raises(UsageError, match="not for oracles"):
        run("next-2", 1.0, "static")


def test_frequent_experts_without_hindsight() -> None:
    """Uniform routing has nothing to foresee: what is kept hits its share. A hot set is foreseen."""
    uniform = routings.make("uniform", 8, 32, 4, 600)
    found = frequent.by_other_tokens(uniform, 128, 100)
    assert found.requests == 500 * 8 * 4
    assert sum(found.sets_by_misses) == 500 * 8
    assert found.hit_rate == pytest.approx(0.5, abs=0.015)
    hot = routings.make("hot", 8, 32, 4, 600)
    assert frequent.by_other_tokens(hot, 64, 100).hit_rate > 0.7
    assert frequent.by_other_tokens(hot, 256, 100).hit_rate == 1.0
    # Two tokens: each finds just what the other used.
    pair = from_sets([[0, 1], [1, 2]], 1, 4, 2)
    assert frequent.by_other_tokens(pair, 2, 0).hits == 2


def test_predictions_never_exceed_the_bound(library: sbr.Library) -> None:
    trace = routings.make("hot", 4, 32, 4, 100)
    machine = Machine(1.5e9, 0.030, latency_s=0.0)
    runs = {p: simulate.native(library, p) for p in simulate.POLICIES}
    for point in simulate.sweep(trace, runs, [4, 16, 64, 128], 1_990_656, machine, 25):
        assert point.tokens_per_s is not None
        assert point.bound_tokens_per_s is not None
        assert point.tokens_per_s <= point.bound_tokens_per_s * (1 + 1e-9)


def test_what_a_run_replays_starts_over() -> None:
    trace = routings.make("uniform", 2, 4, 1, 10)
    tokens = routings.experts_array(trace)
    found = routings.experts_array(simulate.tokens_of_a_run(trace, 7, 25))
    assert found.tolist() == [tokens[i % 10].tolist() for i in range(7, 25)]


def test_random_shapes(library: sbr.Library) -> None:
    rng = random.Random(3)
    for _ in range(25):
        n_expert = rng.randint(1, 10)
        shape = (rng.randint(1, 4), n_expert, rng.randint(1, n_expert), rng.randint(1, 25))
        trace = routings.make("uniform", *shape, seed=rng.randrange(99))
        capacity = rng.randint(1, shape[0] * n_expert)
        for policy in (*REFERENCES, "static", "belady"):
            found = simulate.native(library, policy)(trace, capacity, 0)
            assert list(found.sets_by_misses) == reference(trace, policy, capacity), (shape, capacity, policy)
