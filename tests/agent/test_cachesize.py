"""How large a cache is: sizes, shares, and the arithmetic of "auto" on made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from stbench.agent.cachesize import RESERVE_BYTES, Needs, Room, choose, reserve_bytes, room
from stbench.agent.loading import choose_load
from stbench.agent.sbr import NativeError
from tests.agent.test_loading import machine, model_of

MIB = 1 << 20
GIB = 1 << 30
# 1000 units of 2 MiB, of which a cache has 10 at least.
NEEDS = Needs(
    kv_bytes=112 * MIB, scratch_bytes=20 * MIB, minimum=20 * MIB, unit_bytes=2 * MIB, total_bytes=2000 * MIB
)
N_VOCAB = 1000


def reserve(limit: int | None) -> int:
    return reserve_bytes(limit, N_VOCAB)


def test_auto_is_what_the_limit_leaves_in_whole_units() -> None:
    there = Room(limit=GIB, resident=300 * MIB, available=8 * GIB)
    found = choose("auto", NEEDS, there, N_VOCAB)
    free = GIB - (300 + 112 + 20) * MIB - reserve(GIB)
    assert found.bytes == free // (2 * MIB) * 2 * MIB
    assert "of 2000.0 MiB in the limit of 1024.0 MiB, beside 300.0 MiB in the process" in found.why
    assert "112.0 MiB of KV cache, 20.0 MiB of scratch" in found.why


def test_auto_never_takes_more_than_all_units_or_than_the_machine_has() -> None:
    assert choose("auto", NEEDS, Room(8 * GIB, 0, 16 * GIB), N_VOCAB) == (
        2000 * MIB,
        "auto: all units fit (2000.0 MiB)",
    )
    assert choose("auto", NEEDS, Room(None, 0, None), N_VOCAB).bytes == 2000 * MIB
    # What is available does not count the process itself any more.
    short = choose("auto", NEEDS, Room(None, 10 * GIB, 512 * MIB), N_VOCAB)
    assert short.bytes == (512 * MIB - 132 * MIB - reserve(None)) // (2 * MIB) * 2 * MIB
    assert "in what is available" in short.why


def test_the_reserve_names_what_it_is_for() -> None:
    """Page tables and late accounting grow with the limit, the logits of the check with the vocabulary."""
    assert reserve_bytes(None, 0) == RESERVE_BYTES
    assert reserve_bytes(GIB, 0) == RESERVE_BYTES + 16 * MIB
    assert reserve_bytes(None, 151936) == RESERVE_BYTES + 2 * 16 * 151936 * 4


def test_a_limit_that_leaves_nothing_names_the_smallest_that_works() -> None:
    there = Room(limit=300 * MIB, resident=200 * MIB, available=8 * GIB)
    with pytest.raises(NativeError, match=r"the smallest limit for it is (\d+) MiB") as caught:
        choose("auto", NEEDS, there, N_VOCAB)
    assert caught.value.name == "memory"
    assert "the limit of 300.0 MiB leaves no room for a cache, which needs 20.0 MiB at least" in str(
        caught.value
    )
    named = int(str(caught.value).split("the smallest limit for it is ")[1].split()[0]) * MIB
    # The next process may be a little larger.
    found = choose("auto", NEEDS, Room(named, 200 * MIB + MIB // 2, 8 * GIB), N_VOCAB)
    assert found.bytes >= NEEDS.minimum
    with pytest.raises(NativeError, match="leaves no room"):
        choose("auto", NEEDS, Room(named - 3 * MIB, 200 * MIB, 8 * GIB), N_VOCAB)
    with pytest.raises(NativeError, match="the memory that is available leaves no room"):
        choose("auto", NEEDS, Room(None, 0, 100 * MIB), N_VOCAB)


@pytest.mark.parametrize(
    ("asked", "size"),
    [("25%", 500 * MIB), ("100%", 2000 * MIB), (str(64 * MIB), 64 * MIB), (str(9 * GIB), 2000 * MIB)],
)
def test_sizes_and_shares(asked: str, size: int) -> None:
    assert choose(asked, NEEDS, Room(None, 0, None), N_VOCAB) == (size, "")


def test_a_share_is_of_whole_units() -> None:
    one = NEEDS._replace(minimum=2 * MIB)
    assert choose("0.05%", one, Room(None, 0, None), N_VOCAB).bytes == 2 * MIB


@pytest.mark.parametrize("asked", ["", "-1", "0%", "101%", "many", "x%"])
def test_what_is_no_size(asked: str) -> None:
    with pytest.raises(NativeError, match="expected auto, bytes, or a share such as 25%"):
        choose(asked, NEEDS, Room(None, 0, None), N_VOCAB)


def test_a_cache_that_is_too_small_names_the_smallest() -> None:
    with pytest.raises(
        NativeError, match=r"a cache of 1.0 MiB is too small: 20.0 MiB .* \(--cache 20971520\)"
    ):
        choose(str(MIB), NEEDS, Room(None, 0, None), N_VOCAB)
    assert choose("20971520", NEEDS, Room(None, 0, None), N_VOCAB).bytes == NEEDS.minimum


def test_a_cache_that_certainly_does_not_fit_is_refused_with_both_ways_out() -> None:
    there = Room(limit=GIB, resident=300 * MIB, available=8 * GIB)
    with pytest.raises(
        NativeError, match=r"a cache of 900.0 MiB does not fit the limit of 1024.0 MiB"
    ) as caught:
        choose(str(900 * MIB), NEEDS, there, N_VOCAB)
    text = str(caught.value)
    largest = int(text.split("the largest cache under this one ")[1].split()[0])
    assert choose(str(largest * MIB), NEEDS, there, N_VOCAB).bytes == largest * MIB
    smallest = int(text.split("the smallest limit for it is ")[1].split()[0])
    assert choose(str(900 * MIB), NEEDS, there._replace(limit=smallest * MIB), N_VOCAB).bytes == 900 * MIB


# ---- what there is ---------------------------------------------------------------------------------------

STATUS = "RssAnon:\t   30720 kB\nRssShmem:\t 1024 kB\nRssFile:\t 4096 kB\n"


def test_room_on_a_machine_without_groups(tmp_path: Path) -> None:
    tree = machine(tmp_path, GIB, **{"proc/self/status": STATUS})
    assert room(0, tree) == Room(None, 31 * MIB, GIB)
    # A limit that nobody could enforce is a limit all the same.
    assert room(64 * MIB, tree) == Room(64 * MIB, 31 * MIB, GIB)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_room_in_a_group_of_its_own(tmp_path: Path, version: str) -> None:
    """What the group is charged with: pages from before the fork are somebody else's."""
    files = {
        "v2": {
            "proc/self/cgroup": "0::/job/run\n",
            "sys/fs/cgroup/job/memory.max": "max\n",
            "sys/fs/cgroup/job/memory.stat": f"anon {500 * MIB}\n",
            "sys/fs/cgroup/job/run/memory.max": f"{256 * MIB}\n",
            "sys/fs/cgroup/job/run/memory.stat": f"anon {9 * MIB}\nfile 4096\n",
        },
        "v1": {
            "proc/self/cgroup": "4:memory:/job/run\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/job/run/memory.limit_in_bytes": f"{256 * MIB}\n",
            "sys/fs/cgroup/memory/job/run/memory.stat": f"cache 1\nrss {9 * MIB}\n",
        },
    }[version]
    tree = machine(tmp_path, GIB, **files, **{"proc/self/status": STATUS})
    assert room(512 * MIB, tree) == Room(256 * MIB, 9 * MIB, GIB)


def test_a_group_without_a_limit_says_nothing_of_this_process(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/everything\n",
        "sys/fs/cgroup/memory/everything/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/everything/memory.stat": "rss 4096\n",
        "proc/self/status": STATUS,
    }
    assert room(0, machine(tmp_path, GIB, **files)) == Room(None, 31 * MIB, GIB)


def test_weights_with_a_cache_are_repacked_and_others_fit_their_limit(tmp_path: Path) -> None:
    path = model_of(tmp_path, 100 * MIB)
    plenty = machine(tmp_path / "m", 64 * GIB)
    assert choose_load("auto", path, machine(tmp_path / "n", MIB), cached=True) == ("repack", "")
    with pytest.raises(ValueError, match="load mmap goes without a cache: expected auto or repack"):
        choose_load("mmap", path, plenty, cached=True)
    assert choose_load("auto", path, plenty)[0] == "repack"
    assert choose_load("auto", path, plenty, limit_bytes=64 * MIB)[0] == "mmap", "the baseline"
