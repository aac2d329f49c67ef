"""1,000 damaged files: the library accepts or refuses each with a sentence, and never crashes."""

from __future__ import annotations

import dataclasses
import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from stbench.agent import sbr
from tests.test_synth_files import QWEN3, SMALLTHINKER

N_MUTATIONS = 1000
SEED = 2024

# A process of its own: a crash must not take the test run with it. One JSON line per file.
CHILD = """
import json, sys
from stbench.agent import sbr
library = sbr.load(sys.argv[1])
for line in sys.stdin:
    path = line.rstrip("\\n")
    outcome = {"path": path}
    for step in ("describe", "load"):
        try:
            if step == "describe":
                sbr.describe(library, path, 1 << 40)
            else:
                with sbr.Model(library, path) as model:
                    with sbr.Session(model, n_ctx=8) as session:
                        session.decode([0])
            outcome[step] = ["ok", ""]
        except sbr.NativeError as error:
            outcome[step] = [error.name, str(error)]
    print(json.dumps(outcome), flush=True)
"""

EXTREMES = [0, 1, 2, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 31, 1 << 32, 1 << 60, 1 << 63, (1 << 64) - 1]


def mutate(rng: random.Random, data: bytes, header: int) -> bytes:
    """One to three kinds of damage, mostly to the header."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(max(1, min(header, len(out))))
        kind = rng.randrange(7)
        if kind == 0:
            out[at : at + 1] = bytes([out[at] ^ 1 << rng.randrange(8)]) if at < len(out) else b""
        elif kind == 1:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            out[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES))
        elif kind == 3:
            out[at : at + 4] = struct.pack("<I", rng.choice(EXTREMES) & 0xFFFFFFFF)
        elif kind == 4:
            del out[at : at + rng.randint(1, 64)]
        elif kind == 5:
            out[at:at] = out[at : at + rng.randint(1, 64)]
        else:
            del out[rng.randrange(len(out) + 1) :]
    return bytes(out)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, library_path: Path) -> list[tuple[bytes, int]]:
    """Two whole files, each with the length of its header."""
    library = sbr.load(str(library_path))
    directory = tmp_path_factory.mktemp("originals")
    found = []
    for spec in (SMALLTHINKER, dataclasses.replace(QWEN3, n_layer=1)):
        path = directory / f"{spec.architecture}.gguf"
        sbr.synth_write(library, dataclasses.asdict(spec), str(path))
        found.append((path.read_bytes(), sbr.describe(library, str(path))["data_offset"]))
    return found


def test_damaged_files_are_refused_with_a_sentence(
    originals: list[tuple[bytes, int]], tmp_path: Path, library_path: Path
) -> None:
    rng = random.Random(SEED)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(library_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    statuses: dict[str, int] = {}
    try:
        for number in range(N_MUTATIONS):
            data, header = originals[number % len(originals)]
            damaged = mutate(rng, data, header)
            path = tmp_path / f"{number}.gguf"
            path.write_bytes(damaged)
            child.stdin.write(f"{path}\n")
            child.stdin.flush()
            line = child.stdout.readline()
            assert line, f"mutation {number} of seed {SEED} ended the process: {path}"
            outcome = json.loads(line)
            for step in ("describe", "load"):
                status, message = outcome[step]
                statuses[f"{step} {status}"] = statuses.get(f"{step} {status}", 0) + 1
                if status == "ok":
                    continue
                assert status in ("format", "unsupported"), (number, outcome)
                assert message.startswith(f"{path}: "), (number, outcome)
                assert len(message) > len(str(path)) + 10, (number, outcome)
                assert message.isprintable(), (number, outcome)
            path.unlink()
    finally:
        child.stdin.close()
        child.wait(timeout=60)
    # Most damage is found in the header; some makes another valid file, of which some cannot be run.
    assert statuses["describe format"] > N_MUTATIONS / 2
    assert statuses["describe ok"] > N_MUTATIONS / 20
    assert statuses["load format"] + statuses.get("load unsupported", 0) > statuses["describe format"]


RUNTIME_TESTS = Path(__file__).parents[1] / "runtime" / "tests"


def test_the_fuzzers_seeds_are_current_and_do_no_harm(tmp_path: Path, library_path: Path) -> None:
    program = [sys.executable, str(RUNTIME_TESTS / "make_corpus.py"), str(tmp_path)]
    subprocess.run(program, check=True)
    seeds = {path.name: path.read_bytes() for path in (RUNTIME_TESTS / "corpus").iterdir()}
    assert seeds == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    library = sbr.load(str(library_path))
    accepted, refused = set(), set()
    for name in seeds:
        seed = name.partition(".")[0]
        try:
            sbr.describe(library, str(tmp_path / name))
            accepted.add(seed)
        except sbr.NativeError as error:
            refused.add(seed)
            sentence = (error.name, str(error))
            assert sentence[0] == "format", name
            assert sentence[1].startswith(f"{tmp_path / name}: "), name
    assert accepted >= {"model", "model-v2", "scalars", "arrays", "nested", "not-utf8", "nan", "empty"}
    assert refused >= {"nested-deep", "overlap", "twice", "key-twice", "count-items", "length", "big-endian"}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: b"", "the file is empty"),
        (lambda d: d[:4], "the file ends inside the version"),
        (lambda d: b"GGML" + d[4:], "is not a GGUF file"),
        (lambda d: d[:4] + struct.pack("<I", 1) + d[8:], "is GGUF version 1, which is not supported"),
        (lambda d: d[:4] + struct.pack(">I", 3) + d[8:], "is a big-endian GGUF file"),
        (lambda d: d[:8] + struct.pack("<Q", 1 << 60) + d[16:], "claims 1152921504606846976 tensors"),
        (lambda d: d[:-100], "tensor 'output.weight' has .* is it complete"),
        (
            lambda d: d.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"),
            "'blk.0.attn_q.weight' appears twice",
        ),
    ],
)
def test_the_sentence_says_what_is_wrong(
    damage: object, sentence: str, originals: list[tuple[bytes, int]], tmp_path: Path, library_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    assert callable(damage)
    path.write_bytes(damage(originals[1][0]))
    with pytest.raises(sbr.NativeError, match=sentence) as caught:
        sbr.describe(sbr.load(str(library_path)), str(path))
    assert caught.value.name == "format"
    assert str(caught.value).startswith(f"{path}: ")
