"""Models of a hub: ``hf:owner/repo/file.gguf[@revision]`` -> a file of this machine, fetched once.

huggingface_hub speaks with the hub. Its own downloads begin anew in every process (2.4), so files are
written here, going on where they stopped, and get their name when their digest is the hub's; what lies in its
cache is taken from there. Its login (or HF_TOKEN) opens gated repositories; no token is read, kept or shown.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from stbench.atomic import write_atomically
from stbench.errors import MissingExtra, ModelError, NoSpace
from stbench.paths import cache_dir
from stbench.yamlfile import printable

# stage, done, total.
OnBytes = Callable[[str, int, int], None]

PREFIX = "hf:"
_REFERENCE = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[\w./-]+\.gguf)(?:@(?P<revision>[\w./-]+))?")
_DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_GIT_DIGITS = 40


def is_reference(text: str) -> bool:
    """Whether a model is named as a file of a hub."""
    return text.startswith(PREFIX)


def problem_of(text: str) -> str:
    """What is wrong with a reference, "" when nothing is."""
    found = _REFERENCE.fullmatch(text)
    if found is None or ".." in found["file"].split("/"):
        return "expected hf:owner/repository/file.gguf, with @revision where it matters"
    return ""


def file_name(reference: str) -> str:
    """What the file of a reference is called, with its revision where one is named: two revisions are two
    models. The reference itself where it is none."""
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        return reference
    name = found["file"].rsplit("/", 1)[-1]
    revision = (found["revision"] or "").replace("/", "-")
    return f"{name.removesuffix('.gguf')}-{revision}.gguf" if revision else name


def fetch(reference: str, on_bytes: OnBytes) -> Path:
    """The file of a reference on this machine, with the digest that the hub has for it. An interrupted fetch
    goes on where it stopped; without a network, a file that was fetched before is taken.

    Raises :class:`ModelError`, :class:`NoSpace`, :class:`MissingExtra`."""
    if problem := problem_of(reference):
        raise ModelError(f"{printable(reference)}: {problem}")
    found = _REFERENCE.fullmatch(reference)
    assert found is not None
    wanted = _Wanted(reference, found["repo"], found["file"], found["revision"] or "main")
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{reference} needs the Python package {error.name!r}, which is not installed",
            hint="pip install 'stbench[hub]'",
        ) from error
    try:
        url = hf_hub_url(wanted.repo, wanted.file, revision=wanted.revision)
        with _explained(wanted):
            facts = get_hf_file_metadata(url)
    except (HTTPError, OfflineModeIsEnabled) as error:
        if (kept := wanted.kept()) is not None:
            return kept
        raise _unreachable(wanted, error) from error
    promised, size = facts.etag or "", facts.size or 0
    if not _DIGEST.fullmatch(promised) or not size:
        raise ModelError(f"{reference}: the hub tells neither size nor digest of it")
    theirs = try_to_load_from_cache(wanted.repo, wanted.file, revision=wanted.revision)
    if isinstance(theirs, str) and Path(theirs).resolve().name == promised:
        return Path(theirs)
    path = wanted.folder / promised / Path(wanted.file).name
    if not path.exists():
        with _one_at_a_time(path):
            if not path.exists():
                try:
                    with _explained(wanted):
                        _download(wanted, facts.location, url, path, size, on_bytes)
                except (HTTPError, OfflineModeIsEnabled) as error:
                    raise _unreachable(wanted, error) from error
                _verify(wanted, path, promised, on_bytes)
    wanted.keep(path)
    return path


@dataclass(frozen=True)
class _Wanted:
    reference: str
    repo: str
    file: str
    revision: str

    @property
    def folder(self) -> Path:
        return cache_dir() / "hub" / self.repo.replace("/", "--")

    def _note(self) -> Path:
        name = hashlib.sha256(f"{self.revision}/{self.file}".encode()).hexdigest()[:32]
        return self.folder / "revisions" / name

    def kept(self) -> Path | None:
        """What this reference was when the hub could be asked last."""
        try:
            path = self.folder / self._note().read_text().strip() / Path(self.file).name
        except OSError:
            return None
        return path if path.is_file() else None

    def keep(self, path: Path) -> None:
        """Notes which file this reference is."""
        note = self._note()
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, path.parent.name.encode())


def _download(wanted: _Wanted, location: str, url: str, path: Path, size: int, on_bytes: OnBytes) -> None:
    """Writes ``path`` with ``.part`` behind its name, from where an earlier attempt stopped."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils.tqdm import disable_progress_bars

    part = part_of(path)
    there = min(part.stat().st_size, size) if part.exists() else 0
    if (free := shutil.disk_usage(path.parent).free) < size - there:
        raise NoSpace(
            f"{wanted.reference} has {size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in {cache_dir()}",
            hint="make room, or set XDG_CACHE_HOME to a larger disk",
        )
    headers = build_hf_headers()
    if urlsplit(location).netloc != urlsplit(url).netloc:
        # Where the bytes lie is no business of the login.
        headers = {key: value for key, value in headers.items() if key.lower() != "authorization"}
    disable_progress_bars()
    with part.open("ab") as raw:
        raw.truncate(there)
        raw.seek(there)
        told = _Telling(raw, lambda done: on_bytes(f"fetch {path.name}", done, size))
        http_get(location, told, resume_size=there, headers=headers, expected_size=size)  # type: ignore[arg-type]


