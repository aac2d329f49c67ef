"""What an output was made from, kept in the output: whether a picture or a report is older than its records
can be told without making it again, and whichever matplotlib made it.

A stamp is words such as ``chart=speed theme=dark records=0123456789ab``. It stands in the last line of an SVG
or HTML file as a comment, in a PNG as a text chunk, followed by a digest of all other bytes of the file.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

RECORDS = "records"

_DIGITS = 12
_COMMENT = re.compile(rb"<!-- stbench: (.*) content=([0-9a-f]+) -->\n\Z")
_PNG, _IEND, _KEYWORD = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82", b"stbench\x00"


def digest(files: Iterable[Path]) -> str:
    """Of records files: equal for line ends of either kind, and in whatever order they are named."""
    return _digest(b"".join(sorted({_lines_digest(path) for path in files})))


def _lines_digest(path: Path) -> bytes:
    made = hashlib.sha256()
    with path.open("rb") as lines:
        for line in lines:
            made.update(line[:-2] + b"\n" if line.endswith(b"\r\n") else line)
    return made.digest()


def words(records: str, **said: str) -> str:
    """A stamp: ``records`` is a :func:`digest`, ``said`` what else decides what is shown; "" is left out.
    Values are escaped so that any may stand in a comment."""
    given = {name.replace("_", "-"): value for name, value in said.items() if value} | {RECORDS: records}
    return " ".join(
        f"{name}={quote(value, safe=',:=').replace('--', '-%2D')}" for name, value in given.items()
    )


def pairs(ratio_to: Mapping[str, str]) -> str:
    """``--ratio-to`` as a word of a stamp."""
    return ",".join(f"{device}={published}" for device, published in sorted(ratio_to.items()))


def stamped(data: bytes, stamp: str) -> bytes:
    """The SVG, PNG or HTML file ``data`` with the stamp in it."""
    if not data.startswith(_PNG):
        data = data if data.endswith(b"\n") else data + b"\n"
        return data + f"<!-- stbench: {stamp} content={_digest(data)} -->\n".encode()
    text = b"tEXt" + _KEYWORD + f"{stamp} content={_digest(data)}".encode()
    chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    return data.removesuffix(_IEND) + chunk + _IEND


def read(data: bytes) -> tuple[str, bool]:
    """The stamp in a file, "" for none, and whether the rest of the file is what was stamped."""
    if data.startswith(_PNG):
        at = data.rfind(b"tEXt" + _KEYWORD)
        size = int.from_bytes(data[at - 4 : at], "big") if at >= 4 else 0
        if not size or data[at + 4 + size + 4 :] != _IEND:
            return "", False
        text = data[at + 4 + len(_KEYWORD) : at + 4 + size]
        stamp, _, content = text.decode("latin-1").rpartition(" content=")
        return stamp, content == _digest(data[: at - 4] + _IEND)
    found = _COMMENT.search(data, max(data.rfind(b"<!-- stbench: "), 0))
    if found is None:
        return "", False
    return found[1].decode("latin-1"), found[2].decode() == _digest(data[: found.start()])


def stale(path: Path, stamp: str) -> str:
    """Why the file at ``path`` is not what ``stamp`` says, "" where it is."""
    try:
        found, whole = read(path.read_bytes())
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not found:
        return f"{path}: does not say what it was made from"
    if found != stamp:
        return f"{path}: made from {found}, and that is {stamp} now"
    return "" if whole else f"{path}: changed by hand since it was made"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]
