"""Options on a check take a part of its baseline, and ask for nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from stbench.errors import SweepError, UsageError
from stbench.gate.narrowing import fitting, narrowed
from stbench.sweeps.sweep import build_sweep

SMALL = build_sweep(
    {"models": "qwen3-0.6b,qwen3-1.7b", "threads": "2,4", "prompt": "512", "gen": "32,64", "depth": "0,256"}
)
LIMITED = build_sweep(
    {
        "models": "smallthinker-4b",
        "memory_limit": "1GiB,none",
        "cache": "auto",
        "gen": "64",
        "sparse_ffn": "on",
    }
)


@pytest.mark.parametrize(
    ("typed", "small", "limited"),
    [
        ({"models": "qwen3-1.7b"}, {"models": ("qwen3-1.7b",)}, None),
        ({"models": "qwen3-0.6b,smallthinker-4b"}, {"models": ("qwen3-0.6b",)}, {}),
        ({"threads": "4"}, {"threads": (4,)}, None),
        ({"gen": "64"}, {"workloads": ((0, 64, 0), (0, 64, 256))}, {}),
        ({"gen": "64", "depth": "0"}, {"workloads": ((0, 64, 0),)}, {}),
        ({"depth": "256"}, {"workloads": tuple(w for w in SMALL.workloads if w[2] == 256)}, None),
        ({"prompt": "512"}, {"workloads": tuple(w for w in SMALL.workloads if w[0])}, None),
        ({"memory_limit": "1GiB"}, None, {"memory_limit": (1 << 30,)}),
        ({"sparse_ffn": "on"}, None, {}),
        ({"load": "auto", "seed": 0}, {}, {}),
    ],
)
def test_options_take_a_part(typed: dict[str, Any], small: Any, limited: Any) -> None:
    found = narrowed([SMALL, LIMITED], typed, "base.json")
    wanted = [
        None if changes is None else dataclasses.replace(sweep, **changes)
        for sweep, changes in ((SMALL, small), (LIMITED, limited))
    ]
    assert found == wanted


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"load": "mmap"}, "--load mmap: base.json was measured with --load auto"),
        ({"models": "qwen3-0.6b,other"}, "--models other: base.json was measured with --models qwen3-0.6b,"),
        ({"threads": "all"}, "--threads all: base.json was measured with --threads 2,4"),
        ({"gen": "128"}, "--gen 128: base.json was measured with --gen 32,64"),
        ({"prompt_gen": "39,64"}, "--prompt-gen 39,64: base.json was measured with no --prompt-gen"),
        ({"memory_limit": "2GiB"}, "--memory-limit 2g: base.json was measured with --memory-limit none,1g"),
        ({"sparse_lm_head": "on"}, "--sparse-lm-head on: base.json was measured with --sparse-lm-head off"),
        ({"preset": "quick"}, "--preset quick: base.json was measured with --preset none"),
        ({"n_batch": 8}, "--batch 8: base.json was measured with --batch 64"),
        ({"models": "smallthinker-4b", "gen": "32"}, "--gen 32: base.json has no case with all of that"),
    ],
)
def test_what_the_baseline_lacks_is_refused(typed: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        narrowed([SMALL, LIMITED], typed, "base.json")
    assert said in str(error.value)
    assert "a part of them" in error.value.hint


def test_nonsense_is_said_as_a_sweep_says_it() -> None:
    with pytest.raises(SweepError, match="--threads: expected"):
        narrowed([SMALL], {"threads": "many"}, "base.json")


def test_filters_are_those_of_a_sweep() -> None:
    labels = ["local:qwen3-0.6b/dense/t2/tg64", "local:qwen3-0.6b/dense/t4/tg64"]
    assert fitting(labels, "qwen3-0.6b/*/t2/*", "base.json") == labels[:1]
    assert fitting(labels, "local:*", "base.json") == labels
    assert fitting(labels, "*/t2/*, */t4/*", "base.json") == labels
    with pytest.raises(UsageError, match=r"--filter x\*: no case of base.json fits") as error:
        fitting(labels, "x*", "base.json")
    assert labels[0] in error.value.hint