class _Telling:
    """A file that tells how far it was written."""

    def __init__(self, file: BinaryIO, tell: Callable[[int], None]) -> None:
        self._file, self._tell = file, tell

    def write(self, data: bytes) -> int:
        count = self._file.write(data)
        self._tell(self._file.tell())
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _verify(wanted: _Wanted, path: Path, promised: str, on_bytes: OnBytes) -> None:
    """Gives the file its name, if it is what the hub has; else deletes it."""
    part = part_of(path)
    # Large files have their SHA-256 there, small ones git's digest.
    state = hashlib.sha256()
    if len(promised) == _GIT_DIGITS:
        state = hashlib.sha1(b"blob %d\0" % part.stat().st_size, usedforsecurity=False)
    done, total = 0, part.stat().st_size
    with part.open("rb") as file:
        while chunk := file.read(4 << 20):
            state.update(chunk)
            done += len(chunk)
            on_bytes(f"hash {path.name}", done, total)
    digest = state.hexdigest()
    if digest != promised:
        part.unlink()
        raise ModelError(
            f"{wanted.reference}: what arrived has the digest {digest[:12]}..., "
            f"the hub promised {promised[:12]}...; it was deleted",
            hint="try again; if that does not help, the hub or something on the way to it is broken",
        )
    part.replace(path)


def part_of(path: Path) -> Path:
    """Where a file lies until it is whole."""
    return path.with_name(f"{path.name}.part")


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Several boards may ask for one file, and so may several commands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _explained(wanted: _Wanted) -> Iterator[None]:
    """The hub's refusals in our words."""
    from huggingface_hub import errors

    reference = wanted.reference
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{reference}: the repository is gated, and this machine's login may not read it",
            hint="accept its terms on its page, then `hf auth login` (or HF_TOKEN)",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{reference}: no such repository, or a private one", hint="`hf auth login` for private ones"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{reference}: the repository has no revision {wanted.revision!r}") from error
    except errors.EntryNotFoundError as error:
        raise ModelError(f"{reference}: the repository has no such file") from error


def _unreachable(wanted: _Wanted, error: Exception) -> ModelError:
    said = printable(str(error)).splitlines()
    return ModelError(
        f"{wanted.reference}: the hub cannot be reached ({said[0][:160] if said else type(error).__name__})",
        hint="the same command again goes on where this one stopped",
    )
