"""``rpi5-[01:16]``: one entry of devices.yaml for many boards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from stbench import yamlfile

if TYPE_CHECKING:
    from stbench.devices.device_entry import DeviceEntry
    from stbench.devices.inventory import Device

RANGE = re.compile(r"\[(\d{1,9}):(\d{1,9})\]")

# Of one file: more is a slip of the finger.
MAX_DEVICES = 1000

# Keys in which a range stands for the number in the device's name.
_RANGED = ("host", "ssh_config", "power", "extends")


def numbers(text: str) -> list[str]:
    """The numbers of the range in ``text``, as wide as its first: ``01`` to ``16``. [] without a range.

    Raises ValueError with a sentence for a range that makes no sense."""
    found = RANGE.findall(text)
    if not found:
        return []
    if len(found) > 1:
        raise ValueError("has more than one range")
    first, last = found[0]
    count = int(last) - int(first) + 1
    if count < 1:
        raise ValueError(f"the range [{first}:{last}] ends before it begins")
    if count > MAX_DEVICES:
        raise ValueError(
            f"the range [{first}:{last}] makes {count} devices; at most {MAX_DEVICES} are possible"
        )
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


class Ranges:
    """Makes devices of the entries of one file. ``makers``: device -> the entry that made it."""

    def __init__(self, document: yamlfile.Document) -> None:
        self.document = document
        self.makers: dict[str, str] = {}

    def example(self, name: str) -> str:
        """The first device of an entry's name, or of what another entry calls it."""
        return RANGE.sub(lambda found: found.group(1), name)

    def devices(self, name: str, data: Any, entry: DeviceEntry | None) -> Iterator[tuple[str, DeviceEntry]]:
        """What the entry ``name`` makes; nothing where that cannot be read, after adding why to the document.
        ``data``: it as written."""
        path = ("devices", name)
        try:
            found = numbers(name)
        except ValueError as error:
            self.document.add(path, str(error))
            return
        made = [RANGE.sub(number, name) for number in found] or [name]
        if len(self.makers) + len(made) > MAX_DEVICES:
            self.document.add(path, f"with this one the file has more than {MAX_DEVICES} devices")
            return
        twice = next((one for one in made if one in self.makers), None)
        if twice is not None:
            other = yamlfile.dotted(("devices", self.makers[twice]))
            self.document.add(path, f"the device {twice} is in {other}, too")
            return
        self.makers.update(dict.fromkeys(made, name))
        sound = self._same_ranges(data if isinstance(data, dict) else {}, path, found)
        if entry is not None and sound:
            for i, one in enumerate(made):
                yield one, _numbered(entry, found[i]) if found else entry

    def _same_ranges(self, data: Mapping[str, Any], path: yamlfile.Path, expected: list[str]) -> bool:
        sound = True
        for key in _RANGED:
            text = data.get(key)
            try:
                found = numbers(text) if isinstance(text, str) else []
                if found and found != expected:
                    raise ValueError("has another range than the device's name" if expected else _NOT_IN_NAME)
            except ValueError as error:
                self.document.add((*path, key), str(error))
                sound = False
        return sound

    def one_place(self, devices: Iterable[Device]) -> list[str]:
        """Entries that make several devices which are all the same board."""
        places: dict[str, list[tuple[str, str]]] = {}
        for device in devices:
            if device.enabled and device.connector == "ssh":
                places.setdefault(self.makers[device.name], []).append((device.host, device.ssh_config))
        return [maker for maker, found in places.items() if len(found) > len(set(found))]


_NOT_IN_NAME = "has a range, and the device's name has none"


def _numbered(entry: DeviceEntry, number: str) -> DeviceEntry:
    """``entry`` for one number of its range."""
    texts = {key: text for key in _RANGED if isinstance(text := getattr(entry, key), str)}
    return entry.model_copy(update={key: RANGE.sub(number, text) for key, text in texts.items()})
