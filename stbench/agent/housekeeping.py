"""What the host's files leave on a device: their digests beside models, and what can go again."""

import argparse
import os
import re
import stat
import sys
import time
from dataclasses import dataclass, field
from typing import Iterator, List, Optional, Tuple

from . import model_file, wirejson
from .compiling import leased
from .wiretools import ModelFile

# A .part that nobody wrote to for so long is no upload that goes on, seconds.
STALE_S = 3600.0

_DEPLOYED = re.compile(r"(agent-[0-9a-f]{16}\.pyz|libsbr-[0-9a-f]{16}\.so)")


def note_digest(_args: Optional[argparse.Namespace] = None) -> int:
    """ModelFile (path and sha256) on stdin -> the same line with its size, after writing the sidecar."""
    request = wirejson.loads(ModelFile, sys.stdin.readline())
    known = model_file.note(request.path, request.sha256)
    sys.stdout.write(wirejson.dumps(ModelFile("ok", request.path, bytes=known, sha256=request.sha256)) + "\n")
    return 0


@dataclass(frozen=True)
class CleanRequest:
    """Stdin of ``clean``. ``keep``: names of deployed files that are in use; ``spool``: beside the lease
    that a running job holds, "" for none; ``models``: remove the models of ``models_dir``, too."""

    work_dir: str
    models_dir: str
    keep: List[str] = field(default_factory=list)
    spool: str = ""
    models: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Removed:
    """A file that is gone, or would be. ``problem``: why it is still there."""

    path: str
    bytes: int
    problem: str = ""


@dataclass(frozen=True)
class CleanResult:
    """The line of ``clean``. ``busy``: whose job runs, so that nothing was touched."""

    removed: List[Removed] = field(default_factory=list)
    busy: str = ""


def clean(request: CleanRequest) -> CleanResult:
    """Removes old agents and libraries, what was compiled here, stale parts, and models where asked to.
    Records and whatever else lies there are not looked at."""
    with leased(request.spool) as busy:
        if busy:
            return CleanResult(busy=busy)
        return CleanResult([_remove(path, size, request.dry_run) for path, size in _old(request)])


def _old(request: CleanRequest) -> Iterator[Tuple[str, int]]:
    deployed = os.path.join(request.work_dir, "deployed")
    now = time.time()
    for path, facts in _files(deployed):
        name = os.path.basename(path)
        ours = _DEPLOYED.fullmatch(name) is not None and name not in request.keep
        if ours or _is_stale(name, facts, now):
            yield path, facts.st_size
    for folder, _, names in os.walk(os.path.join(request.work_dir, "build")):
        for name in names:
            path = os.path.join(folder, name)
            yield path, os.lstat(path).st_size
    for path, facts in _files(request.models_dir):
        if request.models or _is_stale(os.path.basename(path), facts, now):
            yield path, facts.st_size


def _files(folder: str) -> Iterator[Tuple[str, os.stat_result]]:
    """Regular files of a folder; links are left alone, wherever they point."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        path = os.path.join(folder, name)
        facts = os.lstat(path)
        if stat.S_ISREG(facts.st_mode):
            yield path, facts


def _is_stale(name: str, facts: os.stat_result, now: float) -> bool:
    return name.endswith(".part") and now - facts.st_mtime > STALE_S


def _remove(path: str, size: int, dry_run: bool) -> Removed:
    if not dry_run:
        try:
            os.unlink(path)
        except OSError as error:
            return Removed(path, 0, str(error.strerror))
    return Removed(path, size)


def run_clean(_args: Optional[argparse.Namespace] = None) -> int:
    """CleanRequest on stdin -> one CleanResult line."""
    result = clean(wirejson.loads(CleanRequest, sys.stdin.readline()))
    sys.stdout.write(wirejson.dumps(result) + "\n")
    return 0
