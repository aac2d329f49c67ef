"""Numbers of a record as short texts. Everything in a record may be wrong: what is no finite number is shown
as it came, or as nothing."""

from __future__ import annotations

import math

from stbench.wording import clean

# A text of a record in the page: long enough for a label or a reason.
LIMIT = 240


def text(value: object) -> str:
    """A text of a record, on one line and not longer than :data:`LIMIT`; "" for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of over 30 digits"
    return clean(str(value), LIMIT)


def decimal(value: float | int | None, digits: int = 2, unit: float = 1) -> str:
    """A number in ``unit``, with ``digits`` decimals; "" for what is none."""
    number = finite(value)
    if number is None:
        return ""
    number /= unit
    return f"{number:.{digits}f}" if abs(number) < 1e12 else f"{number:.3g}"


def mib(value: float | int | None) -> str:
    """Bytes as MiB, or GiB from 10 GiB up."""
    number = finite(value)
    if number is None:
        return ""
    return f"{decimal(number, 1, 2**30)} GiB" if number >= 10 * 2**30 else f"{decimal(number, 1, 2**20)} MiB"


def rate(n_bytes: int, ns: int) -> str:
    """Bytes in nanoseconds as GB/s."""
    known = finite(n_bytes), finite(ns)
    return f"{known[0] / known[1]:.2f} GB/s" if known[0] is not None and known[1] else ""


def finite(value: float | int | None) -> float | None:
    """The value where it is a number that can be shown."""
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def moment(started_at: str) -> str:
    """``2026-01-31T12:00:00.123Z`` as ``2026-01-31 12:00:00``."""
    return clean(started_at[:19].replace("T", " "), 19)
