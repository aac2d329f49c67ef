"""The runtime's C++ sources: of the checkout, or those that came with the installed package."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import io
import sysconfig
import tarfile
from dataclasses import dataclass
from pathlib import Path

import stbench
from stbench.errors import BuildError

# What the library is made of; tests stay behind.
_PARTS = ("CMakeLists.txt", "sbr.map", "cmake", "include", "src")


@dataclass(frozen=True)
class Sources:
    """A directory with CMakeLists.txt; ``digest`` is over the names and bytes of what is compiled."""

    directory: Path
    digest: str

    def files(self) -> dict[str, Path]:
        """Path below the directory -> file, sorted."""
        return _files(self.directory)


def find_sources() -> Sources:
    """Raises :class:`BuildError` where stbench was installed without them."""
    for directory in _candidates():
        if (directory / "CMakeLists.txt").is_file() and (directory / "include").is_dir():
            return sources_at(directory)
    raise BuildError(
        "this installation of stbench came without the runtime's C++ sources, so it can build no library",
        hint="install it again from a wheel, its source distribution or a checkout; or name a libsbr.so "
        "that was built elsewhere with --library PATH",
    )


def sources_at(directory: Path) -> Sources:
    """The sources in a directory that is known to have them."""
    state = hashlib.sha256(stbench.__version__.encode())
    for name, path in _files(directory).items():
        data = path.read_bytes()
        state.update(f"{name}\0{len(data)}\0".encode() + data)
    return Sources(directory, state.hexdigest())


def archive(sources: Sources) -> bytes:
    """The sources as one tar.gz, for another machine; the same bytes for the same sources."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, path in sources.files().items():
            data = path.read_bytes()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0)


def _candidates() -> list[Path]:
    """The checkout first: an editable install has a copy in site-packages, too, which ages."""
    package = Path(stbench.__file__).resolve().parent
    found = [package.parent / "runtime", package / "native" / "runtime"]
    try:
        for file in importlib.metadata.distribution("stbench").files or ():
            if file.match("native/runtime/CMakeLists.txt"):
                found.append(Path(str(file.locate())).parent)
    except importlib.metadata.PackageNotFoundError:
        pass
    return [*found, Path(sysconfig.get_path("platlib")) / "stbench" / "native" / "runtime"]


def _files(directory: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for part in _PARTS:
        top = directory / part
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                found[path.relative_to(directory).as_posix()] = path
    return dict(sorted(found.items()))
