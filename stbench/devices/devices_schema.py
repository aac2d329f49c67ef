"""JSON Schema of devices.yaml, for editors: ``python -m stbench.devices.devices_schema [--check] [DOCS]``.

Made from the models that read the file, so that an editor offers the keys there are. Writes
``devices.schema.json`` into DOCS (default: docs); ``--check`` writes nothing and exits with 1 when the file
is not what it would write. What only the whole file can tell (a device that extends nothing, a range that
differs) is left to ``stbench``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stbench.atomic import write_atomically
from stbench.devices.device_entry import DeviceEntry
from stbench.devices.engine_entries import ExternalEntry, LlamaBenchEntry, ReadingEntry
from stbench.devices.engine_names import LLAMA_BENCH

NAME = "devices.schema.json"


def json_schema() -> dict[str, Any]:
    """The schema, JSON Schema 2020-12."""
    definitions: dict[str, Any] = {}
    for model in (DeviceEntry, LlamaBenchEntry, ExternalEntry, ReadingEntry):
        made = model.model_json_schema()
        definitions.update(made.pop("$defs", {}))
        definitions[model.__name__] = made
    definitions = {name: _plain(made) for name, made in definitions.items()}
    # Read by themselves, so that messages name their keys; described together.
    definitions["Engines"] = {
        "type": "object",
        "properties": {LLAMA_BENCH: _or_null("LlamaBenchEntry")},
        "additionalProperties": {"$ref": "#/$defs/ExternalEntry"},
    }
    definitions["DeviceEntry"]["properties"]["engines"].update({"$ref": "#/$defs/Engines"})
    # Numbers are taken for words there.
    word = {"type": ["string", "number"]}
    for name, key, part in (
        ("LlamaBenchEntry", "args", "items"),
        ("ExternalEntry", "command", "items"),
        ("LlamaBenchEntry", "environment", "additionalProperties"),
        ("ExternalEntry", "environment", "additionalProperties"),
    ):
        definitions[name]["properties"][key][part] = word
    for key in ("decode", "prefill"):
        definitions["ExternalEntry"]["properties"][key].update({"$ref": "#/$defs/ReadingEntry"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "stbench devices.yaml",
        "type": "object",
        "properties": {
            "devices": {
                "description": "a name each, [01:16] in it for many; the name is in labels and files",
                "type": "object",
                "minProperties": 1,
                "additionalProperties": _or_null("DeviceEntry"),
            },
            "engines": {"description": "programs for all devices", "$ref": "#/$defs/Engines"},
        },
        "required": ["devices"],
        "additionalProperties": False,
        "$defs": dict(sorted(definitions.items())),
    }


def _or_null(name: str) -> dict[str, Any]:
    return {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}


def _plain(made: Any) -> Any:
    """Without the titles that pydantic makes of names, and without null: a key is left out instead."""
    if isinstance(made, list):
        return [_plain(item) for item in made]
    if not isinstance(made, dict):
        return made
    kept = {
        key: _plain(value)
        for key, value in made.items()
        if not (key == "title" and isinstance(value, str)) and not (key == "default" and value is None)
    }
    choices = [choice for choice in kept.pop("anyOf", []) if choice != {"type": "null"}]
    return {**kept, **({"anyOf": choices} if len(choices) > 1 else choices[0] if choices else {})}


def text() -> str:
    """The file's content."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks the file."""
    parser = argparse.ArgumentParser(prog="python -m stbench.devices.devices_schema", description=__doc__)
    parser.add_argument("docs", nargs="?", type=Path, default=Path("docs"))
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when the file is out of date")
    args = parser.parse_args(argv)
    path = args.docs / NAME
    if path.is_file() and path.read_text(encoding="utf-8") == text():
        return 0
    if not args.check:
        write_atomically(path, text().encode())
    print(
        f"{path}: {'out of date; run python -m stbench.devices.devices_schema' if args.check else 'written'}"
    )
    return 1 if args.check else 0


if __name__ == "__main__":
    sys.exit(main())
