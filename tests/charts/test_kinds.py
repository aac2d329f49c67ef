"""Every kind of chart: what it draws, what it says, that it is the same every time and stays in its frame."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from stbench import charts
from stbench.agent.wire import RunRecord
from stbench.charts import breakdown, gallery, latency, memory, series, style
from stbench.charts.kinds import Request
from tests.charts.material import BOARDS, GIB, HOSTILE, LAYERS, MIB, everything, full

ROOT = Path(__file__).resolve().parents[2]
NAMES = [kind.name for kind in charts.KINDS]


@pytest.fixture(scope="module")
def results() -> charts.Results:
    return charts.results_of(everything(n=6))


def draw(name: str, records: charts.Results | list[RunRecord], theme: str = "light") -> charts.Drawn:
    results = records if isinstance(records, charts.Results) else charts.results_of(records)
    drawn = gallery.kind(name).draw(Request(results, theme))
    assert drawn, f"nothing to draw for {name}"
    return drawn[0]


def texts(figure: Figure) -> list[Text]:
    """All that is drawn; axes have ticks beyond their ends, which are not."""
    every = [*figure.texts]
    for axes in figure.axes:
        every += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            every += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in every if text.get_text().strip() and text.get_visible()]


def words(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text() for text in figure.texts).split())


def inside(figure: Figure) -> None:
    """No text leaves the picture, and none lies on another."""
    canvas = FigureCanvasAgg(figure)
    with matplotlib.rc_context(style.RC):
        canvas.draw()
    renderer = canvas.get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts(figure)]
    for said, box in boxes:
        assert -1 <= box.x0 <= box.x1 <= width + 1, (said, box, width)
        assert -1 <= box.y0 <= box.y1 <= height + 1, (said, box, height)
    for i, (said, one) in enumerate(boxes):
        for other_said, other in boxes[i + 1 :]:
            overlap_x = min(one.x1, other.x1) - max(one.x0, other.x0)
            overlap_y = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert overlap_x < 1 or overlap_y < 1, (said, other_said)


def test_records_of_everything_have_every_kind(results: charts.Results) -> None:
    drawn = charts.drawable(results)
    assert [each.kind for each in drawn] == NAMES
    assert len({each.name for each in drawn}) == len(drawn)
    for each in drawn:
        assert len(each.alt) > 40
        assert each.title


@pytest.mark.parametrize("name", NAMES)
def test_texts_stay_in_their_frame_in_both_themes(name: str, results: charts.Results) -> None:
    for theme in charts.THEMES:
        made = draw(name, results, theme).figure
        inside(made)
        assert made.get_size_inches()[0] == style.WIDTH_IN
        assert matplotlib.colors.to_hex(made.get_facecolor()) == charts.THEMES[theme].background
        # 7 points are 9 pixels at a README's 800.
        assert min(text.get_fontsize() for text in texts(made)) >= 7


def digests(seed: str) -> subprocess.Popen[str]:
    code = (
        "import hashlib; from stbench import charts; from tests.charts.material import everything;"
        f"records = everything(n=1); records = records if {seed!r} == '1' else records[::-1];"
        "print([(d.name, hashlib.sha256(f(d.figure)).hexdigest())"
        " for d in charts.drawable(records, 'dark')"
        " for f in [charts.svg_bytes] + [charts.png_bytes] * (d.name in ('speed', 'threads'))])"
    )
    env = {"PYTHONHASHSEED": seed, "PATH": os.environ["PATH"]}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )


def test_same_records_same_bytes_in_another_process_and_order() -> None:
    first, second = (process.communicate(timeout=300)[0] for process in [digests("1"), digests("2")])
    assert first == second
    assert first.count("(") == len(NAMES) + 2


def test_files_say_no_date_and_are_well_formed(results: charts.Results) -> None:
    made = draw("threads", results).figure
    svg = charts.svg_bytes(made)
    assert ET.fromstring(svg).tag.endswith("svg")
    assert b"<dc:date>" not in svg
    png = charts.png_bytes(made)
    assert b"tIME" not in png
    assert b"matplotlib" not in png.lower()
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "x", "axes.grid": True}):
        assert (
            hashlib.sha256(charts.svg_bytes(draw("threads", results).figure)).digest()
            == hashlib.sha256(svg).digest()
        )


@pytest.mark.parametrize("name", ["threads", "breakdown", "energy"])
def test_hostile_names_neither_crash_nor_leave_the_frame(name: str) -> None:
    records = [
        dataclasses.replace(
            full(text, 60.0 * t, threads=t, device=text, ffn=True, replicate=i, joules=1.0),
            campaign=text[:50],
        )
        for text in HOSTILE
        for t in (1, 2)
        for i in range(2)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw(name, records)
        inside(drawn.figure)
        svg = charts.svg_bytes(drawn.figure)
    ET.fromstring(svg)
    assert b"<script" not in svg
    assert len(svg) < 3 * MIB
    assert len(drawn.alt) < 10_000
    assert not any(c in drawn.alt for c in "\u202e\u200f\u2066\x00\x1b\n")
    # A name is what it is and no formula.
    assert any("a$x^{2$" in text.get_text() for text in texts(drawn.figure))


def test_eight_boards_have_a_panel_each_and_published_ghosts() -> None:
    records = [
        full(
            tps=60.0 if not limit else 12.0,
            limit=limit,
            cache=256 * MIB if limit else 0,
            ffn=True,
            head=True,
            device=board,
        )
        for board in BOARDS
        for limit in (0, GIB)
    ]
    made = draw("memory", records).figure
    inside(made)
    assert len(made.axes) == len(BOARDS)
    ghosts = [line for axes in made.axes for line in axes.lines if line.get_markerfacecolor() == "none"]
    # Limited and not, on the seven published boards; nothing on "local".
    assert len(ghosts) == 14
    pi = next(
        axes for axes, board in zip(made.axes, sorted(BOARDS), strict=True) if board == "raspberry-pi-5"
    )
    assert any(line.get_ydata()[0] == 28.77 for line in pi.lines if line.get_markerfacecolor() == "none")


def test_a_local_device_that_is_a_published_one_has_ghosts_when_said_so() -> None:
    records = [full(tps=12.0, limit=GIB, cache=256 * MIB, ffn=True, head=True)]
    line = series.lines(charts.results_of(records).frame, "decode_tps", lambda rows: GIB, ())[0]
    assert memory.published_points(line, {}) == {}
    assert memory.published_points(line, {"local": "raspberry-pi-5"})[float(GIB)] > 0


def test_whiskers_are_intervals_and_hollow_points_say_why() -> None:
    records = [
        full(tps=10.0 + i, limit=limit, cache=256 * MIB, replicate=i, limit_verdict=verdict)
        for i in range(6)
        for limit, verdict in ((GIB, "not-enforced"), (2 * GIB, "held"))
    ]
    made = draw("memory", records).figure
    said = words(made)
    assert "interval of the median" in said
    assert "Hollow points do not compare: n." in said
    assert "the memory limit was not enforced" in said
    background = charts.THEMES["light"].background
    points = [line for line in made.axes[0].lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == background for line in points] == [True, False]
    assert "not enforced" not in words(
        draw("memory", [r for r in records if r.limit and r.limit.verdict == "held"]).figure
    )


def test_synthetic_is_said_only_of_synthetic_weights(results: charts.Results) -> None:
    assert "synthetic weights" in words(draw("depth", results).figure)
    real = [full(tps=50.0 - d / 100, depth=d, synthetic=False) for d in (0, 512)]
    assert "synthetic" not in words(draw("depth", real).figure)


def test_wrong_output_has_no_point() -> None:
    records = [full(tps=30.0 * t, threads=t) for t in (1, 2, 4)]
    wrong = full(tps=200.0, threads=8, status="wrong-output", verdict="wrong")
    found = series.lines(
        charts.results_of([*records, wrong]).frame,
        "decode_tps",
        lambda rows: float(rows["threads"].max()),
        ("threads_requested",),
    )
    assert [point.x for point in found[0].points] == [1, 2, 4]


def test_different_builds_and_files_are_different_lines() -> None:
    records = [
        full(tps=30.0 * t, threads=t, library=library * 32, campaign=campaign)
        for t in (1, 2)
        for library, campaign in (("ab", "one"), ("cd", "two"))
    ]
    found = series.lines(
        charts.results_of(records).frame,
        "decode_tps",
        lambda rows: float(rows["threads"].max()),
        ("threads_requested",),
    )
    assert len(found) == 2
    assert len({line.label for line in found}) == 2


def test_the_parts_of_a_token_sum_up_and_waiting_is_taken_out(results: charts.Results) -> None:
    cached = next(record for record in results.records if record.cache)
    parts = {part.name: part.ms for part in breakdown.parts_of(cached)}
    assert cached.samples is not None
    assert sum(parts.values()) == pytest.approx(sum(cached.samples.decode_ns) / 16 / 1e6)
    assert parts["I/O wait"] == pytest.approx(sum(parts.values()) / 3, rel=1e-6)
    assert parts["FFN"] == pytest.approx(sum(parts.values()) * (0.5 - 1 / 3), rel=1e-6)


def test_bars_of_the_breakdown_carry_their_cases_names(results: charts.Results) -> None:
    axes = draw("breakdown", results).figure.axes[0]
    charts.png_bytes(axes.figure)
    assert all(
        "smallthinker" in label.get_text() or "qwen" in label.get_text() for label in axes.get_yticklabels()
    )


def test_quantiles_are_of_single_tokens(results: charts.Results) -> None:
    record = full(n_gen=20)
    found = series.lines(charts.results_of([record]).frame, "tpot_p50_ms", lambda rows: 0.0, ())
    (row,) = latency.quantiles(found[0], charts.results_of([record]))
    assert record.samples is not None
    assert row[0] == pytest.approx(min(record.samples.decode_ns) / 1e6)
    assert row[-1] == pytest.approx(max(record.samples.decode_ns) / 1e6)


def test_sparsity_has_measured_layers_and_the_profile_as_ghosts(results: charts.Results) -> None:
    made = draw("sparsity", results).figure
    lines = made.axes[0].lines
    ghosts = [line for line in lines if line.get_markerfacecolor() == "none"]
    assert ghosts
    assert all(len(line.get_xdata()) == LAYERS for line in ghosts)
    assert "as the synthetic model was made" in words(made)


def test_history_is_in_the_order_of_dates() -> None:
    records = [
        full(tps=30.0 + i, campaign=name, minute=minute)
        for i, (name, minute) in enumerate((("zebra", 1), ("apple", 3), ("mango", 2)))
    ]
    axes = draw("history", records).figure.axes[0]
    assert [label.get_text().split("\n")[0] for label in axes.get_xticklabels()] == [
        "zebra",
        "mango",
        "apple",
    ]


def test_bandwidth_s_limit_is_drawn_where_it_was_probed(results: charts.Results) -> None:
    dotted = [line for line in draw("threads", results).figure.axes[0].lines if line.get_linestyle() == ":"]
    assert len(dotted) == 2
    bare = [full(tps=30.0 * t, threads=t) for t in (1, 2)]
    assert not [line for line in draw("threads", bare).figure.axes[0].lines if line.get_linestyle() == ":"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "speed"])
def test_other_records_have_nothing_of_a_kind(name: str) -> None:
    record = full("qwen3-0.6b", n_gen=4)
    bare = dataclasses.replace(record, counters=None)
    assert gallery.kind(name).draw(Request(charts.results_of([bare]))) == []
    assert gallery.kind(name).draw(Request(charts.results_of([]))) == []


def test_too_many_lines_are_left_out_and_said() -> None:
    records = [
        full(f"model-{i:02d}", 30.0 * t, threads=t) for i in range(series.MOST_LINES + 3) for t in (1, 2)
    ]
    made = draw("threads", records).figure
    inside(made)
    assert "Left out: 3 further lines" in words(made)


def test_strokes_differ_and_are_seen_on_their_page() -> None:
    for theme in charts.THEMES.values():
        looks = style.strokes(series.MOST_LINES, theme)
        assert len(set(looks)) == series.MOST_LINES
        assert all(look.colour != theme.background for look in looks)


def test_long_text_keeps_its_ends_and_fits() -> None:
    fitted = style.fitted("smallthinker-4b-" + "x" * 400 + "-end", 8.5, 2.0)
    assert style.width_in(fitted, 8.5) <= 2.0
    assert fitted.startswith("smallthinker")
    assert fitted.endswith("end")
    for line in style.wrapped("word " * 60 + "y" * 500, 8, 3.0):
        assert style.width_in(line, 8) <= 3.0
