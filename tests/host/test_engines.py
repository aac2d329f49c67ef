"""engines: of devices.yaml, what becomes of them in a plan, and sweeps of small programs."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.agent import external
from stbench.agent.wire import Program, Reading
from stbench.builds import peer
from stbench.builds.programs import at_home, check_engines, programs_of
from stbench.devices.board import Board
from stbench.devices.engine_entries import EngineEntry
from stbench.devices.inventory import Device, parse_inventory
from stbench.errors import BuildError, InventoryError, SweepError, UsageError
from stbench.models import catalogue
from stbench.records.store import read_records
from stbench.sweeps.plan import Plan, Target, build_plan
from stbench.sweeps.sweep import build_sweep
from tests.host.conftest import ROOT, Sandbox
from tests.host.test_plan import target

MODELS = ("smallthinker-4b", "qwen3-0.6b")
ECHO = ["sh", "-c", "echo speed 5", "sh", "{model}", "{n_gen}"]


def problems(text: str) -> list[str]:
    with pytest.raises(InventoryError) as caught:
        parse_inventory(text.encode(), "devices.yaml")
    return caught.value.problems


def entry(name: str = "mine", **changes: object) -> EngineEntry:
    program = Program("external", list(ECHO), decode=Reading(regex=r"speed (\d+)"))
    return replace(EngineEntry(name, program), **changes)  # type: ignore[arg-type]


def with_programs(device: Device, *engines: str, models: tuple[str, ...] = MODELS) -> Target:
    """A target as prepare makes it: with the files that only the programs run."""
    programs = programs_of(device, engines, {name: name for name in models})
    names = [*models, *(name for program in programs.values() for name in program.models.values())]
    return replace(target(*dict.fromkeys(names), device=device), programs=programs)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A file that may pass for llama-bench, with a library beside it."""
    path = tmp_path / "bin" / "llama-bench"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    path.with_name("libllama.so.0").write_text("1")
    return path


@pytest.fixture
def board(bench: Path) -> Device:
    program = Program("llama-bench", [str(bench)])
    return Device("board", engines={"llama-bench": EngineEntry("llama-bench", program), "mine": entry()})


def plan(found: Target, **options: object) -> Plan:
    sweep = build_sweep({"models": ",".join(MODELS), "engines": "sbr,llama-bench,mine", "gen": 8, **options})
    return build_plan(sweep, [found], "camp")


# ---- devices.yaml ----------------------------------------------------------------------------------------


def test_engines_are_read_and_a_devices_own_take_their_place() -> None:
    text = """\
engines:
  llama-bench: {path: ~/bin/llama-bench, args: [-fa, 1], environment: {A: 1}}
  mine:
    command: [prog, -m, "{model}", -n, "{n_gen}"]
    decode: {regex: 'x ([\\d.]+)'}
    prefill: {json: a.0.b}
    timeout: 30
    model_layout: transposed
    sparse: [ffn, lm_head]
devices:
  a: {}
  b:
    engines:
      mine: {command: [other, "{model}"], prefill: {json: v}}
      llama-bench:
  c: {extends: b, engines: {third: {command: [third, "{model}"], prefill: {json: v}}}}
"""
    a, b, c = parse_inventory(text.encode(), "devices.yaml").devices
    assert a.engines["llama-bench"].program == Program(
        "llama-bench", ["~/bin/llama-bench", "-fa", "1"], {"A": "1"}
    )
    mine = a.engines["mine"]
    assert mine.program == Program(
        "external",
        ["prog", "-m", "{model}", "-n", "{n_gen}"],
        decode=Reading(regex="x ([\\d.]+)"),
        prefill=Reading(json="a.0.b"),
    )
    assert (mine.timeout_s, mine.model_layout) == (30.0, "transposed")
    assert (mine.sparse, b.engines["mine"].sparse) == (("ffn", "lm_head"), ())
    assert (b.engines["mine"].program.command[0], b.engines["mine"].model_layout) == ("other", "standard")
    assert b.engines["llama-bench"].program.command == [""]
    assert list(c.engines) == ["llama-bench", "mine", "third"]
    assert c.engines["mine"] == b.engines["mine"]


