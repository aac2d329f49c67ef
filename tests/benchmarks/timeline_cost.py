"""What recording a timeline costs: sessions with and without it on one model in one process, by turns.

    python -m tests.benchmarks.timeline_cost MODEL.gguf [--rounds N] [--threads N] [--sparse] [--seconds S]

A round is a turn of 2 tokens of each of three sessions, in an order that moves from round to round: without,
with, and without again (A/A), which shows what the machine itself does. All decode the same tokens at the
same positions. The unit is wall time per token, and with one thread its processor time, of which other load
takes no share. Prints ratios of speeds with 95 % intervals.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

from stbench.agent import sbr, timelines
from stbench.builds.build import find_library
from tests.benchmarks.pairs import judge

TURN = 2
# A session's positions; then it begins anew.
CONTEXT = 512


def turn(session: sbr.Session, tokens: list[int]) -> float:
    """Nanoseconds per token of one turn; of processor time, where this thread does all the work."""
    if session.n_past + len(tokens) > CONTEXT:
        session.rewind(0)
    begin = time.thread_time_ns()
    times = session.decode(tokens).times
    spent = time.thread_time_ns() - begin
    alone = session.info().n_threads == 1
    return spent / len(tokens) if alone else statistics.fmean(end - begin for begin, end in times)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=300.0, help="begin no round after so long (300)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sparse", action="store_true", help="sparse FFN and lm_head")
    args = parser.parse_args()
    library = sbr.load(str(find_library(args.library).path))
    options = {"sparse_ffn": args.sparse, "sparse_lm_head": args.sparse}
    chance = random.Random(0)
    with sbr.Model(library, str(args.model), "repack", **options) as model:
        sessions = [
            sbr.Session(model, args.threads, n_ctx=CONTEXT, timeline_events=events, **options)
            for events in (0, timelines.EVENTS, 0)
        ]
        taken: list[list[float]] = [[], [], []]
        end = time.monotonic() + args.seconds
        for number in range(-2, args.rounds):
            if number > 5 and time.monotonic() > end:
                break
            tokens = [chance.randrange(model.n_vocab) for _ in range(TURN)]
            for place in range(3):
                which = (place + number) % 3
                ns = turn(sessions[which], tokens)
                if number >= 0:
                    taken[which].append(ns)
        found = sessions[1].timeline()
        per_token = (found.n_events + found.n_lost) / (TURN * (len(taken[1]) + 2))
    without, recorded, second = taken
    spread = 100 * statistics.stdev(without) / statistics.fmean(without)
    print(f"without: {statistics.median(without) / 1e6:.3f} ms a token, spread {spread:.1f} % (sd / mean)")
    print(judge("with / without", without, recorded))
    print(judge("with / without, second", second, recorded))
    print(judge("A/A: without / without", without, second))
    print(f"{per_token:.0f} events a token, of all threads")


if __name__ == "__main__":
    main()
