"""The text that tinythinker learns: the King James Bible of Debian's package ``bible-kjv-text``.

The translation of 1611 is in the public domain; the package's own terms are "unrestricted use". The book of
Ruth is held out, and nothing of it is seen in training: it is ``tests/data/ruth.txt``.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

PACKAGE = "bible-kjv-text"
HELD_OUT_BOOK = "Ruth"
HELD_OUT_FILE = Path(__file__).resolve().parents[1] / "data" / "ruth.txt"

# Between books; the tokenizer's only control token.
END_OF_TEXT = "<|endoftext|>"

_HEADER = 0x54
_VERSE = re.compile(r"([1-3]?[A-Z][a-zA-Z]*)(\d+):(\d+) (.*)")


def fetch(folder: Path) -> Path:
    """``bible.data`` out of the package, downloaded with apt into ``folder`` on first use."""
    data = folder / "usr" / "lib" / "bible.data"
    if data.is_file():
        return data
    folder.mkdir(parents=True, exist_ok=True)
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SystemExit(
            f"the text is in Debian's package {PACKAGE}, and there is no apt here to fetch it:"
            f" unpack the package into {folder} and run this again"
        )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        subprocess.run(["apt-get", "download", "--quiet", PACKAGE], cwd=scratch, check=True)
        (package,) = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)
    return data


def unpack(data: bytes) -> str:
    """Windows of 64 KiB, each packed by ``compress``; the three bytes of its header are stored once."""
    size, windows = struct.unpack_from(">2I", data, _HEADER)
    begins = struct.unpack_from(f">{windows}I", data, _HEADER + 8)
    magic = data[begins[0] - 3 : begins[0]]
    ends = (*begins[1:], len(data))
    parts = [
        subprocess.run(
            ["gzip", "--decompress", "--stdout"],
            input=magic + data[begin:end],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for begin, end in zip(begins, ends, strict=True)
    ]
    if any(len(part) != size for part in parts[:-1]):
        raise ValueError(f"{PACKAGE}: a window does not hold {size} bytes")
    return b"".join(parts).decode("ascii")


def books(text: str) -> dict[str, str]:
    """Book -> its text, one chapter per line, without verse numbers."""
    chapters: dict[str, dict[int, list[str]]] = {}
    for line in text.splitlines():
        if match := _VERSE.fullmatch(line.rstrip()):
            book, chapter, _, words = match.groups()
            chapters.setdefault(book, {}).setdefault(int(chapter), []).append(words)
    return {
        book: "".join(" ".join(verses) + "\n" for verses in parts.values())
        for book, parts in chapters.items()
    }