WRONG = """\
engines:
  llama-bench: {path: bin/llama-bench, args: [-t, 4], binary: x}
  dense: {command: [a, "{model}"], prefill: {json: v}}
  'two words': {command: [a, "{model}"], prefill: {json: v}}
  none: {command: [a, "{model}"]}
  a: {command: prog, decode: {json: v}}
  b: {command: [prog, "{modle}"], decode: {json: v}}
  c: {command: [prog, "{model"], decode: {json: v}}
  d: {command: [prog], prefill: {json: v}}
  e: {command: [prog, "{model}"], decode: {json: v}}
  f: {command: [prog, "{model}"], prefill: {regex: "(", json: v}}
  g: {command: [prog, "{model}"], prefill: {regex: "no group"}}
  h: {command: [prog, "{model}"], prefill: {jsno: v}}
  i: {command: [prog, "{model}"], prefill: {json: a..b}, environment: {"A-B": 1}}
  j: {command: [prog, "{model}"], prefill: {json: a}, timeout: 0, model_layout: other, sparse: [head]}
  k: {command: [prog, "{model}"], prefill: {}}
devices:
  local: {engines: [sbr]}
"""


def test_all_errors_of_engines_at_once() -> None:
    found = problems(WRONG)
    expected = [
        (2, "llama-bench.path", 'an absolute path, or one that begins with ~/, got "bin/llama-bench"'),
        (2, "llama-bench.args", "arguments beside those that a sweep sets (-t are its own)"),
        (2, "llama-bench.binary", "unknown key"),
        (3, "dense", "this name has a meaning of its own"),
        (4, '"two words"', "an engine's name has at most 40 letters"),
        (5, "none", "decode or prefill: where the tokens/s stand in the output"),
        (6, "a.command", "a command and its arguments as a list, such as [llama-cli, -m, '{model}']"),
        (7, "b.command", 'unknown placeholder "{modle}"; did you mean {model}?'),
        (8, "c.command", "braces around a placeholder, or doubled ones"),
        (9, "d.command", "a command with {model}"),
        (10, "e", "a command with {n_gen}, since its decoding is read"),
        (11, "f.prefill.regex", "a regular expression with one group"),
        (12, "g.prefill.regex", "a regular expression with one group"),
        (13, "h.prefill.jsno", "unknown key; did you mean json?"),
        (14, "i.prefill.json", "a path of keys and indices"),
        (14, "i.environment", "variables and their values"),
        (15, "j.timeout", "more than 0"),
        (15, "j.model_layout", "standard or transposed"),
        (15, "j.sparse[0]", "ffn or lm_head"),
        (16, "k.prefill", "either regex or json"),
    ]
    for line, key, said in expected:
        where = f"devices.yaml:{line}: engines.{key}: "
        assert [text for text in found if text.startswith(where) and said in text], (where, said, found)
    assert "devices.yaml:18: devices.local.engines: expected a mapping of engines" in found[-1]
    assert all(text.isprintable() for text in found)


def test_the_engines_of_the_documentation_are_accepted() -> None:
    blocks = (ROOT / "docs" / "engines.md").read_text().split("```yaml\n")[1:]
    assert len(blocks) == 4
    for block in blocks:
        (device,) = parse_inventory(block.partition("```")[0].encode(), "docs").devices
        assert device.engines
    bundle = device.engines["powerinfer-bundle"]
    assert (bundle.sparse, bundle.program.environment["MAX_N_CACHED"]) == (("ffn", "lm_head"), "768")
    assert "$f iflag=nocache" in bundle.program.command[2]


# What programs made from llama.cpp print at their end, in its older and its newer form.
TIMINGS = """\
%s:        load time =     812.46 ms
%s:      sample time =      12.10 ms /   256 runs   (    0.05 ms per token, 21157.02 tokens per second)
%s: prompt eval time =     249.61 ms /    39 tokens (    6.40 ms per token,   156.24 tokens per second)
%s:        eval time =    3010.07 ms /   255 runs   (   11.80 ms per token,    84.72 tokens per second)
%s:       total time =    3305.32 ms /   294 tokens
"""


@pytest.mark.parametrize("prefix", ["llama_print_timings", "llama_perf_context_print", "common_perf_print"])
def test_the_documented_readings_find_llama_cpps_speeds(prefix: str) -> None:
    page = (ROOT / "docs" / "engines.md").read_text()
    named = dict(re.findall(r"`(decode|prefill): \{regex: '([^`]+)'\}`", page))
    output = TIMINGS.replace("%s", prefix)
    assert external.read(Reading(regex=named["decode"]), "the answer", output) == 84.72
    assert external.read(Reading(regex=named["prefill"]), "the answer", output) == 156.24


