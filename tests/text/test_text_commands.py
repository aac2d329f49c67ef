"""``stbench generate`` and ``stbench perplexity`` as typed, on tiny synthetic files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stbench import cli, native
from stbench.agent import sbr
from stbench.errors import UsageError
from stbench.text import perplexity
from stbench.text.quality import random_tokens
from tests.text.conftest import MakeModel


def test_generate_streams_and_repeats(
    capsys: pytest.CaptureFixture[str], library_path: Path, make_model: MakeModel
) -> None:
    base = ["generate", "-m", str(make_model("tiny-smallthinker")), "-p", "abc", "-n", "20"]
    base += ["--library", str(library_path), "--temperature", "1.5", "--top-k", "0", "--quiet"]

    def text(*options: str) -> str:
        assert cli.main([*base, *options, "--json"]) == 0
        return str(json.loads(capsys.readouterr().out)["text"])

    assert text("--seed", "1") == text("--seed", "1", "-t", "2", "--sparse-ffn")
    assert text("--seed", "1") != text("--seed", "2")
    assert cli.main([*base, "--seed", "1"]) == 0
    assert capsys.readouterr().out == text("--seed", "1") + "\n"


def test_generate_says_that_weights_are_synthetic(
    capsys: pytest.CaptureFixture[str], library_path: Path, make_model: MakeModel
) -> None:
    command = [
        "generate",
        "-m",
        str(make_model("tiny-llama")),
        "-p",
        "a",
        "-n",
        "1",
        "--library",
        str(library_path),
    ]
    assert cli.main(command) == 0
    assert "synthetic" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-n", "0"], "-n: expected 1 or more"),
        (["-n", "100000"], "exceed the model's context of 4096"),
        (["-p", ""], "the prompt is empty"),
        (["--seed", "-1"], "--seed"),
        (["--isa", "mmx"], "mmx"),
        (["--sparse-lm-head"], "sparse_lm_head"),
        (["--chat"], "ChatML"),
    ],
)
def test_generate_refuses_with_a_sentence(
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    library_path: Path,
    make_model: MakeModel,
) -> None:
    command = ["generate", "-m", str(make_model("tiny-llama")), "-p", "a", "--library", str(library_path)]
    assert cli.main([*command, *options, "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_likelihoods_of_a_known_case() -> None:
    p = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    # A constant added to every logit changes nothing.
    losses = perplexity.negative_log_likelihoods((np.log(p) + 7).astype(np.float32), [1, 2])
    assert losses == pytest.approx(-np.log([0.25, 0.7]), rel=1e-5)
    found = perplexity.summarise(losses, 1, 4)
    assert found.value == pytest.approx((0.25 * 0.7) ** -0.5, rel=1e-5)
    assert found.scored == 2


def test_chunks_are_whole() -> None:
    assert perplexity.chunk(range(11), 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(UsageError, match="11 tokens, fewer than one chunk of 12"):
        perplexity.chunk(range(11), 12)


def test_perplexity_is_that_of_the_model(make_model: MakeModel, library: sbr.Library) -> None:
    """Against logits of whole chunks taken at once: slices, rewinds and offsets are right."""
    tokens, context = random_tokens(300, 512, 3), 100
    with native.open_model(library, make_model("tiny-llama")) as model:
        found = perplexity.measure(model, tokens, context, native.Switches(threads=1), prefix=[7])
        losses = []
        for part in perplexity.chunk(tokens, context):
            fed = [7, *part[1:]]
            with native.open_session(model, n_ctx=context) as session:
                logits = native.prefill_all(session, fed)
            losses.append(perplexity.negative_log_likelihoods(logits[50:99], fed[51:100]))
    assert found == perplexity.summarise(np.concatenate(losses), 3, context)


def test_perplexity_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, library_path: Path, make_model: MakeModel
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words, again and again. " * 20)
    command = ["perplexity", "-m", str(make_model("tiny-qwen3")), "-f", str(text), "-c", "64"]
    command += ["--library", str(library_path)]
    assert cli.main(command) == 0
    assert "not meaningful: the weights are synthetic" in capsys.readouterr().out
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["context"] == 64
    # One token is scored, so there is no spread.
    text.write_text("words")
    command[command.index("64")] = "4"
    assert cli.main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["scored"], document["standard_error"]) == (1, None)
    assert cli.main(command) == 0
    assert "+-" not in capsys.readouterr().out
    text.write_bytes(b"abc\xff")
    assert cli.main(command) == 2
    assert "not UTF-8 text (byte 3)" in capsys.readouterr().err
