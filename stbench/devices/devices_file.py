"""Appends a device to devices.yaml as text, so that comments and everybody's formatting stay as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from stbench.atomic import write_atomically
from stbench.devices.inventory import Device, Inventory, parse_inventory
from stbench.errors import InputError, InventoryError
from stbench.yamlfile import printable


def entry_text(name: str, comment: str, keys: Mapping[str, str | int], indent: int) -> list[str]:
    """The lines of an entry. ``comment`` may come from a device: it is made one printable line."""
    pad = " " * indent
    lines = [f"{pad}# {printable(comment)[:200]}"] if comment else []
    lines.append(f"{pad}{_scalar(name)}:")
    lines += [f"{2 * pad}{key}: {_scalar(value)}" for key, value in keys.items()]
    return lines


def append(path: Path, name: str, comment: str, keys: Mapping[str, str | int]) -> Device:
    """Adds a device to the end of ``devices:`` and returns it as it reads there. The file is replaced only
    when all of it can be read again, with this device and no other change.

    Raises :class:`stbench.errors.InventoryError` for a file that was wrong before and :class:`InputError`,
    with the entry to paste, where the text cannot simply be appended to."""
    path = path.resolve()
    before = path.read_bytes() if path.exists() else b"devices:\n"
    old = parse_inventory(before, str(path)) if path.exists() else Inventory(str(path), ())
    after = _with_entry(before, name, comment, keys)
    added = _added(after, old, name) if after is not None else None
    if after is None or added is None:
        text = "\n".join(entry_text(name, comment, keys, 2))
        raise InputError(
            f"{path}: an entry cannot be appended to this file's way of writing `devices:`",
            hint=f"add it by hand:\n{text}",
        )
    if path.exists() and path.read_bytes() != before:
        raise InputError(f"{path}: changed meanwhile", hint="try again")
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    write_atomically(path, after).chmod(mode)
    return added


def _added(after: bytes, old: Inventory, name: str) -> Device | None:
    """The new device, when it is all that changed."""
    try:
        devices = parse_inventory(after, old.source).devices
    except InventoryError:
        return None
    return devices[-1] if devices[:-1] == old.devices and devices[-1].name == name else None


def _with_entry(before: bytes, name: str, comment: str, keys: Mapping[str, str | int]) -> bytes | None:
    """The file with the entry, None where it is written in a way that has no room for a block of text."""
    try:
        text = before.decode("utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (UnicodeDecodeError, yaml.YAMLError):
        return None
    pair = next((pair for pair in _pairs(root) if pair[0].value == "devices"), None)
    if pair is None:
        return None
    devices = pair[1]
    if isinstance(devices, yaml.MappingNode):
        if devices.flow_style:
            return None
        indent = devices.value[0][0].start_mark.column
    else:
        # `devices:` with nothing below it yet.
        indent = pair[0].start_mark.column + 2
    ending = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines()
    at = max(_last_lines(devices), default=pair[0].start_mark.line) + 1
    # Comments that stand as deep as devices do belong to them; those of the next key do not.
    end = at
    while end < len(lines) and re.match(rf"\s*$|[ ]{{{max(indent, 1)},}}#", lines[end]):
        end += 1
        if lines[end - 1].strip():
            at = end
    entry = entry_text(name, comment, keys, indent or 2)
    blank = [""] if any(not line.strip() for line in lines[pair[0].start_mark.line : at]) else []
    return (ending.join([*lines[:at], *blank, *entry, *lines[at:]]) + ending).encode("utf-8")


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return list(node.value) if isinstance(node, yaml.MappingNode) else []


def _last_lines(node: yaml.Node) -> Iterator[int]:
    """Lines, counted from 0, on which something of ``node`` ends. A collection's own end is where the next
    thing begins, so only what has no parts is asked."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        for key, value in node.value:
            yield key.end_mark.line
            yield from _last_lines(value)
    elif isinstance(node, yaml.SequenceNode) and not node.flow_style:
        for item in node.value:
            yield from _last_lines(item)
    else:
        # A block of text ends at the start of the line after it.
        yield node.end_mark.line - (node.end_mark.column == 0)


def _scalar(value: str | int) -> str:
    """As it is where YAML reads the same text back, else quoted."""
    if isinstance(value, int):
        return json.dumps(value)
    plain = re.fullmatch(r"[A-Za-z0-9~/][A-Za-z0-9._~/@-]*", value)
    return value if plain and yaml.safe_load(value) == value else json.dumps(value)
