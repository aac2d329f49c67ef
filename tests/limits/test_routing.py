"""Routing traces: what is written is read back, and nothing that is not one gets in."""

from __future__ import annotations

import array
import itertools
import json
import random
import resource
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

from stbench.agent import routing
from stbench.agent.routing import Routing, RoutingError
from stbench.caches import routings
from stbench.errors import InputError, UsageError
from tests.host.conftest import ROOT, Sandbox


def trace(**changes: Any) -> Routing:
    given = {"n_layer": 3, "n_expert": 8, "n_expert_used": 2, "n_tokens": 20, **changes}
    return routings.make("uniform", **given)


@pytest.mark.parametrize("n_expert", [2, 8, 256, 257, 3000])
def test_what_is_written_is_read(tmp_path: Path, n_expert: int) -> None:
    made = trace(n_expert=n_expert, model="x")
    path = str(tmp_path / "a.routing")
    digest = routing.write(path, made)
    assert routing.read(path) == made
    assert len(digest) == 64
    line = json.loads((tmp_path / "a.routing").read_bytes().split(b"\n", 1)[0])
    assert line["n_tokens"] == 20
    assert line["digest"] == made.digest()


def test_the_file_is_what_its_page_says(tmp_path: Path) -> None:
    """Written by hand after docs/routing.md, with one byte and with two per index."""
    for n_expert, packed in ((4, b"\x00\x03\x01\x02"), (300, b"\x00\x00\x2b\x01\x01\x00\x02\x01")):
        values = [0, 3, 1, 2] if n_expert == 4 else [0, 299, 1, 258]
        by_hand = Routing(2, n_expert, 2, array.array("H", values))
        header = {"format": "stbench-routing", "version": 1, "n_layer": 2, "n_expert": n_expert}
        header |= {"n_expert_used": 2, "n_tokens": 1, "digest": by_hand.digest(), "later": 1}
        path = tmp_path / f"{n_expert}.routing"
        path.write_bytes(json.dumps(header).encode() + b"\n" + zlib.compress(packed))
        assert routing.read(str(path)) == by_hand


def test_the_digest_is_of_the_choices_alone() -> None:
    one = trace(model="a")
    assert one.digest() == trace(model="b").digest()
    assert one.digest() != trace(seed=2).digest()
    # Pinned: other tools compute it after docs/routing.md.
    pinned = Routing(1, 3, 2, array.array("H", [0, 2, 1, 2]))
    assert pinned.digest() == "9fccf4369a1c102ebe73e132fa630c4c4306b519eb35556b528d7c8958faace8"


def damaged(change: Any) -> bytes:
    header = {
        "format": "stbench-routing",
        "version": 1,
        "n_layer": 3,
        "n_expert": 8,
        "n_expert_used": 2,
        "n_tokens": 20,
        "digest": trace().digest(),
    }
    packed = zlib.compress(trace().experts.tobytes()[::2])
    return change(header, packed)  # type: ignore[no-any-return]


def with_header(**changes: Any) -> Any:
    return lambda header, packed: json.dumps({**header, **changes}).encode() + b"\n" + packed


def with_data(data: Any) -> Any:
    return lambda header, packed: json.dumps(header).encode() + b"\n" + data(packed)


