"""Commands with placeholders, numbers out of whatever was printed, and llama-bench's lines, leniently."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stbench.agent import external, llama_bench
from stbench.agent.external import NoNumber, fill, read
from stbench.agent.llama_bench import ResultError
from stbench.agent.llama_bench import Test as BenchTest
from stbench.agent.wire import Reading, Settings

GOOD = {"n_prompt": 8, "n_gen": 0, "n_depth": 0, "samples_ns": [1000], "n_threads": 2}


# ---- commands ------------------------------------------------------------------------------------------


def test_placeholders_are_filled_and_doubled_braces_are_braces() -> None:
    values = {name: name.upper() for name in external.PLACEHOLDERS}
    command = ["a", "-m={model}:{threads}", "{{model}}", "${{0%.x}}", "{{{seed}}}"]
    assert fill(command, values) == ["a", "-m=MODEL:THREADS", "{model}", "${0%.x}", "{SEED}"]
    assert external.placeholders(command) == ["model", "threads", "seed"]


@pytest.mark.parametrize("word", ["{modle}", "{}", "{", "}", "{model", "model}", "{{model}", "{a{model}}"])
def test_what_nothing_fills_in_is_refused(word: str) -> None:
    assert external.unknown(["ok", word]) is not None
    with pytest.raises(ValueError, match=r"none of \{model\}, \{threads\}"):
        fill([word], dict.fromkeys(external.PLACEHOLDERS, ""))


@given(st.lists(st.text(max_size=20), max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_words_are_filled_or_refused(command: list[str]) -> None:
    values = dict.fromkeys(external.PLACEHOLDERS, "x")
    if external.unknown(command) is None:
        assert len(fill(command, values)) == len(command)
    else:
        with pytest.raises(ValueError, match="which is none of"):
            fill(command, values)


# ---- readings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "stdout", "stderr", "number"),
    [
        (Reading(regex=r"([\d.]+) tok/s"), "1.5 tok/s\n2.5 tok/s", "9 tok/s", 2.5),
        (Reading(regex=r"([\d.]+) tok/s"), "nothing", "9 tok/s", 9.0),
        (Reading(regex=r"^speed ([\d.e+]+)$"), "a\nspeed 1.2e+1\nb", "", 12.0),
        (Reading(regex=r"x(\d)?"), "x4 x", "", 4.0),
        (Reading(json="a.b"), 'noise\n{"a": {"b": 3}}\n{"c": 1}\nend', "", 3.0),
        (Reading(json="1.v"), 'log [x]\n[\n {"v": 1},\n {"v": 2.5}\n]\nbye', "", 2.5),
        (Reading(json="v"), '{"v": 1}\n{"v": 2}', "", 2.0),
        (Reading(json="v"), "", '{"v": 7}', 7.0),
    ],
)
def test_the_number_is_found(reading: Reading, stdout: str, stderr: str, number: float) -> None:
    assert read(reading, stdout, stderr) == number


@pytest.mark.parametrize(
    ("reading", "output", "said"),
    [
        (Reading(regex=r"(\d+) tok/s"), "", r'no number for the regex "(\d+) tok/s"'),
        (Reading(json="a.b"), '{"a": 1}', 'no number for the JSON path "a.b"'),
        (Reading(json="a"), '{"a": true}', "no number"),
        (Reading(json="a"), '{"a": "12"}', "no number"),
        (Reading(json="a"), '{"a": NaN}', "is nan, which is no speed"),
        (Reading(json="a"), '{"a": 1e999}', "is inf, which is no speed"),
        (Reading(json="a"), '{"a": %s}' % ("9" * 400), "is inf, which is no speed"),
        (Reading(json="a"), '{"a": 0}', "is 0.0, which is no speed"),
        (Reading(regex=r"(\S+) tok/s"), "-3 tok/s", "is -3.0, which is no speed"),
        (Reading(regex=r"(\S+) tok/s"), "fast tok/s", "no number"),
    ],
)
def test_no_number_says_what_was_looked_for(reading: Reading, output: str, said: str) -> None:
    with pytest.raises(NoNumber) as caught:
        read(reading, output, "")
    assert said in str(caught.value)


@given(st.text(max_size=200), st.sampled_from(["v", "0", "0.v", "a.b.c"]))
@settings(max_examples=300, deadline=None)
def test_any_output_gives_a_speed_or_no_number(text: str, path: str) -> None:
    for reading in (Reading(json=path), Reading(regex=r"(\S+)")):
        try:
            found = read(reading, text, "")
        except NoNumber:
            continue
        assert math.isfinite(found)
        assert found > 0


# ---- llama-bench ---------------------------------------------------------------------------------------


def test_a_workload_is_a_prompt_behind_the_depth_and_a_generation_behind_both() -> None:
    assert llama_bench.tests(39, 256, 100) == [BenchTest(39, 0, 100), BenchTest(0, 256, 139)]
    assert llama_bench.tests(39, 0, 0) == [BenchTest(39, 0, 0)]
    assert llama_bench.tests(0, 128, 512) == [BenchTest(0, 128, 512)]
    assert [test.label for test in llama_bench.tests(39, 256, 0)] == ["pp39", "tg256@d39"]


NEW = """
  -v, --verbose                               verbose output
  -d, --n-depth <n>                                 (default: 0)
  -C, --cpu-mask <hex,hex>                          (default: 0x0)
  -lm, --load-mode <auto|none|mmap|mlock|mmap+mlock|dio> (default: auto)