def test_an_unknown_engine_names_the_known_ones() -> None:
    device = Device("a", engines={"mine": entry()})
    check_engines(["sbr", "llama-bench", "mine", "fake"], [Device("b"), device])
    with pytest.raises(SweepError, match=r'unknown engine "llama-bnech"; did you mean llama-bench\?'):
        check_engines(["llama-bnech"], [device])
    with pytest.raises(SweepError, match=r'unknown engine "x"; known: sbr, llama-bench, mine'):
        check_engines(["x"], [device])


# ---- plans -----------------------------------------------------------------------------------------------


def test_labels_name_the_program_where_ours_has_its_switches(board: Device) -> None:
    found = plan(with_programs(board, "llama-bench", "mine"), sparse_ffn="on,off")
    assert sorted(found.cases()) == [
        "board:qwen3-0.6b/dense/t4/tg8",
        "board:qwen3-0.6b/llama-bench/t4/tg8",
        "board:qwen3-0.6b/mine/t4/tg8",
        "board:smallthinker-4b/dense/t4/tg8",
        "board:smallthinker-4b/llama-bench/t4/tg8",
        "board:smallthinker-4b/mine/t4/tg8",
        "board:smallthinker-4b/sparse/t4/tg8",
    ]
    note = "smallthinker-4b: sparse_ffn and sparse_lm_head are switches of sbr; left out for llama-bench"
    assert note in found.notes


def test_programs_get_the_twin_and_the_plan_counts_its_disk(board: Device) -> None:
    found = plan(with_programs(board, "llama-bench", "mine"))
    models = {job.label.split("/", 1)[0] + job.engine: job.model.name for job in found.jobs}
    assert models["board:smallthinker-4bllama-bench"] == "smallthinker-4b:standard"
    assert models["board:smallthinker-4bsbr"] == "smallthinker-4b"
    assert models["board:qwen3-0.6bllama-bench"] == "qwen3-0.6b"
    made = [model.ref.name for model in found.to_make["board"]]
    assert made == ["smallthinker-4b", "qwen3-0.6b", "smallthinker-4b:standard"]
    sizes = [catalogue.lookup(name).sizes.weight_bytes for name in made]
    assert found.peak_disk_bytes("board") == sum(sizes)
    only = plan(with_programs(board, "llama-bench"), engines="llama-bench", models="smallthinker-4b")
    assert [model.ref.name for model in only.to_make["board"]] == ["smallthinker-4b:standard"]


def test_which_file_a_program_runs(board: Device) -> None:
    def file(device: Device, given: str, label: str = "smallthinker-4b") -> str:
        return programs_of(device, ["mine"], {label: given})["mine"].models[label]

    assert file(board, "smallthinker-4b") == "smallthinker-4b:standard"
    assert file(board, "/files/smallthinker-4b.gguf") == "smallthinker-4b", "a user's own file"
    transposed = replace(board, engines={"mine": entry(model_layout="transposed")})
    assert file(transposed, "smallthinker-4b") == "smallthinker-4b"
    mapped = replace(board, models={"smallthinker-4b": "/real.gguf"})
    assert file(mapped, "smallthinker-4b") == "smallthinker-4b", "the synthetic twin has other weights"
    both = replace(board, models={"smallthinker-4b": "/a.gguf", "smallthinker-4b:standard": "/b.gguf"})
    assert file(both, "smallthinker-4b") == "smallthinker-4b:standard"


def test_one_file_is_not_measured_under_two_names(board: Device) -> None:
    models = ("smallthinker-4b", "smallthinker-4b:standard")
    found = plan(
        with_programs(board, "llama-bench", models=models), models=",".join(models), engines="llama-bench"
    )
    assert {job.case for job in found.jobs} == {"smallthinker-4b/llama-bench/t4/tg8"}
    assert len({job.id for job in found.jobs}) == len(found.jobs)
    assert any("it runs this file as smallthinker-4b" in note for note in found.notes)


def test_what_a_command_cannot_do_is_left_out_with_a_note(board: Device) -> None:
    found = plan(with_programs(board, "llama-bench", "mine"), prompt=16, depth="0,64")
    mine = {job.case for job in found.jobs if job.engine == "mine"}
    assert mine == {"smallthinker-4b/mine/t4/tg8", "qwen3-0.6b/mine/t4/tg8"}
    assert "board: qwen3-0.6b/tg8@d64 left out for mine: its command has no {n_depth}" in found.notes
    assert "board: qwen3-0.6b/pp16 left out for mine: devices.yaml has no prefill: for it" in found.notes
    assert "qwen3-0.6b/llama-bench/t4/tg8@d64" in {job.case for job in found.jobs}


