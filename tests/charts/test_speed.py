"""The chart: what is drawn, what it says, and that it is the same every time."""

from __future__ import annotations

import dataclasses
import io
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stbench import charts
from stbench.agent.wire import RunRecord
from stbench.charts.speed import speed_figure
from stbench.charts.style import PNG_DPI, RC, WIDTH_IN
from stbench.tables import render
from stbench.tables.grid import build_tables
from tests.tables.factory import record, table_4b


def figure(records: list[RunRecord], theme: str = "light") -> Figure:
    table = build_tables(records)[0]
    return speed_figure(render.tidy([table]), table.title, theme, table.profiles)


def texts(made: Figure) -> list[str]:
    return [t.get_text() for t in [*made.texts, *made.axes[0].texts]]


def bars(made: Figure) -> list[Rectangle]:
    return [patch for patch in made.axes[0].patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize(("theme", "renderer"), [("light", charts.svg_bytes), ("dark", charts.png_bytes)])
def test_same_records_same_bytes(theme: str, renderer: Callable[[Figure], bytes]) -> None:
    first = renderer(figure(table_4b(), theme))
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "other", "axes.grid": True}):
        second = renderer(figure(list(reversed(table_4b())), theme))
    assert first == second
    assert b"<dc:date>" not in first


def test_measured_is_solid_and_published_is_outlined() -> None:
    made = figure(table_4b())
    solid = [bar for bar in bars(made) if bar.get_facecolor()[3] == 1]
    ghosts = [bar for bar in bars(made) if bar.get_facecolor()[3] == 0]
    # Six measured rows; of the published ones the three that were measured, on seven devices.
    assert len(solid) == 6
    assert len(ghosts) == 3 * 7
    assert max(bar.get_width() for bar in ghosts) == 148.56
    assert solid[0].get_width() == pytest.approx(72.775)


def test_published_numbers_of_the_device_itself_stand_around_its_bars() -> None:
    table = build_tables(table_4b(device="mine"))[0]
    made = speed_figure(render.tidy([table]), table.title, "light", (), {"mine": "raspberry-pi-5"})
    dashed = [bar for bar in bars(made) if isinstance(bar.get_linestyle(), tuple)]
    assert [bar.get_width() for bar in dashed] == [28.77, 27.44, 11.08]
    # And not once more below; six other devices are.
    assert len([bar for bar in bars(made) if bar.get_facecolor()[3] == 0]) == 3 + 3 * 6
    said = texts(made)
    assert any(text.endswith("(published 28.77)") for text in said)
    assert not any(text == "Raspberry PI 5" for text in said)
    assert "Dashed around a measured bar" in " ".join(said)
    assert "Dashed" not in " ".join(texts(figure(table_4b())))


def test_rows_that_a_device_did_not_run_take_no_room() -> None:
    """Beside another engine that did."""
    others = [
        dataclasses.replace(one, engine="llama-bench", id=f"{one.id}-l")
        for one in table_4b()
        if "qwen" in one.label
    ]
    made = figure([*table_4b(), *others])
    said = texts(made)
    assert "not run" not in " ".join(said)
    assert said.count("Qwen3 0.6B") == 2 + 7
    assert len([bar for bar in bars(made) if bar.get_facecolor()[3] == 1]) == 6 + 2


def test_whiskers_span_the_interval() -> None:
    lines = figure(table_4b()).axes[0].lines
    spans = [sorted(line.get_xdata()) for line in lines if line.get_xdata()[0] != line.get_xdata()[1]]
    assert spans[0] == pytest.approx([71.0, 74.55])
    assert len(spans) == 6


def test_says_unit_synthetic_and_what_is_left_out() -> None:
    made = figure(table_4b())
    assert made.axes[0].get_xlabel() == "decode speed, tokens/s"
    words = " ".join(texts(made))
    assert "synthetic weights" in words
    assert "Not measured, left out" in words
    assert "Gemma3n E2B" in words
    assert "interval of the median" in words


def test_every_synthetic_profile_is_in_the_caption() -> None:
    records = table_4b()
    words = " ".join(" ".join(texts(figure(records))).split())
    sentences = [note for note in build_tables(records)[0].notes if " synthetic: " in note]
    assert len(sentences) == 2
    assert sum("profile report-5.3: ReLU zeros per layer" in sentence for sentence in sentences) == 1
    for sentence in sentences:
        assert sentence in words


def test_real_weights_are_not_called_synthetic() -> None:
    assert "synthetic" not in " ".join(texts(figure(table_4b(synthetic=False))))


def test_a_range_is_not_called_an_interval() -> None:
    words = " ".join(texts(figure(table_4b(n=3))))
    assert "range of the replicates, no interval" in words


def test_wrong_output_has_no_bar() -> None:
    records = [record("qwen3-0.6b", status="wrong-output", verdict="wrong"), *table_4b()[:4]]
    made = figure(records)
    assert any("wrong-output" in text for text in texts(made))
    assert len([bar for bar in bars(made) if bar.get_facecolor()[3] == 1]) == 4


def test_nothing_measured_shows_the_published_grid() -> None:
    made = figure([])
    assert "Nothing measured." in " ".join(texts(made))
    published = [
        value for row in build_tables([])[0].rows for c, value in row.cells.items() if "published" in c
    ]
    assert len(bars(made)) == sum(cell.value is not None for cell in published)


@pytest.mark.parametrize(
    "records", [[], table_4b(), [*table_4b(), *table_4b(device="a-board-with-a-long-name")]]
)
def test_no_text_leaves_the_picture_or_lies_on_another(records: list[RunRecord]) -> None:
    made = figure(records)
    canvas = FigureCanvasAgg(made)
    with matplotlib.rc_context(RC):
        canvas.draw()
    renderer = canvas.get_renderer()
    width, height = made.get_size_inches() * made.dpi
    boxes = [t.get_window_extent(renderer) for t in [*made.texts, *made.axes[0].texts] if t.get_text()]
    for box in boxes:
        assert box.x0 >= 0, box
        assert box.x1 <= width, box
        assert box.y0 >= 0, box
        assert box.y1 <= height, box
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])


def test_files_are_well_formed_and_of_readme_width() -> None:
    made = figure(table_4b())
    root = ET.parse(io.BytesIO(charts.svg_bytes(made))).getroot()
    assert root.tag.endswith("svg")
    png = charts.png_bytes(made)
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">I", png[16:20])[0] == round(WIDTH_IN * PNG_DPI)


def test_themes_have_enough_contrast() -> None:
    """WCAG AA: 4.5 for text, 3 for graphical objects that carry meaning."""
    for theme in charts.THEMES.values():
        assert contrast(theme.text, theme.background) >= 7
        assert contrast(theme.muted, theme.background) >= 4.5
        assert contrast(theme.blue, theme.background) >= 3


def contrast(a: str, b: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
