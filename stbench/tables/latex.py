"""A Table as LaTeX: plain ``tabular`` with ``\\hline``, no packages, ASCII only: it compiles in any class.

The fragment goes between ``\\begin{document}`` and ``\\end{document}`` as it is, or through ``\\input``.
Published tables are wide: ``landscape`` pages, or ``\\resizebox`` around the tabular, are for the page that
takes it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from stbench.tables.table import Cell, Column, Row, Table
from stbench.wording import clean

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    # In text of the old default encoding these three are other characters.
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': "''",
    # After \\ an optional argument, or a star, would begin here.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "✗": r"$\otimes$",
    "≠": r"$\neq$",
    "\u00d7": r"$\times$",
    "…": r"\ldots{}",
    "—": "---",
    "\u2013": "--",
    "Δ": r"$\Delta$",
    "µ": r"$\mu$",
    "°": r"$^\circ$",
}

_EMPTY = Cell()


def latex(tables: Iterable[Table]) -> str:
    """The tables with legends and notes, ending in a newline."""
    return "\n".join(_table(table) for table in tables)


def _table(table: Table) -> str:
    columns = table.telling_columns()
    spec = "".join("l" if column.role in ("label", "memory", "text") else "r" for column in columns)
    # Headers of two lines are two rows: a cell of tabular does not break.
    depth = max(len(column.header.splitlines()) for column in columns)
    heads = [" & ".join(_head(column, line, depth) for column in columns) + r" \\" for line in range(depth)]
    lines = [
        r"\begingroup",
        r"\par\noindent\textbf{" + _text(table.title) + r"}\par\medskip",
        r"\noindent\begin{tabular}{" + spec + "}",
        r"\hline",
        *heads,
        r"\hline",
        *(_row(row, columns) for row in table.rows),
        r"\hline",
        r"\end{tabular}\par\medskip",
    ]
    notes = [f"{_text(mark)} {_text(meaning)}" for mark, meaning in table.legend()]
    notes += [_text(sentence) for sentence in [*table.intervals(), *table.first_notes(), *table.fine_print]]
    lines += [r"\noindent{\footnotesize " + note + r"\par}" for note in notes]
    return "\n".join([*lines, r"\bigskip", r"\endgroup"]) + "\n"


def _head(column: Column, line: int, depth: int) -> str:
    parts = column.header.splitlines()
    parts = [*[""] * (depth - len(parts)), *parts]
    return _text(parts[line])


def _row(row: Row, columns: Sequence[Column]) -> str:
    return " & ".join(_cell(row, column) for column in columns) + r" \\"


def _cell(row: Row, column: Column) -> str:
    if column.role == "label":
        return (r"\quad " if row.parent else "") + _text(row.label)
    cell = row.cells.get(column.key, _EMPTY)
    text = _text(cell.text)
    if column.role == "speed" and cell.value is not None:
        median, _, around = text.partition(" ")
        text = rf"\textbf{{{median}}} {around}".rstrip()
    marks = "".join(_text(mark) for mark in cell.marks)
    return f"{text} {marks}".strip()


def _text(text: str) -> str:
    """Text as text. A character that no plain LaTeX has becomes its ASCII base, else its code point."""
    # Two hyphens, as of an option, would become a dash.
    parts = re.sub(r"-(?=-)", "-\0", clean(text, 2000)).split("\0")
    return "{}".join("".join(map(_character, part)) for part in parts)


def _character(c: str) -> str:
    if c in _SPECIAL:
        return _SPECIAL[c]
    if c.isascii():
        return c
    base = unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode()
    return "".join(_SPECIAL.get(b, b) for b in base) or f"U+{ord(c):04X}"
