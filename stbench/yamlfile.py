"""YAML with positions: every error of a file at once, each with its line, its key and what was expected.

:func:`parse` turns bytes into plain data plus the line of every key; :func:`validate` checks a part of it
against a pydantic model. Neither raises for wrong input: both add to :attr:`Document.problems`.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pydantic
import yaml

from stbench.wording import nearest

Path = tuple[str | int, ...]
Model = TypeVar("Model", bound=pydantic.BaseModel)

# Aliases can make a small file expand without end ("billion laughs"); no honest file comes near this.
MAX_NODES = 100_000

_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


@dataclass
class Document:
    """A parsed file. ``lines`` maps the path of a key or item to its line, counted from 1."""

    name: str
    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    found: list[tuple[int, str]] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Every problem once, in the order of the file."""
        return [sentence for _, sentence in sorted(dict.fromkeys(self.found), key=lambda item: item[0])]

    def add(self, path: Path, message: str) -> None:
        """Notes a problem at ``path``, or at the nearest enclosing key that has a line."""
        where = path
        while where and where not in self.lines:
            where = where[:-1]
        self.add_line(self.lines.get(where, 1), f"{dotted(path)}: {message}" if path else message)

    def add_line(self, line: int, message: str) -> None:
        """Notes a problem that belongs to no key."""
        self.found.append((line, f"{self.name}:{line}: {message}"))


def parse(text: bytes, name: str) -> Document:
    """Parses one YAML document. ``name`` is how messages call the file."""
    document = Document(name)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            document.add((), "the file is empty")
        else:
            document.lines[()] = node.start_mark.line + 1
            document.data = _Walker(document, loader).value(node, ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        document.add_line(line, f"not valid YAML: {printable(str(problem))}")
    except RecursionError:
        document.add_line(1, "nested too deeply")
    return document


class _Walker:
    """Builds plain data from nodes, keeping lines and reporting what YAML itself would let through."""

    def __init__(self, document: Document, loader: yaml.SafeLoader) -> None:
        self.document = document
        self.loader = loader
        self.n_nodes = 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.n_nodes += 1
        if self.n_nodes > MAX_NODES:
            raise yaml.constructor.ConstructorError(
                problem=f"more than {MAX_NODES} values", problem_mark=node.start_mark
            )
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            raise yaml.constructor.ConstructorError(
                problem=f"unknown tag {node.tag}", problem_mark=node.start_mark
            )
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for i, item in enumerate(node.value):
                self.document.lines[(*path, i)] = item.start_mark.line + 1
                items.append(self.value(item, (*path, i)))
            return items
        return self.scalar(node)

    def scalar(self, node: yaml.Node) -> Any:
        try:
            return self.loader.construct_object(node)
        except (ValueError, OverflowError) as error:
            raise yaml.constructor.ConstructorError(
                problem=str(error), problem_mark=node.start_mark
            ) from error
        except (KeyError, IndexError, AttributeError) as error:
            # Of a tag that was given and a value that is not of that kind.
            problem = f"{shown(node.value)} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark) from error

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self.scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                self.document.lines[(*path, str(shown))] = line
                self.document.add((*path, str(shown)), "a key must be a string (quote it)")
                continue
            if key in first:
                self.document.lines[(*path, key)] = line
                self.document.add((*path, key), f"given twice (first in line {first[key]})")
                self.document.lines[(*path, key)] = first[key]
                continue
            first[key] = line
            self.document.lines[(*path, key)] = line
            result[key] = self.value(value_node, (*path, key))
        return result


def validate(document: Document, model: type[Model], data: Any, path: Path) -> Model | None:
    """Checks ``data``, found at ``path``, against ``model``; None after adding its problems."""
    if not isinstance(data, dict):
        document.add(path, f"expected a mapping, got {shown(data)}")
        return None
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        for item in error.errors():
            where = tuple(part for part in item["loc"] if part != "[key]")
            document.add((*path, *where), _sentence(model, item))
        return None


def unknown(key: str, known: Iterable[str]) -> str:
    """ "unknown key" with the nearest known one, or with all of them when none is near."""
    return f"unknown key{_nearest(key, known)}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """A sentence for a name that is not in ``known``."""
    return f"unknown {kind} {shown(name)}{_nearest(name, known)}"


def _nearest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    if near := nearest(word, names):
        return f"; did you mean {near}?"
    return f"; known: {', '.join(names)}" if names else ""


_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "finite_number": "a finite number",
}


def _sentence(model: type[pydantic.BaseModel], item: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        inner = _model_at(model, item["loc"][:-1])
        known = [field.alias or name for name, field in inner.model_fields.items()]
        return unknown(str(item["loc"][-1]), known)
    if kind in _EXPECTED:
        expected = _EXPECTED[kind]
    elif kind == "literal_error":
        expected = str(context["expected"]).replace("'", "")
    elif kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        sign, bound = {
            "greater_than_equal": ("at least", context.get("ge")),
            "greater_than": ("more than", context.get("gt")),
            "less_than_equal": ("at most", context.get("le")),
            "less_than": ("less than", context.get("lt")),
        }[kind]
        expected = f"{sign} {bound:.15g}"
    elif kind == "value_error":
        expected = str(context["error"])
    else:
        expected = printable(str(item["msg"]))
    return f"expected {expected}, got {shown(item['input'])}"


def _model_at(model: type[pydantic.BaseModel], where: Path) -> type[pydantic.BaseModel]:
    """The model of the mapping at ``where``: that of a field which is one, or is one or None."""
    for part in where:
        found = model.model_fields.get(str(part))
        kinds = [] if found is None else [found.annotation, *typing.get_args(found.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
                model = kind
    return model


def dotted(path: Path) -> str:
    """``devices.rpi5.threads[2]``; keys that are not plain words are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[\w-]+", part, re.ASCII) else shown(part))
    return text


def shown(value: Any) -> str:
    """A value as it may appear in a message: one line, printable ASCII, at most 60 characters."""
    text = json.dumps(value, default=str) if not isinstance(value, bytes) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def printable(text: str) -> str:
    """Without control characters, which would reach the user's terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
