"""Where the native runtime of this machine is: built by ``pip install``, or named with ``--library``.

The path is resolved here and handed to the agent, which never searches.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from stbench.errors import BuildError

LIBRARY = "libsbr.so"
ELF_MAGIC = b"\x7fELF"


@dataclass(frozen=True)
class Library:
    """A built runtime. ``sha256`` is of the file's bytes."""

    path: Path
    sha256: str


def find_library(explicit: Path | None = None) -> Library:
    """The library given by the user, or the installed one. Raises :class:`BuildError`."""
    if explicit is not None:
        if not explicit.is_file():
            raise BuildError(f"{explicit}: no such file", hint="--library needs the path of a libsbr.so")
        return describe(explicit.resolve())
    for path in _candidates():
        if path.is_file():
            return describe(path)
    raise BuildError(
        f"the native runtime ({LIBRARY}) is not installed",
        hint="`pip install -e .` builds it (it needs g++ or clang++); or name one with --library PATH",
    )


def describe(path: Path) -> Library:
    """Reads and hashes a library. Raises :class:`BuildError` for what cannot be one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}") from error
    if not data.startswith(ELF_MAGIC):
        raise BuildError(f"{path}: not a shared library")
    return Library(path, hashlib.sha256(data).hexdigest())


def _candidates() -> list[Path]:
    """An editable install leaves the Python files in the checkout and the library in site-packages; its own
    list of files knows where. A zipped or copied installation has no such list."""
    found: list[Path] = []
    try:
        for file in importlib.metadata.distribution("stbench").files or ():
            if file.name == LIBRARY:
                found.append(Path(str(file.locate())))
    except importlib.metadata.PackageNotFoundError:
        pass
    found.append(Path(__file__).parent / "native" / LIBRARY)
    found.append(Path(sysconfig.get_path("platlib")) / "stbench" / "native" / LIBRARY)
    return found
