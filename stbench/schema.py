"""The record schema, generated from ``stbench/agent/wire.py``: ``python -m stbench.schema [--check] [DOCS]``.

Writes ``records.md`` (for people) and ``record.schema.json`` (JSON Schema 2020-12) into DOCS (default: docs).
``--check`` writes nothing and exits with 1 when a file is not what it would write.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stbench.agent import wire
from stbench.atomic import write_atomically

# Fields whose values are one of a list.
_CHOICES: dict[tuple[type, str], Sequence[str]] = {
    (wire.RunRecord, "status"): wire.STATUSES,
    (wire.RunRecord, "purpose"): ("measure", "reference", "search"),
    (wire.RunRecord, "provenance"): wire.PROVENANCES,
    (wire.Check, "verdict"): wire.CHECK_VERDICTS,
    (wire.Telemetry, "throttled"): wire.THROTTLE_VERDICTS,
    (wire.Gate, "outcome"): wire.GATE_OUTCOMES,
    (wire.LimitProof, "method"): wire.LIMIT_METHODS,
    (wire.LimitProof, "verdict"): wire.LIMIT_VERDICTS,
}

# Endings of names -> the unit they mean.
_UNITS = {
    "_ns": "ns",
    "_ms": "ms",
    "_bytes": "bytes",
    "_bytes_per_s": "bytes/s",
    "_s": "s",
    "_khz": "kHz",
    "_kb": "KiB",
    "_mw": "mW",
    "_mc": "1/1000 °C",
    "_share": "1/1000",
}
_EXACT_UNITS = {"lm_head_keep": "1/1000"}
_PREFIX_UNITS = {"ns_": "ns", "khz_": "kHz", "temperature_mc_": "1/1000 °C"}

_SCALARS: dict[Any, tuple[str, dict[str, Any]]] = {
    int: ("integer", {"type": "integer"}),
    float: ("number", {"type": "number"}),
    str: ("text", {"type": "string"}),
    bool: ("true/false", {"type": "boolean"}),
    Any: ("anything", {}),
}

_INTRODUCTION = """\
# Records

`results/<campaign>/records.jsonl` has one JSON object per line, a **RunRecord**: one process that ran one
case once. This page and [record.schema.json](record.schema.json) are generated from `stbench/agent/wire.py`
by `python -m stbench.schema`; a test holds them to it.

- Raw samples are kept, in nanoseconds; medians and speeds are computed when records are read.
- Units are in the names: {units}.
- Unknown fields are ignored, so an older stbench reads what a newer one wrote as long as it knows the version
  in `schema` ({schema} here).
- Parts that a failed run never reached are `null`. Only a record with `status` "ok" has a speed.
- `{statuses}` are the values of `status`.
"""


def record_types() -> list[type]:
    """RunRecord and every dataclass that it holds, in the order in which they are first met."""
    found: list[type] = [wire.RunRecord]
    for kind in found:
        for _, hint in _fields(kind):
            found += [inner for inner in _dataclasses_in(hint) if inner not in found]
    return found


def json_schema() -> dict[str, Any]:
    """JSON Schema of one line of records.jsonl."""
    kinds = record_types()
    definitions = {kind.__name__: _object_schema(kind) for kind in kinds}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "stbench RunRecord",
        "$ref": "#/$defs/RunRecord",
        "$defs": definitions,
    }


def markdown() -> str:
    """The page for people."""
    lines = [
        _INTRODUCTION.format(
            units=", ".join(f"`{ending}` {unit}" for ending, unit in _UNITS.items()),
            schema=wire.SCHEMA_VERSION,
            statuses="`, `".join(wire.STATUSES),
        )
    ]
    for kind in record_types():
        lines += [f"## {kind.__name__}", "", _description(kind), "", "| field | type | unit | default |"]
        lines.append("| --- | --- | --- | --- |")
        hints = dict(_fields(kind))
        for spec in dataclasses.fields(kind):
            cells = (f"`{spec.name}`", _type_text(kind, spec.name, hints[spec.name]), _unit(spec.name))
            lines.append("| " + " | ".join([*cells, _default_text(spec)]) + " |")
        lines.append("")
    return "\n".join(lines)


def files() -> dict[str, str]:
    """File name -> content, as :func:`main` writes them."""
    schema = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    return {"records.md": markdown(), "record.schema.json": schema}


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks the files."""
    parser = argparse.ArgumentParser(prog="python -m stbench.schema", description=__doc__)
    parser.add_argument("docs", nargs="?", type=Path, default=Path("docs"))
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when a file is out of date")
    args = parser.parse_args(argv)
    stale = []
    for name, text in files().items():
        path = args.docs / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not args.check:
                write_atomically(path, text.encode())
    for path in stale:
        print(f"{path}: {'out of date; run python -m stbench.schema' if args.check else 'written'}")
    return 1 if stale and args.check else 0


