"""Stored records of a published row, taken as the grid takes them."""

from __future__ import annotations

from collections.abc import Sequence

from stbench.agent.wire import RunRecord
from stbench.errors import InputError
from stbench.reproduction.published_cells import PublishedCell
from stbench.tables.grid import build_tables


def records_of_cell(
    cell: PublishedCell, records: Sequence[RunRecord], source: str, device: str
) -> list[RunRecord]:
    """The records behind the grid's cell of that row, of ``device``; of several engines those of the first
    column. Raises :class:`InputError` where the grid has none."""
    by_id = {record.id: record for record in records if record.device == device}
    for table in build_tables(by_id.values()):
        if table.key != cell.table:
            continue
        row = next(row for row in table.rows if row.key == cell.row.key)
        for column in table.speed_columns():
            found = row.cells[column.key].details.get("records", []) if column.key in row.cells else []
            if found:
                return [by_id[one] for one in found]
    raise InputError(
        f"{source}: no finished run of {cell.row.label} on {device}",
        hint="without --from it is measured; --device NAME chooses the device",
    )
