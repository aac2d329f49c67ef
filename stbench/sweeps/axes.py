"""What may stand on an axis of a sweep, as typed or in YAML: ranges, switches, names, pairs, durations.

Problems are ValueErrors that complete "expected"; pydantic turns them into errors with file and line.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic

from stbench.devices.engine_names import parse_engines

MAX_VALUES = 1000

# The thread count of a case that a search settles, where others have a number.
AUTO_THREADS = -1

# The sparse FFN that the runtime chooses for each layer by measuring, where others are on or off.
AUTO_FFN: Literal["auto"] = "auto"


def parse_range(text: str, minimum: int = 0) -> list[int]:
    """``1,2``, ``1-4``, ``2-8+2`` (2 4 6 8), ``1-8*2`` (1 2 4 8). Raises ValueError that completes
    "expected"."""
    values: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9})(?:([+*])(\d{1,9}))?)?\s*", part)
        if match is None:
            raise ValueError("numbers or ranges such as 1,4, 1-8+1 or 1-8*2")
        first, last = int(match[1]), int(match[2] or match[1])
        sign, step = match[3] or "+", int(match[4] or 1)
        if first > last or step < (2 if sign == "*" else 1) or (sign == "*" and first == 0):
            raise ValueError("a range that goes up, such as 1-8+1 or 1-8*2")
        if first < minimum:
            raise ValueError(f"whole numbers from {minimum} up")
        while first <= last:
            values.append(first)
            first = first + step if sign == "+" else first * step
            if len(values) > MAX_VALUES:
                raise ValueError(f"at most {MAX_VALUES} values")
    return values


def _axis(value: Any, minimum: int) -> list[int]:
    items = value if isinstance(value, list) else [value]
    if not items:
        raise ValueError("at least one value")
    numbers: list[int] = []
    for item in items:
        if isinstance(item, str):
            numbers.extend(parse_range(item, minimum))
        elif type(item) is int and item >= minimum:
            numbers.append(item)
        else:
            raise ValueError(f"whole numbers from {minimum} up")
    return list(dict.fromkeys(numbers))


def _threads(value: Any) -> list[int]:
    """Thread counts; ``all``, as many as the device has CPUs, is 0, and ``auto`` is AUTO_THREADS."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    words = [item.strip() if isinstance(item, str) else item for item in items]
    if not words:
        raise ValueError("at least one value")
    if words == ["auto"]:
        return [AUTO_THREADS]
    if "auto" in words:
        raise ValueError("thread counts, all, or auto by itself")
    numbers = [n for word in words for n in ([0] if word == "all" else _axis(word, 1))]
    return list(dict.fromkeys(numbers))


def _switch(value: Any) -> list[bool]:
    """``on,off`` as typed; YAML reads a bare on or off as true or false."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    known = {"on": True, "off": False}
    words = [known.get(item.strip(), item) if isinstance(item, str) else item for item in items]
    if not words or not all(isinstance(word, bool) for word in words):
        raise ValueError("on, off or both")
    return list(dict.fromkeys(word for word in words if isinstance(word, bool)))


def _sparse_ffn(value: Any) -> list[bool | str]:
    """``on,off,auto`` as typed; auto lets the runtime choose for each layer."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    plain = [item for item in items if not (isinstance(item, str) and item.strip() == AUTO_FFN)]
    try:
        fixed = _switch(plain) if plain or not items else []
    except ValueError:
        raise ValueError("on, off, auto or several of them") from None
    return [*fixed, *([AUTO_FFN] if len(plain) < len(items) else [])]


def _names(value: Any) -> list[str]:
    """A comma list as typed, or a YAML list, whose items are taken as they are."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("a name or a list of names")
    return list(dict.fromkeys(names))


def _pairs(value: Any) -> list[tuple[int, int]]:
    """``48,256`` as typed, or ``[[48, 256]]`` in YAML."""
    try:
        if isinstance(value, str):
            value = [[int(n) for n in part.split(",")] for part in value.split(";")]
        if isinstance(value, list) and value and all(isinstance(n, int) for n in value):
            value = [value]
        pairs = [(p, g) for p, g in value]
    except (ValueError, TypeError):
        pairs = []
    if not pairs or not all(type(n) is int and n > 0 for pair in pairs for n in pair):
        raise ValueError("pairs of prompt and generated tokens, such as 39,256")
    return list(dict.fromkeys(pairs))


def _duration(value: Any) -> float:
    """Seconds, or ``90s``, ``15m``, ``2h``."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9:
        return float(value)
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smh]?)", value) if isinstance(value, str) else None
    if match is None or float(match[1]) == 0:
        raise ValueError("a duration such as 90s, 15m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


From0 = Annotated[list[int], pydantic.BeforeValidator(lambda value: _axis(value, 0))]
From1 = Annotated[list[int], pydantic.BeforeValidator(lambda value: _axis(value, 1))]
Threads = Annotated[list[int], pydantic.BeforeValidator(_threads)]
SparseFfn = Annotated[list[bool | Literal["auto"]], pydantic.BeforeValidator(_sparse_ffn)]
Switch = Annotated[list[bool], pydantic.BeforeValidator(_switch)]
Names = Annotated[list[str], pydantic.BeforeValidator(_names)]
Engines = Annotated[list[str], pydantic.BeforeValidator(parse_engines)]
Pairs = Annotated[list[tuple[int, int]], pydantic.BeforeValidator(_pairs)]
Duration = Annotated[float, pydantic.BeforeValidator(_duration)]
