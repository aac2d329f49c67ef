"""Finds nothing: loads libsbr from the path it is given, and says clearly why it cannot."""

import ctypes
import json
import os
import platform
import struct
from typing import Any, Dict, List, NamedTuple, Optional

from . import _abi

# e_machine of the ELF header, for a message better than "wrong ELF class".
_ELF_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}

STATUS_NAMES = {
    _abi.OK: "ok",
    _abi.ERR_ARGUMENT: "argument",
    _abi.ERR_IO: "io",
    _abi.ERR_FORMAT: "format",
    _abi.ERR_UNSUPPORTED: "unsupported",
    _abi.ERR_MEMORY: "memory",
    _abi.ERR_STATE: "state",
    _abi.ERR_CANCELLED: "cancelled",
    _abi.ERR_INTERNAL: "internal",
}


class LoadError(OSError):
    """The library could not be loaded or speaks another ABI. The message is a full sentence."""


class NativeError(RuntimeError):
    """A call into the library failed. ``status`` is one of the ``ERR_*`` numbers."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def name(self) -> str:
        """The status as a word: "unsupported"."""
        return STATUS_NAMES.get(self.status, "status %d" % self.status)


class Isa(NamedTuple):
    """An instruction set compiled into the library."""

    name: str
    number: int
    supported: bool
    is_auto: bool
    requires: List[str]


class Library:
    """A loaded libsbr. Functions are attributes (``lib.sbr_decode``); :meth:`call` turns a status into an
    exception."""

    def __init__(self, path: str, handle: ctypes.CDLL) -> None:
        self.path = path
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def call(self, name: str, *args: Any) -> None:
        """Calls a function that returns a status and takes an ``sbr_error*`` last.

        Raises NativeError, and LoadError for a function that an older build lacks.
        """
        error = _abi.Error(struct_size=ctypes.sizeof(_abi.Error))
        try:
            function = getattr(self._handle, name)
        except AttributeError:
            raise LoadError("%s is too old: it lacks the function %s" % (self.path, name)) from None
        status = function(*args, ctypes.byref(error))
        if status != _abi.OK:
            message = error.message.decode("utf-8", "replace")
            raise NativeError(status, message or "%s failed with status %d" % (name, status))

    def build_info(self) -> Dict[str, Any]:
        """Version, compiler, flags and target."""
        info: Dict[str, Any] = json.loads(self._handle.sbr_build_info().decode("utf-8"))
        return info

    def isas(self) -> List[Isa]:
        """Instruction sets compiled in, best last."""
        found = []
        for index in range(self._handle.sbr_isa_count()):
            info = _abi.IsaInfo(struct_size=ctypes.sizeof(_abi.IsaInfo))
            self.call("sbr_isa_get", index, ctypes.byref(info))
            needs = info.requires_.decode("ascii")
            found.append(
                Isa(
                    info.name.decode("ascii"),
                    info.isa,
                    bool(info.supported),
                    bool(info.is_auto),
                    needs.split(",") if needs else [],
                )
            )
        return found

    def isa_number(self, name: str) -> int:
        """The number of an instruction set's name; "auto" is always known. Raises NativeError."""
        if name == "auto":
            return _abi.ISA_AUTO
        known = self.isas()
        for isa in known:
            if isa.name == name:
                return isa.number
        names = ", ".join(isa.name for isa in known)
        raise NativeError(
            _abi.ERR_UNSUPPORTED,
            'instruction set "%s" is not in this library, which has: auto, %s' % (name, names),
        )


def load(path: str) -> Library:
    """Loads the library at ``path``, binds every function and checks the ABI version.

    An older build may lack functions that are younger than its ABI version: two builds can then still be
    measured side by side. Raises :class:`LoadError`.
    """
    if not os.path.isfile(path):
        raise LoadError("there is no library at %s" % path)
    try:
        handle = ctypes.CDLL(os.path.abspath(path))
    except OSError as error:
        raise LoadError("%s cannot be loaded: %s" % (path, _foreign(path) or error)) from None
    try:
        handle.sbr_abi_version.restype = ctypes.c_uint32
        version = handle.sbr_abi_version()
    except AttributeError:
        raise LoadError("%s is not libsbr: it has no sbr_abi_version" % path) from None
    if version != _abi.ABI_VERSION:
        raise LoadError(
            "%s speaks ABI version %d, this agent speaks %d: build both from the same source"
            % (path, version, _abi.ABI_VERSION)
        )
    for name, result, arguments in _abi.FUNCTIONS:
        try:
            function = getattr(handle, name)
        except AttributeError:
            if name in _abi.LATER:
                continue
            raise LoadError("%s lacks the function %s" % (path, name)) from None
        function.restype = result
        function.argtypes = arguments
    return Library(path, handle)


def _foreign(path: str) -> Optional[str]:
    """Says so when the file is no ELF library of this machine."""
    with open(path, "rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return "it is not an ELF library"
    machine = struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)[0]
    built_for = _ELF_MACHINES.get(machine, "machine %d" % machine)
    if built_for != platform.machine():
        return "it is built for %s and this machine is %s" % (built_for, platform.machine())
    return None
