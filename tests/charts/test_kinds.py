"""Every kind of chart: what it draws, what it says, that it is the same every time and stays in its frame."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from stbench import charts
from stbench.agent.wire import RunRecord
from stbench.charts import breakdown, gallery, latency, series, style
from stbench.charts.kinds import Request
from tests.charts.material import BOARDS, GIB, HOSTILE, LAYERS, MIB, everything, full
from tests.compare.records import case, noisy

ROOT = Path(__file__).resolve().parents[2]
NAMES = [kind.name for kind in charts.KINDS]


@pytest.fixture(scope="module")
def results() -> charts.Results:
    return charts.results_of(everything(n=6))


@pytest.fixture(scope="module")
def drawn(results: charts.Results) -> dict[str, list[charts.Drawn]]:
    """Theme -> every figure of these records; for tests that change none."""
    return {theme: charts.drawable(results, theme) for theme in charts.THEMES}


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


def test_records_of_everything_have_every_kind(drawn: dict[str, list[charts.Drawn]]) -> None:
    for found in drawn.values():
        assert [each.kind for each in found] == NAMES
        assert len({each.name for each in found}) == len(found)
        for each in found:
            assert len(each.alt) > 40
            assert each.title


@pytest.mark.parametrize("name", NAMES)
def test_texts_stay_in_their_frame_in_both_themes(name: str, drawn: dict[str, list[charts.Drawn]]) -> None:
    light, dark = (next(each.figure for each in drawn[theme] if each.kind == name) for theme in drawn)
    inside(light)
    # 7 points are 9 pixels at a README's 800.
    assert min(text.get_fontsize() for text in texts(light)) >= 7
    assert light.get_size_inches()[0] == style.WIDTH_IN
    # Themes differ in colours alone.
    assert dark.get_size_inches().tolist() == light.get_size_inches().tolist()
    said = [[(text.get_text(), text.get_position()) for text in each.figure.texts] for each in (light, dark)]
    assert said[0] == said[1]
    for theme, figure in zip(drawn, (light, dark), strict=True):
        assert matplotlib.colors.to_hex(figure.get_facecolor()) == charts.THEMES[theme].background


def digests(records: list[RunRecord]) -> list[list[str]]:
    return [
        [each.name, hashlib.sha256(write(each.figure)).hexdigest()]
        for each in charts.drawable(records, "dark")
        for write in [charts.png_bytes if each.name == "threads" else charts.svg_bytes]
    ]


def test_same_records_same_bytes_in_another_process_and_order() -> None:
    code = (
        "import json; from tests.charts.material import everything as all_;"
        "from tests.charts.test_kinds import digests;"
        "print(json.dumps(digests(all_(n=1)[::-1])))"
    )
    env = {"PYTHONHASHSEED": "2", "PATH": os.environ["PATH"]}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    ) as other:
        here = digests(everything(n=1))
        said = other.communicate(timeout=300)[0]
    assert json.loads(said) == here
    assert len(here) == len(NAMES)


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
    # Limited and not, on the seven published boards; nothing on "local".
    assert len(ghosts_of(made)) == 14
    pi = next(
        axes for axes, board in zip(made.axes, sorted(BOARDS), strict=True) if board == "raspberry-pi-5"
    )
    assert any(line.get_ydata()[0] == 28.77 for line in pi.lines if line.get_markerfacecolor() == "none")


def ghosts_of(figure: Figure) -> list[tuple[float, float]]:
    lines = [line for axes in figure.axes for line in axes.lines if line.get_markerfacecolor() == "none"]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


@pytest.mark.parametrize(
    ("name", "varied", "expected"),
    [
        # Published with 4 threads; with no cache's size, no depth and no date.
        ("threads", [{"threads": 2, "tps": 60.0}, {"threads": 8, "tps": 70.0}], (4, 108.17)),
        ("depth", [{"depth": 512}, {"depth": 2048}], (0, 108.17)),
        ("history", [{"campaign": "a"}, {"campaign": "b", "minute": 1}], (-0.25, 108.17)),
        ("cache", [{"limit": GIB, "cache": size * MIB} for size in (128, 256)], (256, 29.99)),
        ("memory", [{"limit": GIB, "cache": 128 * MIB}, {}], (1.13, 108.17)),
    ],
)
def test_published_numbers_stand_beside_measured_ones(
    name: str, varied: list[dict[str, Any]], expected: tuple[float, float]
) -> None:
    made = [full(**{"ffn": True, "head": True, "device": "mine"} | each) for each in varied]
    results = charts.results_of(made)
    assert ghosts_of(draw(name, results).figure) == []
    request = Request(results, "light", {"mine": "i9-14900"})
    figure = gallery.kind(name).draw(request)[0].figure
    inside(figure)
    found = ghosts_of(figure)
    assert len(found) == (2 if name == "memory" else 1)
    assert sorted(found)[-1] == pytest.approx(expected)
    # Of a model that was never published there is none.
    made = [full(**{"ffn": False, "head": True, "device": "i9-14900"} | each) for each in varied]
    assert ghosts_of(draw(name, made).figure) == []


def test_what_auto_came_to_is_told_apart_where_sizes_of_caches_are_drawn() -> None:
    """Builds before the guesses meant exact by it."""

    def labels(*came_to: str) -> list[str]:
        made = []
        for i, prefetch in enumerate(came_to):
            for size in (128, 256):
                one = full(limit=GIB, cache=size * MIB, campaign=f"c{i}")
                assert one.cache is not None
                made.append(dataclasses.replace(one, cache=dataclasses.replace(one.cache, prefetch=prefetch)))
        request = Request(charts.results_of(made), "light")
        alt = gallery.kind("cache").draw(request)[0].alt
        return [prefetch for prefetch in ("auto (exact)", "auto (next-2)", "c0") if prefetch in alt]

    assert labels("exact", "next-2") == ["auto (exact)", "auto (next-2)"]
    assert labels("next-2") == []


def test_threads_that_were_not_stated_are_said_to_be_ours() -> None:
    def said(published: str) -> tuple[list[tuple[float, float]], str]:
        made = [full(tps=tps, threads=t, ffn=True, head=True) for t, tps in ((1, 9.0), (2, 20.0), (4, 15.0))]
        request = Request(charts.results_of(made), "light", {"local": published})
        figure = gallery.kind("threads").draw(request)[0].figure
        return ghosts_of(figure), words(figure)

    marks, text = said("raspberry-pi-5")
    assert marks == [(2, 28.77)]
    assert "which was not stated" in text
    assert "not stated" not in said("i9-14900")[1]


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


def test_of_two_records_of_one_run_only_the_newest_is_drawn() -> None:
    runs = case(noisy(6))
    edited = dataclasses.replace(runs[0], started_at="2026-01-03T00:00:00Z")
    drawn = charts.results_of([*runs, edited])
    assert len(drawn.frame) == 6
    assert drawn.records[-1] == edited
