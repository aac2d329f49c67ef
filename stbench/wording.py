"""Words and numbers as people read them, in tables, messages and pages."""

from collections.abc import Iterable


def clean(text: str, limit: int = 200) -> str:
    """Text that came from a device, on one line, without control or direction characters, at most ``limit``
    characters long."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 4 * limit])
    flat = " ".join(printable.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def case_label(label: object) -> str:
    """A case's label as verdicts and findings have it. Whole: what names a case in a finding finds
    it again, and a file name, a device's name and all axes together are shorter than this."""
    return clean(str(label), 500)


def number(value: float) -> str:
    """As the published tables write speeds: two decimals, one from 100 up."""
    return f"{value:.1f}" if value >= 99.995 else f"{value:.2f}"


def count(n: int, noun: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def nearest(word: str, known: Iterable[str]) -> str:
    """The name in ``known`` that ``word`` most likely meant; "" where none is near."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), "")
