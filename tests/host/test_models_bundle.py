"""``stbench models bundle`` as a person uses it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from stbench.agent import sbr
from tests.agent.conftest import TINY
from tests.host.conftest import Sandbox


@pytest.fixture
def model(sandbox: Sandbox, library_path: Path) -> Path:
    path = sandbox.directory / "my.gguf"
    sbr.synth_write(sbr.load(str(library_path)), dataclasses.asdict(TINY), str(path))
    return path


def bundle(sandbox: Sandbox, library: Path, *argv: str) -> tuple[int, str, str]:
    return sandbox.run("models", "bundle", *argv, "--library", str(library))


def test_made_reused_and_verified(sandbox: Sandbox, library_path: Path, model: Path) -> None:
    code, out, err = bundle(sandbox, library_path, str(model))
    assert code == 0, err
    path = Path(out.strip())
    # Beside the other models; a sparse FFN, since this model has one.
    assert path.parent.name == "models"
    assert path.name.startswith("my-")
    assert path.name.endswith("-sparse.bundle")
    assert "made: " in err
    assert " GB/s); gate q4_0_x16; up,down q4_0" in err

    code, out, err = bundle(sandbox, library_path, str(model))
    assert (code, out.strip()) == (0, str(path))
    assert "was there: " in err
    assert "GB/s" not in err
    code, out, err = bundle(sandbox, library_path, str(model), "--verify", "--json")
    found = json.loads(out)
    assert (code, found["path"], found["what"]) == (0, str(path), "verified")
    assert found["bytes"] == path.stat().st_size
    assert found["bytes_per_s"] > 0


def test_a_name_of_the_catalogue_is_made_first(sandbox: Sandbox, library_path: Path) -> None:
    code, _, err = bundle(sandbox, library_path, "tiny-qwen3", "--verify")
    assert code == 2
    assert "this model is not made" in err
    code, out, err = bundle(sandbox, library_path, "tiny-qwen3")
    assert code == 0, err
    assert Path(out.strip()).name.startswith("tiny-qwen3-")
    assert out.strip().endswith("-dense.bundle")
    assert bundle(sandbox, library_path, "tiny-qwen3", "--verify")[0] == 0


def test_where_it_goes(sandbox: Sandbox, library_path: Path, model: Path) -> None:
    folder, file = sandbox.directory / "bundles", sandbox.directory / "x.bundle"
    folder.mkdir()
    code, out, _ = bundle(sandbox, library_path, "my.gguf", "-o", str(folder), "--sparse-ffn", "off")
    assert (code, Path(out.strip()).parent) == (0, folder)
    assert out.strip().endswith("-dense.bundle")
    code, out, _ = bundle(sandbox, library_path, "./my.gguf", "-o", "x.bundle", "--quiet")
    assert (code, out.strip()) == (0, str(file))
    code, _, err = bundle(sandbox, library_path, "my.gguf", "-o", "my.gguf")
    assert code != 0
    assert "is not a bundle and is left alone" in " ".join(err.split())
    assert model.read_bytes()[:4] == b"GGUF"


def test_verify_says_what_is_wrong(sandbox: Sandbox, library_path: Path, model: Path) -> None:
    code, _, err = bundle(sandbox, library_path, str(model), "--verify")
    assert (code, "there is no such bundle" in err) == (2, True)
    path = Path(bundle(sandbox, library_path, str(model))[1].strip())
    good = path.read_bytes()
    described = sbr.bundle_describe(sbr.load(str(library_path)), str(path))

    damaged = bytearray(good)
    damaged[-8 * described.unit_bytes + 100] ^= 64  # the first expert of the last layer
    path.write_bytes(damaged)
    code, _, err = bundle(sandbox, library_path, str(model), "--verify")
    assert code == 2
    assert "expert 0 of layer 2 is damaged" in " ".join(err.split())
    assert "without --verify it is made again" in err
    path.write_bytes(good[:-1])
    code, _, err = bundle(sandbox, library_path, str(model), "--verify")
    assert (code, "is truncated" in err) == (2, True)
    # A header that is right is not enough for a file that was cut: it is made again.
    code, _, err = bundle(sandbox, library_path, str(model))
    assert (code, "made again: " in err) == (0, True)
    assert path.read_bytes() == good
    other = dataclasses.replace(TINY, seed=8)
    sbr.synth_write(sbr.load(str(library_path)), dataclasses.asdict(other), str(model))
    code, _, err = bundle(sandbox, library_path, str(model), "--verify", "-o", str(path))
    assert (code, "its model_digest is" in err) == (2, True)


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["models", "bundle"], "the bundle of which model?"),
        (["models", "bundle", "none.gguf"], "no such file"),
        (["models", "bundle", "tiny-qwen3", "--seed", "1"], "--seed goes with"),
        (["models", "make", "tiny-qwen3", "--verify"], "--sparse-ffn and --verify are of a bundle"),
    ],
)
def test_usage(sandbox: Sandbox, library_path: Path, argv: list[str], why: str) -> None:
    code, out, err = sandbox.run(*argv, "--library", str(library_path))
    assert code != 0
    assert out == ""
    assert why in " ".join(err.split())
