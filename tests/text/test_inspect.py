from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from stbench import cli
from stbench.models import catalogue
from tests.test_gguf_mutations import mutate
from tests.text.conftest import MakeModel

N_MUTATIONS = 1000
SEED = 77

# The whole command, file after file, in a process of its own: a crash must not take the test run with it.
CHILD = """
import contextlib, io, json, sys
from stbench import cli
for line in sys.stdin:
    path = line.rstrip("\\n")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["inspect", path, "--library", sys.argv[1], *sys.argv[2:]])
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def check(code: int, out: str, err: str, path: Path) -> None:
    """A description and exit code 0, or nothing but a sentence that names the file and exit code 2."""
    assert code in (0, 2), (code, err)
    if code == 0:
        assert "runtime: " in out
        assert err == ""
        return
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith(f"stbench: {path}: "), err
    assert "Traceback" not in err
    assert len(lines) <= 2, err


def test_thousand_damaged_files(tmp_path: Path, library_path: Path, make_model: MakeModel) -> None:
    originals = [make_model(name).read_bytes() for name in ("tiny-smallthinker", "tiny-llama")]
    rng = random.Random(SEED)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(library_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    codes = {0: 0, 2: 0}
    try:
        for number in range(N_MUTATIONS):
            data = originals[number % len(originals)]
            path = tmp_path / f"{number}.gguf"
            # Past the vocabulary, which is most of the header, lie the tensors' names, shapes and offsets.
            path.write_bytes(mutate(rng, data, rng.choice((600, 20_000))))
            child.stdin.write(f"{path}\n")
            child.stdin.flush()
            line = child.stdout.readline()
            assert line, f"mutation {number} of seed {SEED} ended the process"
            code, out, err = json.loads(line)
            check(code, out, err, path)
            codes[code] += 1
            path.unlink()
    finally:
        child.stdin.close()
        child.wait(timeout=60)
    assert codes[2] > N_MUTATIONS / 4
    assert codes[0] > N_MUTATIONS / 20


def test_real_command_on_damaged_files(tmp_path: Path, library_path: Path, make_model: MakeModel) -> None:
    rng = random.Random(SEED + 1)
    data = make_model("tiny-qwen3").read_bytes()
    for number in range(6):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(mutate(rng, data, 600))
        command = [sys.executable, "-m", "stbench.cli", "inspect", str(path), "--library", str(library_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        check(done.returncode, done.stdout, done.stderr, path)


def inspect(capsys: pytest.CaptureFixture[str], path: Path, library_path: Path, *options: str) -> str:
    assert cli.main(["inspect", str(path), "--library", str(library_path), *options]) == 0
    return capsys.readouterr().out


def test_says_what_the_runtime_would_do(
    capsys: pytest.CaptureFixture[str], library_path: Path, make_model: MakeModel
) -> None:
    out = inspect(capsys, make_model("tiny-smallthinker"), library_path)
    assert "down matrices: transposed" in out
    rank = catalogue.lookup("tiny-smallthinker").spec.predictor_rank
    assert f"lm_head predictor: rank {rank}" in out
    assert "weights: synthetic" in out
    assert "blk.3.ffn_down_exps.weight" in out
    out = inspect(capsys, make_model("tiny-smallthinker:standard"), library_path)
    assert "down matrices: standard" in out
    assert "lm_head predictor: none" in out
    assert "no ReLU experts" in inspect(capsys, make_model("tiny-qwen3"), library_path)


def test_json_holds_everything(
    capsys: pytest.CaptureFixture[str], library_path: Path, make_model: MakeModel
) -> None:
    path = make_model("tiny-llama")
    found = json.loads(inspect(capsys, path, library_path, "--json", "--items", "3"))
    assert found["runtime"]["supported"] is True
    assert found["totals"]["tensors"] == len(found["tensors"])
    assert found["totals"]["bytes"] == sum(tensor["bytes"] for tensor in found["tensors"])
    assert found["totals"]["parameters"] == sum(
        kind["parameters"] for kind in found["totals"]["types"].values()
    )
    tokens = next(item for item in found["metadata"] if item["key"] == "tokenizer.ggml.tokens")
    assert (tokens["length"], len(tokens["value"])) == (512, 3)


def test_unsupported_files_are_described_all_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, library_path: Path, make_model: MakeModel
) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(make_model("tiny-llama").read_bytes().replace(b"llama", b"mamba"))
    out = inspect(capsys, path, library_path)
    assert "runtime: cannot run it" in out
    said = "'mamba' is not supported (supported: smallthinker, qwen3, qwen3moe, llama)"
    assert said in " ".join(out.split())


def test_missing_file_is_a_sentence(capsys: pytest.CaptureFixture[str], library_path: Path) -> None:
    assert cli.main(["inspect", "/nowhere/model.gguf", "--library", str(library_path)]) == 2
    assert capsys.readouterr().err.startswith("stbench: /nowhere/model.gguf: ")