def swapped(packed: bytes) -> bytes:
    plain = bytearray(zlib.decompress(packed))
    plain[0], plain[1] = plain[1], plain[0]
    return zlib.compress(bytes(plain))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _header, _packed: b"", "no line of JSON"),
        (lambda _header, _packed: b"\x7fELF" + bytes(100_000), "no line of JSON"),
        (lambda _header, _packed: b"token,layer,experts\n0,0,1 2\n", "is not JSON"),
        (lambda _header, _packed: b"[" * 16_000 + b"\n", "is not JSON"),
        (lambda _header, _packed: b"[1]\n", "does not say"),
        (with_header(version=2), "version 2"),
        (with_header(n_layer=0), "n_layer: expected 1 to 4096, got 0"),
        (with_header(n_layer=True), "n_layer: expected"),
        (with_header(n_tokens=1 << 40), "n_tokens: expected"),
        (with_header(n_tokens=1 << 26), "are too many"),
        (with_header(n_expert=10**400), "n_expert: expected"),
        (with_header(n_layer=4096, n_expert=4096), "16777216 experts, which are too many: at most 4194304"),
        (with_header(n_expert_used=9), "9 of 8 experts cannot be used"),
        (with_header(n_tokens=21), "exactly 126 bytes"),
        (with_header(n_tokens=19), "exactly 114 bytes"),
        (with_header(n_expert=7), "expert 7, but there are 7"),
        (with_header(n_expert=300), "exactly 240 bytes"),
        (with_header(digest=trace(seed=2).digest()), "not the ones"),
        (with_header(digest=5), "digest: expected a text"),
        (with_header(model="x" * 2000), "model: expected a text"),
        (with_data(lambda packed: packed[:-3]), "cut off"),
        (with_data(lambda packed: packed + b"x"), "exactly"),
        (with_data(lambda packed: packed + bytes(5000)), "follow the header"),
        (with_data(lambda _packed: b"no zlib"), "damaged"),
        (with_data(lambda _packed: zlib.compress(bytes(120))), "comes after"),
        (with_data(swapped), "comes after"),
    ],
)
def test_what_is_no_routing_is_refused_with_the_reason(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "x.routing"
    path.write_bytes(damaged(change))
    with pytest.raises(RoutingError, match=said) as refused:
        routing.read(str(path))
    assert str(refused.value).startswith(f"{path}: ")
    with pytest.raises(InputError):
        routings.load(path)


def test_a_zip_bomb_is_stopped_at_what_the_header_announced(tmp_path: Path) -> None:
    """100 MB of zeros in 100 kB, under a limit of memory that they do not fit into."""
    path = tmp_path / "bomb.routing"
    bomb = zlib.compressobj(9)
    packed = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(100)) + bomb.flush()
    shape = with_header(n_tokens=20_000)
    path.write_bytes(damaged(lambda header, _packed: shape(header, packed)))
    script = (
        "import sys, resource; from stbench.agent import routing\n"
        "base = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (base + (48 << 20),) * 2)\n"
        "try:\n    routing.read(sys.argv[1])\nexcept routing.RoutingError as e:\n    print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "exactly 120000 bytes" in done.stdout


def test_bytes_changed_at_random_never_get_in(tmp_path: Path) -> None:
    """Every one-byte change is either harmless (the same choices) or refused in one sentence."""
    path = tmp_path / "f.routing"
    good = trace()
    routing.write(str(path), good)
    whole = path.read_bytes()
    rng = random.Random(7)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sentences, harmless = [], 0
    for _ in range(800):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 1, 4))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.2:
            data = data[: rng.randrange(len(data))]
        path.write_bytes(data)
        try:
            found = routing.read(str(path))
        except RoutingError as error:
            sentences.append(str(error))
            continue
        assert found.digest() == good.digest()
        harmless += 1
    assert all(said.startswith(str(path)) and "\n" not in said for said in sentences)
    # A byte of "model" or "source" changes nothing that matters.
    assert harmless < len(sentences)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (64 << 10)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.routing"
    routing.write(str(path), trace())

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(routing.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        routing.write(str(path), trace(seed=2))
    assert routing.read(str(path)) == trace()
    assert list(tmp_path.iterdir()) == [path]


def test_a_routing_made_wrong_is_not_written(tmp_path: Path) -> None:
    for values in ([0, 0], [1, 0], [0, 8], [0]):
        with pytest.raises(RoutingError):
            routing.write(str(tmp_path / "a"), Routing(1, 8, 2, array.array("H", values)))
    assert not list(tmp_path.iterdir())


# ---- another shape ----


def sets(found: Routing, layer: int) -> list[tuple[int, ...]]:
    used, row = found.n_expert_used, found.n_layer * found.n_expert_used
    starts = (token * row + layer * used for token in range(found.n_tokens))
    return [tuple(found.experts[i : i + used]) for i in starts]


def test_layers_taken_again_are_alike_and_no_copies() -> None:
    small = routings.make("hot", 4, 32, 4, 400)
    assert small.fit_to(4, 32, 4) is small
    large = small.fit_to(8, 32, 4)
    routing.validate(large)
    assert large == small.fit_to(8, 32, 4)
    assert large != small.fit_to(8, 32, 4, seed=2)
    for layer in range(4):
        first, again = sets(large, 2 * layer), sets(large, 2 * layer + 1)
        assert first == sets(small, layer)
        assert again != first
        counts = [sorted(sum(chosen, ()).count(e) for e in range(32)) for chosen in (first, again)]
        assert counts[0] == counts[1]
        assert sum(a == b for a, b in zip(first, again, strict=True)) < 40


def test_fewer_layers_are_taken_evenly() -> None:
    small = trace(n_layer=6).fit_to(3, 8, 2)
    assert [sets(small, layer) for layer in range(3)] == [sets(trace(n_layer=6), 2 * i) for i in range(3)]


def test_twice_the_experts_are_two_groups_with_the_same_rates() -> None:
    small = routings.make("hot", 2, 16, 2, 500)
    large = small.fit_to(2, 32, 4)
    routing.validate(large)
    for layer in range(2):
        chosen = sets(large, layer)
        assert all(sum(e < 16 for e in each) == 2 for each in chosen)
        counts = [sum(chosen, ()).count(e) for e in range(32)]
        assert sorted(counts[:16]) == sorted(counts[16:])


@pytest.mark.parametrize("shape", [(3, 16, 2), (3, 8, 4), (3, 4, 2), (3, 12, 3), (3, 8, 1), (0, 16, 4)])
def test_shapes_that_would_hit_differently_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(RoutingError):
        trace().fit_to(*shape)


def test_a_model_of_too_many_experts_replays_none() -> None:
    with pytest.raises(RoutingError, match="at most 4194304 in all layers"):
        Routing(1, 1 << 16, 1, array.array("H", [0])).fit_to(65, 1 << 16, 1)


# ---- made ----


def test_the_same_arguments_give_the_same_trace_everywhere() -> None:
    assert trace().digest() == "ef90005c908017cd68ebe7d66872e7a83d0291582abd4ec396d786b5e72e89fc"
    assert (
        routings.make("hot", 2, 32, 4, 50, stay=0.3, tasks=2).digest()
        == "e856a3e7296e096ea92c3f7e224ee50f8ec12dd156084aa64e16966bee108588"
    )


@pytest.mark.parametrize(("n_expert", "used"), [(32, 4), (64, 6), (16, 2)])
def test_a_hot_trace_has_the_rates_of_the_report(n_expert: int, used: int) -> None:
    made = routings.make("hot", 4, n_expert, used, 3000)
    found = routings.describe(made)
    assert 0.70 <= found.below_cold <= 0.80
    # Those at the edge of 40 % may be drawn a little less often.
    assert 0.15 <= found.in_hot <= 0.30
    assert found.reuse_previous == pytest.approx(found.reuse_expected, abs=0.02)


def test_staying_changes_the_order_in_time_and_not_the_rates() -> None:
    still = routings.describe(routings.make("hot", 4, 32, 4, 3000, stay=0.6))
    assert still.reuse_previous > still.reuse_expected + 0.2
    assert 0.70 <= still.below_cold <= 0.80


def test_tasks_have_hot_experts_of_their_own() -> None:
    one, two = (routings.describe(routings.make("hot", 4, 32, 4, 1000, tasks=n)) for n in (1, 4))
    assert one.taken_by_top["8 of 32"] > two.taken_by_top["8 of 32"] + 0.1


def test_uniform_is_uniform() -> None:
    found = routings.describe(routings.make("uniform", 4, 32, 4, 3000))
    assert found.taken_by_top["8 of 32"] < 0.3
    assert found.units_used == 128
    assert found.reuse_previous == pytest.approx(4 / 32, abs=0.01)


@pytest.mark.parametrize("at_once", [1, 20, 1 << 20])
def test_what_the_token_before_used(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(routings, "_REUSE_VALUES", at_once)
    found = routings.make("hot", 3, 16, 2, 40, stay=0.4)
    every = [sets(found, layer) for layer in range(3)]
    again = sum(len({*a} & {*b}) for row in every for a, b in itertools.pairwise(row))
    assert routings.describe(found).reuse_previous == again / (39 * 3 * 2)


def test_many_experts_are_described_in_little_memory() -> None:
    found = Routing(1, 1 << 16, 1, array.array("H", range(2000)))
    tracemalloc.start()
    routings.describe(found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "lukewarm"},
        {"n_layer": 4096, "n_expert": 1025},
        {"kind": "hot", "n_expert": 8, "n_expert_used": 4},
        {"kind": "hot", "n_expert": 128, "n_expert_used": 8},
        {"n_expert_used": 9},
        {"n_tokens": 0},
        {"stay": 1.0},
        {"tasks": 0},
        {"tasks": 21},
    ],
)
def test_impossible_traces_are_refused(given: dict[str, Any]) -> None:
    shape = {"kind": "uniform", "n_layer": 3, "n_expert": 8, "n_expert_used": 2, "n_tokens": 20}
    with pytest.raises(UsageError):
        routings.make(**{**shape, **given})


