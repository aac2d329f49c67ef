"""What the host's files leave on a device: their digests beside models, and what can go again.

Old are, besides earlier agents and libraries: a bundle of a model that is not there any more, or no longer
with those bytes (nothing finds it again), and traces once no job lies in the spool (a record there
may name one, and a campaign that goes on may replay one).
"""

import argparse
import os
import re
import stat
import sys
import time
from dataclasses import dataclass, field
from typing import Iterator, List, Optional, Set, Tuple

from . import model_file, timelines, wirejson
from .compiling import leased
from .routing import SUFFIX
from .spool import Spool
from .wiretools import ModelFile

# A .part that nobody wrote to for so long is no upload that goes on, seconds.
STALE_S = 3600.0

_DEPLOYED = re.compile(r"(agent-[0-9a-f]{16}\.pyz|libsbr-[0-9a-f]{16}\.so)")
_SIDECAR = model_file.sidecar_path("")
# As the host names them: by the first digits of their model's digest, and by that or by the job's id.
_BUNDLE = re.compile(r".+-([0-9a-f]{16})-(?:sparse|dense)\.bundle(?:\.lock)?")
_TRACE = re.compile(
    r"[0-9a-f]{8,64}(?:-[0-9]+)?(?:%s|%s)(?:\.part)?" % (re.escape(SUFFIX), re.escape(timelines.SUFFIX))
)


def note_digest(_args: Optional[argparse.Namespace] = None) -> int:
    """ModelFile (path and sha256) on stdin -> the same line with its size, after writing the sidecar."""
    request = wirejson.loads(ModelFile, sys.stdin.readline())
    known = model_file.note(request.path, request.sha256)
    sys.stdout.write(wirejson.dumps(ModelFile("ok", request.path, bytes=known, sha256=request.sha256)) + "\n")
    return 0


@dataclass(frozen=True)
class CleanRequest:
    """Stdin of ``clean``. ``keep``: names of deployed files that are in use; ``spool``: beside the lease
    that a running job holds, "" for none; ``models``: remove the models of ``models_dir``, too;
    ``model_paths``: models that lie elsewhere on the device; ``routing_dir``: where traces and timelines
    lie, "" for nowhere."""

    work_dir: str
    models_dir: str
    keep: List[str] = field(default_factory=list)
    spool: str = ""
    models: bool = False
    dry_run: bool = False
    model_paths: List[str] = field(default_factory=list)
    routing_dir: str = ""


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
    """Removes old agents and libraries, what was compiled here, stale parts, bundles without a model, traces
    that nobody waits for, and models where asked to. Records and whatever else lies there are not touched."""
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
    digests = _digests(request)
    for path, facts in _files(request.models_dir):
        name = os.path.basename(path)
        bundle = _BUNDLE.fullmatch(name)
        left_behind = bundle is not None and bundle.group(1) not in digests
        if request.models or left_behind or _is_stale(name, facts, now):
            yield path, facts.st_size
    if request.routing_dir and not (request.spool and any(Spool(request.spool).entries())):
        for path, facts in _files(request.routing_dir):
            if _TRACE.fullmatch(os.path.basename(path)):
                yield path, facts.st_size


def _digests(request: CleanRequest) -> Set[str]:
    """How the digests of the models that are there begin."""
    paths = [path[: -len(_SIDECAR)] for path, _ in _files(request.models_dir) if path.endswith(_SIDECAR)]
    noted = [model_file.known(os.path.expanduser(path)) for path in [*paths, *request.model_paths]]
    return {values["sha256"][:16] for values in noted if values is not None}


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
