"""Captured machines: as a tree to read, as a folder, and as the zip file that somebody mails.

A bundle has one folder per machine: ``capture.json`` (what no file says), ``DENIED`` (paths that the machine
refuses, one per line, * allowed), ``findings.txt``, and below them /proc, /sys and so on.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import io
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from stbench.agent import wire
from stbench.agent.tree import Tree
from stbench.agent.wirecapture import Capture
from stbench.errors import InputError
from stbench.yamlfile import printable

# Of one machine, unpacked; an agent sends at most 4 MiB in 6000 files.
MAX_BYTES = 64 << 20
MAX_FILES = 20000
FILE_BYTES = 1 << 20
# Of a path: Linux has none that is longer, and /sys none that is nearly as deep.
NAME_CHARACTERS = 4096
NAME_PARTS = 64

# What zipfile raises for a damaged file, beside OSError and ValueError.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,
    OverflowError,
    MemoryError,
)

META, DENIED, FINDINGS = "capture.json", "DENIED", "findings.txt"


class CapturedTree(Tree):
    """Files in memory, behind the interface of a live tree. ``refused``: paths or patterns of them. Paths
    that no machine has, longer or deeper than one can be, are left out."""

    def __init__(self, files: Mapping[str, str], refused: Iterable[str] = ()) -> None:
        super().__init__(Path("captured"))
        self._files = {path: text for path, text in files.items() if _can_be(path)}
        refused = [path for path in refused if _can_be(path)]
        self._refused = {path for path in refused if "*" not in path}
        self._patterns = [path for path in refused if "*" in path]
        self._folders: dict[str, set[str]] = {}
        for path in [*self._files, *self._refused]:
            parts = path.split("/")
            for n, part in enumerate(parts):
                self._folders.setdefault("/".join(parts[:n]), set()).add(part)

    def raw(self, path: str) -> bytes:
        """A file's bytes. Raises OSError."""
        path = self._allowed(path)
        if path not in self._files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self._files[path].encode("utf-8", "surrogatepass")

    def listing(self, path: str) -> list[str]:
        """A directory's entries. Raises OSError."""
        path = self._allowed(path)
        if path not in self._folders or path in self._files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return sorted(self._folders[path])

    def _allowed(self, path: str) -> str:
        parts = [part for part in path.split("/") if part]
        for n in range(1, len(parts) + 1):
            part = "/".join(parts[:n])
            if part in self._refused or any(fnmatch.fnmatchcase(part, one) for one in self._patterns):
                raise PermissionError(13, "Permission denied", path)
        return "/".join(parts)


def _can_be(path: str) -> bool:
    return len(path) <= NAME_CHARACTERS and path.count("/") < NAME_PARTS


@dataclasses.dataclass(frozen=True)
class Meta:
    """``capture.json``: a :class:`Capture` without its files, and what was known from outside."""

    capture: Capture
    clock_off_s: float | None = None
    memory_limit: str = "auto"
    stbench: str = ""


# ---- reading -----------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Meta]:
    """Label -> machine, of a captured tree, a folder of them or a bundle. Raises :class:`InputError`."""
    try:
        entries = _of_zip(path) if path.is_file() else _of_folder(path)
    except (OSError, ValueError, *_DAMAGED) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or printable(str(error))[:200]
        why = why or "the file is damaged"
        raise InputError(
            f"{path}: cannot be read: {why}",
            hint="--tree takes what `stbench devices doctor --bundle FILE.zip` wrote, packed or unpacked",
        ) from error
    machines: dict[str, dict[str, bytes]] = {}
    for name, data in entries.items():
        label, _, rest = name.partition("/")
        if _is_inside(name):
            machines.setdefault("", {})[name] = data
        elif _is_inside(rest):
            machines.setdefault(label, {})[rest] = data
    if not machines:
        raise InputError(
            f"{path}: no captured machine is in there",
            hint="it is made by: stbench devices doctor --bundle FILE.zip",
        )
    own = path.name or "tree"
    return {printable(label or own): _meta(path, label, files) for label, files in sorted(machines.items())}


def _is_inside(name: str) -> bool:
    """Whether a file belongs to a machine's folder itself."""
    first = name.partition("/")[0]
    return name in (META, DENIED, FINDINGS) or (
        first in ("proc", "sys", "etc", "usr", "system", "boot") and "/" in name
    )


def _of_folder(path: Path) -> dict[str, bytes]:
    if not path.is_dir():
        raise FileNotFoundError(2, "no such file or directory")
    found: dict[str, bytes] = {}
    left = MAX_BYTES
    for file in sorted(path.rglob("*")):
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as stream:
                data = stream.read(FILE_BYTES)
            left -= len(data)
            if left < 0 or len(found) >= MAX_FILES:
                raise ValueError(f"more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB")
            found[file.relative_to(path).as_posix()] = data
    return found


def _of_zip(path: Path) -> dict[str, bytes]:
    """Nothing is unpacked to disk, so a name like ../x is only a name."""
    found: dict[str, bytes] = {}
    left = MAX_BYTES
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            with archive.open(entry) as stream:
                # As much as there is, whatever its header promises.
                data = stream.read(min(FILE_BYTES, left + 1))
            left -= len(data)
            if left < 0 or len(found) >= MAX_FILES:
                raise ValueError(f"more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB")
            found[entry.filename] = data
    return found


def _meta(path: Path, label: str, files: dict[str, bytes]) -> Meta:
    texts = {name: data.decode("utf-8", "replace") for name, data in files.items()}
    denied = [line.strip() for line in texts.pop(DENIED, "").splitlines() if line.strip()]
    texts.pop(FINDINGS, None)
    try:
        meta = wire.loads(Meta, texts.pop(META)) if META in texts else Meta(Capture())
    except wire.WireError as error:
        raise InputError(f"{path}: {label}/{META}: {printable(str(error))}") from error
    return dataclasses.replace(
        meta,
        capture=dataclasses.replace(
            meta.capture, files=texts, denied=sorted({*meta.capture.denied, *denied})
        ),
    )


# ---- writing -----------------------------------------------------------------------------------------


def bundle(machines: Mapping[str, tuple[Meta, str]]) -> bytes:
    """A zip file of anonymised machines and their findings as text; equal bytes for equal machines."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for label, (meta, findings) in machines.items():
            bare = dataclasses.replace(meta.capture, files={}, denied=[], private=[])
            texts = {
                META: json.dumps(wire.to_json(dataclasses.replace(meta, capture=bare)), indent=1) + "\n",
                DENIED: "".join(f"{path}\n" for path in meta.capture.denied),
                FINDINGS: findings,
                **meta.capture.files,
            }
            for name in sorted(texts):
                data = texts[name].encode("utf-8", "replace")
                archive.writestr(zipfile.ZipInfo(f"{label}/{name}"), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
