"""Axes, ranges, presets: what the options of llama-bench mean here, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stbench.errors import InputError, SweepError, UsageError
from stbench.sweeps.sweep import (
    PRESETS,
    PUBLISHED_PROMPT_TOKENS,
    Traits,
    build_sweep,
    expand,
    parse_range,
    resumed_sweep,
    sweep_from_json,
    workload_label,
)

MOE = Traits(relu=True, predictor=True)
DENSE = Traits(relu=False, predictor=False)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("4", [4]),
        ("1,2, 8", [1, 2, 8]),
        ("1-4", [1, 2, 3, 4]),
        ("2-9+3", [2, 5, 8]),
        ("1-8*2", [1, 2, 4, 8]),
        ("3-30*3", [3, 9, 27]),
        ("5-5", [5]),
        ("1,4-8+4", [1, 4, 8]),
    ],
)
def test_ranges(text: str, values: list[int]) -> None:
    assert parse_range(text) == values


@pytest.mark.parametrize(
    "text", ["", "a", "1,", "8-1", "1-8*1", "0-8*2", "1-8+0", "-3", "1-2-3", "1.5", "0-999999999"]
)
def test_refused_ranges(text: str) -> None:
    with pytest.raises(ValueError, match=r"numbers|range|values"):
        parse_range(text)


@given(st.text(alphabet="0123456789,-+* ", max_size=14))
@settings(max_examples=500, deadline=None)
def test_any_range_text(text: str) -> None:
    try:
        values = parse_range(text)
    except ValueError:
        return
    assert values
    assert all(value >= 0 for value in values)


def test_prompt_and_gen_are_separate_cases_as_in_llama_bench() -> None:
    sweep = build_sweep({"models": "tiny-llama", "prompt": "512", "gen": "128", "prompt_gen": "39,256;8,8"})
    assert sweep.workloads == ((512, 0, 0), (0, 128, 0), (39, 256, 0), (8, 8, 0))
    assert build_sweep({"models": "tiny-llama"}).workloads == ((512, 0, 0), (0, 128, 0))
    deep = build_sweep({"models": "tiny-llama", "gen": "128", "depth": "0,512"})
    assert [workload_label(*w) for w in deep.workloads] == ["tg128", "tg128@d512"]


def test_the_context_fits_the_workload() -> None:
    assert build_sweep({"models": "m", "gen": "128"}).n_ctx == 4096
    assert build_sweep({"models": "m", "gen": "128", "depth": "8192"}).n_ctx == 8448
    with pytest.raises(SweepError, match="n_ctx 100 is too small: the longest workload has 512 tokens"):
        build_sweep({"models": "m", "n_ctx": 100})


def test_published_preset_is_the_published_workload() -> None:
    sweep = build_sweep({"preset": "published-4b"})
    assert sweep.models == ("smallthinker-4b", "qwen3-0.6b", "qwen3-1.7b")
    assert sweep.workloads == ((PUBLISHED_PROMPT_TOKENS, 256, 0),)
    assert (sweep.n_ctx, sweep.threads) == (4096, None)
    cases, notes = expand(sweep, {"smallthinker-4b": MOE, "qwen3-0.6b": DENSE, "qwen3-1.7b": DENSE})
    labels = [case.label(4) for case in cases]
    assert labels == [
        "smallthinker-4b/sparse+lmhead/t4/pp39+tg256",
        "smallthinker-4b/sparse/t4/pp39+tg256",
        "smallthinker-4b/lmhead/t4/pp39+tg256",
        "smallthinker-4b/dense/t4/pp39+tg256",
        "qwen3-0.6b/dense/t4/pp39+tg256",
        "qwen3-1.7b/dense/t4/pp39+tg256",
    ]
    assert "qwen3-0.6b/lmhead left out: the model has no lm_head predictor" in notes
    assert len(notes) == 6


def test_quick_has_the_same_rows() -> None:
    quick, full = build_sweep({}), build_sweep({"preset": "published-4b"})
    assert quick.preset == "quick"
    keys = ("models", "sparse_ffn", "sparse_lm_head", "engines", "n_ctx")
    assert all(getattr(quick, key) == getattr(full, key) for key in keys)


def test_options_win_over_the_file_and_the_file_over_the_preset() -> None:
    text = b"preset: quick\ngen: 32\nreplicates: 7\nthreads: 1-4*2\nsparse_ffn: off\n"
    sweep = build_sweep({"replicates": 2}, text)
    assert sweep.workloads == ((0, 32, 0),), "a layer's workload replaces the preset's"
    assert (sweep.replicates, sweep.threads, sweep.sparse_ffn) == (2, (1, 2, 4), (False,))
    assert sweep.models == tuple(PRESETS["quick"]["models"])


def test_models_without_preset_start_from_nothing() -> None:
    sweep = build_sweep({"models": "a,b,a"})
    assert sweep.models == ("a", "b")
    assert (sweep.preset, sweep.sparse_ffn, sweep.sparse_lm_head) == ("", (False,), (False,))


def test_all_errors_of_file_and_options_at_once() -> None:
    text = b"modles: x\nthreads: 0\nreplicates: many\npreset: fast\nkv_type: q8\n"
    with pytest.raises(SweepError) as caught:
        build_sweep(
            {"gen": "8-1", "sparse_ffn": "maybe", "max_time": "5x", "engines": "sbr,v llm"}, text, "s.yaml"
        )
    assert caught.value.problems == [
        "s.yaml:1: modles: unknown key; did you mean models?",
        "s.yaml:2: threads: expected whole numbers from 1 up, got 0",
        's.yaml:3: replicates: expected an integer, got "many"',
        "s.yaml:4: preset: expected published-4b, published-21b, limited-4b, limited-4b-small-context, "
        'limited-21b, cache-sizes-4b, quick, versus-llama-cpp or versus-llama-cpp-21b, got "fast"',
        's.yaml:5: kv_type: expected f16 or f32, got "q8"',
        '--engines: expected names of engines, such as sbr,llama-bench, got "sbr,v llm"',
        '--sparse-ffn: expected on, off, auto or several of them, got "maybe"',
        '--gen: expected a range that goes up, such as 1-8+1 or 1-8*2, got "8-1"',
        '--max-time: expected a duration such as 90s, 15m or 2h, got "5x"',
    ]


@pytest.mark.parametrize("key", ["models", "depth", "threads", "prompt", "gen", "cache", "sparse_ffn"])
def test_an_empty_list_is_no_axis(key: str) -> None:
    with pytest.raises(SweepError) as caught:
        build_sweep({}, f"preset: quick\n{key}: []\n".encode(), "s.yaml")
    assert caught.value.problems[0].startswith(f"s.yaml:2: {key}: expected ")


@pytest.mark.parametrize("text", ["12582912", "1073741824", "1.5GiB"])
def test_sizes_may_be_in_bytes(text: str) -> None:
    """Messages name the smallest that works in bytes, and are typed as they are."""
    size = int(float(text.removesuffix("GiB")) * (1 << 30)) if "G" in text else int(text)
    assert build_sweep({"memory_limit": text}).memory_limit == (size,)


def test_errors_name_options_as_they_are_typed() -> None:
    with pytest.raises(SweepError) as caught:
        build_sweep({"sparse_lm_head": "x_y", "lm_head_threshold": 1e10, "n_batch": 0})
    assert sorted(caught.value.problems) == [
        "--batch: expected at least 1, got 0",
        "--lm-head-threshold: expected at most 1000000000, got 10000000000.0",
        '--sparse-lm-head: expected on, off or both, got "x_y"',
    ]


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), (5, 5)])
def test_durations(text: object, seconds: float) -> None:
    assert build_sweep({"max_time": text}).max_time_s == seconds


@given(
    st.dictionaries(
        st.sampled_from(["models", "gen", "threads", "filter", "max_time", "x"]), st.text(max_size=8)
    )
)
@settings(max_examples=300, deadline=None)
def test_any_option_values(options: dict[str, str]) -> None:
    try:
        build_sweep(options)
        return
    except SweepError as error:
        found = error
    assert found.exit_code == 2
    assert found.problems
    assert all(problem.isprintable() for problem in found.problems)


def test_switches_of_unknown_files_are_kept() -> None:
    sweep = build_sweep({"models": "mine", "gen": "1", "sparse_ffn": "on,off"})
    cases, notes = expand(sweep, {"mine": Traits(None, None)})
    assert [case.switches for case in cases] == ["sparse", "dense"]
    assert not notes


def test_the_sparse_ffn_may_be_left_to_the_runtime() -> None:
    sweep = build_sweep({"models": "mine", "gen": "1", "sparse_ffn": "auto,off", "sparse_lm_head": "on,off"})
    assert sweep.sparse_ffn == (False, "auto")
    cases, _ = expand(sweep, {"mine": Traits(None, None)})
    assert [case.switches for case in cases] == ["lmhead", "dense", "auto+lmhead", "auto"]
    assert build_sweep({}, b"models: [a]\nsparse_ffn: [on, auto]\n").sparse_ffn == (True, "auto")
    assert sweep_from_json(json.loads(json.dumps(dataclasses.asdict(sweep))), Path("x")) == sweep
    with pytest.raises(SweepError, match="on, off, auto or several of them"):
        build_sweep({"models": "a", "sparse_ffn": "automatic"})
    with pytest.raises(UsageError, match="qwen/auto left out: the model has no ReLU experts"):
        expand(build_sweep({"models": "qwen", "gen": "1", "sparse_ffn": "auto"}), {"qwen": DENSE})


def test_nothing_left_says_why() -> None:
    sweep = build_sweep({"models": "qwen", "gen": "1", "sparse_ffn": "on"})
    with pytest.raises(UsageError, match="qwen/sparse left out: the model has no ReLU experts"):
        expand(sweep, {"qwen": DENSE})


def test_a_stored_sweep_comes_back() -> None:
    sweep = build_sweep({"preset": "quick", "threads": "1,2", "filter": "a,b", "max_time": "1h", "seed": 5})
    stored = json.loads(json.dumps(dataclasses.asdict(sweep)))
    assert sweep_from_json(stored, Path("x")) == sweep


@pytest.mark.parametrize(
    "changes", [{"workloads": [[1, 2]]}, {"workloads": [1]}, {"workloads": None}, {"unknown": 1}]
)
def test_what_is_no_stored_sweep(changes: dict[str, object]) -> None:
    stored = {**dataclasses.asdict(build_sweep({})), **changes}
    with pytest.raises(InputError, match="x: the stored sweep cannot be read"):
        sweep_from_json(stored, Path("x"))


STORED = {"preset": "quick", "replicates": 2, "prompt_gen": "39,8", "depth": "0,16", "max_time": "1h"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        STORED,
        {"preset": "quick"},
        {"prompt_gen": "39,8"},
        {"models": "smallthinker-4b,qwen3-0.6b,qwen3-1.7b", "sparse_ffn": "on,off"},
    ],
)
def test_options_that_say_what_is_stored_may_stand_beside_resume(options: dict[str, object]) -> None:
    stored = build_sweep(STORED)
    assert resumed_sweep(stored, options, None) == stored


def test_limits_may_be_given_anew() -> None:
    stored = build_sweep(STORED)
    found = resumed_sweep(stored, {"max_time": "5m", "max_failures": 3}, None)
    assert found == dataclasses.replace(stored, max_time_s=300.0, max_failures=3)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"preset": "published-4b"}, "--preset"),
        ({"replicates": 3}, "--replicates"),
        ({"gen": "8"}, "--gen"),
        ({"gen": "8", "prompt_gen": "39,8"}, "--prompt-gen, --gen"),
        ({"depth": "0"}, "--depth"),
        ({"n_batch": 8, "sparse_lm_head": "on", "seed": 0}, "--sparse-lm-head, --batch"),
        ({"threads": "1"}, "--threads"),
        ({"gen": "9999"}, "--gen"),
    ],
)
def test_other_axes_beside_resume_are_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(
        UsageError, match=r"--resume goes on with the stored sweep; .* would change it"
    ) as caught:
        resumed_sweep(build_sweep(STORED), options, None)
    said = str(caught.value).partition("; ")[2].removesuffix(" would change it")
    assert sorted(said.split(", ")) == sorted(named.split(", "))
    assert "another --campaign NAME" in caught.value.hint


def test_a_sweep_file_beside_resume_must_be_the_stored_one(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("models: a\ngen: 8\nreplicates: 7\n")
    stored = build_sweep({"replicates": 2}, path.read_bytes())
    assert resumed_sweep(stored, {"replicates": 2}, path) == stored
    with pytest.raises(UsageError, match=r"replicates of .*s\.yaml would change it"):
        resumed_sweep(stored, {}, path)
