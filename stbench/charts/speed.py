"""SmallThinker against Qwen3 and Gemma 3n: the decode speed of every device, published numbers beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from stbench.charts.bars import Bar, Group, bar_colours, bar_figure, caption_lines
from stbench.charts.kinds import Drawn, Kind, Request
from stbench.charts.style import RC, THEMES, legible
from stbench.tables import render
from stbench.tables.grid import build_tables
from stbench.tables.table import MEANINGS, Table

UNIT = "decode speed, tokens/s"
# Texts of measured cells that rest on no record.
_NOTHING = ("", "—", "not run")


def speed_figure(
    cells: pd.DataFrame,
    title: str,
    theme: str = "light",
    profiles: Sequence[str] = (),
    ratio_to: Mapping[str, str] | None = None,
) -> Figure:
    """Decode speed of every device, one group of bars per device: measured solid with interval or range,
    published as outlines, around the bars of the very device where that was measured. ``cells`` is
    :func:`stbench.tables.render.tidy` of one table, ``profiles`` are that table's, for the caption; ``theme``
    is a key of :data:`THEMES`; ``ratio_to`` says which published device a measured one is. Rows that no
    device measured are left out, unless nothing was measured at all."""
    colours = THEMES[theme]
    measured = cells[cells["role"] == "speed"]
    published = cells[cells["role"] == "published"]
    shown = set(measured.loc[~measured["text"].isin(_NOTHING), "row"])
    rows = [row for row in _rows(cells) if row["row"] in shown or not shown]
    left_out = [row["label"] for row in _rows(cells) if row["row"] not in shown] if shown else []
    families = [row["row"].startswith("smallthinker") for row in rows]
    palette = {
        row["row"]: colour for row, colour in zip(rows, bar_colours(families, colours.blue), strict=True)
    }
    theirs = {str(column["device"].iloc[0]): column for _, column in published.groupby("column", sort=False)}
    groups, beside = [], set()
    for _, column in measured.groupby("column", sort=False):
        device = str(column["device"].iloc[0])
        known = (ratio_to or {}).get(device, device)
        beside.add(known)
        groups.append(_group(rows, palette, column, bool(shown), theirs.get(known)))
    beside &= set(theirs)
    groups += [_published_group(rows, palette, column) for key, column in theirs.items() if key not in beside]
    captions = caption_lines(_captions(measured, left_out, profiles, bool(beside)))
    with matplotlib.rc_context(RC):
        return bar_figure(groups, title, captions, UNIT, colours)


def speed_alt(table: Table) -> str:
    """What :func:`speed_figure` of this table shows."""
    parts = []
    for column in table.speed_columns():
        shown = [
            f"{legible(table.full_label(row), 60)} {row.cells[column.key].text}"
            for row in table.rows
            if row.cells[column.key].value is not None
        ]
        if shown:
            parts.append(f"{legible(column.header.partition(chr(10))[0], 40)}: " + ", ".join(shown) + ".")
    published = len([column for column in table.columns if column.role == "published"])
    parts.append(f"Outlined bars beside them: the published numbers of {published} devices.")
    return f"Bars: {table.title}. " + " ".join(parts)


def _draw(request: Request) -> list[Drawn]:
    out = []
    for table in build_tables(request.results.records, request.ratio_to):
        measured = any(
            row.cells[column.key].text not in _NOTHING
            for row in table.rows
            for column in table.speed_columns()
        )
        if not measured or not any(column.role == "published" for column in table.columns):
            continue
        figure = speed_figure(
            render.tidy([table]), table.title, request.theme, table.profiles, request.ratio_to
        )
        name = "speed" if table.key == "4B" else f"speed-{table.key.lower()}"
        out.append(Drawn(name, KIND.name, table.title, speed_alt(table), figure))
    return out


KIND = Kind(
    "speed",
    "SmallThinker against Qwen3 and Gemma 3n, measured and published, per device",
    "decode speeds of models of the published tables",
    "stbench sweep --preset published-4b",
    _draw,
)


def _rows(cells: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {"row": str(row), "label": str(group["label"].iloc[0]), "parent": str(group["parent"].iloc[0])}
        for row, group in cells.groupby("row", sort=False)
    ]


def _group(
    rows: Sequence[Mapping[str, str]],
    palette: Mapping[str, str],
    column: pd.DataFrame,
    measured_only: bool,
    published: pd.DataFrame | None,
) -> Group:
    """A measured device; ``published`` is its own published column. ``measured_only``: without rows that it
    neither ran nor was published with."""
    by_row = {str(cell["row"]): cell for _, cell in column.iterrows()}
    theirs = {} if published is None else dict(zip(published["row"], published["value"], strict=True))
    bars = []
    for row in rows:
        cell, beside = by_row.get(row["row"]), _number(theirs.get(row["row"]))
        if cell is None or (measured_only and beside is None and str(cell["text"]) in _NOTHING):
            continue
        text = f"{cell['text']} {cell['marks']}".strip()
        value, low, high = (_number(cell[name]) for name in ("value", "low", "high"))
        bars.append(Bar(_bar_label(row), palette[row["row"]], value, low, high, text, True, beside))
    return Group(f"{_header(column)} (measured)", bars)


def _published_group(
    rows: Sequence[Mapping[str, str]], palette: Mapping[str, str], column: pd.DataFrame
) -> Group:
    by_row = {str(cell["row"]): cell for _, cell in column.iterrows()}
    bars = []
    for row in rows:
        cell = by_row.get(row["row"])
        value = None if cell is None else _number(cell["value"])
        if cell is not None and value is not None:
            colour = palette[row["row"]]
            bars.append(Bar(_bar_label(row), colour, value, None, None, str(cell["text"]), False))
    return Group(_header(column), bars)


def _header(column: pd.DataFrame) -> str:
    return str(column["header"].iloc[0]).removesuffix(" tokens/s")


def _bar_label(row: Mapping[str, str]) -> str:
    return _short(row["label"]) if not row["parent"] else f"  {row['label']}"


def _short(label: str) -> str:
    if "+" in label and label.endswith("limited memory"):
        return label.partition("+")[0] + ", limited memory"
    return label.replace("B+", "B +")


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def _captions(
    measured: pd.DataFrame, left_out: Sequence[str], profiles: Sequence[str], beside: bool
) -> list[str]:
    lines = []
    if measured["value"].notna().any():
        kinds = {str(kind) for kind in measured["kind"] if kind}
        whisker = {
            frozenset({"interval"}): "line: interval of the median",
            frozenset({"range"}): "line: range of the replicates, no interval",
        }.get(frozenset(kinds), "line: interval of the median, or range where marked r")
        dashed = " Dashed around a measured bar: published of that very device." if beside else ""
        lines.append(f"Solid: measured, {whisker}. Outlined: published.{dashed}")
    else:
        lines.append("Outlined: published. Nothing measured.")
    drawn = set("".join(measured.loc[~measured["text"].isin(_NOTHING), "marks"]))
    lines += [f"{mark}  {meaning}" for mark, meaning in MEANINGS.items() if mark in drawn]
    lines += [legible(sentence, 600).replace(" %", "\u00a0%") for sentence in profiles]
    if left_out:
        lines.append("Not measured, left out: " + "; ".join(left_out) + ".")
    return lines
