"""The page itself: its parts in order, around the data that its script shows.

Nothing in it depends on when or where it is written. No part loads anything: the policy in its head forbids
every request, and allows the one script and the one style sheet that are in the page, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from stbench.comparison.compare import Comparison
from stbench.report import boards, verdict
from stbench.report.boards import Board
from stbench.report.difference import Difference
from stbench.report.markup import Markup, data_block, element, joined
from stbench.report.pictures import Picture
from stbench.report.verdict import Verdict
from stbench.wording import count

# What a kind of sentence looks like, and is called for those who do not see it.
_SIGNS = {
    verdict.GOOD: ("✓", "Good: "),
    verdict.CAUTION: ("!", "Caution: "),
    verdict.BAD: ("✗", "Bad: "),
    verdict.FACT: ("·", ""),
}


def page(
    title: str,
    found: Verdict,
    tables: Markup,
    pictures: Sequence[Picture],
    without_picture: Sequence[str],
    difference: Difference | None,
    difference_tables: Markup,
    devices: Sequence[Board],
    data: dict[str, Any],
    limits: Sequence[str],
) -> str:
    """The whole document. ``tables`` are the grids; ``without_picture`` says which charts are left out and
    why; ``data`` is what the script shows; ``limits`` are sentences about what was thinned or left out."""
    body = [
        element("a", "Skip to the verdict", href="#verdict", class_="skip"),
        _header(title, difference is not None),
        element(
            "main",
            _verdict(found),
            element(
                "section",
                element("h2", "Tables", id="tables-title"),
                tables,
                id="tables",
                aria_labelledby="tables-title",
            ),
            _charts(pictures, without_picture),
            _difference(difference, difference_tables) if difference else None,
            _devices(devices),
            _records(data, limits),
            id="top",
        ),
        _dialog(),
        data_block("data", data),
    ]
    style, script = (
        resources.files("stbench.report").joinpath(name).read_text("utf-8")
        for name in ("page.css", "page.js")
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{title} · stbench report"),
        Markup(f"<style>{style}</style>"),
    )
    document = element("html", head, element("body", *body, Markup(f"<script>{script}</script>")), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


def _policy(style: str, script: str) -> Markup:
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script)]
    return Markup(
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; "
        f"script-src 'sha256-{hashes[1]}'; base-uri 'none'; form-action 'none'"
    )


def _header(title: str, with_difference: bool) -> Markup:
    links = [("verdict", "Verdict"), ("tables", "Tables"), ("charts", "Charts")]
    if with_difference:
        links.append(("difference", "Difference"))
    links += [("devices", "Devices"), ("records", "Records")]
    return joined(
        element(
            "header",
            element("p", "stbench report", class_="kicker"),
            element("h1", title),
        ),
        element(
            "nav",
            element("ul", *(element("li", element("a", name, href=f"#{key}")) for key, name in links)),
            element(
                "div",
                element("label", "Filter all tables", for_="filter", class_="unseen"),
                element(
                    "input",
                    type="search",
                    id="filter",
                    placeholder="Filter all tables",
                    autocomplete="off",
                    spellcheck="false",
                ),
                element("output", id="filtered", for_="filter", aria_live="polite"),
                class_="filter",
            ),
            aria_label="Parts of this report",
        ),
    )


def _verdict(found: Verdict) -> Markup:
    figures = [
        element("li", element("strong", number), " ", element("span", of), class_=f"figure kind-{kind}")
        for number, of, kind in found.figures
    ]
    parts = [
        element(
            "div",
            element("h3", heading),
            element("ul", *(_sentence(sentence) for sentence in sentences), class_="sentences"),
        )
        for heading, sentences in found.parts
    ]
    return element(
        "section",
        element("h2", "Verdict", id="verdict-title"),
        element("ul", *figures, class_="figures"),
        element("div", *parts, class_="columns"),
        id="verdict",
        aria_labelledby="verdict-title",
    )


def _sentence(sentence: verdict.Sentence) -> Markup:
    sign, said = _SIGNS[sentence.kind]
    return element(
        "li",
        element("span", sign, class_="sign", aria_hidden="true"),
        element("span", element("span", said, class_="unseen") if said else None, sentence.text),
        class_=f"kind-{sentence.kind}",
    )


def _charts(pictures: Sequence[Picture], without: Sequence[str]) -> Markup:
    figures = [
        element(
            "figure",
            element(
                "picture",
                element("source", media="screen and (prefers-color-scheme: dark)", srcset=Markup(one.dark)),
                element(
                    "img",
                    src=Markup(one.light),
                    alt=one.alt,
                    width=one.width,
                    height=one.height,
                ),
            ),
            element("figcaption", one.title),
            id=f"chart-{one.name}",
        )
        for one in pictures
    ]
    return element(
        "section",
        element("h2", "Charts", id="charts-title"),
        *(element("p", sentence, class_="quiet") for sentence in without),
        element("div", *figures, class_="charts"),
        id="charts",
        aria_labelledby="charts-title",
    )


def _difference(found: Difference, tables: Markup) -> Markup:
    said = [
        element("li", element("strong", str(n)), " ", element("span", name), class_=f"figure verdict-{name}")
        for name, n in found.counts.items()
    ]
    refused = [
        element(
            "li",
            element("span", "!", class_="sign", aria_hidden="true"),
            element("span", why),
            class_="kind-caution",
        )
        for why in found.refused
    ]
    return element(
        "section",
        element("h2", "Difference", id="difference-title"),
        element(
            "p", "A is ", element("b", found.a), ", B is ", element("b", found.b), ". Above 1, B is faster."
        ),
        element("ul", *said, class_="figures") if said else None,
        element("ul", *refused, class_="sentences") if refused else None,
        _forest(found.cases) if found.cases else None,
        tables,
        id="difference",
        aria_labelledby="difference-title",
    )


# Of the picture of ratios, in its own units.
_LEFT, _RIGHT, _STEP, _MOST_SHOWN = 20, 580, 16, 60


def _forest(cases: Sequence[Comparison]) -> Markup:
    """Every ratio with its interval or range around 1, in the order of the tables below it."""
    shown = cases[:_MOST_SHOWN]
    low = min(0.95, *(case.low for case in shown)) if len(shown) else 0.95
    high = max(1.05, *(case.high for case in shown)) if len(shown) else 1.05

    def x(ratio: float) -> str:
        return f"{_LEFT + (_RIGHT - _LEFT) * (min(max(ratio, low), high) - low) / (high - low):.1f}"

    bottom = _STEP * (len(shown) + 1)
    parts: list[Markup] = [element("line", x1=x(1), x2=x(1), y1=4, y2=bottom, class_="one")]
    for i, case in enumerate(shown):
        y = _STEP * (i + 1)
        parts += [
            element(
                "line", x1=x(case.low), x2=x(case.high), y1=y, y2=y, class_=f"whisker verdict-{case.verdict}"
            ),
            element("circle", cx=x(case.ratio), cy=y, r=4, class_=f"verdict-{case.verdict}"),
        ]
    for ratio, anchor in ((low, "start"), (1.0, "middle"), (high, "end")):
        near = ratio != 1.0 and abs(float(x(ratio)) - float(x(1))) < 40
        if not near:
            parts.append(element("text", f"{ratio:.2f}", x=x(ratio), y=bottom + 14, text_anchor=anchor))
    rest = f"; the first {_MOST_SHOWN}" if len(cases) > len(shown) else ""
    said = f"B / A of {count(len(cases), 'case')} with interval or range, in the order of the tables{rest}."
    return element(
        "figure",
        element(
            "svg",
            element("title", said),
            *parts,
            viewBox=f"0 0 600 {bottom + 20}",
            role="img",
            class_="forest",
        ),
        element("figcaption", said),
    )


def _devices(devices: Sequence[Board]) -> Markup:
    return element(
        "section",
        element("h2", "Devices", id="devices-title"),
        *(boards.section(board, i) for i, board in enumerate(devices)),
        id="devices",
        aria_labelledby="devices-title",
    )


def _records(data: dict[str, Any], limits: Sequence[str]) -> Markup:
    n = len(data["records"])
    return element(
        "section",
        element("h2", "Records", id="records-title"),
        element(
            "p",
            f"One row per run, {n} in all. Choose one for its settings, proofs, samples and telemetry.",
            class_="screen-only",
        ),
        element(
            "p",
            f"The {count(n, 'record')} behind the tables are in the file itself, not in print.",
            class_="print-only",
        ),
        element("noscript", element("p", "The records need JavaScript, which this browser does not run.")),
        *(element("p", sentence, class_="quiet") for sentence in limits),
        element("div", id="all-records"),
        id="records",
        aria_labelledby="records-title",
    )


def _dialog() -> Markup:
    return element(
        "dialog",
        element(
            "div",
            element("h2", "Records", id="dialog-title", tabindex=-1),
            element("button", "Close", type="button", id="close"),
            class_="bar",
        ),
        element("div", id="dialog-body"),
        id="dialog",
        aria_labelledby="dialog-title",
    )