# ---- imported ----


def test_csv_and_json_lines_in_any_order(tmp_path: Path) -> None:
    rows = [(token, layer, (token + layer) % 3) for token in (10, 7) for layer in (5, 4)]
    files = {
        "a.csv": "token,layer,experts\n" + "".join(f"{t},{la},{e + 1} {e}\n" for t, la, e in rows),
        "b.csv": "".join(f"{t}, {la}, {e}, {e + 1}\r\n" for t, la, e in rows),
        "c.csv": "\ufeff" + "".join(f"{t},{la},{e};{e + 1}\n\n" for t, la, e in rows),
        "d.jsonl": "".join(
            json.dumps({"token": t, "layer": la, "experts": [e + 1, e]}) + "\n" for t, la, e in rows
        ),
    }
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
        found = routings.import_log(tmp_path / name)
        assert (found.n_tokens, found.n_layer, found.n_expert, found.n_expert_used) == (2, 2, 4, 2), name
        # Token 7 first, layer 4 first.
        assert list(found.experts) == [2, 3, 0, 1, 2, 3, 0, 1], name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no line of token"),
        ("token,layer,experts\n", "no line of token"),
        ("0,0,1 2\n0,0,1 3\n", ":2: token 0, layer 0 is there twice"),
        ("0,0,1 2\n0,1,1\n", ":2: 1 experts, but 2"),
        ("0,0,1 1\n", ":1: expected different experts"),
        ("0,0,\n", ":1: expected different experts"),
        ("0,0,1 x\n", ':1: expected a token, a layer and its experts, got "0,0,1 x"'),
        ("0,0,1_0\n", ":1: expected a token"),
        ("0,0,-1\n", ":1: tokens, layers and experts"),
        ("0,0,70000\n", ":1: tokens, layers and experts"),
        ("0,0,9\n", "expert 9 occurs, but there are 8"),
        ("0,0,1\n0,1,1\n1,0,1\n", "token 1 has no line for layer 1"),
        ('{"token": 0, "layer": 0}\n', ":1: expected a token"),
        ('{"token": 0, "layer": 0, "experts": [1.5]}\n', ":1: expected a token"),
        ('{"token": 0, "layer": 0, "experts": [true]}\n', ":1: expected a token"),
        ("{" * 100_000 + "\n", ":1: expected a token"),
        ("only words\n0,0,1\nmore words\n", ":3: expected a token"),
    ],
)
def test_a_wrong_log_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"log\.csv") as refused:
        routings.import_log(path, 8)
    assert said in str(refused.value)


