"""Engines of one campaign, held against bars."""

from __future__ import annotations

import dataclasses
import io
import re
from importlib import resources
from typing import Any

import pytest
from rich.console import Console

from stbench.agent.wire import RunRecord
from stbench.comparison.versus import EngineRatios, bars, engine_ratios, ratio_table
from stbench.errors import InputError
from stbench.models import catalogue
from stbench.sweeps.sweep import PRESETS
from stbench.tables import render
from tests.compare.records import another_build, beside, case, disturbed, noisy, prompt_only, side


def decode(speeds: list[float], **common: Any) -> list[RunRecord]:
    """tg128 as far as names go."""
    return [
        dataclasses.replace(
            one,
            workload=dataclasses.replace(one.workload, n_gen=128),
            samples=dataclasses.replace(one.samples, decode_ns=one.samples.decode_ns * 32),
        )
        for one in case(speeds, n_prompt=0, n_gen=4, **common)
        if one.samples is not None
    ]


def llama(model: str, speeds: list[float], **common: Any) -> list[RunRecord]:
    """llama.cpp's rows: the twin's file, no counters, no library."""
    twin = f"{model}:standard" if f"{model}:standard" in catalogue.names() else model
    return [
        dataclasses.replace(
            one,
            model=dataclasses.replace(one.model, name=twin, digest="aa" * 32),
            label=f"local:{model}/llama-bench/t2/tg128",
            counters=None,
            versions=None,
        )
        for one in decode(speeds, model=model, engine="llama-bench", start=1, **common)
    ]


def campaign(n: int = 9, sparse: float = 2.0) -> list[RunRecord]:
    """SmallThinker dense at 1.6 times llama.cpp, sparse, and Qwen3 below its bar."""
    return [
        *llama("smallthinker-4b", noisy(n, 0, 20)),
        *decode(noisy(n, 1, 32)),
        *decode(noisy(n, 2, 20 * sparse), ffn=True),
        *llama("qwen3-0.6b", noisy(n, 3, 80)),
        *decode(noisy(n, 4, 80), model="qwen3-0.6b"),
    ]


def ratios(records: list[RunRecord], **options: Any) -> EngineRatios:
    return engine_ratios(side(records), "sbr", "llama-bench", **options)


def test_rows_stand_against_the_other_engines_dense_row_and_the_bars() -> None:
    rows = {(row.model, row.switches): row for row in ratios(campaign()).rows}
    assert len(rows) == 3
    dense, sparse = rows["smallthinker-4b", "dense"], rows["smallthinker-4b", "sparse"]
    assert dense.comparison.ratio == pytest.approx(1.6, rel=0.02)
    assert (dense.bar_verdict, dense.goal_verdict) == ("met", "not met")
    assert sparse.comparison.ratio == pytest.approx(2.0, rel=0.02)
    assert (sparse.bar_verdict, sparse.goal_verdict) == ("met", "not met")
    assert rows["qwen3-0.6b", "dense"].bar_verdict == "not met"
    assert all(row.comparison.paired and row.comparison.n == 9 for row in rows.values())


def test_the_standard_layout_twin_stands_against_the_same_row_and_bar() -> None:
    twin = [
        dataclasses.replace(one, model=dataclasses.replace(one.model, name="smallthinker-4b:standard"))
        for one in decode(noisy(9, 1, 32))
    ]
    (row,) = ratios([*llama("smallthinker-4b", noisy(9, 0, 20)), *twin]).rows
    assert (row.model, row.bar_verdict) == ("smallthinker-4b:standard", "met")


def test_a_model_and_its_twin_are_never_one_row() -> None:
    """Both in one campaign: a row each, of their own runs."""
    twin = [
        dataclasses.replace(
            one, id=f"{one.id}-twin", model=dataclasses.replace(one.model, name="smallthinker-4b:standard")
        )
        for one in decode(noisy(9, 1, 40), start=2)
    ]
    both = [*llama("smallthinker-4b", noisy(9, 0, 20)), *decode(noisy(9, 1, 32)), *twin]
    found = {row.model: row.comparison for row in ratios(both).rows}
    assert found["smallthinker-4b"].ratio == pytest.approx(1.6, rel=0.02)
    assert found["smallthinker-4b:standard"].ratio == pytest.approx(2.0, rel=0.02)


