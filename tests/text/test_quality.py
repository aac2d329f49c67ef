from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stbench import cli, native
from stbench.agent import sbr
from stbench.text import quality
from tests.text.conftest import MakeModel


def test_figures_of_a_known_case() -> None:
    """Two steps over four rows; the second keeps rows 1 and 2 only and loses the best."""
    p = np.array([[0.4, 0.3, 0.2, 0.1], [0.5, 0.25, 0.15, 0.1]])
    dense = np.log(p).astype(np.float32)
    sparse = dense.copy()
    sparse[1, [0, 3]] = -np.inf
    found = quality.agreement(dense, sparse, 2)
    assert found.steps == 2
    assert found.top1 == 0.5
    assert found.overlap == pytest.approx((1 + 0.5) / 2)
    # Dropping rows and renormalising: KL(sparse || dense) = -ln(mass kept).
    assert found.kl_max == pytest.approx(-np.log(0.4), rel=1e-5)
    assert found.kl == pytest.approx(-np.log(0.4) / 2, rel=1e-5)
    assert (found.kept_mass, found.kept_mass_min) == (pytest.approx(0.7), pytest.approx(0.4))
    assert found.rows == 3
    assert not found.identical


def test_equal_logits_agree_in_everything() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 30)).astype(np.float32)
    found = quality.agreement(logits, logits.copy(), 10)
    assert (found.top1, found.overlap, found.kl, found.identical) == (1, 1, 0, True)


def test_sparse_ffn_is_exact_and_lm_head_is_not(make_model: MakeModel, library: sbr.Library) -> None:
    tokens = quality.random_tokens(40, 512, 1)
    found = {
        variant.name: variant.agreement
        for variant in quality.compare(
            library, make_model("tiny-smallthinker"), tokens, native.Switches(threads=1)
        )
    }
    sparse, head, both = found["sparse"], found["lmhead"], found["sparse+lmhead"]
    assert sparse is not None
    assert head is not None
    assert sparse.identical
    assert sparse.rows == 512
    assert not head.identical
    # The file was made to keep a quarter of the rows.
    assert 0.15 * 512 < head.rows < 0.35 * 512
    assert 0 < head.kept_mass < 1
    assert head.kl > 0
    assert both == head


def test_keeping_every_row_is_exact(make_model: MakeModel, library: sbr.Library) -> None:
    switches = native.Switches(threads=1, lm_head_threshold=-1e30)
    tokens = quality.random_tokens(20, 512, 2)
    for variant in quality.compare(library, make_model("tiny-smallthinker"), tokens, switches):
        assert variant.agreement is not None
        assert variant.agreement.identical


def test_requantised_down_is_close_but_not_equal(make_model: MakeModel, library: sbr.Library) -> None:
    path = make_model("tiny-smallthinker:standard")
    tokens = quality.random_tokens(20, 512, 3)
    plain, again = (
        quality.compare(library, path, tokens, native.Switches(threads=1), requantise_down=flag)[0]
        for flag in (False, True)
    )
    assert plain.agreement is not None
    assert again.agreement is not None
    assert plain.agreement.identical
    assert not again.agreement.identical
    assert again.agreement.overlap > 0.5


def test_what_a_file_cannot_do_is_said(make_model: MakeModel, library: sbr.Library) -> None:
    tokens = quality.random_tokens(4, 512, 4)
    for variant in quality.compare(library, make_model("tiny-qwen3"), tokens, native.Switches(threads=1)):
        assert variant.agreement is None
        assert variant.reason


def test_command_says_what_is_not_meaningful(
    capsys: pytest.CaptureFixture[str], library_path: Path, make_model: MakeModel
) -> None:
    command = [
        "quality",
        "-m",
        str(make_model("tiny-smallthinker")),
        "-n",
        "8",
        "--library",
        str(library_path),
    ]
    assert cli.main([*command, "--seed", "-1"]) == 2
    assert "--seed: expected 0 or more, got -1" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert "not meaningful on synthetic weights" in capsys.readouterr().out
    assert cli.main([*command, "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.err == ""
    assert document["synthetic"] is True
    assert document["notes"][0] == quality.SYNTHETIC_NOTE
    assert [variant["name"] for variant in document["variants"]] == ["sparse", "lmhead", "sparse+lmhead"]
