"""``python -m stbench.pytest_plugin.measuring``: takes what ``stbench sweep`` takes, and only measures."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stbench.errors import DeviceError, Interrupted, StbenchError


def main(argv: Sequence[str]) -> int:
    """Runs the sweep and stores its records; what a test says of them is the test's business."""
    from stbench.campaigns.live import Live
    from stbench.cli import build_parser
    from stbench.commands._sweep_options import planned, sweep_of
    from stbench.commands.sweep import measure
    from stbench.console import stderr_console

    args = build_parser("sweep").parse_args(["sweep", *argv])
    try:
        sweep = sweep_of(args)
        with (
            Live(stderr_console(quiet=args.quiet)) as live,
            planned(
                args,
                sweep,
                args.campaign,
                lambda stage, done, total: live.step(stage, done, total),
                lease=True,
            ) as ready,
        ):
            ready.plan.check_room()
            outcome, records = measure(args, args.campaign, sweep, ready, live)
        if outcome.interrupted:
            raise Interrupted("interrupted")
        for device, why in outcome.lost.items():
            raise DeviceError(f"{device}: {why}")
        if not records:
            raise DeviceError(f"nothing ran: {outcome.stopped or 'no device has the model'}")
    except StbenchError as error:
        print(f"{error}" + (f"\ntry: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
