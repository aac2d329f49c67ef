"""What attention costs behind a long context: one session, decoding at one depth after the other.

    python -m tests.benchmarks.depth_cost MODEL.gguf [--depths 0,4096,16384] [--threads N] [--sparse]

Per depth: median time of a token, how much of it the first thread spends in attention blocks (q, k, v,
scores, sums over values, output; its counters say so), and how fast keys and values were read in what that is
more than at the first depth. Speeds only: that attention computes the same at any depth is for sweeps, whose
runs are held against the scalar reference.
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path

from stbench.agent import sbr
from stbench.builds.build import find_library


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--depths", default="0,1024,4096,16384")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sparse", action="store_true", help="sparse FFN and lm_head")
    args = parser.parse_args()
    depths = sorted(int(word) for word in args.depths.split(","))
    library = sbr.load(str(find_library(args.library).path))
    options = {"sparse_ffn": args.sparse, "sparse_lm_head": args.sparse}
    chance = random.Random(0)
    print("depth    ms/token   attention ms   share   keys and values GB/s")
    with sbr.Model(library, str(args.model), "repack", **options) as model:
        session = sbr.Session(model, args.threads, n_ctx=depths[-1] + args.tokens, **options)
        first_ns = None
        for depth in depths:
            if depth > session.n_past:
                session.prefill([chance.randrange(model.n_vocab) for _ in range(depth - session.n_past)])
            session.reset_counters()
            times = session.decode([chance.randrange(model.n_vocab) for _ in range(args.tokens)]).times
            session.rewind(depth)
            token_ns = statistics.median(end - begin for begin, end in times)
            counters = session.counters()
            inside_ns = counters.ns_attention / args.tokens
            first_ns = inside_ns if first_ns is None else first_ns
            read = counters.kv_bytes_read / args.tokens
            rate = f"{read / (inside_ns - first_ns):.1f}" if inside_ns > first_ns else ""
            share = 100 * inside_ns / token_ns
            print(
                f"{depth:5} {token_ns / 1e6:11.2f} {inside_ns / 1e6:14.2f} {share:6.0f} % {rate:>12}",
                flush=True,
            )


if __name__ == "__main__":
    main()
