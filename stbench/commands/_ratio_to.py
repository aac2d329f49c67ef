"""``--ratio-to``: which published device a measured one is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from stbench.errors import UsageError


def add_ratio_to(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Adds the option; ``purpose`` ends "say which published device a measured one is, ..."."""
    parser.add_argument(
        "--ratio-to",
        action="append",
        default=[],
        metavar="DEVICE=PUBLISHED",
        help=f"say which published device a measured one is, {purpose}",
    )


def published_pairs(items: Sequence[str]) -> dict[str, str]:
    """``DEVICE=PUBLISHED`` as typed -> measured device and published one. Raises :class:`UsageError`."""
    from stbench.tables.published import published_tables

    known = sorted({device.key for table in published_tables() for device in table.devices})
    pairs = {}
    for item in items:
        device, equals, published = item.partition("=")
        if not device or not equals or published not in known:
            raise UsageError(
                f"--ratio-to {item}: expected DEVICE=PUBLISHED with a published device: {', '.join(known)}",
                hint="--ratio-to pi=raspberry-pi-5",
            )
        pairs[device] = published
    return pairs
