"""devices.yaml -> Inventory, or all that is wrong with it at once, with file, line and key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from stbench import yamlfile
from stbench.axes import AUTO_THREADS
from stbench.engine_entries import EngineEntry, engines_of, parse_entries
from stbench.errors import InputError, InventoryError

# Names go into labels (`rpi5:smallthinker-4b/...`), file names and globs.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def _threads(value: Any) -> Any:
    if value in ("all", "auto"):
        return value
    items = value if isinstance(value, list) else [value]
    if items and all(type(n) is int and 1 <= n <= 1024 for n in items):
        return items
    raise ValueError("a thread count, a list of them, all or auto")


def _cpus(value: Any) -> Any:
    """CPU numbers as a list or in the kernel's notation: ``0-3,8``."""
    if isinstance(value, list) and value and all(type(n) is int and 0 <= n < 4096 for n in value):
        return value
    if isinstance(value, str) and re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", value):
        cpus: list[int] = []
        for part in value.split(","):
            first, _, last = part.partition("-")
            cpus.extend(range(int(first), int(last or first) + 1))
        if cpus and len(set(cpus)) == len(cpus):
            return cpus
    raise ValueError('CPU numbers, such as [4, 5, 6, 7] or "4-7"')


def _host(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_\[][A-Za-z0-9._:\]%-]{0,252}", value):
        return value
    raise ValueError("a host name or address")


def _absolute(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("/", "~/")) and "\0" not in value:
        return value
    raise ValueError("an absolute path, or one that begins with ~/")


Threads = Annotated[list[int] | Literal["all", "auto"], pydantic.BeforeValidator(_threads)]
Cpus = Annotated[list[int], pydantic.BeforeValidator(_cpus)]
Host = Annotated[str, pydantic.BeforeValidator(_host)]
AbsolutePath = Annotated[str, pydantic.BeforeValidator(_absolute)]


class DeviceEntry(pydantic.BaseModel):
    """One device as written. Every key may be missing: it then comes from ``extends`` or from a default."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    enabled: bool | None = None
    connector: Literal["local", "ssh"] | None = None
    host: Host | None = None
    port: Annotated[int, pydantic.Field(ge=1, le=65535)] | None = None
    user: str | None = None
    work_dir: AbsolutePath | None = None
    python: str | None = None
    threads: Threads | None = None
    cpus: Cpus | None = None
    models: dict[str, AbsolutePath] | None = None
    tags: list[str] | None = None
    extends: str | None = None
    timeout: Annotated[float, pydantic.Field(gt=0, le=86400)] | None = None
    # Checked by itself, in stbench.engine_entries.
    engines: Any = None


@dataclass(frozen=True)
class Device:
    """A device with everything settled. ``threads`` None: all CPUs, AUTO_THREADS: searched for; ``cpus``
    empty: not pinned; ``work_dir`` and ``python`` empty: the connector's default; ``timeout_s``: of one job;
    ``engines``: the programs that devices.yaml describes for it."""

    name: str
    enabled: bool = True
    connector: str = "local"
    host: str = ""
    port: int = 22
    user: str = ""
    work_dir: str = ""
    python: str = ""
    threads: tuple[int, ...] | None = None
    cpus: tuple[int, ...] = ()
    models: Mapping[str, str] | None = None
    tags: tuple[str, ...] = ()
    timeout_s: float = 600.0
    engines: Mapping[str, EngineEntry] = field(default_factory=dict)


@dataclass(frozen=True)
class Inventory:
    """The devices of one file, in its order."""

    source: str
    devices: tuple[Device, ...]

    def enabled(self) -> list[Device]:
        """Devices that a sweep uses."""
        return [device for device in self.devices if device.enabled]


def load_inventory(path: Path) -> Inventory:
    """Reads a devices file. Raises :class:`InputError` or, with every problem, :class:`InventoryError`."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}",
            hint="name the file with --devices, or use the devices.yaml that ships",
        ) from error
    return parse_inventory(text, str(path))


def parse_inventory(text: bytes, name: str) -> Inventory:
    """Parses the bytes of a devices file that messages call ``name``. Raises :class:`InventoryError`."""
    document = yamlfile.parse(text, name)
    devices: tuple[Device, ...] = ()
    if document.data is not None or not document.problems:
        devices = _devices(document)
    if document.problems:
        raise InventoryError(document.problems)
    return Inventory(name, devices)


