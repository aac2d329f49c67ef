"""Reading a text that a user names."""

from __future__ import annotations

from pathlib import Path

from stbench.errors import InputError, unreadable


def read_text(path: Path) -> str:
    """The whole file, line ends untouched. Raises :class:`InputError`."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from error
