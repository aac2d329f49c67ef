"""What the gates compare: the runtime as it is, and as it was at the previous commit."""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

from stbench.agent import sbr, wire
from stbench.models import catalogue
from tests.conftest import require
from tests.workshop import ROOT, Files

# A revision to compare with instead of the previous commit, e.g. the merge base of a branch.
AGAINST = "STBENCH_AGAINST"


class NothingToCompare(Exception):
    """There is no earlier runtime to hold this one against; the message says why."""


@dataclass(frozen=True)
class Earlier:
    """The runtime's source at ``commit`` (its full id)."""

    commit: str
    files: Files


def _git(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        raise NothingToCompare("there is no git on PATH") from None
    if done.returncode != 0:
        raise NothingToCompare(done.stderr.decode(errors="replace").strip().splitlines()[0])
    return done.stdout


def earlier(now: Files) -> Earlier:
    """The source at HEAD when the working tree's runtime differs from it, otherwise at the commit before; or
    at the revision that the environment names.

    Raises :class:`NothingToCompare`: no git history, or no difference.
    """
    named = os.environ.get(AGAINST)
    for revision in [named] if named else ["HEAD", "HEAD~1"]:
        try:
            commit = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
        except (NothingToCompare, IndexError) as error:
            raise NothingToCompare(f"no commit {revision} here (a shallow clone, or none): {error}") from None
        files = source_at(commit)
        if _differs(now, files):
            return Earlier(commit, files)
    raise NothingToCompare(f"runtime/src and its build files are as they were at {named or 'HEAD~1'}")


def source_at(commit: str) -> dict[str, bytes]:
    """runtime/ and pyproject.toml at a commit."""
    archive = _git("archive", "--format=tar", commit, "runtime", "pyproject.toml")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [(member.name, tar.extractfile(member)) for member in tar.getmembers() if member.isfile()]
        return {name: file.read() for name, file in members if file is not None}


def _differs(a: Files, b: Files) -> bool:
    """Whether the library would be another: tests and documentation are not in it."""

    def compiled(files: Files) -> dict[str, bytes]:
        return {
            name: content
            for name, content in files.items()
            if name.startswith("runtime/")
            and not name.startswith("runtime/tests/")
            and not name.endswith(".md")
        }

    return compiled(a) != compiled(b)


def abi_version(library: Path) -> int:
    """What ``sbr_abi_version`` of that library says."""
    return int(ctypes.CDLL(str(library)).sbr_abi_version())


def compile_driver(to: Path, counting: bool = False) -> Path:
    """Builds driver.cpp against the working tree's header; ``counting``: with callgrind's requests in it."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    require(compiler is not None, "no C++ compiler: apt install g++")
    source = Path(__file__).with_name("driver.cpp")
    options = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-I", str(ROOT / "runtime" / "include")]
    options += ["-DCOUNT_INSTRUCTIONS"] if counting else []
    command = [*str(compiler).split(), *options, str(source), "-o", str(to), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return to


def write_model(library: Path, to: Path) -> Path:
    """A SmallThinker of 2 MB: kernels take nine tenths of a step, and all of it stays in the caches, where
    time is steadier than in memory that others use, too."""
    tiny = catalogue.lookup("tiny-smallthinker").spec
    shape = dict(n_layer=2, n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=192, n_vocab=2048)
    spec = replace(tiny, name="gate", zero_share=[600, 600], **shape)
    sbr.synth_write(sbr.load(str(library)), wire.to_json(spec), str(to))
    return to


def describe_compiler(library: Path) -> str:
    """The compiler that built a library, as it says itself."""
    handle = ctypes.CDLL(str(library))
    handle.sbr_build_info.restype = ctypes.c_char_p
    return str(json.loads(handle.sbr_build_info())["compiler"])