"""
OLD = """
  -v, --verbose                             verbose output
  -mmp, --mmap <0|1>                        (default: 1)
"""


def test_flags_are_those_of_the_help() -> None:
    test = BenchTest(0, 16, 8)
    new = llama_bench.flags(NEW)
    assert {"-v", "-d", "-C", "-lm", "--load-mode"} <= new
    assert "-mmp" not in new
    words = llama_bench.arguments(new, "m.gguf", 2, [2, 5], Settings(load="read"), test)
    assert " ".join(words) == (
        "-m m.gguf -t 2 -p 0 -n 16 -r 1 -o jsonl -ctk f16 -ctv f16 -v -d 8 -lm none -C 0x24 --cpu-strict 1"
    )
    old = llama_bench.flags(OLD)
    words = llama_bench.arguments(old, "m", 1, [], Settings(), BenchTest(8, 0, 0))
    assert words[-2:] == ["-mmp", "1"]
    with pytest.raises(ResultError, match="no flag -d for tokens in the KV cache"):
        llama_bench.arguments(old, "m", 1, [], Settings(), test)
    with pytest.raises(ResultError, match="no flag -C for threads that are pinned"):
        llama_bench.arguments(old, "m", 1, [0], Settings(), BenchTest(8, 0, 0))


def test_results_are_read_among_garbage_and_unknown_keys_stay() -> None:
    line = json.dumps({**GOOD, "new_key": [1]})
    for output in (
        f"warning\n{line}\nbye",
        f"{{broken\n[1]\n{line}\n{{}}\nnull",
        json.dumps([GOOD, {"x": 1}], indent=1),
    ):
        found = llama_bench.result(output, BenchTest(8, 0, 0))
        assert found["samples_ns"] == [1000]
    assert llama_bench.result(line, BenchTest(8, 0, 0))["new_key"] == [1]
    for without in ({**GOOD, "n_depth": None}, {k: v for k, v in GOOD.items() if k != "n_depth"}):
        assert llama_bench.result(json.dumps(without), BenchTest(8, 0, 0))["samples_ns"] == [1000]
        with pytest.raises(ResultError, match="no result of pp8@d4"):
            llama_bench.result(json.dumps(without), BenchTest(8, 0, 4))
    with_depth = json.dumps({**GOOD, "n_depth": 4})
    assert llama_bench.result(f"{line}\n{with_depth}", BenchTest(8, 0, 4))["n_depth"] == 4


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("", "printed no result"),
        ('{"build": 1}', "printed no result"),
        (json.dumps({"n_prompt": 8, "n_gen": 0}), "a result without samples_ns"),
        (json.dumps({"samples_ns": [5]}), "a result without n_prompt, n_gen"),
        (json.dumps({**GOOD, "n_prompt": 9}), "no result of pp8"),
        (json.dumps({**GOOD, "samples_ns": [1, 2]}), "asked for one repetition"),
        (json.dumps({**GOOD, "samples_ns": 5}), "asked for one repetition"),
        (json.dumps({**GOOD, "samples_ns": [0]}), "no duration"),
        (json.dumps({**GOOD, "samples_ns": [-4]}), "no duration"),
        (json.dumps({**GOOD, "samples_ns": [True]}), "no duration"),
        (json.dumps({**GOOD, "samples_ns": ["5"]}), "no duration"),
        (json.dumps({**GOOD, "samples_ns": [math.nan]}), "no duration"),
        (json.dumps({**GOOD, "samples_ns": [10**400]}), "no duration"),
    ],
)
def test_an_unusable_result_says_what_is_missing(output: str, said: str) -> None:
    with pytest.raises(ResultError, match=said):
        llama_bench.result(output, BenchTest(8, 0, 0))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(
        st.text(max_size=30)
        | st.dictionaries(
            st.sampled_from(["n_prompt", "n_gen", "n_depth", "samples_ns", "type_k", "load_mode"]), JSON
        ).map(json.dumps),
        max_size=5,
    )
)
@settings(max_examples=400, deadline=None)
def test_any_output_is_a_result_or_a_result_error(lines: list[str]) -> None:
    try:
        found = llama_bench.result("\n".join(lines), BenchTest(8, 0, 0))
    except ResultError:
        return
    assert found["samples_ns"][0] >= 1


@given(JSON)
@settings(max_examples=200, deadline=None)
def test_any_value_of_another_key_is_read_or_passed_over(value: Any) -> None:
    item = {**GOOD, "n_threads": value, "load_mode": value, "use_mmap": value}
    assert llama_bench.whole_number(item, "n_threads") >= 0
    assert llama_bench.load_mode(item) in ("mmap", "read", "")


LOG = """\
load_tensors:   CPU_Mapped model buffer size =   320.00 MiB
load_tensors:   {kind} model buffer size =   {size} MiB
llama_context: n_ctx                 = 512
llama_kv_cache:        CPU KV buffer size =     2.50 MiB
"""


@pytest.mark.parametrize(
    ("kind", "size", "repacked"),
    [
        ("CPU_REPACK", "319.71", True),
        ("AMX", "10.00", True),
        ("CPU_REPACK", "0.00", False),
        ("CPU", "5.00", False),
    ],
)
def test_the_log_tells_whether_weights_were_repacked(kind: str, size: str, repacked: bool) -> None:
    found = llama_bench.read_log(LOG.format(kind=kind, size=size))
    assert (found.repacked, found.n_ctx, found.kv_bytes) == (repacked, 512, 5 << 19)
    assert llama_bench.read_log("nothing of this").repacked is None