def test_a_device_without_the_engine_is_left_out_with_a_note(board: Device) -> None:
    plain = with_programs(Device("plain"), "mine")
    sweep = build_sweep({"models": ",".join(MODELS), "engines": "sbr,mine", "gen": 8})
    found = build_plan(sweep, [plain, with_programs(board, "mine")], "c")
    assert {job.device for job in found.jobs if job.engine == "mine"} == {"board"}
    assert "plain: mine left out: devices.yaml does not describe it for this device" in found.notes


def test_jobs_of_a_program_say_what_it_is_really_asked(board: Device) -> None:
    slow = replace(board, engines={**board.engines, "mine": entry(timeout_s=7.0)}, timeout_s=99.0)
    options = {
        "isa": "avx2",
        "requantise_down": True,
        "lm_head_threshold": 0.5,
        "n_batch": 32,
        "prompt_gen": "4,8",
    }
    found = plan(with_programs(slow, "llama-bench", "mine"), **{**options, "gen": None})
    by_engine = {job.engine: job for job in found.jobs if job.model.name == "qwen3-0.6b"}
    bench, mine, ours = by_engine["llama-bench"], by_engine["mine"], by_engine["sbr"]
    assert (ours.settings.isa, ours.program) == ("avx2", None)
    for job in (bench, mine):
        assert (job.settings.isa, job.settings.requantise_down, job.settings.lm_head_threshold) == (
            "auto",
            False,
            0,
        )
    assert (bench.settings.n_ctx, bench.settings.n_batch) == (12, 512)
    assert (mine.settings.n_ctx, mine.settings.n_batch) == (4096, 32)
    assert (bench.timeout_s, mine.timeout_s) == (99.0, 7.0)
    assert bench.library == ours.library, "for the bandwidth probes"


def test_what_a_program_always_skips_is_in_its_jobs(board: Device) -> None:
    def switches(device: Device, **options: object) -> dict[str, tuple[bool, bool]]:
        found = plan(with_programs(device, "mine", "llama-bench"), engines="mine,llama-bench", **options)
        return {
            job.label: (job.settings.sparse_ffn, job.settings.sparse_lm_head)
            for job in found.jobs
            if "mine" in job.label
        }

    both = entry(model_layout="transposed", sparse=("ffn", "lm_head"))
    assert switches(replace(board, engines={"mine": both})) == {
        "board:smallthinker-4b/mine/t4/tg8": (True, True),
        "board:qwen3-0.6b/mine/t4/tg8": (False, False),
    }
    # The standard twin has no predictor.
    standard = switches(replace(board, engines={"mine": entry(sparse=("ffn", "lm_head"))}))
    assert standard["board:smallthinker-4b/mine/t4/tg8"] == (True, False)
    assert set(switches(board).values()) == {(False, False)}


def test_another_program_is_another_job_and_another_library_is_not(board: Device, bench: Path) -> None:
    def ids(found: Target, engine: str) -> set[str]:
        return {job.id for job in plan(found).jobs if job.engine == engine}

    before = with_programs(board, "llama-bench", "mine")
    other = replace(before, library_sha256="other")
    assert ids(before, "llama-bench") == ids(other, "llama-bench")
    assert not ids(before, "sbr") & ids(other, "sbr")
    changed = entry(program=replace(entry().program, environment={"A": "1"}))
    env = with_programs(replace(board, engines={**board.engines, "mine": changed}), "llama-bench", "mine")
    assert ids(env, "llama-bench") == ids(before, "llama-bench")
    assert not ids(env, "mine") & ids(before, "mine")
    bench.with_name("libllama.so.0").write_text("2")
    rebuilt = with_programs(board, "llama-bench", "mine")
    assert not ids(rebuilt, "llama-bench") & ids(before, "llama-bench")
    assert ids(rebuilt, "mine") == ids(before, "mine")


# ---- from the command line ---------------------------------------------------------------------------------


def test_llama_bench_that_was_not_built_is_one_error_before_any_work(sandbox: Sandbox) -> None:
    code, out, err = sandbox.run("sweep", "--models", "tiny-qwen3", "--engines", "sbr,llama-bench", "-n", "4")
    assert code == BuildError.exit_code == 2
    assert (out, list(sandbox.directory.glob("results/*"))) == ("", [])
    assert "local: the engine llama-bench needs llama.cpp, which has not been built on this machine" in err
    assert "stbench peer build" in err