def test_two_builds_of_one_engine_are_no_sample_and_take_no_other_case_along() -> None:
    """Each engine has a library of its own; a case of two of ours under one label has a note, and the others
    their ratios."""
    records = campaign()
    ours = [one for one in records if one.engine == "sbr" and one.model.name == "qwen3-0.6b"]
    found = ratios([*records, *another_build(ours)])
    assert {row.model for row in found.rows} == {"smallthinker-4b"}
    assert len(found.rows) == 2
    (note,) = found.notes
    assert re.match(
        r"local:qwen3-0\.6b/\S+: no ratio: sbr's library is abab\S+ and cdcd\S+: no sample of one build; "
        "give each build a campaign of its own",
        note,
    )
    with pytest.raises(InputError, match=r"no case has speeds of both engines; local:qwen3.*no ratio"):
        ratios([one for one in [*records, *another_build(ours)] if one.model.name == "qwen3-0.6b"])


def test_neighbours_at_another_level_of_bandwidth_are_pairs_and_others_are_not() -> None:
    """A machine that gives 50 GB/s in three rounds and 30 in the others: no cell has nine runs of one level,
    but each round has its pair. One partner that saw another level than its neighbour makes none."""

    def rate(replicate: int) -> float:
        return 50.0 if replicate in (1, 4, 7) else 30.0

    moody = [beside(one, rate(one.replicate)) for one in campaign()]
    rows = {(row.model, row.switches): row.comparison for row in ratios(moody).rows}
    assert {found.n for found in rows.values()} == {9}
    assert rows["smallthinker-4b", "dense"].a.disturbed == 0
    alone = [
        beside(one, 50.0)
        if one.engine == "sbr" and one.replicate == 2 and not one.settings.sparse_ffn
        else one
        for one in moody
    ]
    rows = {(row.model, row.switches): row.comparison for row in ratios(alone).rows}
    assert rows["smallthinker-4b", "dense"].n == 8
    assert rows["smallthinker-4b", "sparse"].n == 9


def test_a_ratio_at_the_bar_and_few_pairs_are_inconclusive() -> None:
    at_the_bar = {(row.model, row.switches): row for row in ratios(campaign(sparse=1.8)).rows}
    assert at_the_bar["smallthinker-4b", "sparse"].bar_verdict == "inconclusive"
    assert {row.bar_verdict for row in ratios(campaign(8)).rows} == {"inconclusive"}
    marked = [disturbed(one) if one.replicate == 4 else one for one in campaign()]
    assert {row.comparison.n for row in ratios(marked).rows} == {8}


def test_where_few_pairs_are_undisturbed_all_pairs_decide_and_the_table_marks_it() -> None:
    """Undisturbed pairs have the first word: with nine of them the others are shown and decide nothing."""
    few = [disturbed(one) if one.replicate >= 5 else one for one in campaign(12)]
    rows = {(row.model, row.switches): row for row in ratios(few).rows}
    dense = rows["smallthinker-4b", "dense"]
    assert dense.every is not None
    assert (dense.comparison.n, dense.every.n, dense.decided_by) == (5, 12, "every")
    assert (dense.bar_verdict, dense.goal_verdict) == ("met", "not met")
    text = render.markdown([ratio_table(ratios(few), "sbr", "llama-bench")])
    assert "| 1.4 met d | 1.7 not met d |" in text
    assert "12 pairs" in text
    assert "d: fewer than 9 pairs are undisturbed" in text

    enough = [disturbed(one) if one.replicate >= 9 else one for one in campaign(12)]
    row = ratios(enough).rows[0]
    assert row.every is not None
    assert (row.comparison.n, row.every.n, row.decided_by) == (9, 12, "undisturbed")
    none_left = [disturbed(one) for one in campaign(9)]
    assert {row.comparison.n for row in ratios(none_left).rows} == {9}
    assert {row.decided_by for row in ratios(none_left).rows} == {"every"}
    assert "] d | 9 pairs |" in render.markdown([ratio_table(ratios(none_left), "sbr", "llama-bench")])


