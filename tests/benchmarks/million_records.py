"""A million records: ``python -m tests.benchmarks.million_records [COUNT] [--folder DIR]``.

Writes that many records of 3 KB and more, made from real ones with other numbers (3 to 8 GB, deleted
afterwards), indexes them in a process of its own, and prints their grid and history from the warm index in
others: times and peak memory of each. The small version is a test, tests/history/test_record_index.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "results" / "epyc-2core-quick" / "records.jsonl"

# Campaigns of so many records: of each of the source's cases some replicates.
CAMPAIGN = 50_000
# Of each case so many different speeds, bandwidths and so on.
VARIANTS = 256

_COMMAND = """
import resource, sys
from stbench.cli import main
code = main(sys.argv[1:])
for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
    print("peak", resource.getrusage(who).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def templates() -> list[dict[str, Any]]:
    """A run that ended well of each case of the source, without what makes real records longer than 3 KB."""
    cases: dict[str, dict[str, Any]] = {}
    for line in SOURCE.read_text().splitlines():
        record = json.loads(line)
        if record["status"] == "ok":
            cases.setdefault(record["label"], record)
    for record in cases.values():
        record["timeline"] = None
        record["facts"]["features"] = record["facts"]["features"][:8]
        _shorten(record)
    return [cases[label] for label in sorted(cases)]


def _shorten(record: dict[str, Any]) -> None:
    """To 16 tokens, where the source has single ones."""
    samples, n = record["samples"], record["workload"]["n_gen"]
    if len(samples["decode_ns"]) == n > 16:
        samples["decode_ns"] = samples["decode_ns"][:16]
        samples["decode_tokens"] = samples["decode_tokens"][:16]
        record["workload"]["n_gen"] = 16
        for name in ("label", "case"):
            record[name] = record[name].replace(f"tg{n}", "tg16")


def generate(path: Path, count: int) -> int:
    """Writes records with times to order; the same for the same count. Returns their bytes."""
    chance = random.Random(count)
    sources = [_lines(record, chance, min(VARIANTS, count // 100 + 1)) for record in templates()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for i in range(count):
            campaign, place = divmod(i, CAMPAIGN)
            replicate, source = divmod(place, len(sources))
            days, seconds = divmod(i, 86_400)
            values = {
                "id": f"{chance.getrandbits(64):016x}",
                "campaign": f"night-{campaign:03}",
                "replicate": replicate,
                "started_at": f"{2020 + days // 336}-{days // 28 % 12 + 1:02}-{days % 28 + 1:02}T"
                f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}Z",
            }
            rest = sources[source][chance.randrange(len(sources[source]))]
            file.write(f"{json.dumps(values, separators=(',', ':'))[:-1]},{rest}\n")
    return path.stat().st_size


def _lines(record: dict[str, Any], chance: random.Random, count: int) -> list[str]:
    """What follows behind the fields that are every record's own, with so many different numbers: to write a
    million records must not take longer than to read them."""
    made = []
    for _ in range(count):
        one = {**record, "samples": _varied(record["samples"], chance.lognormvariate(0, 0.03))}
        one["memory"] = {**record["memory"], "peak_rss_bytes": round(2e9 * chance.uniform(0.99, 1.01))}
        _vary_bracket(one.get("bracket"), chance)
        for name in ("id", "campaign", "replicate", "started_at"):
            del one[name]
        made.append(json.dumps(one, separators=(",", ":"))[1:])
    return made


def _varied(samples: dict[str, Any], factor: float) -> dict[str, Any]:
    return {
        **samples,
        **{name: [round(ns * factor) for ns in samples[name]] for name in ("prefill_ns", "decode_ns")},
    }


def _vary_bracket(bracket: dict[str, Any] | None, chance: random.Random) -> None:
    if bracket:
        rate = chance.gauss(40.0, 1.0)
        for side in ("read_before", "read_after"):
            ns = 200_000_000
            bracket[side] = {"bytes": round(rate * chance.uniform(0.98, 1.02) * ns), "ns": ns}


def timed(arguments: list[str], folder: Path) -> str:
    """Runs ``stbench`` in a process of its own: its seconds, lines, and peak memory, with that of the largest
    of its readers."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, *arguments],
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    own, readers = (int(line.split()[1]) // 1024 for line in done.stderr.splitlines()[-2:])
    memory = f"{own} MiB" + (f" and {readers} MiB in each reader" if readers else "")
    lines = done.stdout.count("\n")
    return f"{seconds:.1f} s ({cpu:.1f} s of CPU time), peak memory {memory}, {lines} lines"


def main() -> int:
    """Generates, indexes, prints, measures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.million_records", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="on a disk with 10 GB of room")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="stbench-million-", dir=arguments.folder))
    try:
        path = folder / "results" / "records.jsonl"
        begin = time.monotonic()
        size = generate(path, arguments.count)
        print(
            f"{arguments.count} records, {size / 1e9:.2f} GB, in {time.monotonic() - begin:.0f} s", flush=True
        )
        said = timed(["history", str(path), "--index-only"], folder)
        index = (folder / "cache" / "stbench" / "records-index.sqlite").stat().st_size
        print(f"first indexing: {said}, index of {index / 1e6:.0f} MB", flush=True)
        for command in (
            ["grid", str(path), "--format", "md"],
            ["grid", str(path), "--json"],
            ["history", str(path)],
        ):
            name = " ".join(word for word in command if word != str(path))
            print(f"warm {name}: {timed(command, folder)}", flush=True)
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
