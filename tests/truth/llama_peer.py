"""Asks the built llama.cpp for logits, greedy tokens and token ids, through our own small program."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stbench.builds.peer import Peer, require_peer
from stbench.builds.toolchain import find_compiler
from stbench.paths import cache_dir

Logits = NDArray[np.float32]

SOURCE = Path(__file__).with_name("llama_peer.cpp")


@functools.cache
def program() -> Path:
    """The compiled program, kept in the cache under a digest of its source and of the peer it was built
    against.
    """
    peer = require_peer()
    key = hashlib.sha256(SOURCE.read_bytes() + peer.directory.encode()).hexdigest()[:16]
    path = cache_dir() / "peer" / "programs" / f"llama_peer-{key}"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        _compile(peer, path)
    return path


def _compile(peer: Peer, path: Path) -> None:
    library = str(peer.library.parent)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = Path(scratch) / path.name
        command = [find_compiler().cxx, "-std=c++17", "-O1", str(SOURCE), f"-I{peer.include}", f"-L{library}"]
        command += [f"-Wl,-rpath,{library}", f"-Wl,-rpath-link,{library}", "-lllama", "-o", str(built)]
        subprocess.run(command, check=True)
        os.replace(built, path)


def _ask(arguments: list[str]) -> str:
    done = subprocess.run([str(program()), *arguments], text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"llama.cpp: exit {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


def logits(model: Path, sequences: list[list[int]], *, kv: str = "f32", threads: int = 1) -> list[Logits]:
    """Logits after every token of each sequence, [length, n_vocab]; the sequences have one length.

    One thread unless the model is large: threads that wait for each other on a busy machine cost more than
    they bring.
    """
    length = len(sequences[0])
    with tempfile.TemporaryDirectory() as scratch:
        given, out = Path(scratch) / "tokens.i32", Path(scratch) / "logits.f32"
        np.asarray(sequences, dtype="<i4").tofile(given)
        _ask(["logits", str(model), str(given), str(out), kv, str(threads), str(length)])
        return list(np.fromfile(out, dtype="<f4").reshape(len(sequences), length, -1))


def greedy(model: Path, prompt: list[int], count: int, *, kv: str = "f32") -> tuple[list[int], Logits]:
    """``count`` tokens of greedy decoding, and the logits that each was taken from, [count, n_vocab]."""
    with tempfile.TemporaryDirectory() as scratch:
        given, out = Path(scratch) / "tokens.i32", Path(scratch) / "logits.f32"
        np.asarray(prompt, dtype="<i4").tofile(given)
        text = _ask(["greedy", str(model), str(given), str(out), kv, "1", str(count)])
        values = np.fromfile(out, dtype="<f4").reshape(len(prompt) + count, -1)
    first = len(prompt) - 1
    return [int(line) for line in text.split()], values[first : first + count]


def tokenize(model: Path, text: str, *, special: bool = True) -> list[int]:
    """Token ids of ``text``, nothing added in front; ``special``: spelled control tokens become their ids."""
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch) / "text"
        given.write_bytes(text.encode())
        return [int(line) for line in _ask(["tokenize", str(model), str(given), str(int(special))]).split()]
