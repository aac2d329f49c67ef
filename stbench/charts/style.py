"""What all figures share: colours of both themes, fonts, bytes that are the same every time, and text that
fits and shows as it is whatever it says."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

from stbench.wording import clean

# Okabe and Ito's palette: told apart with every common kind of colour blindness; bars carry names, lines
# markers.
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)

WIDTH_IN = 8.3  # a README column is about 830 px wide
PNG_DPI = 144
CAPTION_CHARACTERS = 125  # of 7.5 point text in the width

FONT = "DejaVu Sans"  # comes with matplotlib, so it is the same everywhere
TITLE_PT, HEAD_PT, TEXT_PT, CAPTION_PT = 11.0, 9.0, 8.5, 8.0
LABEL_CHARACTERS = 160


@dataclass(frozen=True)
class Theme:
    """Colours of everything that is not a bar, and of the first kind of bar."""

    background: str
    text: str
    muted: str
    grid: str
    blue: str


# The palette's blue is too dark for thin outlines on a dark page.
THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#59636e", "#d9dee3", BLUE),
    "dark": Theme("#0d1117", "#e6edf3", "#9198a1", "#30363d", "#2F8FD0"),
}

Dash: TypeAlias = Literal["-", "--", "-.", ":", ""]

# Everything that could make two renderings of one figure differ, or depend on the user's matplotlibrc.
# Device and model names are no formulas, whatever they contain.
RC: dict[Any, Any] = {
    "svg.hashsalt": "stbench",
    "svg.fonttype": "path",
    "font.family": FONT,
    "path.simplify": False,
    "text.usetex": False,
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "axes.formatter.use_mathtext": False,
}


@dataclass(frozen=True)
class Stroke:
    """How one series looks: each of the three alone tells it from its neighbours."""

    colour: str
    marker: str
    dash: Dash


_MARKERS = "osD^vPX"
_DASHES: tuple[Dash, ...] = ("-", "--", "-.")


def strokes(n: int, theme: Theme) -> list[Stroke]:
    """``n`` different ones."""
    colours = (theme.blue, ORANGE, GREEN, PURPLE, VERMILLION, SKY, theme.muted)
    return [
        Stroke(
            colours[i % len(colours)],
            _MARKERS[(i + i // len(colours)) % len(_MARKERS)],
            _DASHES[(i // len(colours)) % len(_DASHES)],
        )
        for i in range(n)
    ]


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG; text as outlines, so that it looks the same without the font."""
    return _bytes(FigureCanvasSVG(figure), "svg", {"Date": None, "Creator": "stbench"})


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG at :data:`PNG_DPI`."""
    return _bytes(FigureCanvasAgg(figure), "png", {"Software": "stbench"})


def _bytes(canvas: Any, kind: str, metadata: Mapping[str, str | None]) -> bytes:
    out = io.BytesIO()
    with matplotlib.rc_context(RC):
        face = canvas.figure.get_facecolor()
        canvas.figure.savefig(out, format=kind, dpi=PNG_DPI, metadata=metadata, facecolor=face)
    return out.getvalue()


def legible(text: str, limit: int = LABEL_CHARACTERS) -> str:
    """Text from a record on one line, at most ``limit`` characters, control and direction characters taken
    out; what the font cannot show is a replacement character."""
    known = _glyphs()
    return "".join(c if ord(c) in known else "\ufffd" for c in clean(text, limit))


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())


@functools.lru_cache(maxsize=4096)
def width_in(text: str, points: float, weight: str = "normal") -> float:
    """Inches that ``text`` takes on a line, with what hinting may widen it by in a PNG (3 % were seen)."""
    font = FontProperties(family=FONT, size=points, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return 1.04 * float(width) / 72


def fitted(text: str, points: float, inches: float, weight: str = "normal") -> str:
    """``text``, or as much of its beginning and end as fits, with an ellipsis between: names of boards and
    models differ at either end."""
    if width_in(text, points, weight) <= inches:
        return text
    low, high = 0, len(text)
    while low < high:
        keep = (low + high + 1) // 2
        if width_in(_elided(text, keep), points, weight) <= inches:
            low = keep
        else:
            high = keep - 1
    return _elided(text, low)


def _elided(text: str, keep: int) -> str:
    head = -(-keep * 2 // 3)
    tail = keep - head
    return text[:head].rstrip() + "…" + (text[-tail:].lstrip() if tail else "")


def wrapped(text: str, points: float, inches: float, weight: str = "normal", indent: str = "") -> list[str]:
    """Lines that fit, broken between words (a word that is too long for a line is elided); all but the first
    begin with ``indent``."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        candidate = f"{line} {word}" if line.strip() else line + word
        if line.strip() and width_in(candidate, points, weight) > inches:
            lines.append(line)
            candidate = indent + word
        line = fitted(candidate, points, inches, weight)
    return [*lines, line]


def plain(axes: Axes, theme: Theme) -> None:
    """Background, quiet ticks, and only the spines that carry a scale."""
    axes.set_facecolor(theme.background)
    axes.tick_params(labelsize=TEXT_PT, colors=theme.muted, length=0)
    axes.grid(color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.muted)
