"""tinythinker is a model, not noise: what it learned, and what can be skipped in it, as recorded in
docs/tinythinker.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from stbench import cli, native
from stbench.agent import routing, sbr
from stbench.builds.peer import file_sha256
from stbench.text import perplexity, quality
from tests.tinythinker import measure
from tests.tinythinker.corpus import HELD_OUT_FILE
from tests.tinythinker.measure import FIXTURE

ALICE = HELD_OUT_FILE.with_name("alice_chapter_1.txt")

N_EXPERT, N_USED, N_VOCAB = 32, 4, 2048

# Results are the same bits on every machine (docs/arithmetic.md); a fixture trained anew has new numbers.
PERPLEXITY = 45.03105510138113
KEPT_ROWS = 169.66796875


def test_file_is_a_small_smallthinker(library: sbr.Library) -> None:
    assert FIXTURE.stat().st_size <= 4_000_000
    with native.open_model(library, FIXTURE) as model:
        info = model.info
        assert model.warnings() == []
    assert (info.n_expert, info.n_expert_used, info.n_vocab) == (N_EXPERT, N_USED, N_VOCAB)
    assert (info.relu, info.tied_output, info.lm_head_predictor_rank) == (1, 1, 32)


def test_held_out_book_is_predicted(capsys: pytest.CaptureFixture[str], library_path: Path) -> None:
    command = [
        "perplexity",
        "-m",
        str(FIXTURE),
        "-f",
        str(HELD_OUT_FILE),
        "-c",
        "256",
        "--sparse-ffn",
        "--json",
    ]
    assert cli.main([*command, "--library", str(library_path), "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["value"] == pytest.approx(PERPLEXITY, rel=1e-6)
    assert found["scored"] > 1500
    assert not found["synthetic"]
    # A model that knows nothing has the vocabulary's size.
    assert found["value"] < N_VOCAB / 40


def test_words_matter_in_their_order(library: sbr.Library, ruth: list[int]) -> None:
    """Shuffled, the same tokens are ten times less likely: the model reads, it does not count."""
    shuffled = [int(token) for token in np.random.default_rng(1).permutation(ruth)]
    with native.open_model(library, FIXTURE) as model:
        value = perplexity.measure(model, shuffled, 256, native.Switches(threads=1, sparse_ffn=True)).value
    assert value > 10 * PERPLEXITY


def test_sparse_lm_head_keeps_what_matters(library: sbr.Library, ruth: list[int]) -> None:
    found = {
        variant.name: variant.agreement
        for variant in quality.compare(library, FIXTURE, ruth[:512], native.Switches(threads=1))
    }
    ffn, head = found["sparse"], found["lmhead"]
    assert ffn is not None
    assert head is not None
    assert ffn.identical
    assert head.rows == pytest.approx(KEPT_ROWS, rel=1e-6)
    assert 0.02 * N_VOCAB < head.rows < 0.2 * N_VOCAB
    assert head.top1 > 0.96
    assert head.kept_mass > 0.85
    assert 0 < head.kl < 0.2


def test_next_tokens_are_among_the_kept(library: sbr.Library, ruth: list[int]) -> None:
    found = measure.sparse_head(library, FIXTURE, ruth[:512])
    assert found.known > 0.8
    # Skipped rows take no probability, so what is kept has more of it.
    assert 0.8 < found.sparse / found.dense <= 1


@pytest.fixture(scope="module")
def counts(library: sbr.Library, ruth: list[int]) -> measure.Counts:
    return measure.count(library, FIXTURE, ruth)


def test_relu_leaves_most_neurons_out(counts: measure.Counts) -> None:
    assert (counts.zeros > 0.6).all(), counts.zeros
    assert counts.zeros.mean() > 0.8, counts.zeros
    assert (counts.zeros < 0.99).all(), counts.zeros


def test_experts_have_favourites(counts: measure.Counts, ruth: list[int]) -> None:
    """Neither uniform, the worst case of any cache, nor collapsed onto a few."""
    assert (counts.experts.sum(axis=1) == N_USED * len(ruth)).all()
    busiest = -np.sort(-counts.experts, axis=1)[:, : N_EXPERT // 4].sum(axis=1) / (N_USED * len(ruth))
    # A quarter of the experts: 0.25 if all were alike; chance alone makes 0.27 of this many tokens.
    assert (busiest > 0.3).all(), busiest
    assert (busiest < 0.9).all(), busiest


def test_recorded_routing_is_what_the_file_chooses(library: sbr.Library, ruth: list[int]) -> None:
    """The trace beside it, which can be replayed on models of the 4B's shape."""
    recorded = routing.read(str(FIXTURE.with_suffix(".routing")))
    assert recorded.digest() == measure.record(library, FIXTURE, ruth, "").digest()
    assert recorded.model_digest == file_sha256(FIXTURE)
    assert recorded.fit_to(32, N_EXPERT, N_USED).n_tokens == recorded.n_tokens == 1024
    # By chance an eighth of a token's experts are those of the token before.
    assert measure.kept_from_last_token(recorded).mean() > 1.1 * N_USED / N_EXPERT


def test_text_can_be_read(capsys: pytest.CaptureFixture[str], library_path: Path) -> None:
    command = ["generate", "-m", str(FIXTURE), "-p", "And the king said unto", "-n", "120", "--seed", "1"]
    command += ["--temperature", "0.7", "--sparse-ffn", "--sparse-lm-head", "--json"]
    assert cli.main([*command, "--library", str(library_path), "--quiet"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    known = set(re.findall(r"[a-z]+", (HELD_OUT_FILE.read_text() + ALICE.read_text()).lower()))
    words = re.findall(r"[a-z]+", text.lower())
    assert len(words) > 50
    assert sum(word in known for word in words) / len(words) > 0.6, text
    assert "\ufffd" not in text