def test_binary_and_missing_logs(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    for name in ("x", "nowhere"):
        with pytest.raises(InputError, match=name):
            routings.import_log(tmp_path / name)


# ---- typed ----


def test_made_shown_imported(sandbox: Sandbox, tmp_path: Path) -> None:
    out = str(tmp_path / "hot.routing")
    made = sandbox.run(
        "routing", "make", "--kind", "hot", "--model", "smallthinker-4b", "--tokens", "64", "-o", out
    )
    assert made[0] == 0
    assert "64 tokens of smallthinker-4b, 32 layers, 4 of 32 experts (made: hot, seed 1)" in made[1]
    code, shown, _ = sandbox.run("routing", "show", out, "--json")
    assert code == 0
    assert json.loads(shown)["digest"] == routing.read(out).digest()
    (tmp_path / "log.csv").write_text("0,0,1 2\n1,0,2 3\n")
    args = ("routing", "import", str(tmp_path / "log.csv"), "-o", str(tmp_path / "i.routing"))
    assert sandbox.run(*args, "--experts", "4")[0] == 0
    assert routing.read(str(tmp_path / "i.routing")).n_expert == 4
    code, _, said = sandbox.run(*args, "--model", "smallthinker-4b")
    assert code == 2
    assert "1 layers with 2 of 32 experts, but smallthinker-4b has 32 with 4 of 32" in said


@pytest.mark.parametrize(
    "words",
    [
        ("show",),
        ("show", "/nowhere"),
        ("make", "-o", "x"),
        ("make", "--model", "qwen3-0.6b", "-o", "x"),
        ("make", "--model", "smallthinker-4b"),
        ("make", "--model", "smallthinker-4b", "--layers", "2", "-o", "x"),
        ("make", "file", "--model", "smallthinker-4b", "-o", "x"),
        ("import", "/nowhere", "-o", "x"),
        ("import", "/nowhere", "-o", "x", "--experts", "0"),
    ],
)
def test_wrong_words_are_sentences(sandbox: Sandbox, words: tuple[str, ...]) -> None:
    code, out, said = sandbox.run("routing", *words)
    assert (code, out) == (2, "")
    assert said.startswith("stbench: ")
