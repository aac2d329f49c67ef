"""A Table as a fragment of HTML: a ``section`` per table, without styles or scripts of its own.

What a page may hang its styles and scripts on: ``section.grid`` with ``id="grid-4b"``, ``div.scroll`` around
the table, ``td`` with ``data-role`` (of :data:`stbench.tables.table.ROLES`), ``data-column`` and, of numbers,
``data-value``; rows have ``data-row`` and variants ``class="variant"``. One device's columns stand under one
header, ``class="group"``. Everything is escaped: names and details come from boards.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence

from stbench.tables.proof import proof
from stbench.tables.table import MEANINGS, Cell, Column, Row, Table
from stbench.wording import clean

# Table, row, column, cell -> where the cell's records are; "" for nowhere.
Link = Callable[[Table, Row, Column, Cell], str]

_EMPTY = Cell()


def grid_html(tables: Iterable[Table], link: Link | None = None) -> str:
    """The tables with legends, notes and proofs, ending in a newline; the same tables give the same text.

    ``link`` says where a measured cell leads, such as ``"#cell-3"``; addresses are escaped, not judged.
    """
    return "".join(_section(table, link) for table in tables)


def _section(table: Table, link: Link | None) -> str:
    columns = table.telling_columns()
    name = f"grid-{_text(table.key.lower())}"
    lines = [
        f'<section class="grid" id="{name}" aria-labelledby="{name}-title">',
        f'<h2 id="{name}-title">{_text(table.title)}</h2>',
        # Wide tables scroll sideways; what scrolls must be reachable by keyboard.
        f'<div class="scroll" tabindex="0" role="group" aria-labelledby="{name}-title">',
        "<table>",
        "<thead>",
        *_head(columns),
        "</thead>",
        "<tbody>",
        *(_row(table, row, columns, link) for row in table.rows),
        "</tbody>",
        "</table>",
        "</div>",
        *_legend(table),
        *_list("notes", [*table.intervals(), *table.first_notes()]),
        *_rests_on(table),
        "</section>",
    ]
    return "\n".join(lines) + "\n"


def _head(columns: Sequence[Column]) -> list[str]:
    """The header's rows: one, or two where neighbours share a device's name, which then stands once."""
    groups = _groups(columns)
    if all(len(group) == 1 for group in groups):
        return [f"<tr>{''.join(_header(column) for column in columns)}</tr>"]
    upper, lower = "", ""
    for group in groups:
        if len(group) == 1:
            upper += _header(group[0], ' rowspan="2"')
            continue
        name = _text(_shared_name(group[0]))
        upper += f'<th scope="colgroup" class="group" colspan="{len(group)}">{name}</th>'
        lower += "".join(_header(column, skip=1) for column in group)
    return [f"<tr>{upper}</tr>", f"<tr>{lower}</tr>"]


def _groups(columns: Sequence[Column]) -> list[list[Column]]:
    groups: list[list[Column]] = []
    for column in columns:
        name = _shared_name(column)
        if groups and name and column.role != "speed" and name == _shared_name(groups[-1][0]):
            groups[-1].append(column)
        else:
            groups.append([column])
    return groups


def _shared_name(column: Column) -> str:
    """What the headers of a measured device's columns begin with; "" for other columns."""
    lines = column.header.splitlines()
    return lines[0] if column.device and column.role != "published" and len(lines) > 1 else ""


def _header(column: Column, attributes: str = "", skip: int = 0) -> str:
    # Numbers of published devices stay tellable from measured ones without colour.
    lines = [_text(part).replace("(", "<wbr>(") for part in column.header.splitlines()[skip:]]
    parts = "<br>".join(lines)
    about = f'data-role="{column.role}" data-column="{_text(column.key)}"'
    return f'<th scope="col"{attributes} {about}>{parts}</th>'


def _row(table: Table, row: Row, columns: Sequence[Column], link: Link | None) -> str:
    kind = ' class="variant"' if row.parent else ""
    cells = "".join(_cell(table, row, column, link) for column in columns)
    return f'<tr{kind} data-row="{_text(row.key)}">{cells}</tr>'


def _cell(table: Table, row: Row, column: Column, link: Link | None) -> str:
    if column.role == "label":
        return f'<th scope="row" data-role="label">{_text(row.label)}</th>'
    cell = row.cells.get(column.key, _EMPTY)
    text = _text(cell.text)
    if column.role == "speed" and cell.value is not None:
        median, _, around = text.partition(" ")
        text = f"<strong>{median}</strong>" + (f" <small>{around}</small>" if around else "")
    target = link(table, row, column, cell) if link is not None and cell.details else ""
    if target and text:
        text = f'<a href="{_text(target, 2000)}">{text}</a>'
    marks = "".join(f'<abbr title="{_text(MEANINGS[mark])}">{_text(mark)}</abbr>' for mark in cell.marks)
    value = f' data-value="{cell.value:.10g}"' if cell.value is not None else ""
    return (
        f'<td data-role="{column.role}" data-column="{_text(column.key)}"{value}>{text}'
        + (f" <sup>{marks}</sup>" if marks else "")
        + "</td>"
    )


def _legend(table: Table) -> list[str]:
    found = table.legend()
    if not found:
        return []
    items = [f"<div><dt>{_text(mark)}</dt><dd>{_text(meaning)}</dd></div>" for mark, meaning in found]
    return ['<dl class="legend">', *items, "</dl>"]


def _list(kind: str, sentences: Sequence[str]) -> list[str]:
    if not sentences:
        return []
    return [f'<ul class="{kind}">', *(f"<li>{_text(sentence, 2000)}</li>" for sentence in sentences), "</ul>"]


def _rests_on(table: Table) -> list[str]:
    header, proofs = proof(table)
    lines = ['<details class="proof">', "<summary>What each number rests on</summary>"]
    if proofs:
        lines += [
            f'<div class="scroll" tabindex="0" role="group" aria-label="Proofs: {_text(table.title)}">',
            "<table>",
            _proof_header(header),
            "<tbody>",
            *(_proof_row(texts) for texts in proofs),
            "</tbody>",
            "</table>",
            "</div>",
        ]
    lines += _list("fine-print", table.fine_print)
    return [*lines, "</details>"] if proofs or table.fine_print else []


def _proof_header(header: Sequence[str]) -> str:
    cells = "".join(f'<th scope="col">{_text(text)}</th>' for text in header)
    return f"<thead><tr>{cells}</tr></thead>"


def _proof_row(texts: Sequence[str]) -> str:
    name, *others = texts
    return (
        f'<tr><th scope="row">{_text(name)}</th>{"".join(f"<td>{_text(text)}</td>" for text in others)}</tr>'
    )


def _text(text: str, limit: int = 400) -> str:
    """Text as text and as a quoted attribute: flat, without control or direction characters, escaped."""
    return html.escape(clean(text, limit), quote=True)
