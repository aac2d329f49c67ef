"""What lies in the page cache, and how it gets out of there: real files."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stbench.agent import pagecache
from stbench.agent.pagecache import Weights
from tests.agent.conftest import ROOT
from tests.conftest import require

MIB = 1 << 20


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """Eight MiB and a bit that were just written."""
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.write(os.urandom(8 * MIB + 5))
        file.flush()
        os.fsync(file.fileno())
    pagecache.drop(str(path))
    require(pagecache.cached_bytes(str(path)) == 0, f"{tmp_path} lies in memory")
    path.read_bytes()
    return path


def test_all_of_a_file_that_was_read_is_there(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pagecache.cached_bytes(str(cached)) == 8 * MIB + 5
    monkeypatch.setattr(pagecache, "_WINDOW", MIB)
    assert pagecache.cached_bytes(str(cached)) == 8 * MIB + 5


def test_a_part_is_counted_as_one(cached: Path) -> None:
    pagecache.drop(str(cached))
    descriptor = os.open(cached, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(descriptor, 2 * MIB, MIB)
    os.close(descriptor)
    assert 2 * MIB <= (pagecache.cached_bytes(str(cached)) or 0) <= 4 * MIB


def test_files_that_were_just_written_go_too(
    tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for the kernel to write them by itself."""
    monkeypatch.setattr(pagecache, "_TRIES", 2)
    monkeypatch.setattr(pagecache, "_PAUSE_S", 0.0)
    fresh = tmp_path / "bundle"
    fresh.write_bytes(bytes(16 * MIB))
    weights = Weights([str(cached), str(fresh), str(cached), "", str(tmp_path / "absent")])
    assert weights.paths == [str(cached), str(fresh)]
    assert weights.size == 24 * MIB + 5
    assert (weights.cached() or 0) > 8 * MIB
    left = weights.drop()
    assert left is not None
    # Where the disk was as fast as all but the last of them.
    assert left <= weights.tolerance


def test_pages_that_somebody_maps_stay_and_he_is_named(cached: Path) -> None:
    code = (
        "import mmap, sys\n"
        "file = open(sys.argv[1], 'rb')\n"
        "held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "sum(held[i] for i in range(0, len(held), 4096))\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(cached)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        weights = Weights([str(cached)])
        assert (weights.drop() or 0) > weights.tolerance
        assert [who.split()[0] for who in weights.holders()] == [str(process.pid)]
        process.kill()
    assert weights.drop() == 0


def test_a_stranger_is_not_told(cached: Path) -> None:
    """To whom it is not, mincore says that all of a file is there."""
    require(os.geteuid() == 0, "only root can become somebody else")
    for folder in (cached, *cached.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from stbench.agent import pagecache
os.setgid(65534)
os.setuid(65534)
print(pagecache.cached_bytes(sys.argv[1]), pagecache.Weights([sys.argv[1]]).drop())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(cached)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "None None\n", done.stderr


def test_an_empty_file_and_a_mapped_one(tmp_path: Path, cached: Path) -> None:
    (tmp_path / "empty").touch()
    assert pagecache.cached_bytes(str(tmp_path / "empty")) == 0
    with cached.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        # A mapping alone brings nothing.
        pagecache.drop(str(cached))
        assert pagecache.cached_bytes(str(cached)) == 0
