"""Where the native runtime for a machine is: built by ``pip install``, by ``stbench build``, or named with
``--library``.

The path is resolved here and handed to the agent, which never searches.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from stbench.atomic import write_atomically
from stbench.builds import elf
from stbench.errors import BuildError
from stbench.paths import cache_dir

LIBRARY = "libsbr.so"


@dataclass(frozen=True)
class Library:
    """A built runtime. ``sha256`` is of the file's bytes; ``given``: the user named it."""

    path: Path
    sha256: str
    needs: elf.Needs | None = None
    given: bool = False


def find_library(explicit: Path | None = None) -> Library:
    """The library given by the user, or the installed one. Raises :class:`BuildError`."""
    if explicit is not None:
        if not explicit.is_file():
            raise BuildError(f"{explicit}: no such file", hint="--library needs the path of a libsbr.so")
        return describe(explicit.resolve(), given=True)
    for path in _candidates():
        if path.is_file():
            return describe(path)
    raise BuildError(
        f"the native runtime ({LIBRARY}) is not installed",
        hint="`pip install -e .` builds it (it needs g++ or clang++); or name one with --library PATH",
    )


def describe(path: Path, *, given: bool = False) -> Library:
    """Reads and hashes a library. Raises :class:`BuildError` for what cannot be one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}") from error
    try:
        needs = elf.needs(data)
    except ValueError as error:
        raise BuildError(f"{path}: {error}") from None
    return Library(path, hashlib.sha256(data).hexdigest(), needs, given)


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
    found.append(Path(__file__).parents[1] / "native" / LIBRARY)
    found.append(Path(sysconfig.get_path("platlib")) / "stbench" / "native" / LIBRARY)
    return found


# ---- for another machine ---------------------------------------------------------------------------------


def target_of(machine: str, libc: str) -> str:
    """The target that a board's libraries are built for: ``aarch64-linux-gnu``. ``libc`` is what its Python
    runs on: "glibc 2.36", "musl", "bionic", or "" where nobody knows."""
    kind = libc.partition(" ")[0]
    return f"{machine}-linux-{ {'musl': 'musl', 'bionic': 'android'}.get(kind, 'gnu') }"


def unloadable(library: Library, machine: str, libc: str) -> str:
    """Why a board cannot load a library, "" when nothing speaks against it."""
    needs = library.needs
    if needs is None:
        return ""
    if needs.machine != machine:
        return f"it is for {needs.machine or 'a machine that is not known'}"
    kind, _, version = libc.partition(" ")
    if kind and needs.libc and kind != needs.libc:
        return f"it is for {needs.libc}, and the C library there is {kind}"
    found = re.match(r"(\d+)\.(\d+)", version)
    if needs.glibc is not None and found and needs.glibc > (int(found[1]), int(found[2])):
        return f"it needs glibc {needs.glibc[0]}.{needs.glibc[1]}, and there is {version}"
    return ""


def library_for(
    machine: str,
    explicit: Library | None,
    cache: Path | None = None,
    *,
    libc: str = "",
    device: str = "",
    sources: str | None = None,
) -> Library:
    """The library for a board: ``explicit``, if it is for this machine; else one that ``stbench build --on``
    made on this very device; else the installed one, if it loads there; else the one of ``stbench build
    --target``. ``cache``: where builds lie (the user's cache); ``sources``: the digest that builds must be
    of (that of the sources here).

    Raises :class:`BuildError` whose hint is the command that builds it."""
    if explicit is not None and explicit.given and _machine(explicit) == machine:
        if problem := unloadable(explicit, machine, libc):
            raise BuildError(f"{explicit.path}: {device or machine} cannot load it: {problem}")
        return explicit
    target = target_of(machine, libc)
    builds = Builds(cache)
    wanted = _sources_digest() if sources is None else sources
    made = builds.newest(target, wanted, device=device) if device else None
    if made is not None:
        return made
    if machine == platform.machine():
        with contextlib.suppress(BuildError):
            installed = explicit if explicit is not None else find_library()
            if not unloadable(installed, machine, libc):
                return installed
    cross = builds.newest(target, wanted)
    if cross is not None and not unloadable(cross, machine, libc):
        return cross
    from stbench.builds.crossbuild import TARGETS

    hint = f"stbench build --target {target}"
    if cross is not None or target not in TARGETS:
        hint = f"stbench build --on {device or 'DEVICE'} (a C++ compiler there compiles it)"
    stale = builds.any(target) and cross is None
    why = "the one that was built is of other sources than this stbench" if stale else "none was built"
    if cross is not None:
        why = f"{cross.path}: {unloadable(cross, machine, libc)}"
    raise BuildError(f"{device or machine} needs the runtime for {target}: {why}", hint=hint)


def _machine(library: Library) -> str:
    return library.needs.machine if library.needs is not None else ""


def _sources_digest() -> str:
    """ "" where an installation has no sources: then whatever was built is taken."""
    from stbench.builds.runtime_sources import find_sources

    try:
        return find_sources().digest
    except BuildError:
        return ""


@dataclass(frozen=True)
class BuildInfo:
    """What lies beside a built library as ``info.json``. ``device``: the one that compiled it, or ""."""

    target: str
    sources: str
    sha256: str
    compiler: str
    toolchain: str = ""
    device: str = ""


class Builds:
    """Libraries built here, ``<cache>/libraries/<target>/<hash>/libsbr.so``."""

    def __init__(self, cache: Path | None = None) -> None:
        self.root = (cache or cache_dir()) / "libraries"

    def newest(self, target: str, sources: str, *, device: str = "") -> Library | None:
        """The one that was built or asked for last; "" as ``sources`` fits any."""
        found: list[tuple[int, Path]] = []
        for path in (self.root / target).glob("*/info.json"):
            info = read_info(path)
            if info is not None and info.device == device and sources in ("", info.sources):
                found.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(found, reverse=True):
            info = read_info(path)
            with contextlib.suppress(BuildError):
                library = describe(path.with_name(LIBRARY))
                if info is not None and library.sha256 == info.sha256:
                    return library
        return None

    def any(self, target: str) -> bool:
        """Whether something was built for a target, of whatever sources."""
        return next((self.root / target).glob("*/info.json"), None) is not None

    def path(self, target: str, key: str) -> Path:
        """Where the library with this key lies or would lie."""
        return self.root / target / key / LIBRARY

    def keep(self, data: bytes, info: BuildInfo, key: str) -> Library:
        """Stores a library; info.json comes last, so that half of one is none."""
        path = self.path(info.target, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(vars(info), indent=2) + "\n"
        for file, content in ((path, data), (path.with_name("info.json"), text.encode())):
            write_atomically(file, content)
        return describe(path)


def read_info(path: Path) -> BuildInfo | None:
    """None for what is no info.json of ours."""
    try:
        return BuildInfo(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
