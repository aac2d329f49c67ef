"""devices.yaml -> Inventory, or all that is wrong with it at once, with file, line and key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stbench import yamlfile
from stbench.devices.device_entry import NAME, DeviceEntry
from stbench.devices.engine_entries import EngineEntry, engines_of, parse_entries
from stbench.devices.host_ranges import Ranges
from stbench.devices.no_secrets import take_out_secrets
from stbench.errors import InputError, InventoryError, UsageError
from stbench.sweeps.axes import AUTO_THREADS


@dataclass(frozen=True)
class Device:
    """A device with everything settled. ``threads`` None: all CPUs, AUTO_THREADS: searched for; ``cpus``
    empty: not pinned; texts that are empty: the connector's default. ``ssh_config`` is an alias in
    ~/.ssh/config, ``key`` the path of a private key, ``proxy_jump`` the hosts to go through,
    ``user@host:port,...``. Times in seconds: ``timeout_s`` of one job, ``connect_s`` for a connection to
    stand, ``silence_s`` without a sign of life until the link counts as lost, ``reconnect_s`` for it to come
    back, ``cool_down_s`` the longest wait of the thermal gate. ``power``: a command of this machine that
    power-cycles the device; ``memory_limit``: how a limit is held (stbench.devices.device_entry);
    ``engines``: the programs that devices.yaml describes for it; ``check``: metric to percent, as
    `stbench check` takes it, None for one that is not checked."""

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
    ssh_config: str = ""
    key: str = ""
    proxy_jump: str = ""
    connect_s: float = 15.0
    silence_s: float = 20.0
    reconnect_s: float = 300.0
    cool_down_s: float = 120.0
    power: str = ""
    memory_limit: str = "auto"
    check: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Inventory:
    """The devices of one file, in its order."""

    source: str
    devices: tuple[Device, ...]

    def enabled(self) -> list[Device]:
        """Devices that a sweep uses."""
        return [device for device in self.devices if device.enabled]

    def device(self, name: str) -> Device:
        """The one of that name, enabled or not. Raises :class:`UsageError`."""
        named = {device.name: device for device in self.devices}
        if name not in named:
            raise UsageError(
                f"{self.source}: {yamlfile.unknown_name('device', name, named)}",
                hint="stbench devices add [user@]host writes a new one's entry",
            )
        return named[name]


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
    take_out_secrets(document)
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
    ranges = Ranges(document)
    for name, data in written.items():
        path = ("devices", name)
        entry = yamlfile.validate(document, DeviceEntry, {} if data is None else data, path)
        own = None
        if entry is not None and entry.engines is not None:
            own = parse_entries(document, entry.engines, (*path, "engines"))
        if not NAME.fullmatch(ranges.example(name)):
            document.add(path, "a device name has letters, digits, dots, dashes and underscores only")
        for made, one in ranges.devices(name, data, entry):
            entries[made] = one
            if own is not None:
                engines[made] = own
    for name, data in written.items():
        base = data.get("extends") if isinstance(data, dict) else None
        if isinstance(base, str) and base not in written and ranges.example(base) not in ranges.makers:
            document.add(("devices", name, "extends"), yamlfile.unknown_name("device", base, written))
    devices = tuple(
        _settle(document, name, ranges.makers, entries, common, engines)
        for name in entries
        if _chain_is_intact(name, entries)
    )
    for maker in ranges.one_place(devices):
        document.add(
            ("devices", maker), "these devices have one host; put the range into host (or ssh_config), too"
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
    makers: Mapping[str, str],
    entries: dict[str, DeviceEntry],
    common: Mapping[str, EngineEntry],
    engines: Mapping[str, Mapping[str, EngineEntry]],
) -> Device:
    """Follows ``extends`` and fills defaults. ``enabled`` is never inherited: a template that is disabled
    must not disable, nor an enabled one enable, what is made from it."""
    path = ("devices", makers[name])
    values: dict[str, Any] = {}
    chain = [name]
    while True:
        entry = entries[chain[-1]]
        for key, value in _own_values(entry).items():
            if key != "enabled" or len(chain) == 1:
                values.setdefault(key, value)
        if entry.extends is None:
            break
        if entry.extends in chain:
            circle = " -> ".join(makers[link] for link in [*chain, entry.extends])
            document.add((*path, "extends"), f"goes in a circle: {circle}")
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
        timeout_s=float(values.get("timeouts.run", Device.timeout_s)),
        engines=engines_of(common, [engines.get(link, {}) for link in chain]),
        ssh_config=values.get("ssh_config", ""),
        key=values.get("key", ""),
        proxy_jump=values.get("proxy_jump", ""),
        connect_s=float(values.get("timeouts.connect", Device.connect_s)),
        silence_s=float(values.get("timeouts.silence", Device.silence_s)),
        reconnect_s=float(values.get("timeouts.reconnect", Device.reconnect_s)),
        cool_down_s=float(values.get("cool_down", Device.cool_down_s)),
        power=values.get("power", ""),
        memory_limit=values.get("memory_limit", Device.memory_limit),
        # 0 stands for off, which extends must be able to inherit.
        check={
            key.removeprefix("check."): value or None
            for key, value in sorted(values.items())
            if key.startswith("check.")
        },
    )
    if device.enabled and device.connector == "ssh" and not (device.host or device.ssh_config):
        document.add(path, "a device with connector: ssh needs the key host or ssh_config")
    return device


def _own_values(entry: DeviceEntry) -> dict[str, Any]:
    """What an entry itself says. Each time-out and each threshold is inherited by itself; ``timeout`` is that
    of a run."""
    apart = {"extends", "engines", "timeout", "timeouts", "check"}
    values = entry.model_dump(exclude_none=True, exclude=apart)
    shares = entry.check.model_dump(exclude_none=True) if entry.check is not None else {}
    times = entry.timeouts.model_dump(exclude_none=True) if entry.timeouts is not None else {}
    if entry.timeout is not None:
        times["run"] = entry.timeout
    values |= {f"check.{key}": percent for key, percent in shares.items()}
    return {**values, **{f"timeouts.{key}": seconds for key, seconds in times.items()}}
