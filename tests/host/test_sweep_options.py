"""Options as they are typed: lists add up, whichever command they are of."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from stbench import cli
from stbench.commands import AddUp
from stbench.commands._sweep_options import add_options, sweep_of
from stbench.sweeps.sweep import SweepEntry


def parsed(*argv: str) -> argparse.Namespace:
    return cli.build_parser(argv[0]).parse_args(argv)


@pytest.mark.parametrize("command", ["sweep", "plan", "find-limit"])
def test_a_repeated_list_adds_up(command: str) -> None:
    args = parsed(
        *(command, "--models", "smallthinker-4b", "--filter", "*/t1/*", "--filter", "*/t2/*,*/t4/*"),
        *("--sparse-ffn", "on", "--sparse-ffn", "off", "-t", "1", "-t", "2-4+2", "-n", "8", "-n", "16"),
        *("-pg", "4,8", "-pg", "5,9", "--cache", "none", "--cache", "25%,auto", "--policy", "lru"),
        *("--policy", "lfu"),
    )
    sweep = sweep_of(args)
    assert sweep.filter == ("*/t1/*", "*/t2/*", "*/t4/*")
    assert sweep.sparse_ffn == (True, False)
    assert sweep.threads == (1, 2, 4)
    assert sweep.workloads == ((0, 8, 0), (0, 16, 0), (4, 8, 0), (5, 9, 0))
    assert sweep.cache == ("", "25%", "auto")
    assert sweep.policy == ("lru", "lfu")


def test_every_axis_of_several_values_adds_up_and_no_other() -> None:
    """So that an axis that is added to the table is not forgotten here."""
    typed: dict[str, Any] = {
        **dict.fromkeys(("prompt", "gen", "depth", "threads"), "1"),
        **dict.fromkeys(("sparse_ffn", "sparse_lm_head"), "on"),
        **dict.fromkeys(("models", "engines", "filter"), "sbr"),
        **{"prompt_gen": "1,1", "memory_limit": "1GiB", "cache": "auto", "policy": "lru", "io": "pread"},
        **{"prefetch": "exact", "start": "cold"},
    }
    entry = SweepEntry.model_validate(typed).model_dump()
    lists = {key for key, value in entry.items() if type(value) is list}
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert lists == {a.dest.removeprefix("axis_") for a in parser._actions if isinstance(a, AddUp)}
    assert {f"axis_{key}" for key in SweepEntry.model_fields} <= {a.dest for a in parser._actions}


def test_lists_of_other_commands_add_up() -> None:
    args = parsed("simulate", "t.routing", "--policy", "lru", "--policy", "reuse,belady", "--cache", "10%")
    assert (args.policy, args.cache) == ("lru,reuse,belady", "10%")
    assert parsed("compare", "a", "b", "--ignore", "threads", "--ignore", "isa").ignore == "threads,isa"
    assert parsed("roofline", "-t", "1", "-t", "2,4").threads == "1,2,4"


def test_what_was_not_given_stays_so() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action=AddUp)
    assert parser.parse_args([]).list is None
    assert parser.parse_args(["--list", "a"]).list == "a"
    assert parser.parse_args(["--list", "a", "--list", "b"]).list == "a,b"


def test_warmup_is_an_option() -> None:
    assert sweep_of(parsed("sweep", "--models", "smallthinker-4b", "--warmup", "32")).warmup_tokens == 32
    assert sweep_of(parsed("find-limit", "--models", "smallthinker-4b")).warmup_tokens == 4
