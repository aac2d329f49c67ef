"""The published speed grid as data: two tables, their rows and columns in the published order and spelling.

Numbers come from ``data/published_speed.csv`` (what they leave unsaid is in ``published_speed.notes.md``);
titles, row names and column headers are here because the CSV does not carry their spelling.
"""

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

THREAD_NOTE = (
    "Published numbers: i9 14900 and 1+13 (Snapdragon 8 Elite) with 4 threads, all others with the number of "
    "threads that was fastest."
)


@dataclass(frozen=True)
class PublishedDevice:
    """A column. ``header`` is as printed in that table. ``threads`` None: the fastest number was used."""

    key: str
    header: str
    name: str
    threads: int | None


@dataclass(frozen=True)
class PublishedRow:
    """A row. ``label`` is as printed. ``model`` is the catalogue's name. ``memory`` is GiB or the published
    wording. ``speeds`` maps a device key to decode tokens/s, None where "-" was published."""

    key: str
    label: str
    model: str
    sparse_ffn: bool
    sparse_lm_head: bool
    limited: bool
    memory: str
    speeds: Mapping[str, float | None]


@dataclass(frozen=True)
class PublishedTable:
    """One of the two published tables. ``memory_header`` is the second column's header."""

    key: str
    title: str
    memory_header: str
    devices: tuple[PublishedDevice, ...]
    rows: tuple[PublishedRow, ...]


# Threads as the note under the published tables states them: 4, or the fastest (None).
_DEVICES = {
    "i9-14900": ("Intel Core i9-14900", 4),
    "snapdragon-8-elite": ("OnePlus 13, Snapdragon 8 Elite", 4),
    "rk3588": ("Rockchip RK3588, 16 GB", None),
    "rk3576": ("Rockchip RK3576", None),
    "raspberry-pi-5": ("Raspberry Pi 5", None),
    "rdk-x5": ("D-Robotics RDK X5", None),
    "rk3566": ("Rockchip RK3566", None),
}

# Headers exactly as published; "8ge4" and "8gen4" are the two tables' spellings of one phone.
_HEADERS = {
    "21B": {
        "i9-14900": "i9 14900",
        "snapdragon-8-elite": "1+13 8ge4",
        "rk3588": "rk3588 (16G)",
        "raspberry-pi-5": "Raspberry PI 5",
    },
    "4B": {
        "i9-14900": "i9 14900",
        "snapdragon-8-elite": "1+13 8gen4",
        "rk3588": "rk3588 (16G)",
        "rk3576": "rk3576",
        "raspberry-pi-5": "Raspberry PI 5",
        "rdk-x5": "RDK X5",
        "rk3566": "rk3566",
    },
}

_TITLES = {"21B": "SmallThinker 21B", "4B": "SmallThinker 4B"}

_MODELS = {
    "SmallThinker-21B-A3B": "smallthinker-21b",
    "SmallThinker-4B-A0.6B": "smallthinker-4b",
    "Qwen3-30B-A3B": "qwen3-30b-a3b",
    "Qwen3-0.6B": "qwen3-0.6b",
    "Qwen3-1.7B": "qwen3-1.7b",
    "Gemma-3n-E2B": "gemma3n-e2b",
    "Gemma-3n-E4B": "gemma3n-e4b",
}

# (table, model, configuration) of the CSV -> the row's name exactly as published.
_LABELS = {
    ("21B", "SmallThinker-21B-A3B", "sparse"): "SmallThinker 21B+sparse",
    ("21B", "SmallThinker-21B-A3B", "sparse+limited"): "SmallThinker 21B+sparse +limited memory",
    ("21B", "Qwen3-30B-A3B", "dense"): "Qwen3 30B A3B",
    ("21B", "Qwen3-30B-A3B", "limited"): "Qwen3 30B A3Blimited memory",
    ("21B", "Gemma-3n-E2B", "dense"): "Gemma 3n E2B",
    ("21B", "Gemma-3n-E4B", "dense"): "Gemma 3n E4B",
    (
        "4B",
        "SmallThinker-4B-A0.6B",
        "sparse ffn+sparse lm_head",
    ): "SmallThinker 4B+sparse ffn +sparse lm_head",
    ("4B", "SmallThinker-4B-A0.6B", "sparse ffn+sparse lm_head+limited"): (
        "SmallThinker 4B+sparse ffn +sparse lm_head+limited memory"
    ),
    ("4B", "Qwen3-0.6B", "dense"): "Qwen3 0.6B",
    ("4B", "Qwen3-1.7B", "dense"): "Qwen3 1.7B",
    ("4B", "Qwen3-1.7B", "limited"): "Qwen3 1.7B limited memory",
    ("4B", "Gemma-3n-E2B", "dense"): "Gemma3n E2B",
}


@functools.cache
def published_tables() -> tuple[PublishedTable, ...]:
    """Both tables, 21B first as published. Raises ValueError when the packaged data does not fit the
    labels above."""
    cells: dict[tuple[str, str, str], tuple[str, dict[str, float | None]]] = {}
    text = (resources.files("stbench") / "data" / "published_speed.csv").read_text(encoding="utf-8")
    for line in csv.DictReader(text.splitlines()):
        key = (line["table"], line["model"], line["configuration"])
        memory, speeds = cells.setdefault(key, (line["memory"], {}))
        if key not in _LABELS or line["device"] not in _HEADERS[key[0]] or line["device"] in speeds:
            raise ValueError(f"published_speed.csv: unknown or repeated cell {key} on {line['device']}")
        if line["memory"] != memory:
            raise ValueError(f"published_speed.csv: {key} has two memory values")
        speed = line["decode_tokens_per_second"]
        speeds[line["device"]] = float(speed) if speed else None
    return tuple(_table(key, cells) for key in _TITLES)


def published_table(key: str) -> PublishedTable:
    """The table "4B" or "21B". Raises KeyError for any other key."""
    for table in published_tables():
        if table.key == key:
            return table
    raise KeyError(key)


def published_device(key: str) -> PublishedDevice:
    """The device of that key, with the header of the last table that it is in. Raises KeyError."""
    return {device.key: device for table in published_tables() for device in table.devices}[key]


def published_threads(key: str) -> int | None:
    """The number of threads that the published numbers of a device used; None: the fastest, or a device that
    is not in the published tables."""
    return _DEVICES[key][1] if key in _DEVICES else None


def _table(
    table: str, cells: Mapping[tuple[str, str, str], tuple[str, dict[str, float | None]]]
) -> PublishedTable:
    rows = []
    for key, label in _LABELS.items():
        if key[0] != table:
            continue
        memory, speeds = cells[key]
        _, model, configuration = key
        parts = configuration.split("+")
        rows.append(
            PublishedRow(
                key=f"{_MODELS[model]}/{configuration.replace(' ', '-')}",
                label=label,
                model=_MODELS[model],
                sparse_ffn="sparse" in parts or "sparse ffn" in parts,
                sparse_lm_head="sparse lm_head" in parts,
                limited="limited" in parts,
                memory=memory,
                speeds=speeds,
            )
        )
    devices = tuple(PublishedDevice(key, header, *_DEVICES[key]) for key, header in _HEADERS[table].items())
    return PublishedTable(table, _TITLES[table], "Memory(GiB)", devices, tuple(rows))
