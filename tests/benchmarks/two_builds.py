"""Two builds, one verdict: ``python -m tests.benchmarks.two_builds BEFORE.so NOW.so --model FILE.gguf``.

Runs ``stbench sweep`` with one and the other library by turns, one process per build and pair, gathers the
records of each under ``--output`` and hands them to ``stbench compare``, whose exit code it returns: 1 when a
case regressed, 5 when one is inconclusive.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STBENCH = (sys.executable, "-m", "stbench.cli")


def sweep(library: Path, campaign: str, model: str, folder: Path, options: list[str]) -> Path:
    """One process per case; the path of the records. Raises CalledProcessError unless all runs were right."""
    command = [
        *(*STBENCH, "sweep", "--devices", str(ROOT / "devices.yaml"), "--models", model),
        *("--library", str(library), "-r", "1", "--campaign", campaign, "--quiet", *options),
        *("--results", str(folder / "runs"), "--reports", str(folder / "reports")),
    ]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    return folder / "runs" / campaign / "records.jsonl"


def alternate(before: Path, now: Path, model: str, folder: Path, pairs: range, options: list[str]) -> None:
    """Adds these pairs' records to before.jsonl and now.jsonl in ``folder``; the first of a pair by turns."""
    folder.mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        sides = [("before", before), ("now", now)]
        for name, library in sides if pair % 2 == 0 else reversed(sides):
            records = sweep(library, f"{name}-{pair}", model, folder, options)
            with (folder / f"{name}.jsonl").open("a") as gathered:
                for line in records.read_text().splitlines():
                    gathered.write(numbered(line, pair) + "\n")


def numbered(line: str, pair: int) -> str:
    """A record as the replicate that it is among those gathered; in its own campaign it was the only one."""
    record = json.loads(line)
    return json.dumps({**record, "id": f"{record['id']}-{pair}", "replicate": pair})


def compare(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """``stbench compare`` of what was gathered."""
    sides = [str(folder / "before.jsonl"), str(folder / "now.jsonl")]
    command = [*STBENCH, "compare", *sides, "--fail-on", "regressed", "--fail-on", "inconclusive", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> int:
    """Measures and compares. Returns the exit code of ``stbench compare``."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.two_builds", description=__doc__)
    parser.add_argument("before", type=Path, metavar="BEFORE.so")
    parser.add_argument("now", type=Path, metavar="NOW.so")
    parser.add_argument("--model", required=True, help="a name of the catalogue or a GGUF file")
    parser.add_argument("--pairs", type=int, default=15, help="processes per build (15)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep the records here")
    parser.add_argument(
        "--sweep", default="", metavar="OPTIONS", help="of stbench sweep, such as '-t 1 -n 64'"
    )
    arguments = parser.parse_args()
    folder = arguments.output or Path(tempfile.mkdtemp(prefix="stbench-two-builds-"))
    model = str(Path(arguments.model).resolve()) if arguments.model.endswith(".gguf") else arguments.model
    try:
        libraries = arguments.before.resolve(), arguments.now.resolve()
        alternate(*libraries, model, folder.resolve(), range(arguments.pairs), shlex.split(arguments.sweep))
        done = compare(folder)
    finally:
        if arguments.output is None:
            shutil.rmtree(folder)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
