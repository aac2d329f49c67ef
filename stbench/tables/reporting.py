"""Records -> files: the tables as Markdown, CSV and JSON, and the chart; each written atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from stbench.agent.wire import RunRecord
from stbench.tables import charts, render
from stbench.tables.grid import build_tables


def write_reports(
    records: Iterable[RunRecord], out_dir: Path, ratio_to: Mapping[str, str] | None = None
) -> list[Path]:
    """Writes table.md, table.csv, table.json, speed.svg and speed.png, and the chart once more for dark pages
    (speed-dark.svg, speed-dark.png). Returns their paths. The same records give the same bytes.

    Creates ``out_dir``; every file appears complete or not at all. Raises OSError.
    """
    tables = build_tables(records, ratio_to)
    files: dict[str, bytes] = {
        "table.md": render.markdown(tables).encode(),
        "table.csv": render.csv_text(tables).encode(),
        "table.json": render.json_text(tables).encode(),
    }
    cells, title = render.tidy(tables[:1]), tables[0].title
    for theme, suffix in (("light", ""), ("dark", "-dark")):
        figure = charts.speed_figure(cells, title, theme, tables[0].profiles)
        files[f"speed{suffix}.svg"] = charts.svg_bytes(figure)
        files[f"speed{suffix}.png"] = charts.png_bytes(figure)
    out_dir.mkdir(parents=True, exist_ok=True)
    return [write_atomically(out_dir / name, data) for name, data in files.items()]


def write_atomically(path: Path, data: bytes) -> Path:
    """Replaces ``path`` by a complete file with ``data`` and returns it. On OSError the old file stays."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