def _fields(kind: type) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(kind)
    for spec in dataclasses.fields(kind):
        yield spec.name, hints[spec.name]


def _dataclasses_in(hint: Any) -> list[type]:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    return [inner for argument in typing.get_args(hint) for inner in _dataclasses_in(argument)]


def _description(kind: type) -> str:
    """The docstring as Markdown: one paragraph, ``code`` as `code`."""
    return " ".join((inspect.getdoc(kind) or "").split()).replace("``", "`")


def _is_optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _schema_of(hint: Any) -> dict[str, Any]:
    if _is_optional(hint):
        inner = _schema_of(typing.get_args(hint)[0])
        return {"anyOf": [inner, {"type": "null"}]}
    origin = typing.get_origin(hint)
    if origin is list:
        return {"type": "array", "items": _schema_of(typing.get_args(hint)[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(typing.get_args(hint)[1])}
    if dataclasses.is_dataclass(hint):
        return {"$ref": f"#/$defs/{typing.cast(type, hint).__name__}"}
    return dict(_SCALARS[hint][1])


def _object_schema(kind: type) -> dict[str, Any]:
    properties = {}
    for name, hint in _fields(kind):
        properties[name] = _schema_of(hint)
        if (kind, name) in _CHOICES:
            properties[name]["enum"] = list(_CHOICES[kind, name])
    required = [spec.name for spec in dataclasses.fields(kind) if _default(spec) is dataclasses.MISSING]
    return {
        "description": _description(kind),
        "type": "object",
        "properties": properties,
        "required": required,
    }


def _type_text(kind: type, name: str, hint: Any) -> str:
    if (kind, name) in _CHOICES:
        return " / ".join(f"`{choice}`" for choice in _CHOICES[kind, name])
    return _hint_text(hint)


def _hint_text(hint: Any) -> str:
    if _is_optional(hint):
        return f"{_hint_text(typing.get_args(hint)[0])}, or null"
    origin = typing.get_origin(hint)
    if origin is list:
        return f"list of {_hint_text(typing.get_args(hint)[0])}"
    if origin is dict:
        return f"object of {_hint_text(typing.get_args(hint)[1])}"
    if dataclasses.is_dataclass(hint):
        name = typing.cast(type, hint).__name__
        return f"[{name}](#{name.lower()})"
    return _SCALARS[hint][0]


def _unit(name: str) -> str:
    if name in _EXACT_UNITS:
        return _EXACT_UNITS[name]
    for prefix, unit in _PREFIX_UNITS.items():
        if name.startswith(prefix):
            return unit
    endings = [ending for ending in _UNITS if name.endswith(ending) or f"{ending}_" in name]
    return _UNITS[max(endings, key=len)] if endings else ""


def _default(spec: dataclasses.Field[Any]) -> Any:
    if spec.default_factory is not dataclasses.MISSING:
        return spec.default_factory()
    return spec.default


def _default_text(spec: dataclasses.Field[Any]) -> str:
    default = _default(spec)
    return "required" if default is dataclasses.MISSING else f"`{json.dumps(default)}`"


if __name__ == "__main__":
    sys.exit(main())
