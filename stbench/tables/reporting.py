"""Records -> files: the tables as Markdown, CSV and JSON, and the chart; each written atomically."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stbench.agent.wire import RunRecord
from stbench.atomic import write_atomically
from stbench.charts.kinds import file_stem
from stbench.charts.speed import speed_figure
from stbench.charts.style import THEMES, png_bytes, svg_bytes
from stbench.tables import render
from stbench.tables.grid import build_tables
from stbench.tables.table import Table


def write_reports(
    records: Iterable[RunRecord], out_dir: Path, ratio_to: Mapping[str, str] | None = None
) -> list[Path]:
    """Writes table.md, table.csv, table.json, speed.svg and speed.png, and the chart once more for dark pages
    (speed-dark.svg, speed-dark.png). Returns their paths. The same records give the same bytes.

    Creates ``out_dir``; every file appears complete or not at all. Raises OSError.
    """
    return write_tables(build_tables(records, ratio_to), out_dir, ratio_to)


def write_tables(
    tables: Sequence[Table], out_dir: Path, ratio_to: Mapping[str, str] | None = None
) -> list[Path]:
    """:func:`write_reports` of tables that are made already."""
    files: dict[str, bytes] = {
        "table.md": render.markdown(tables).encode(),
        "table.csv": render.csv_text(tables).encode(),
        "table.json": render.json_text(tables).encode(),
    }
    cells, title = render.tidy(tables[:1]), tables[0].title
    for theme in THEMES:
        stem = file_stem("speed", theme)
        figure = speed_figure(cells, title, theme, tables[0].profiles, ratio_to)
        files[f"{stem}.svg"] = svg_bytes(figure)
        files[f"{stem}.png"] = png_bytes(figure)
    out_dir.mkdir(parents=True, exist_ok=True)
    return [write_atomically(out_dir / name, data) for name, data in files.items()]