def test_the_built_llama_bench_is_taken(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = peer.Peer("1", "c", "s", "clang", [], "cpu", str(bench.parents[1]))
    monkeypatch.setattr(peer, "built_peer", lambda: built)
    found = programs_of(Device("local"), ["sbr", "llama-bench"], {"tiny-qwen3": "tiny-qwen3"})
    assert found["llama-bench"].program.command == [str(bench)]
    assert len(found["llama-bench"].build) == 64


def test_a_boards_program_may_lie_in_its_home_directory() -> None:
    text = """\
devices:
  far:
    connector: ssh
    host: h
    engines:
      llama-bench: {path: ~/bin/llama-bench, args: [-fa, 1]}
      mine: {command: [echo, "{model}"], prefill: {json: v}}
"""
    (device,) = parse_inventory(text.encode(), "d").devices
    found = programs_of(device, ["llama-bench"], {"tiny-qwen3": "tiny-qwen3"})["llama-bench"]
    there = Board("3.11.2", "aarch64", "glibc 2.36", "/home/pi")
    assert at_home(found, there.path).program.command == ["/home/pi/bin/llama-bench", "-fa", "1"]
    with pytest.raises(InventoryError, match="far needs the program's absolute path there") as caught:
        programs_of(device, ["mine"], {"tiny-qwen3": "tiny-qwen3"})
    assert "~/program" in caught.value.hint


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        (
            "llama-bench: {path: /nowhere/llama-bench}",
            "engines.llama-bench.path: no program '/nowhere/llama-bench'",
        ),
        (
            "mine: {command: [no-such-program, '{model}'], prefill: {json: v}}",
            "engines.mine.command: no program",
        ),
    ],
)
def test_a_program_that_is_not_there_is_an_error_before_any_work(
    sandbox: Sandbox, engines: str, said: str
) -> None:
    sandbox.write("devices.yaml", f"engines: {{{engines}}}\ndevices: {{local: {{}}}}\n")
    name = engines.partition(":")[0]
    code, _, err = sandbox.run("plan", "--models", "tiny-qwen3", "--engines", name, "-p", "4")
    assert code == 2
    assert said in err


def test_a_sweep_of_a_program_needs_no_reference_and_fails_alone(
    sandbox: Sandbox, library_path: Path
) -> None:
    script = sandbox.write(
        "program.py",
        "import json, sys\n"
        "model, n_gen = sys.argv[1:]\n"
        "assert open(model, 'rb').read(4) == b'GGUF'\n"
        "if 'qwen3' in model: sys.exit('no such model here')\n"
        "print('loading'); print(json.dumps({'speed': {'decode': 250.0}, 'n': n_gen}))\n",
    )
    sandbox.write(
        "devices.yaml",
        "engines:\n  mine:\n"
        f"    command: [{sys.executable}, {script}, '{{model}}', '{{n_gen}}']\n"
        "    decode: {json: speed.decode}\n"
        "devices:\n  local: {threads: 1}\n",
    )
    arguments = ["--models", "tiny-smallthinker,tiny-qwen3", "--engines", "mine", "-n", "4", "-r", "1"]
    code, out, err = sandbox.run("sweep", *arguments, "--library", str(library_path), "--campaign", "c")
    assert code == 3, err
    records = {
        record.model.name: record for record in read_records(sandbox.directory / "results" / "c").latest()
    }
    good, bad = records["tiny-smallthinker:standard"], records["tiny-qwen3"]
    assert (good.status, good.label) == ("ok", "local:tiny-smallthinker/mine/t1/tg4")
    assert good.samples is not None
    assert (good.samples.decode_ns, good.samples.decode_tokens) == ([16_000_000], [4])
    assert (bad.status, "no such model here" in bad.detail) == ("failed", True)
    assert "reference" not in err
    assert "tiny-smallthinker/mine/t1/tg4 #1: 250.00 tokens/s (outputs unchecked)" in err
    assert "250.0" in out

    code, out, _ = sandbox.run("grid", "results/c", "--engine", "fastest")
    assert code == 0
    code, _, err = sandbox.run("grid", "results/c", "--engine", "sbr")
    assert code == UsageError.exit_code
    assert 'unknown engine "sbr"; known: mine' in err
