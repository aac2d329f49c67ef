"""Options shared by the commands that run a model in this process."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from stbench.commands import add_library

if TYPE_CHECKING:
    from stbench.native import Switches


def add_session(parser: argparse.ArgumentParser) -> None:
    """``--threads``, ``--isa``, ``--library``."""
    parser.add_argument("-t", "--threads", type=int, default=0, metavar="N", help="threads (one per CPU)")
    parser.add_argument(
        "--isa", default="auto", help="instruction set; `stbench devices` lists this machine's (auto)"
    )
    add_library(parser)


def add_sparse(parser: argparse.ArgumentParser) -> None:
    """``--sparse-ffn``, ``--sparse-lm-head``, ``--lm-head-threshold``."""
    parser.add_argument(
        "--sparse-ffn", action="store_true", help="skip neurons whose ReLU output is zero (exact)"
    )
    parser.add_argument(
        "--sparse-lm-head", action="store_true", help="compute only the rows that the predictor keeps"
    )
    parser.add_argument(
        "--lm-head-threshold",
        type=float,
        default=0.0,
        metavar="X",
        help="keep rows with a score above X (0)",
    )


def switches(args: argparse.Namespace) -> Switches:
    """The session settings that were typed."""
    from stbench.native import Switches

    return Switches(args.threads, args.isa, args.sparse_ffn, args.sparse_lm_head, args.lm_head_threshold)
