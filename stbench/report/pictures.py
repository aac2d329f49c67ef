"""Figures -> images inside the page, one for light and one for dark screens."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from stbench.charts import png_bytes
from stbench.charts.style import FONT, RC

# Flat colours and their smoothed edges: more of them cannot be told from the original at this size.
COLOURS = 32

# Bytes of an SVG that no PNG of its size would beat by enough to be drawn, which takes as long again.
SMALL = 40_000

# The figure's own font is wide: what stands in for it where it is missing takes no more room.
_FONTS = f"'{FONT}', Verdana, sans-serif"

# Of matplotlib's SVG what draws nothing.
_SILENT = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<\?xml.*?\?>|<!DOCTYPE.*?>", re.DOTALL)


@dataclass(frozen=True)
class Picture:
    """``light`` and ``dark`` are data URIs; sizes are in pixels of the page."""

    name: str
    title: str
    alt: str
    light: str
    dark: str
    width: int
    height: int

    @property
    def size(self) -> int:
        """Bytes that it takes in the page."""
        return len(self.light) + len(self.dark) + 2 * len(self.alt)


def within(pictures: Sequence[Picture], budget: int) -> tuple[list[Picture], list[str]]:
    """The first pictures that fit into ``budget`` bytes together, and the titles of those that do not."""
    kept: list[Picture] = []
    left_out: list[str] = []
    for picture in pictures:
        if sum(other.size for other in kept) + picture.size <= budget:
            kept.append(picture)
        else:
            left_out.append(picture.title)
    return kept, left_out


def data_uri(figure: Figure) -> str:
    """The figure as data URI: SVG with text as text, or PNG with few colours where that is smaller (thousands
    of points). The same figure gives the same bytes."""
    kind, data = "svg+xml", _svg(figure)
    if len(data) > SMALL:
        png = _png(figure)
        kind, data = ("png", png) if len(png) < len(data) else (kind, data)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def page_size(figure: Figure) -> tuple[int, int]:
    """Width and height in pixels of the page."""
    width, height = figure.get_size_inches()
    return round(96 * float(width)), round(96 * float(height))


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    settings: Any = {**RC, "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):
        face = figure.get_facecolor()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": "stbench"}, facecolor=face)
    text = re.sub(r">\s+<", "><", _SILENT.sub("", out.getvalue().decode("utf-8")))
    text = re.sub(r"\s*\n\s*", " ", text).replace(f"font-family: '{FONT}'", f"font-family: {_FONTS}")
    return text.strip().encode()


def _png(figure: Figure) -> bytes:
    with Image.open(io.BytesIO(png_bytes(figure))) as image:
        few = image.convert("RGB").quantize(
            COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
        out = io.BytesIO()
        few.save(out, "png", optimize=True)
    return out.getvalue()
