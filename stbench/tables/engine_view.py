"""Tables by engine: one engine alone, or of every device and row the fastest, named in its cell.

Engines are columns and are never averaged. The fastest view puts the columns of one device together and takes
each row from one of them as a whole, its ratios and its memory with its speed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from stbench import yamlfile
from stbench.agent.wire import RunRecord
from stbench.errors import UsageError
from stbench.tables.table import Cell, Column, Row, Table
from stbench.wording import clean

ALL = "all"
FASTEST = "fastest"

_MEASURED = "measured:"


def of_engine(records: Sequence[RunRecord], engine: str) -> list[RunRecord]:
    """The records of one engine; all of them for "all" and "fastest". Raises :class:`UsageError` for an
    engine without records."""
    if engine in (ALL, FASTEST):
        return list(records)
    _known(engine, {record.engine for record in records})
    return [record for record in records if record.engine == engine]


def rows_of_engine(frame: pd.DataFrame, engine: str) -> pd.DataFrame:
    """:func:`of_engine` of the frame's rows."""
    if engine in (ALL, FASTEST):
        return frame
    _known(engine, set(frame["engine"]))
    return frame[frame["engine"] == engine].reset_index(drop=True)


def _known(engine: str, engines: Collection[str]) -> None:
    if engine not in engines:
        raise UsageError(
            f"--engine: {yamlfile.unknown_name('engine', engine, sorted(engines))}",
            hint="all gives each engine a column, fastest takes of each row the fastest",
        )


def fastest(tables: Sequence[Table]) -> list[Table]:
    """The tables with the measured columns of each device put together; others as they are."""
    return [_fastest(table) for table in tables]


def _fastest(table: Table) -> Table:
    # Device -> engine -> the key of its speed column.
    speeds: dict[str, dict[str, str]] = {}
    for column in table.columns:
        if column.key.startswith(_MEASURED):
            _, device, engine = column.key.split(":", 2)
            speeds.setdefault(device, {})[engine] = column.key
    several = {device: engines for device, engines in speeds.items() if len(engines) > 1}
    if not several:
        return table
    rows = table.rows
    for engines in several.values():
        rows = tuple(_with_fastest(row, engines) for row in rows)
    columns = tuple(made for column in table.columns if (made := _column(column, several)) is not None)
    said = "Each speed is of the engine that is named with it, the fastest of its row; none is averaged."
    return replace(table, columns=columns, rows=rows, notes=(*table.notes, said))


def _column(column: Column, several: Mapping[str, Mapping[str, str]]) -> Column | None:
    """The column under its device's name; None for those of its engines but the first."""
    for engines in several.values():
        for number, (engine, key) in enumerate(engines.items()):
            if column.key.endswith(key):
                header = column.header.replace(f" ({clean(engine, 20)})", " (fastest)", 1)
                return replace(column, header=header) if number == 0 else None
    return column


def _with_fastest(row: Row, engines: Mapping[str, str]) -> Row:
    """The row with the cells of its fastest engine under the keys of the first."""
    (_, first), *_ = engines.items()
    best = max(engines, key=lambda engine: _speed(row.cells.get(engines[engine])))
    cells = dict(row.cells)
    for key in row.cells:
        if key.endswith(first):
            source = key[: -len(first)] + engines[best]
            cells[key] = row.cells.get(source, Cell())
    speed = cells.get(first, Cell())
    if speed.value is not None:
        details = {**speed.details, "engine": best}
        cells[first] = replace(speed, text=f"{speed.text} {clean(best, 20)}", details=details)
    for key in list(cells):
        if any(key.endswith(other) for other in engines.values() if other != first):
            del cells[key]
    return replace(row, cells=cells)


def _speed(cell: Cell | None) -> float:
    return cell.value if cell is not None and cell.value is not None else -1.0
