"""Presets under axes of one's own: what a preset is about stays in, whatever limit or workload is typed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stbench.errors import SweepError
from stbench.sweeps.plan import build_plan
from stbench.sweeps.presets import PRESETS
from stbench.sweeps.sweep import build_sweep
from tests.host.test_plan import FACTS, target


def labels(preset: str, **axes: Any) -> set[str]:
    roomy = replace(target(*PRESETS[preset]["models"]), facts=replace(FACTS, memory_bytes=32 << 30))
    sweep = build_sweep({"preset": preset, "threads": "4", **axes})
    return {job.case for job in build_plan(sweep, [roomy], "c").jobs}


def test_another_limit_keeps_the_limited_rows() -> None:
    assert labels("limited-4b", memory_limit="2GiB,none") == {
        "smallthinker-4b/sparse+lmhead/t4/mem2g/cacheauto/pp39+tg256",
        "qwen3-1.7b/dense/t4/mem2g/cacheauto/pp39+tg256",
        "qwen3-1.7b/dense/t4/mem2g/pp39+tg256",
        "smallthinker-4b/sparse+lmhead/t4/pp39+tg256",
        "qwen3-1.7b/dense/t4/pp39+tg256",
    }
    assert len(labels("cache-sizes-4b", memory_limit="768MiB,none")) == 6
    assert "smallthinker-4b/sparse+lmhead/t4/mem1g/cache256m/pp39+tg256" in labels(
        "limited-4b", cache="256MiB,none"
    )


def test_another_workload_keeps_the_unlimited_partners() -> None:
    assert labels("limited-21b", gen="32") == {
        "smallthinker-21b/sparse/t4/mem8g/cacheauto/tg32",
        "qwen3-30b-a3b/dense/t4/mem8g/cacheauto/tg32",
        "smallthinker-21b/sparse/t4/tg32",
        "qwen3-30b-a3b/dense/t4/tg32",
    }


@pytest.mark.parametrize(
    ("axes", "workload"), [({"gen": "64"}, "tg64"), ({"prompt_gen": "39,64"}, "pp39+tg64")]
)
def test_another_workload_keeps_the_sparse_rows_beside_llama_cpp(axes: dict[str, str], workload: str) -> None:
    found = labels("versus-llama-cpp", engines="sbr", **axes)
    assert {case for case in found if case.startswith("smallthinker-4b/")} == {
        f"smallthinker-4b/sparse/t4/{workload}",
        f"smallthinker-4b/sparse+lmhead/t4/{workload}",
    }
    assert not any("/sparse" in case for case in labels("versus-llama-cpp", engines="sbr", prompt="512"))


def test_nothing_left_does_not_blame_a_filter_that_nobody_typed() -> None:
    with pytest.raises(SweepError) as caught:
        labels("cache-sizes-4b", memory_limit="none", cache="256MiB")
    assert caught.value.problems == ["nothing is left to run of what preset cache-sizes-4b is about"]
    assert caught.value.hint is not None
    assert "--filter '*'" in caught.value.hint