def test_the_table_says_what_the_memory_allowed() -> None:
    """491.5 MB a token: at 12 GB/s nobody decodes more than 24.4 tokens/s, 1.22 times llama.cpp's 20."""

    def beside_all(gb_per_s: float) -> EngineRatios:
        dense = [*llama("smallthinker-4b", noisy(9, 0, 20)), *decode(noisy(9, 1, 23))]
        return ratios([beside(one, gb_per_s) for one in dense])

    narrow, wide = beside_all(12), beside_all(60)
    assert narrow.rows[0].memory_allows == pytest.approx(12e9 / 491.5e6 / 20, rel=0.02)
    assert wide.rows[0].memory_allows == pytest.approx(60e9 / 491.5e6 / 20, rel=0.02)
    text = render.markdown([ratio_table(narrow, "sbr", "llama-bench")])
    assert "| 1.22 | 1.4 not met m | 1.7 not met m |" in text
    assert "m: above what the memory allowed" in text
    text = render.markdown([ratio_table(wide, "sbr", "llama-bench")])
    assert "| 1.4 not met | 1.7 not met |" in text
    assert "m: above" not in text
    fast = [*llama("smallthinker-4b", noisy(9, 0, 20)), *decode(noisy(9, 1, 32))]
    text = render.markdown([ratio_table(ratios([beside(one, 12) for one in fast]), "sbr", "llama-bench")])
    assert "| 1.22 | 1.4 met | 1.7 not met m |" in text, "what was met was in reach"
    assert ratios(campaign()).rows[0].memory_allows is None, "no probe"


def test_the_table_says_it_all() -> None:
    table = ratio_table(ratios(campaign()), "sbr", "llama-bench")
    console = Console(width=200, record=True, file=io.StringIO())
    render.print_rich(table, console)
    text = console.export_text()
    for said in ("1.4 met", "1.7 not met", "9 pairs", "sbr / llama-bench", "avx512vnni", "bars.notes.md"):
        assert said in text
    assert "| 9 pairs | 1.4 met | 1.7 not met |" in render.markdown([table])


def test_prefill_has_its_own_bars() -> None:
    theirs = llama("qwen3-0.6b", noisy(9))
    theirs = [
        dataclasses.replace(prompt_only(one, tps), label="local:qwen3-0.6b/llama-bench/t2/pp512")
        for one, tps in zip(theirs, noisy(9, 5, 400), strict=True)
    ]
    ours = [
        prompt_only(one, tps)
        for one, tps in zip(decode(noisy(9), model="qwen3-0.6b"), noisy(9, 6, 600), strict=True)
    ]
    (row,) = ratios([*theirs, *ours]).rows
    assert (row.comparison.metric, row.workload) == ("prefill_tps", "pp512")
    assert (row.bar_verdict, row.goal_verdict) == ("met", "met")


def test_unlike_rows_and_missing_engines_are_refused() -> None:
    with pytest.raises(InputError, match="no record of the engine llama-bench; it has sbr"):
        ratios(decode(noisy(9)))
    other_board = [
        dataclasses.replace(one, facts=dataclasses.replace(one.facts, fingerprint="beef"))
        for one in decode(noisy(9))
        if one.facts is not None
    ]
    with pytest.raises(InputError, match="fingerprint is beef there, f00d opposite"):
        ratios([*llama("smallthinker-4b", noisy(9)), *other_board])
    found = ratios([*campaign(), *decode(noisy(3), model="qwen3-1.7b")])
    assert found.notes == ("local:qwen3-1.7b/dense/t2/tg4: no row of llama-bench beside it",)


def test_bars_are_below_goals_and_the_presets_measure_them() -> None:
    presets = [PRESETS["versus-llama-cpp"], PRESETS["versus-llama-cpp-21b"]]
    for (engine, against, model, _, metric, workload), bar in bars().items():
        assert 1 <= bar.bar < bar.goal
        (preset,) = (one for one in presets if {model, f"{model}:standard"} & set(one["models"]))
        assert [engine, against] == preset["engines"]
        assert workload == {"decode_tps": "tg128", "prefill_tps": "pp512"}[metric]
        assert int(workload[2:]) in preset["gen" if metric == "decode_tps" else "prompt"]
        assert preset["threads"] == [1, "all"]
        assert preset["replicates"] >= 9
    # One file for both engines: runs of two files are not made in the same minute.
    assert presets[1]["one_model_at_a_time"]
    assert all(f"{name}:standard" not in catalogue.names() for name in presets[1]["models"])
    origin = resources.files("stbench").joinpath("data/bars.notes.md").read_text(encoding="utf-8")
    assert "measurements" in origin