def _devices(document: yamlfile.Document) -> tuple[Device, ...]:
    top = document.data
    if not isinstance(top, dict):
        document.add((), f"expected a mapping with the key devices, got {yamlfile.shown(top)}")
        return ()
    for key in top:
        if key not in ("devices", "engines"):
            document.add((key,), yamlfile.unknown(key, ["devices", "engines"]))
    common = parse_entries(document, top["engines"], ("engines",)) if "engines" in top else {}
    written = top.get("devices")
    if not isinstance(written, dict) or not written:
        where: yamlfile.Path = ("devices",) if "devices" in top else ()
        document.add(where, "expected a mapping of device names, with at least one device")
        return ()

    entries: dict[str, DeviceEntry] = {}
    engines: dict[str, dict[str, EngineEntry]] = {}
    for name, data in written.items():
        path = ("devices", name)
        if not NAME.fullmatch(name):
            document.add(path, "a device name has letters, digits, dots, dashes and underscores only")
        entry = yamlfile.validate(document, DeviceEntry, {} if data is None else data, path)
        if entry is not None:
            entries[name] = entry
            if entry.engines is not None:
                engines[name] = parse_entries(document, entry.engines, (*path, "engines"))
    for name, data in written.items():
        base = data.get("extends") if isinstance(data, dict) else None
        if isinstance(base, str) and base not in written:
            document.add(("devices", name, "extends"), yamlfile.unknown_name("device", base, written))
    devices = tuple(
        _settle(document, name, entries, common, engines)
        for name in entries
        if _chain_is_intact(name, entries)
    )
    return () if document.problems else devices


def _chain_is_intact(name: str, entries: dict[str, DeviceEntry]) -> bool:
    """Whether everything that a device extends could be read. A circle of such devices is intact."""
    seen: set[str] = set()
    following: str | None = name
    while following is not None and following not in seen:
        if following not in entries:
            return False
        seen.add(following)
        following = entries[following].extends
    return True


def _settled_threads(value: list[int] | str) -> tuple[int, ...] | None:
    if isinstance(value, str):
        return (AUTO_THREADS,) if value == "auto" else None
    return tuple(value)


def _settle(
    document: yamlfile.Document,
    name: str,
    entries: dict[str, DeviceEntry],
    common: Mapping[str, EngineEntry],
    engines: Mapping[str, Mapping[str, EngineEntry]],
) -> Device:
    """Follows ``extends`` and fills defaults. ``enabled`` is never inherited: a template that is disabled
    must not disable, nor an enabled one enable, what is made from it."""
    values: dict[str, Any] = {}
    chain = [name]
    while True:
        entry = entries[chain[-1]]
        for key, value in entry.model_dump(exclude_none=True, exclude={"extends", "engines"}).items():
            if key != "enabled" or len(chain) == 1:
                values.setdefault(key, value)
        if entry.extends is None:
            break
        if entry.extends in chain:
            circle = " -> ".join([*chain, entry.extends])
            document.add(("devices", name, "extends"), f"goes in a circle: {circle}")
            break
        chain.append(entry.extends)

    device = Device(
        name=name,
        enabled=values.get("enabled", True),
        connector=values.get("connector", "local"),
        host=values.get("host", ""),
        port=values.get("port", 22),
        user=values.get("user", ""),
        work_dir=values.get("work_dir", ""),
        python=values.get("python", ""),
        threads=_settled_threads(values.get("threads", "all")),
        cpus=tuple(values.get("cpus", ())),
        models=values.get("models", {}),
        tags=tuple(values.get("tags", ())),
        timeout_s=float(values.get("timeout", 600.0)),
        engines=engines_of(common, [engines.get(link, {}) for link in chain]),
    )
    if device.enabled and device.connector == "ssh":
        message = "devices over ssh are not in this version; set enabled: false"
        document.add(("devices", name, "connector"), message)
    if device.connector == "ssh" and not device.host:
        document.add(("devices", name), "a device with connector: ssh needs the key host")
    return device
