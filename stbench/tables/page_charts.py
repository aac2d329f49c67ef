"""The charts of a page's block: ``<picture>`` elements for light and dark pages, and their files."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import partial
from urllib.parse import quote

from stbench import charts
from stbench.agent.wire import RunRecord
from stbench.charts.gallery import absent_sentence
from stbench.charts.kinds import Drawn, Kind, Request
from stbench.errors import UsageError
from stbench.tables import stamps
from stbench.tables.pages import Made, Picture, Source
from stbench.wording import clean

ALL = "all"

# As long as the sentences of a chart of twelve lines are.
_ALT = 2000


def made(
    source: Source, records: Sequence[RunRecord], ratio_to: Mapping[str, str], digest: str, tables: str
) -> Made:
    """The block of ``source``: the charts that it names, then ``tables``. Kinds that the records have nothing
    for are one sentence. ``digest`` is that of the records. Raises :class:`UsageError` for an unknown
    kind."""
    if not source.charts:
        return Made(tables, digest)
    results = charts.results_of(records)
    (folder,) = source.get("folder")
    (engine,) = source.get("engine")[-1:] or [""]
    blocks: list[str] = []
    pictures: list[Picture] = []
    absent: list[Kind] = []
    for kind in _kinds(source.charts):
        drawn = kind.draw(Request(results, "light", ratio_to))
        if not drawn:
            absent.append(kind)
        again = _Drawing(kind, Request(results, "dark", ratio_to))
        for i, each in enumerate(drawn):
            paths = {
                theme: f"{folder.rstrip('/')}/{charts.file_stem(each.name, theme)}.svg"
                for theme in charts.THEMES
            }
            draw = {"light": partial(_svg, each), "dark": partial(again, i)}
            for theme, path in paths.items():
                stamp = stamps.words(
                    digest, chart=each.name, theme=theme, engine=engine, ratio_to=stamps.pairs(ratio_to)
                )
                pictures.append(Picture(path, stamp, draw[theme]))
            blocks.append(_picture(paths, each.alt))
    if absent:
        blocks.append(absent_sentence(absent))
    return Made("\n\n".join([*blocks, *([tables] if tables else [])]), digest, tuple(pictures))


class _Drawing:
    """A kind's figures, drawn when the first of them is asked for."""

    def __init__(self, kind: Kind, request: Request) -> None:
        self._kind, self._request = kind, request
        self._drawn: list[Drawn] = []

    def __call__(self, i: int) -> bytes:
        self._drawn = self._drawn or self._kind.draw(self._request)
        return _svg(self._drawn[i])


def _svg(drawn: Drawn) -> bytes:
    return charts.svg_bytes(drawn.figure)


def _kinds(names: list[str]) -> list[Kind]:
    known = {kind.name: kind for kind in charts.KINDS}
    if names == [ALL]:
        return list(known.values())
    if unknown := [name for name in names if name not in known]:
        raise UsageError(
            f"charts={unknown[0]} in a marker: the kinds are {', '.join([*known, ALL])}",
            hint="stbench chart --list",
        )
    return [known[name] for name in dict.fromkeys(names)]


def _picture(paths: Mapping[str, str], alt: str) -> str:
    said = html.escape(clean(alt, _ALT), quote=True)
    dark, light = (html.escape(quote(paths[theme]), quote=True) for theme in ("dark", "light"))
    return (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'  <img alt="{said}" src="{light}">\n'
        "</picture>"
    )
