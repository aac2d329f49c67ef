"""A captured machine without what names it or its people: host and user names, serial numbers, MAC and IP
addresses, UUIDs.

Known names (the agent lists them) are replaced wherever they stand, and what looks like an address or a
serial number is, whether or not anybody listed it. Equal things stay equal: the same address becomes the same
``mac-1`` everywhere.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Iterable

from stbench.agent.wirecapture import Capture

# Names that say nothing about anybody; replacing "pi" would spoil "raspberrypi,5-model-b".
EVERYBODYS = {
    *("root", "user", "pi", "ubuntu", "debian", "fedora", "armbian", "android", "orangepi", "rock", "radxa"),
    *("khadas", "odroid", "sunrise", "raspberrypi", "localhost", "linux", "admin", "build", "test", "local"),
}

# Mounts that the doctor reads; others' places and servers are nobody's business.
_SYSTEM_MOUNTS = {"cgroup", "cgroup2"}

_MAC = re.compile(
    r"(?<![0-9A-Fa-f:.-])[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![0-9A-Fa-f])"
)
_BARE_MAC = re.compile(r"(?<=mac=)[0-9A-Fa-f]{12}\b|(?<=macaddr=)[0-9A-Fa-f]{12}\b", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9.])")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{3,39}(?![\w:])")
_UUID = re.compile(r"\b[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}\b")
_PARTUUID = re.compile(r"(?<=UUID=)[0-9A-Fa-f-]{8,}", re.IGNORECASE)
_LONG_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x)?[0-9A-Fa-f]{16,}(?![0-9A-Za-z])")
_SERIAL = re.compile(r"(serial[a-z_.]*\s*[=:]\s*)(\S+)", re.IGNORECASE)
# A dot and letters at its end: soc@107c000000 is a device.
_MAIL = re.compile(r"[\w.+-]+@[\w.-]+\.[A-Za-z]{2,}")
_HOME = re.compile(r"(/(?:home|Users|media|run/media|export/home)/)([^/\s\0]+)")


class _Names:
    """Stand-ins, numbered in the order in which they are needed."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, str], str] = {}

    def of(self, kind: str, value: str) -> str:
        """The stand-in of ``value``: ``kind-1``."""
        key = (kind, value.lower())
        if key not in self._given:
            number = 1 + sum(1 for other, _ in self._given if other == kind)
            self._given[key] = f"{kind}-{number}"
        return self._given[key]


class Anonymous:
    """Replaces what is private in texts of one machine. ``private``: names and numbers that are."""

    def __init__(self, capture: Capture, private: Iterable[str] = ()) -> None:
        self._names = _Names()
        board = " ".join(
            capture.files.get(path, "").lower()
            for path in (
                "proc/device-tree/model",
                "proc/device-tree/compatible",
                "sys/class/dmi/id/product_name",
            )
        )
        words = {text.strip() for text in (*capture.private, *private) if len(text.strip()) > 1}
        # A host called after its board is called as thousands are.
        own = [text for text in words if text.lower() not in EVERYBODYS and text.lower() not in board]
        # The longest first: a name within a name must not leave half of it.
        self._own = sorted(
            (text for text in own if not re.fullmatch(r"[0:. -]+", text)), key=len, reverse=True
        )

    def text(self, text: str) -> str:
        """``text`` without what is private."""
        for name in self._own:
            if name.lower() in text.lower():
                found = re.compile(_around(name), re.IGNORECASE)
                text = found.sub(self._names.of("name", name), text)
        text = _HOME.sub(lambda hit: hit[1] + self._home(hit[2]), text)
        text = _SERIAL.sub(lambda hit: hit[1] + self._names.of("serial", hit[2]), text)
        for pattern, kind in ((_UUID, "uuid"), (_MAC, "mac"), (_BARE_MAC, "mac"), (_PARTUUID, "uuid")):
            text = pattern.sub(self._by(kind), text)
        text = _MAIL.sub(self._by("mail"), text)
        text = _IPV4.sub(lambda hit: self._address(hit[0]), text)
        text = _IPV6.sub(lambda hit: self._address(hit[0]), text)
        return _LONG_HEX.sub(
            lambda hit: hit[0] if set(hit[0]) <= set("0xfF") else self._names.of("hex", hit[0]), text
        )

    def _by(self, kind: str) -> Callable[[re.Match[str]], str]:
        return lambda hit: self._names.of(kind, hit[0])

    def _home(self, name: str) -> str:
        kept = name.lower() in EVERYBODYS or re.fullmatch(r"(name|user)-\d+", name)
        return name if kept else self._names.of("user", name)

    def _address(self, text: str) -> str:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return text
        return text if address.is_loopback or address.is_unspecified else self._names.of("address", text)


