"""``raspberry-pi-5 / SmallThinker 4B sparse limited`` -> the one published cell that is meant."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stbench.errors import UsageError
from stbench.tables.published import PublishedDevice, PublishedRow, published_tables

# A row of limited memory is meant only if one of these words is there.
_LIMITED = ("limited", "limit", "1g", "8g", "1gib", "8gib", "1gb", "8gb")
_SHOWN = 12


@dataclass(frozen=True)
class PublishedCell:
    """A cell of a published table. ``speed``: decoded tokens/s, None where "-" was published."""

    table: str
    device: PublishedDevice
    row: PublishedRow

    @property
    def speed(self) -> float | None:
        """Decoded tokens/s as published, None for "-"."""
        return self.row.speeds[self.device.key]

    @property
    def name(self) -> str:
        """As it can be typed."""
        return f"{self.device.key} / {_typed(self.row)}"


def published_cells() -> list[PublishedCell]:
    """All cells, those that both tables have (Gemma 3n E2B) once, the 4B table first."""
    found: dict[tuple[str, str, bool], PublishedCell] = {}
    for table in reversed(published_tables()):
        for row in table.rows:
            for device in table.devices:
                found.setdefault((device.key, row.model, row.limited), PublishedCell(table.key, device, row))
    return list(found.values())


def find_cell(text: str) -> PublishedCell:
    """The cell that "DEVICE / ROW" means: every word must be in the device's or the row's name, in any order
    and case. Raises :class:`UsageError` with the candidates where none or several fit."""
    device_text, slash, row_text = text.partition("/")
    if not slash or not _words(device_text) or not _words(row_text):
        raise UsageError(
            f'"{text}": expected "DEVICE / ROW"', hint='"raspberry-pi-5 / SmallThinker 4B sparse limited"'
        )
    cells = published_cells()
    devices = {cell.device.key for cell in cells if _fits(device_text, _device_names(cell.device))}
    if not devices:
        known = dict.fromkeys(cell.device.key for cell in cells)
        raise UsageError(f'"{device_text.strip()}" is no published device: {", ".join(known)}')
    if len(devices) > 1:
        raise UsageError(
            f'"{device_text.strip()}" fits several published devices: {", ".join(sorted(devices))}'
        )
    there = [cell for cell in cells if cell.device.key in devices]
    limited = any(word in _LIMITED for word in _words(row_text))
    words = " ".join(word for word in _words(row_text) if word not in ("limited", "limit", "unlimited"))
    found = [cell for cell in there if cell.row.limited == limited and _fits(words, _row_names(cell.row))]
    if len(found) == 1:
        return found[0]
    listed = found or there
    names = [f"  {cell.name}" for cell in listed[:_SHOWN]]
    what = "fits several published rows" if found else "fits no published row of that device"
    raise UsageError(f'"{row_text.strip()}" {what}:\n' + "\n".join(names))


def _typed(row: PublishedRow) -> str:
    label = re.sub(r"\s*\+\s*", " ", row.label).replace("limited memory", " limited")
    return " ".join(label.split())


def _device_names(device: PublishedDevice) -> str:
    return _compact(f"{device.key} {device.header} {device.name}")


def _row_names(row: PublishedRow) -> str:
    switches = "sparse ffn lm_head" if row.sparse_lm_head else "sparse" if row.sparse_ffn else "dense"
    return _compact(f"{row.model} {row.label} {row.memory} {switches}")


def _fits(text: str, name: str) -> bool:
    return all(word in name for word in _words(text))


def _words(text: str) -> list[str]:
    """Letters and digits only: "Qwen3-0.6B" is "qwen3" and "06b"."""
    return [
        word for part in re.split(r"[\s,+_/()-]+", text.lower()) if (word := re.sub(r"[^a-z0-9]", "", part))
    ]


def _compact(text: str) -> str:
    # A space between the parts would keep "gemma3n" from fitting "Gemma 3n".
    return "".join(_words(text))
