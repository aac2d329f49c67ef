"""A column of rows <-> bytes, and a whole column in little memory: small enough to keep a million records,
quick enough to read them again.

A column that says one thing is one value; numbers are stored as they lie in memory, whole ones in the fewest
bytes that hold them; texts are a list of the different ones and a number for each row.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

Array: TypeAlias = "npt.NDArray[Any]"
# Kind, bytes and number of rows of one chunk of a column.
Part: TypeAlias = "tuple[str, bytes, int]"

# Kinds: one value for all rows; floats; whole numbers (and booleans) of 1 to 8 bytes; texts.
CONSTANT, FLOATS, TEXTS = "constant", "floats", "texts"
_WHOLE = {f"whole{size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)}
_CODES = (np.dtype("<u1"), np.dtype("<u2"), np.dtype("<u4"))

# From so many different texts on, and a quarter of all rows, a table of them would be larger than themselves.
_MANY = 1 << 16


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
    narrow = _narrowest(whole)
    return f"whole{narrow.itemsize}", whole.astype(narrow).tobytes()


def _narrowest(whole: Array) -> np.dtype[Any]:
    low, high = (whole.min(), whole.max()) if len(whole) else (0, 0)
    return next(
        dtype for dtype in _WHOLE.values() if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max
    )


def _texts(values: list[str]) -> tuple[str, bytes]:
    places: dict[str, int] = {}
    codes = [places.setdefault(value, len(places)) for value in values]
    if len(places) == 1:
        return CONSTANT, json.dumps(values[0]).encode()
    words = json.dumps(list(places), ensure_ascii=False).encode("utf-8", "surrogatepass")
    codes_bytes = np.asarray(codes, dtype=_code_type(len(places))).tobytes()
    return TEXTS, len(words).to_bytes(4, "little") + words + codes_bytes


def _code_type(words: int) -> np.dtype[Any]:
    return next(dtype for dtype in _CODES if words - 1 <= np.iinfo(dtype).max)


@dataclass(frozen=True)
class Column:
    """All values of a column: as they are, as places in ``words``, or (``constant``) one for every row."""

    dtype: str
    values: Array
    words: Array | None = None
    constant: bool = False

    def take(self, places: Array) -> Array:
        """The values of these rows, an array of the column's dtype."""
        if self.constant:
            return np.full(len(places), self.values[0], dtype=self.dtype)
        found = self.values[places]
        if self.words is not None:
            return np.asarray(self.words[found], dtype=object)
        return np.asarray(found.astype(self.dtype, copy=False))

    def equal(self, places: Array, text: str) -> Array:
        """Of a column of texts: which of these rows have this one."""
        if self.constant:
            return np.full(len(places), bool(self.values[0] == text))
        if self.words is None:
            return np.asarray(self.values[places] == text, dtype=bool)
        found = np.flatnonzero(self.words == text)
        return np.isin(self.values[places], found) if len(found) else np.zeros(len(places), dtype=bool)

    def different(self, places: Array) -> Array:
        """What values these rows have, in any order."""
        if self.constant:
            return self.take(places[:1])
        if self.words is None:
            return np.asarray(pd.unique(self.values[places]))
        return np.asarray(self.words[pd.unique(self.values[places])], dtype=object)

    def ranks(self, places: Array) -> tuple[Array, int] | None:
        """For each of these rows a number in the order of values (NaN last), and what all are below; None
        where all have one value."""
        if self.constant:
            return None
        found = self.values[places]
        if self.words is not None:
            return self._order[found], len(self.words)
        if self.dtype == "object":
            codes, different = pd.factorize(found, sort=True)
        else:
            different, codes = np.unique(found, return_inverse=True)
        return np.asarray(codes), len(different)

    @functools.cached_property
    def _order(self) -> Array:
        assert self.words is not None
        ranks = np.empty(len(self.words), dtype=np.int64)
        ranks[np.argsort(self.words)] = np.arange(len(self.words))
        return ranks


def column_of(values: Array, dtype: str) -> Column:
    """A column of values that were computed."""
    return Column(dtype, np.asarray(values, dtype=dtype))


def assemble(parts: Sequence[Part], dtype: str) -> Column:
    """The inverse of :func:`encode` for a column in several parts. Raises :class:`Damaged`."""
    try:
        return _assemble(parts, dtype)
    except (ValueError, IndexError, OverflowError, TypeError, StopIteration) as error:
        raise Damaged(str(error)) from error


def _assemble(parts: Sequence[Part], dtype: str) -> Column:
    if not parts:
        return column_of(np.empty(0), dtype)
    if len({(kind, data) for kind, data, _ in parts}) == 1 and parts[0][0] == CONSTANT:
        return Column(dtype, _constant(parts[0][1], 1, dtype), constant=True)
    if dtype == "object":
        return _assembled_texts(parts)
    found = [_numbers(kind, data, rows, dtype) for kind, data, rows in parts]
    return Column(dtype, found[0] if len(found) == 1 else np.concatenate(found))


def _constant(data: bytes, rows: int, dtype: str) -> Array:
    value = json.loads(data)
    return np.full(rows, math.nan if value is None else value, dtype=dtype)


def _numbers(kind: str, data: bytes, rows: int, dtype: str) -> Array:
    if kind == CONSTANT:
        found = _constant(data, rows, "float64" if dtype == "float64" else "int64")
        found = found if dtype == "float64" else found.astype(_narrowest(found))
    elif (kind == FLOATS) != (dtype == "float64"):
        raise Damaged(f"{kind} for {dtype}")
    else:
        found = np.frombuffer(data, dtype="<f8" if kind == FLOATS else _WHOLE.get(kind, np.dtype("V0")))
    return _as_many(found, rows)


def _as_many(found: Array, rows: int) -> Array:
    if len(found) != rows:
        raise Damaged(f"{len(found)} values for {rows} rows")
    return found


def _assembled_texts(parts: Sequence[Part]) -> Column:
    found = [_words(kind, data, rows) for kind, data, rows in parts]
    total = sum(rows for _, _, rows in parts)
    if sum(len(words) for words, _ in found) > max(_MANY, total // 4):
        return Column(
            "object", np.concatenate([np.array(words, dtype=object)[codes] for words, codes in found])
        )
    places: dict[str, int] = {}
    codes = np.empty(total, dtype=np.int32)
    begin = 0
    for words, own in found:
        known = np.array([places.setdefault(word, len(places)) for word in words], dtype=np.int32)
        codes[begin : begin + len(own)] = known[own]
        begin += len(own)
    return Column("object", codes.astype(_code_type(len(places))), np.array(list(places), dtype=object))


def _words(kind: str, data: bytes, rows: int) -> tuple[list[str], Array]:
    """The different texts of a part, and for each row the place of its own."""
    if kind == CONSTANT:
        words, codes = [json.loads(data)], np.zeros(rows, dtype=np.uint8)
    elif kind == TEXTS:
        size = int.from_bytes(data[:4], "little")
        words = json.loads(data[4 : 4 + size].decode("utf-8", "surrogatepass"))
        codes = np.frombuffer(data[4 + size :], dtype=_code_type(len(words)))
    else:
        raise Damaged(f"{kind} for texts")
    if set(map(type, words)) - {str}:
        raise Damaged("not all of its texts are texts")
    return words, _as_many(codes, rows)
