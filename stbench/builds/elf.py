"""What a shared library needs of the machine that loads it, read from its own tables (no binutils needed)."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC = b"\x7fELF"

# e_machine -> the machine as `uname -m` calls it.
_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB, _DT_VERNEED, _DT_VERNEEDNUM = 1, 5, 0x6FFFFFFE, 0x6FFFFFFF
_SHT_SYMTAB = 2


@dataclass(frozen=True)
class Needs:
    """``machine`` as uname -m calls it, "" for one that is not known here. ``libraries``: what the loader
    looks for. ``glibc``: the oldest that will do, None when it needs none. ``stripped``: without symbols."""

    machine: str
    libraries: tuple[str, ...]
    glibc: tuple[int, int] | None
    stripped: bool

    @property
    def libc(self) -> str:
        """Whose C library it was linked with: "glibc", "musl", "bionic", or "" for none."""
        if "libc.so.6" in self.libraries or self.glibc is not None:
            return "glibc"
        if any(name.startswith("libc.musl") for name in self.libraries):
            return "musl"
        # Both are called libc.so; liblog and libdl beside it are bionic's habit, and not musl's.
        return "bionic" if {"libc.so", "libdl.so"} <= set(self.libraries) else ""


def needs(data: bytes) -> Needs:
    """Reads a library. Raises ValueError for what is none or is damaged."""
    if not data.startswith(MAGIC):
        raise ValueError("not a shared library")
    try:
        (machine,) = struct.unpack_from("<H", data, 18)
        name = _MACHINES.get(machine, "")
        if data[4:6] != b"\x02\x01":
            return Needs(name, (), None, True)
        return _read(data, name)
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError("a damaged shared library") from error


def _read(data: bytes, machine: str) -> Needs:
    (program_table, section_table) = struct.unpack_from("<QQ", data, 32)
    (size, count, section_size, sections) = struct.unpack_from("<HHHH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, program_table + i * size) for i in range(count)]
    loads = [
        (address, offset, length) for kind, _, offset, address, _, length in segments if kind == _PT_LOAD
    ]
    dynamic: list[tuple[int, int]] = []
    for kind, _, offset, _, _, length in segments:
        if kind == _PT_DYNAMIC:
            dynamic += struct.iter_unpack("<qQ", data[offset : offset + length // 16 * 16])
    tags = dict(dynamic)
    strings = _offset(loads, tags.get(_DT_STRTAB, 0))
    libraries = [_text(data, strings + value) for tag, value in dynamic if tag == _DT_NEEDED]
    versions: list[tuple[int, int]] = []
    if _DT_VERNEED in tags:
        start = _offset(loads, tags[_DT_VERNEED])
        for at in _version_names(data, start, tags.get(_DT_VERNEEDNUM, 0)):
            if found := re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", _text(data, strings + at)):
                versions.append((int(found[1]), int(found[2])))
    if section_table + sections * section_size > len(data):
        raise struct.error("its end is missing")
    kinds = [struct.unpack_from("<I", data, section_table + i * section_size + 4)[0] for i in range(sections)]
    return Needs(machine, tuple(libraries), max(versions, default=None), _SHT_SYMTAB not in kinds)


def _offset(loads: list[tuple[int, int, int]], address: int) -> int:
    for start, offset, length in loads:
        if start <= address < start + length:
            return address - start + offset
    raise struct.error("an address outside of the file")


def _version_names(data: bytes, at: int, count: int) -> Iterator[int]:
    """Where, in the string table, the names of the needed versions begin."""
    for _ in range(min(count, 4096)):
        (_, auxiliaries, _, auxiliary, following) = struct.unpack_from("<HHIII", data, at)
        entry = at + auxiliary
        for _ in range(auxiliaries):
            (_, _, _, name, step) = struct.unpack_from("<IHHII", data, entry)
            yield name
            entry += step
        at += following


def _text(data: bytes, at: int) -> str:
    end = data.find(b"\0", at, at + 4096)
    if end < 0:
        raise struct.error("a text without an end")
    return data[at:end].decode("ascii", "replace")
