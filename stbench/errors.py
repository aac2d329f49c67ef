"""One class per kind of failure, each with its exit code and the next thing to try.

The message is a full sentence that names the thing (file, line, key, device, option); ``hint`` is what to do
next and may be empty. :mod:`stbench.cli` prints both without a traceback and returns ``exit_code``, one of
EXIT_CODES.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stbench.paths import instead_of

EXIT_OK = 0
EXIT_REGRESSION = 1
EXIT_USAGE = 2
EXIT_CELLS_FAILED = 3
EXIT_UNREACHABLE = 4
EXIT_INCONCLUSIVE = 5
# EX_SOFTWARE. Not 1, which Python's own tracebacks end with and which means "regression" here.
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130

# As `stbench --help` and README tell them.
EXIT_CODES = {
    EXIT_OK: "ok",
    EXIT_REGRESSION: "regression or stale page",
    EXIT_USAGE: "usage, configuration or unreadable input",
    EXIT_CELLS_FAILED: "some cells failed",
    EXIT_UNREACHABLE: "device unreachable or busy",
    EXIT_INCONCLUSIVE: "inconclusive",
    EXIT_DEFECT: "a defect of stbench",
    EXIT_INTERRUPTED: "interrupted",
}


class StbenchError(Exception):
    """The base of every failure that a user can act on."""

    exit_code: int = EXIT_USAGE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(StbenchError):
    """An option or argument has an impossible value."""


class ConfigError(StbenchError):
    """A configuration file is wrong. ``problems`` holds every error found, one sentence each."""

    def __init__(self, problems: Sequence[str], *, hint: str = "") -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = list(problems)


class InventoryError(ConfigError):
    """devices.yaml is wrong."""


class SweepError(ConfigError):
    """A sweep file or sweep option is wrong, or the sweep has nothing to do."""


class ModelError(StbenchError):
    """A model name is unknown, or a model cannot be made or read."""


class InputError(StbenchError):
    """A file that was given to read is missing, unreadable or not what it should be."""


def unreadable(path: Path, error: OSError) -> InputError:
    """What to raise for a file that was given and could not be opened, read or written."""
    hint = instead_of(path) if isinstance(error, FileNotFoundError) else ""
    return InputError(f"{path}: {error.strerror or error}", hint=hint)


class StoreError(StbenchError):
    """A results directory cannot be used."""


class BuildError(StbenchError):
    """The native runtime is missing or cannot be built."""


class MissingExtra(StbenchError):
    """A command needs a package that is not installed."""


class NoSpace(StbenchError):
    """A device has too little room for what has to be stored there."""


class CellsFailed(StbenchError):
    """The command did its work, but some cells have no result."""

    exit_code = EXIT_CELLS_FAILED


class DeviceError(StbenchError):
    """A device could not be reached, or stopped answering."""

    exit_code = EXIT_UNREACHABLE


class Unreachable(DeviceError):
    """No connection: name, port, network, or a device that is off."""


class HostKeyRefused(DeviceError):
    """The device's host key is unknown, or not the one that was pinned."""


class LoginRefused(DeviceError):
    """The device was reached, but lets none of our keys in."""


class LinkLost(DeviceError):
    """The link was there and broke; trying again may help."""


class AgentError(DeviceError):
    """The agent on a device ended without the answer that it owes."""


class BusyError(StbenchError):
    """Somebody else is using a device or a results directory."""

    exit_code = EXIT_UNREACHABLE


class Inconclusive(StbenchError):
    """The measurements cannot settle the question."""

    exit_code = EXIT_INCONCLUSIVE


class Interrupted(StbenchError):
    """The user asked to stop. What was stored is kept."""

    exit_code = EXIT_INTERRUPTED
