"""The native runtime for commands that run in this process: opening it and models, with errors a user can act
on.

Measuring never comes this way: it has a process of its own (:mod:`stbench.agent`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stbench.agent import sbr
from stbench.builds.build import find_library
from stbench.errors import BuildError, InputError, StbenchError, UsageError

Logits = NDArray[np.float32]

# More than any vocabulary: the whole array.
ALL_ITEMS = 1 << 62

SYNTHETIC_PREFIX = "stbench.synthetic."


@dataclass(frozen=True)
class Switches:
    """What a person may set of a session; ``threads`` 0: one per CPU."""

    threads: int = 0
    isa: str = "auto"
    sparse_ffn: bool = False
    sparse_lm_head: bool = False
    lm_head_threshold: float = 0.0

    def options(self) -> dict[str, Any]:
        """As keyword arguments of :class:`stbench.agent.sbr.Session`."""
        return {
            "n_threads": self.threads,
            "isa": self.isa,
            "sparse_ffn": self.sparse_ffn,
            "sparse_lm_head": self.sparse_lm_head,
            "lm_head_threshold": self.lm_head_threshold,
        }


class OutOfMemory(StbenchError):
    """The model or its session does not fit into this machine's memory."""


def open_library(explicit: Path | None = None) -> sbr.Library:
    """Loads the runtime that is installed, or the one given. Raises :class:`BuildError`."""
    found = find_library(explicit)
    try:
        return sbr.load(str(found.path))
    except sbr.LoadError as error:
        raise BuildError(str(error), hint="`pip install -e .` builds the runtime again") from error


@contextlib.contextmanager
def native_errors() -> Iterator[None]:
    """Turns the runtime's errors into ours; its messages are sentences and name the file or option."""
    try:
        yield
    except sbr.NativeError as error:
        kinds: dict[str, type[StbenchError]] = {
            "io": InputError,
            "format": InputError,
            "unsupported": InputError,
            "memory": OutOfMemory,
            "argument": UsageError,
            "state": UsageError,
        }
        if error.name not in kinds:
            raise
        missing = "cannot be opened" in str(error)
        hint = "the path of a GGUF file; `stbench models make NAME` writes a synthetic one" if missing else ""
        raise kinds[error.name](str(error), hint=hint) from error


def describe(library: sbr.Library, path: Path, max_array_items: int = 8) -> dict[str, Any]:
    """A GGUF file's header as ``sbr_gguf_describe`` gives it. Raises :class:`InputError`."""
    with native_errors():
        return sbr.describe(library, str(path), max_array_items)


def metadata(library: sbr.Library, path: Path) -> dict[str, Any]:
    """Every key of a GGUF file with its whole value. Raises :class:`InputError`."""
    return {item["key"]: item["value"] for item in describe(library, path, ALL_ITEMS)["metadata"]}


def is_synthetic(keys: dict[str, Any]) -> bool:
    """Whether the weights were drawn by the runtime rather than trained."""
    return any(key.startswith(SYNTHETIC_PREFIX) for key in keys)


@contextlib.contextmanager
def open_model(library: sbr.Library, path: Path, *, requantise_down: bool = False) -> Iterator[sbr.Model]:
    """A loaded model. Raises :class:`InputError` for files that are unreadable, malformed or unsupported."""
    with native_errors():
        model = sbr.Model(library, str(path), requantise_down=requantise_down)
    with model:
        yield model


@contextlib.contextmanager
def open_session(model: sbr.Model, **options: Any) -> Iterator[sbr.Session]:
    """A session, with options by their names in ``sbr_session_options``.

    Raises :class:`InputError` for what the file cannot do.
    """
    with native_errors():
        session = sbr.Session(model, **options)
    with session:
        yield session


def prefill_all(session: sbr.Session, tokens: Sequence[int]) -> Logits:
    """Logits after every token, [len(tokens), n_vocab]."""
    with native_errors():
        out = session.prefill(tokens, "all").logits
    return np.frombuffer(out, dtype=np.float32).reshape(len(tokens), -1)


def prefill_last(session: sbr.Session, tokens: Sequence[int]) -> Logits:
    """Logits after the last token, [n_vocab]."""
    with native_errors():
        return np.frombuffer(session.prefill(tokens, "last").logits, dtype=np.float32)


def decode_all(session: sbr.Session, tokens: Sequence[int]) -> Logits:
    """Teacher-forced decode, one token at a time: logits [len(tokens), n_vocab]."""
    with native_errors():
        out = session.decode(tokens, capture=range(len(tokens))).logits
    return np.frombuffer(out, dtype=np.float32).reshape(len(tokens), -1)
