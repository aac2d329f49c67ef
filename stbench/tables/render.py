"""A Table as rich terminal table, Markdown, CSV or JSON (HTML and LaTeX have their own modules). Marks go
with their meanings."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from stbench.tables.proof import proof
from stbench.tables.table import Cell, Column, Row, Table

SCHEMA = 1

# Columns of the tidy form. value, low and high are in ``unit``.
TIDY = (
    "table",
    "row",
    "label",
    "parent",
    "column",
    "header",
    "role",
    "device",
    "unit",
    "text",
    "marks",
    "value",
    "low",
    "high",
    "kind",
    "n",
    "coverage",
    "synthetic",
    "profile",
    "peak_rss_bytes",
    "output_hash",
)

# Labels are folded down to this.
LABEL_WIDTH = 20

_EMPTY = Cell()


def markdown(tables: Iterable[Table]) -> str:
    """GitHub Markdown: the tables with legend, notes and a list of proofs, ending in a newline."""
    return "\n".join(_markdown_table(table) for table in tables)


def tidy(tables: Iterable[Table]) -> pd.DataFrame:
    """One row per cell, numbers unrounded: what the CSV holds and what the charts draw."""
    rows = []
    for table in tables:
        for row in table.rows:
            for column in table.columns:
                if column.role != "label":
                    rows.append(_tidy_row(table, row, column, row.cells.get(column.key, _EMPTY)))
    return pd.DataFrame(rows, columns=list(TIDY))


def csv_text(tables: Iterable[Table]) -> str:
    """:func:`tidy` as CSV; the meaning of the marks and the other notes are in the other renderings."""
    return str(tidy(tables).to_csv(index=False, lineterminator="\n"))


def json_data(tables: Iterable[Table]) -> dict[str, Any]:
    """The tables with the whole proof of every cell, JSON-ready."""
    return {"schema": SCHEMA, "tables": [_json_table(table) for table in tables]}


def json_text(tables: Iterable[Table]) -> str:
    """:func:`json_data` as indented text ending in a newline."""
    return json.dumps(json_data(tables), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def print_rich(table: Table, console: Console) -> None:
    """Prints a table. Where it does not fit into the console, it is split by columns: measured ones first,
    the columns of a device together where they fit, then the published ones."""
    if _fits(table, list(table.columns), console):
        console.print(_rich_table(table.title, table.columns, table.rows))
    else:
        published = [row for row in table.rows if not row.parent]
        theirs = [[column] for column in table.columns if column.role == "published"]
        for suffix, groups, rows in (
            ("measured", _device_groups(table), table.rows),
            ("published", theirs, published),
        ):
            title = f"{table.title} ({suffix})" if theirs else table.title
            for columns in _blocks(table, groups, console):
                console.print(_rich_table(title, columns, rows, narrow=True))
    for mark, meaning in table.legend():
        _print_hanging(console, f"{mark}  ", meaning)
    for sentence in [*table.intervals(), *table.notes]:
        _print_hanging(console, "-  ", sentence)
    console.print()


def _device_groups(table: Table) -> list[list[Column]]:
    """The measured columns, those of one device and engine together; the memory column leads the first."""
    groups: list[list[Column]] = [[]]
    for column in table.columns:
        if column.role in ("label", "published"):
            continue
        if column.role == "speed" and any(other.role == "speed" for other in groups[-1]):
            groups.append([])
        groups[-1].append(column)
    return [group for group in groups if any(column.role == "speed" for column in group)]


def _blocks(table: Table, groups: Sequence[Sequence[Column]], console: Console) -> list[list[Column]]:
    """As many groups side by side as fit, each block behind the row labels; a group too wide is split."""
    label = table.columns[0]
    units: list[list[Column]] = []
    for group in groups:
        fits = _fits(table, [label, *group], console, narrow=True)
        units += [list(group)] if fits else [[column] for column in group]
    blocks: list[list[Column]] = []
    for unit in units:
        if blocks and _fits(table, [*blocks[-1], *unit], console, narrow=True):
            blocks[-1] += unit
        else:
            blocks.append([label, *unit])
    return blocks


def _fits(table: Table, columns: Sequence[Column], console: Console, narrow: bool = False) -> bool:
    """Whether no cell has to be cut. Renders at the least width: what rich measures is not exact."""
    made = _rich_table("", columns, table.rows, narrow)
    made.columns[0].width = LABEL_WIDTH
    lines = console.render_lines(made, console.options.update(max_width=10_000), pad=False)
    return max(sum(segment.cell_length for segment in line) for line in lines) <= console.width


def _print_hanging(console: Console, mark: str, sentence: str) -> None:
    lines = Text(sentence, style="dim").wrap(console, max(console.width - 3, 20))
    for i, line in enumerate(lines):
        console.print(Text(mark if i == 0 else "   ", style="dim") + line)


def _rich_table(
    title: str, columns: Sequence[Column], rows: Sequence[Row], narrow: bool = False
) -> RichTable:
    out = RichTable(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        label = column.role == "label"
        text = column.role in ("label", "memory")
        header = column.header.replace(" ", "\n") if narrow and column.role == "published" else column.header
        parts = [*header.splitlines(), *(row.cells.get(column.key, _EMPTY).shown for row in rows)]
        if narrow and text:
            parts = [word for part in parts for word in part.split()]
        out.add_column(
            Text(header),
            justify="left" if text else "right",
            style={"published": "dim", "speed": "bold"}.get(column.role, ""),
            overflow="fold",
            # Only labels give way when space is short.
            width=None if label else max(map(cell_len, parts)),
            min_width=LABEL_WIDTH if label else None,
        )
    for row in rows:
        out.add_row(*(_rich_cell(row, column) for column in columns))
    return out


def _rich_cell(row: Row, column: Column) -> Text:
    if column.role == "label":
        return Text(f"  {row.label}" if row.parent else row.label)
    return Text(row.cells.get(column.key, _EMPTY).shown)


def _tidy_row(table: Table, row: Row, column: Column, cell: Cell) -> list[Any]:
    return [
        table.key,
        row.key,
        row.label,
        row.parent,
        column.key,
        _flat(column.header),
        column.role,
        column.device,
        column.unit,
        cell.text,
        "".join(cell.marks),
        cell.value,
        cell.low,
        cell.high,
        cell.kind,
        cell.n,
        cell.coverage,
        bool(cell.details.get("synthetic", False)),
        "; ".join(cell.details.get("profile", [])),
        cell.details.get("peak_rss_bytes"),
        " ".join(cell.details.get("output_hash", [])),
    ]


def _flat(header: str) -> str:
    return header.replace("\n", " ")


def _json_table(table: Table) -> dict[str, Any]:
    rows = []
    for row in table.rows:
        cells = {key: dataclasses.asdict(cell) for key, cell in row.cells.items() if cell != _EMPTY}
        rows.append({"key": row.key, "label": row.label, "parent": row.parent, "cells": cells})
    return {
        "key": table.key,
        "title": table.title,
        "columns": [dataclasses.asdict(column) for column in table.columns],
        "rows": rows,
        "legend": [{"mark": mark, "meaning": meaning} for mark, meaning in table.legend()],
        "intervals": table.intervals(),
        "notes": list(table.notes),
        "selection": list(table.selection),
    }


def _markdown_table(table: Table) -> str:
    columns = table.telling_columns()
    lines = [f"### {_escape(table.title)}", ""]
    header = ["<br>".join(map(_escape, _header_lines(columns, i))) for i in range(len(columns))]
    rule = ["---" if column.role in ("label", "memory") else "--:" for column in columns]
    body = [[_markdown_cell(row, column) for column in columns] for row in table.rows]
    lines += [_line(cells) for cells in (header, rule, *body)]
    marks = [f"{_escape(mark)} {_escape(meaning)}" for mark, meaning in table.legend()]
    if marks:
        lines += ["", "<br>".join(marks)]
    said = [*table.intervals(), *table.first_notes()]
    if said:
        lines += ["", *(f"- {_escape(sentence)}" for sentence in said)]
    header, proofs = proof(table)
    folded = [f"- {_escape(sentence)}" for sentence in table.fine_print]
    if proofs or folded:
        lines += ["", "<details><summary>What each number rests on</summary>", ""]
        if proofs:
            lines += [_line(header), _line(["---"] * len(header))]
            lines += [_line([_escape(text) for text in texts]) for texts in proofs]
        if folded:
            lines += [*([""] if proofs else []), *folded]
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def _header_lines(columns: Sequence[Column], i: int) -> list[str]:
    """The header's lines; what follows a speed of the same device does not name it again."""
    lines = columns[i].header.splitlines()
    derived = columns[i].role in ("ratio", "limit", "rss")
    named = derived and i > 0 and columns[i - 1].header.splitlines()[0] == lines[0]
    return lines[1:] if named and len(lines) > 1 else lines


def _markdown_cell(row: Row, column: Column) -> str:
    if column.role == "label":
        return f"&nbsp;&nbsp;{_escape(row.label)}" if row.parent else _escape(row.label)
    cell = row.cells.get(column.key, _EMPTY)
    text = _escape(cell.text)
    if column.role == "speed" and cell.value is not None:
        median, _, rest = text.partition(" ")
        text = f"**{median}** {rest}".rstrip()
    return " ".join([text, *([_escape("".join(cell.marks))] if cell.marks else [])]).strip()


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    """Text as data inside Markdown: no HTML, no table bars, no emphasis, no code, no links."""
    out = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    out = re.sub(r"([\\|*`~])", r"\\\1", out)
    out = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", out)
    return " ".join(re.sub(r"\]([(:\[])", r"]\\\1", out).split())
