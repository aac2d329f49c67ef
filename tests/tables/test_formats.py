"""HTML and LaTeX of the grid: whole, escaped; every format has every mark and its meaning."""

from __future__ import annotations

import dataclasses
import html
import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from stbench.agent.wire import RunRecord
from stbench.tables import render
from stbench.tables.grid import build_tables
from stbench.tables.html import grid_html
from stbench.tables.latex import latex
from stbench.tables.table import MEANINGS, Cell, Column, Row, Table
from tests.tables.factory import record
from tests.tables.test_render import fixed_records

EVIL = "x\"'|</td><script>alert(1)</script>\x1b[31m\u202e $a_b^2$ \\input{/etc/passwd} % & # ~ {[*"
VOID = {"br", "wbr", "meta", "link", "img", "hr", "input"}


class Balanced(HTMLParser):
    """Every element closed, in order; no element twice by id; table rows of equal length."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.rows: list[int] = []
        self.from_above = 0
        self.widths: list[set[int]] = []
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        assert len(values) == len(attrs), attrs
        self.ids += [values["id"] or ""] if "id" in values else []
        self.titles += [values["title"] or ""] if "title" in values else []
        if tag == "table":
            self.widths.append(set())
        if tag == "tr":
            self.rows.append(self.from_above)
            self.from_above = 0
        if tag in ("td", "th"):
            self.rows[-1] += int(values.get("colspan") or 1)
            self.from_above += values.get("rowspan") == "2"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "tr":
            self.widths[-1].add(self.rows.pop())

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Balanced:
    found = Balanced()
    found.feed(text)
    found.close()
    assert found.open == []
    assert all(len(widths) == 1 for widths in found.widths), found.widths
    assert len(set(found.ids)) == len(found.ids)
    return found


def hostile() -> list[RunRecord]:
    return [
        record("my-own", synthetic=False, device=EVIL, status="failed", detail=EVIL, campaign=EVIL),
        dataclasses.replace(record(device=EVIL), engine=EVIL),
    ]


def every_mark() -> Table:
    cells = {f"c{i}": Cell(f"{i}.00", (mark,), value=float(i)) for i, mark in enumerate(MEANINGS)}
    columns = (Column("row", "Model", "label"), *(Column(key, key, "speed", "tokens/s") for key in cells))
    return Table("4B", "All marks", columns, (Row("r", "a row", cells),), ("A note.",))


def test_html_is_whole_and_semantic() -> None:
    tables = build_tables(fixed_records())
    text = grid_html(tables)
    found = parsed(text)
    assert grid_html(build_tables(fixed_records()[::-1])) == text
    assert {"section", "table", "thead", "tbody", "th", "td", "dl", "details", "abbr"} <= found.tags
    assert found.ids == ["grid-4b", "grid-4b-title", "grid-other", "grid-other-title"]
    assert '<th scope="row" data-role="label">Qwen3 0.6B</th>' in text
    assert "<strong>72.77</strong> <small>[71.00, 74.55]</small>" in text
    assert re.search(r'data-value="72\.77\d*"><strong>', text)
    for table in tables:
        for note in [*table.intervals(), *table.notes]:
            assert note in "".join(found.text)


def test_html_is_escaped() -> None:
    text = grid_html(build_tables(hostile()))
    assert not {"script"} & parsed(text).tags
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;" in text


def test_html_links_only_measured_cells() -> None:
    tables = build_tables(fixed_records())
    text = grid_html(tables, lambda table, row, column, cell: f'#"{table.key}&{row.key}')
    shown = [
        row.cells[column.key]
        for table in tables
        for row in table.rows
        for column in table.telling_columns()
        if column.key in row.cells
    ]
    assert text.count("<a href=") == sum(bool(cell.details and cell.text) for cell in shown)
    assert 'href="#&quot;4B&amp;' in text
    assert "<a href" not in grid_html(tables)


@pytest.mark.parametrize("form", ["rich", "md", "json", "latex", "html"])
def test_every_mark_is_explained_in_every_format(form: str) -> None:
    table = every_mark()
    console = Console(width=2000, file=io.StringIO(), record=True)
    render.print_rich(table, console)
    text = {
        "rich": console.export_text(),
        "md": render.markdown([table]).replace("\\", ""),
        "json": render.json_text([table]),
        "latex": latex([table]),
        "html": grid_html([table]),
    }[form]
    for meaning in MEANINGS.values():
        words = re.findall(r"[A-Za-z]{4,}", meaning)
        assert all(word in text for word in words), meaning
        # A title is not for everybody: the legend says it, too.
        assert form != "html" or f"<dd>{html.escape(meaning)}</dd>" in text
    lean = dataclasses.replace(table, rows=(Row("r", "a row", {"c0": Cell("1.00", ("T",), 1.0)}),))
    shown = {"md": render.markdown([lean]), "latex": latex([lean]), "html": grid_html([lean])}.get(form, "")
    assert MEANINGS["n"] not in shown


def test_csv_has_every_mark() -> None:
    text = render.csv_text([every_mark()])
    assert all(f",{mark}," in text for mark in MEANINGS)


def checked_latex(text: str) -> None:
    """ASCII, braces and groups balanced, rows as wide as their tabular, no command but known ones."""
    assert text.isascii()
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text, re.S):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        assert depth >= 0
    assert depth == 0
    assert text.replace(r"\$", "").replace("\\\\", "").count("$") % 2 == 0
    assert text.count(r"\begingroup") == text.count(r"\endgroup")
    width = 0
    for line in text.splitlines():
        if found := re.search(r"\\begin\{tabular\}\{([lr]+)\}", line):
            width = len(found[1])
        elif line.startswith(r"\end{tabular}"):
            width = 0
        elif width and line != r"\hline":
            assert line.endswith(r" \\"), line
            assert len(re.findall(r"(?<!\\)&", line)) == width - 1, line
        if not width:
            assert not re.search(r"(?<!\\)[&#%^~_]", line), line
    known = """begingroup endgroup par noindent textbf medskip bigskip begin end hline footnotesize quad dag
        ddag
        textbackslash textasciicircum textasciitilde otimes neq times ldots Delta mu circ"""
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= set(known.split())


def test_latex_is_whole() -> None:
    text = latex(build_tables(fixed_records()))
    checked_latex(text)
    assert r"\textbf{72.77} {[}71.00, 74.55{]} \dag{}?" in text
    assert r"\quad +sparse ffn only" in text
    assert "-{}-preset limited-4b" in text
    assert r"2.24 & 108.17 & 78.99" in text


def test_latex_is_escaped() -> None:
    text = latex(build_tables(hostile()))
    checked_latex(text)
    assert r"\input" not in text
    checked_latex(latex([every_mark()]))


def test_characters_without_a_latex_name_are_spelt() -> None:
    table = Table("t", "caf\u00e9 \u4e2d \u2192", (Column("row", "Model", "label"),), ())
    assert "cafe U+4E2D U+2192" in latex([table])
