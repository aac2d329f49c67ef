"""HTML as values: whatever is not :class:`Markup` is text, and text is cleaned and escaped on its way in.

There is no other way into the page, so that nothing which a board sent can be forgotten.
"""

from __future__ import annotations

import html
import json
from typing import Any

from stbench.wording import clean

# Longer texts than a note of a table are nobody's sentences.
TEXT_LIMIT = 2000

# Elements without content or end tag.
_VOID = frozenset(("meta", "img", "source", "input", "br", "path", "line", "circle"))


class Markup(str):
    """HTML that was made here: its texts are escaped."""

    __slots__ = ()


def element(name: str, /, *children: str | None, **attributes: str | int | bool | None) -> Markup:
    """``<name …>children</name>``. Children that are plain text are cleaned and escaped, None is left out.

    Attribute names: ``class_`` is ``class``, other underscores are dashes. True is a bare attribute, None and
    False are left out; values are cleaned and escaped, unless they are :class:`Markup`.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{_attribute(value)}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if name in _VOID else f"{opening}{joined(*children)}</{name}>")


def joined(*children: str | None) -> Markup:
    """The children one after another."""
    return Markup("".join(_text(child) for child in children if child is not None))


def data_block(identifier: str, data: Any) -> Markup:
    """``<script type="application/json">``, which no browser runs. Raises ValueError for NaN, infinities."""
    return Markup(f'<script type="application/json" id="{_attribute(identifier)}">{json_text(data)}</script>')


def json_text(data: Any) -> str:
    """JSON in which ``<`` is written so that nothing in it ends a script or begins a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _text(child: str) -> str:
    return child if isinstance(child, Markup) else html.escape(clean(child, TEXT_LIMIT), quote=True)


def _attribute(value: str | int) -> str:
    return value if isinstance(value, Markup) else html.escape(clean(str(value), TEXT_LIMIT), quote=True)
