"""What looking at the machine while a job runs costs: the same job with and without, in turn.

    python -m tests.benchmarks.sampling_cost MODEL.gguf [--library LIB] [--pairs 15] [--hz 1] [--threads 2]

A round is three processes, two with and one without, their order turned from round to round. Prints ratios of
speeds with 95 % intervals: with / without twice, and with / with (A/A), which shows what the machine itself
does; and the CPU time of a look.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
from pathlib import Path

from stbench.agent import wire
from stbench.agent.wire import JobSpec, ModelRef, RunRecord, Settings, Workload
from stbench.builds.build import find_library
from tests.benchmarks.pairs import judge


def run(job: JobSpec) -> RunRecord:
    """One job in an agent of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "stbench.agent", "run"],
        input=wire.dumps(job) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    record = wire.loads(RunRecord, done.stdout)
    if record.status != "ok":
        raise SystemExit(f"{record.status}: {record.detail}")
    return record


def ns_per_token(record: RunRecord) -> float:
    """The mean, which a rare slow token moves as a median would not."""
    assert record.samples is not None
    return statistics.mean(record.samples.decode_ns)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--hz", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args()
    job = JobSpec(
        id="cost",
        label="cost",
        campaign="cost",
        device="local",
        case="cost",
        replicate=0,
        engine="sbr",
        library=str(find_library(args.library).path),
        model=ModelRef(args.model.stem, str(args.model)),
        workload=Workload(0, args.tokens),
        settings=Settings(threads=args.threads, n_ctx=args.tokens + 64),
    )
    without, sampled, second = [], [], []
    cost_s = looks = 0.0
    for pair in range(args.pairs):
        jobs = [(sampled, args.hz), (without, 0.0), (second, args.hz)]
        for kept, hz in jobs if pair % 2 == 0 else jobs[::-1]:
            record = run(dataclasses.replace(job, sample_hz=hz))
            kept.append(ns_per_token(record))
            if record.timeline is not None:
                cost_s += record.timeline.cost_s
                looks += record.timeline.looks
    spread = 100 * statistics.stdev(without) / statistics.mean(without) if args.pairs > 1 else 0.0
    speed = 1e9 / statistics.median(without)
    print(f"without: {speed:.2f} tokens/s, spread {spread:.1f} % (sd / mean), {args.pairs} processes")
    print(judge(f"{args.hz:g} Hz / none", without, sampled))
    print(judge(f"{args.hz:g} Hz / none, second", without, second))
    print(judge(f"A/A: {args.hz:g} Hz / {args.hz:g} Hz", sampled, second))
    print(f"a look: {1e3 * cost_s / looks:.2f} ms of CPU time, {looks:.0f} looks")


if __name__ == "__main__":
    main()
