"""Rows that are too many for pandas: what :mod:`stbench.tables` asks of a frame, answered a column at a time.

A million records as a DataFrame take 4.8 GB, because each selection of rows copies a hundred columns, most of
them pointers to a few texts. :class:`Rows` keeps the columns once (:mod:`stbench.records.columnar`), and of a
selection only which rows it has: a column becomes a Series when it is asked for, and groups are made from
the numbers of texts. Whatever is not here is asked of a DataFrame of the same rows, which is right and slow.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd

from stbench.records.columnar import Array, Column, column_of

# What rows are grouped by: a column's name, or values for each row.
Key: TypeAlias = "str | pd.Series[Any]"

# Numbers of groups stay below this while columns are put together; int64 ends at twice that.
_LARGEST = 1 << 62


class Rows:
    """Some rows (``places``, in this order) of ``columns``, which have ``total`` rows."""

    def __init__(self, columns: Mapping[str, Column], places: Array, total: int) -> None:
        self._columns, self._places, self._total = columns, places, total

    def __len__(self) -> int:
        return len(self._places)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.frame(), name)

    @functools.cached_property
    def index(self) -> pd.Index[Any]:
        """Where the rows stand in the columns: the same row has the same place in every selection."""
        return pd.Index(self._places)

    @property
    def places(self) -> Array:
        """The same as an array."""
        return self._places

    def __getitem__(self, key: Any) -> Any:
        """A column by its name; or the rows for which a mask is true."""
        if isinstance(key, str):
            column = self._columns[key]
            # A dtype by its name is looked up each time, which takes as long as the rest.
            dtype = np.dtype(column.dtype)
            found = column.take(self._places)
            if dtype.kind == "O":
                return _Texts(found, self.index, dtype=dtype, name=key, copy=False).of(column, self._places)
            return pd.Series(found, self.index, dtype=dtype, name=key, copy=False)
        mask = np.asarray(key)
        if mask.dtype != bool and len(mask):
            return self.frame()[key]
        return self.at(np.flatnonzero(mask))

    def at(self, numbers: Array | slice) -> Rows:
        """The rows with these numbers, counted from 0."""
        return Rows(self._columns, self._places[numbers], self._total)

    @property
    def iloc(self) -> _Numbered:
        """``iloc[0]``: a row; ``iloc[:0]``: some of them."""
        return _Numbered(self)

    @property
    def loc(self) -> _Masked:
        """``loc[mask, name]``: a column of some rows."""
        return _Masked(self)

    def value(self, name: str, number: int) -> Any:
        """One value."""
        return self._columns[name].take(self._places[number : number + 1])[0]

    def assign(self, **columns: Any) -> Rows:
        """The same rows with other columns, each a value per row."""
        made = {}
        for name, values in columns.items():
            array = np.asarray(values)
            whole = np.zeros(self._total, dtype=array.dtype)
            whole[self._places] = array
            made[name] = column_of(whole, str(array.dtype))
        return Rows({**self._columns, **made}, self._places, self._total)

    def groupby(self, by: Key | Sequence[Key], *, sort: bool = True, dropna: bool = True) -> Groups:
        """As pandas groups, in the order of the keys."""
        assert sort
        return Groups(self, by, dropna=dropna)

    def reset_index(self, *, drop: bool) -> Rows:
        """The same rows: their places stay what they are."""
        assert drop
        return self

    def column(self, name: str) -> Column:
        """The whole column, of which these are some rows."""
        return self._columns[name]

    def frame(self) -> pd.DataFrame:
        """All columns of these rows, for few rows."""
        return pd.DataFrame({name: self[name] for name in self._columns}, self.index, copy=False)

    def as_frame(self) -> pd.DataFrame:
        """Itself, for functions that take a frame and do with it what stands above."""
        return cast(pd.DataFrame, self)


def joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of several frames, or of several :class:`Rows` of the same columns."""
    first = cast(Any, parts[0])
    if isinstance(first, Rows):
        places = [cast(Rows, part).places for part in parts]
        return Rows(first._columns, np.concatenate(places), first._total).as_frame()
    return pd.concat(parts)


class _Texts(pd.Series):
    """A column of texts that compares places in its words: a fifth of the table of a million rows went into
    comparing texts one by one. What is derived from it is a plain Series."""

    @property
    def _constructor(self) -> Any:
        return pd.Series

    def of(self, column: Column, places: Array) -> _Texts:
        """Itself, knowing which rows of which column it has."""
        object.__setattr__(self, "_source", (column, places))
        return self

    def __eq__(self, other: object) -> Any:
        if not isinstance(other, str):
            return pd.Series(self) == other
        column, places = self._source
        return pd.Series(column.equal(places, other), self.index, copy=False)

    def __ne__(self, other: object) -> Any:
        return ~(self == other) if isinstance(other, str) else pd.Series(self) != other

    def unique(self) -> Any:
        """As of any Series."""
        column, places = self._source
        return column.different(places)


class Groups:
    """Pairs of a key and its rows, which stay in their order."""

    def __init__(self, rows: Rows, by: Key | Sequence[Key], *, dropna: bool) -> None:
        self._alone = isinstance(by, (str, pd.Series))
        keys = cast("list[Key]", [by] if self._alone else list(cast("Sequence[Key]", by)))
        named = {f"\0{i}": key for i, key in enumerate(keys) if not isinstance(key, str)}
        rows = rows.assign(**named) if named else rows
        self._names = [key if isinstance(key, str) else f"\0{i}" for i, key in enumerate(keys)]
        if dropna:
            rows = self._without_nan(rows)
        self._rows = rows
        numbers = self._numbers()
        self._order = np.argsort(numbers, kind="stable")
        ordered = numbers[self._order]
        begins = np.flatnonzero(np.diff(ordered)) + 1
        self._edges = [0, *begins.tolist(), len(ordered)] if len(ordered) else [0]

    def _without_nan(self, rows: Rows) -> Rows:
        for name in self._names:
            column = rows.column(name)
            if column.dtype == "float64" and (nan := np.isnan(column.take(rows.places))).any():
                rows = rows.at(np.flatnonzero(~nan))
        return rows

    def _numbers(self) -> Array:
        """Equal where all keys are equal, and in their order."""
        numbers, below = np.zeros(len(self._rows), dtype=np.int64), 1
        for name in self._names:
            found = self._rows.column(name).ranks(self._rows.places)
            if found is None:
                continue
            ranks, n = found
            if below * n > _LARGEST:
                different, numbers = np.unique(numbers, return_inverse=True)
                below = len(different)
            numbers = numbers * n + ranks
            below *= n
        return numbers

    @property
    def ngroups(self) -> int:
        """How many there are."""
        return len(self._edges) - 1

    def __len__(self) -> int:
        return self.ngroups

    def __iter__(self) -> Iterator[tuple[Any, Rows]]:
        for begin, end in zip(self._edges, self._edges[1:], strict=False):
            part = self._rows.at(self._order[begin:end])
            key = tuple(part.value(name, 0) for name in self._names)
            yield (key[0] if self._alone else key), part


class _Numbered:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __getitem__(self, key: int | slice) -> Any:
        return self._rows.at(key) if isinstance(key, slice) else _One(self._rows, key)


class _One:
    """One row: its values by name."""

    def __init__(self, rows: Rows, number: int) -> None:
        if not 0 <= number < len(rows):
            raise IndexError(number)
        self._rows, self._number = rows, number

    def __getitem__(self, name: str) -> Any:
        return self._rows.value(name, self._number)


class _Masked:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __getitem__(self, key: tuple[Any, str]) -> Any:
        mask, name = key
        return self._rows[mask][name]
