"""A column of a chunk of rows <-> bytes: small enough to keep, quick enough to read a million of them.

A column that says one thing is one value; numbers are stored as they lie in memory, whole ones in the fewest
bytes that hold them; texts are a list of the different ones and a number for each row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"

# Kinds: one value for all rows; floats; whole numbers (and booleans) of 1 to 8 bytes; texts.
CONSTANT, FLOATS, TEXTS = "constant", "floats", "texts"
_WHOLE = {f"whole{size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)}
_CODES = (np.dtype("<u1"), np.dtype("<u2"), np.dtype("<u4"))


class Damaged(ValueError):
    """Bytes that cannot be a column of so many rows."""


def encode(values: Sequence[Any], dtype: str) -> tuple[str, bytes]:
    """Kind and bytes of a column of the frame with that dtype (object: texts)."""
    if dtype == "object":
        return _texts([str(value) for value in values])
    if dtype == "float64":
        floats = np.asarray(values, dtype="<f8")
        if len(floats) and (np.isnan(floats).all() or (floats == floats[0]).all()):
            first = float(floats[0])
            return CONSTANT, json.dumps(None if math.isnan(first) else first).encode()
        return FLOATS, floats.tobytes()
    whole = np.asarray(values, dtype="<i8")
    if len(whole) and (whole == whole[0]).all():
        return CONSTANT, json.dumps(int(whole[0])).encode()
    for kind, narrow in _WHOLE.items():
        if len(whole) and np.iinfo(narrow).min <= whole.min() and whole.max() <= np.iinfo(narrow).max:
            return kind, whole.astype(narrow).tobytes()
    return "whole8", whole.tobytes()


def _texts(values: list[str]) -> tuple[str, bytes]:
    places: dict[str, int] = {}
    codes = [places.setdefault(value, len(places)) for value in values]
    if len(places) == 1:
        return CONSTANT, json.dumps(values[0]).encode()
    narrow = next(dtype for dtype in _CODES if len(places) - 1 <= np.iinfo(dtype).max)
    words = json.dumps(list(places), ensure_ascii=False).encode("utf-8", "surrogatepass")
    return TEXTS, len(words).to_bytes(4, "little") + words + np.asarray(codes, dtype=narrow).tobytes()


def decode(kind: str, data: bytes, rows: int, dtype: str) -> Array:
    """The inverse of :func:`encode`, an array of that dtype. Raises :class:`Damaged`."""
    try:
        found = _decode(kind, data, rows, dtype)
    except (ValueError, IndexError, OverflowError, TypeError, StopIteration) as error:
        raise Damaged(str(error)) from error
    if len(found) != rows:
        raise Damaged(f"{len(found)} values for {rows} rows")
    return found


def _decode(kind: str, data: bytes, rows: int, dtype: str) -> Array:
    if kind == CONSTANT:
        value = json.loads(data)
        return np.full(rows, math.nan if value is None else value, dtype=dtype)
    if kind == FLOATS:
        return np.frombuffer(data, dtype="<f8")
    if kind != TEXTS:
        return np.frombuffer(data, dtype=_WHOLE.get(kind, np.dtype("V0"))).astype(dtype)
    size = int.from_bytes(data[:4], "little")
    words = np.array(json.loads(data[4 : 4 + size].decode("utf-8", "surrogatepass")), dtype=object)
    narrow = next(dtype for dtype in _CODES if len(words) - 1 <= np.iinfo(dtype).max)
    codes = np.frombuffer(data[4 + size :], dtype=narrow)
    return np.asarray(words[codes], dtype=object)
