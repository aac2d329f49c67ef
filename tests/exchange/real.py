"""A real campaign as two builds measured it, and llama.cpp's own script that compares such things."""

from __future__ import annotations

import functools
import hashlib
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

from stbench.agent import wire
from stbench.agent.wire import RunRecord
from stbench.builds import peer
from stbench.errors import StbenchError
from stbench.paths import cache_dir
from stbench.records.store import read_records
from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]
QUICK, LIMITED = ROOT / "results" / "epyc-2core-quick", ROOT / "results" / "epyc-2core-limited-21b"

_SCRIPT = f"vendor/llama.cpp/scripts/{peer.COMPARE_SCRIPT}"


@functools.cache
def quick() -> tuple[RunRecord, ...]:
    """The records of a real sweep with two engines."""
    return tuple(read_records(QUICK).latest())


def write(folder: Path, records: list[RunRecord]) -> Path:
    """A campaign's directory with these records."""
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("".join(wire.dumps(record) + "\n" for record in records))
    return folder


def faster(records: list[RunRecord], share: float) -> list[RunRecord]:
    """The same runs by another build that decodes in this share of the time."""
    made = []
    for record in records:
        assert record.samples is not None
        assert record.versions is not None
        samples = replace(record.samples, decode_ns=[int(ns * share) for ns in record.samples.decode_ns])
        versions = replace(record.versions, library_sha256=hashlib.sha256(b"another").hexdigest())
        made.append(replace(record, id=record.id[::-1], samples=samples, versions=versions))
    return made


def compare_script() -> Path:
    """llama.cpp's compare-llama-bench.py, from the source distribution that `stbench peer build` fetches;
    kept beside what was built from it."""
    built = peer.built_peer()
    if built is not None and (kept := Path(built.directory) / "scripts" / peer.COMPARE_SCRIPT).is_file():
        return kept
    # Builds of earlier versions did not keep it.
    folder = cache_dir() / "peer" / "programs"
    script = folder / f"compare-llama-bench-{peer.SHA256[:12]}.py"
    if not script.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            try:
                archive = peer.fetch_sdist(Path(scratch), lambda done, total, what: None)
            except StbenchError as error:
                require(False, str(error))
                raise
            part = Path(scratch) / script.name
            with tarfile.open(archive, "r:gz") as tar:
                member = tar.extractfile(f"llama_cpp_python-{peer.VERSION}/{_SCRIPT}")
                assert member is not None
                part.write_bytes(member.read())
            part.replace(script)
    return script