def _around(name: str) -> str:
    """The name wherever it begins and ends as one: in ``/home/NAME/``, ``NAME-backup``, ``NAME_2``; a long
    one also within a word."""
    if len(name) >= 6:
        return re.escape(name)
    return rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])"


def anonymous(capture: Capture, private: Iterable[str] = ()) -> tuple[Capture, Anonymous]:
    """The capture without what is private, and the replacer that made it so, for the texts that go with it.
    ``private``: more names, such as the device's in devices.yaml."""
    replacer = Anonymous(capture, private)
    files = dict(capture.files)
    # What only names the machine.
    files.pop("proc/sys/kernel/hostname", None)
    if "proc/self/mountinfo" in files:
        files["proc/self/mountinfo"] = _mounts(files["proc/self/mountinfo"], capture.work_dir)
    for path in ("proc/cmdline", "boot/cmdline.txt", "boot/firmware/cmdline.txt"):
        if path in files:
            files[path] = _command_line(files[path])
    return (
        dataclasses.replace(
            capture,
            files={replacer.text(path): replacer.text(text) for path, text in files.items()},
            denied=[replacer.text(path) for path in capture.denied],
            cut=[replacer.text(path) for path in capture.cut],
            commands={command: replacer.text(output) for command, output in capture.commands.items()},
            work_dir=replacer.text(capture.work_dir),
            problem=replacer.text(capture.problem),
            busiest={replacer.text(name): share for name, share in capture.busiest.items()},
            private=[],
        ),
        replacer,
    )


def _mounts(text: str, work_dir: str) -> str:
    """The file systems that our files may lie on, and cgroups; of network ones not the server's name."""
    kept = []
    for line in text.splitlines():
        before, mark, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if not mark or len(left) < 6 or len(right) < 2:
            continue
        point = left[4]
        ours = point == "/" or f"{work_dir}/".startswith(f"{point}/")
        if not ours and right[0] not in _SYSTEM_MOUNTS:
            continue
        if ":" in right[1] or right[1].startswith("//"):
            right = [right[0], "SERVER:/SHARE", "rw" if "rw" in right[2:3] else "options"]
        kept.append(f"{before} - {' '.join(right)}")
    return "".join(f"{line}\n" for line in kept)


# Parameters of the kernel that tell something about speed or memory; others may hold anything.
_PARAMETERS = re.compile(
    r"(cgroup|mem$|mem=|memmap|isolcpus|nohz|mitigations|maxcpus|nr_cpus|cpuidle|cpufreq|intel_|amd_|psi|swapaccount"
    r"|systemd\.unified|transparent_hugepage|hugepages|rootfstype|rootwait|console|quiet|coherent_pool|cma|threadirqs)"
)


def _command_line(text: str) -> str:
    """Parameters that say something about speed, as they are; of others only the names."""
    words = [
        word if _PARAMETERS.match(word) else re.sub(r"=.*", "=", word) if "=" in word else ""
        for word in text.split()
    ]
    return " ".join(word for word in words if word) + "\n"
