"""A command line as an engine: placeholders in braces, and where its tokens/s stand in what it printed."""

import json
import math
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

from .wire import Reading

# What may stand in braces in a command; ``{{`` and ``}}`` are braces themselves.
PLACEHOLDERS = ("model", "threads", "cpus", "n_prompt", "n_gen", "n_depth", "n_ctx", "n_batch", "seed")

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Unknown(NamedTuple):
    """A placeholder that is none, or ("") a brace without its partner."""

    name: str


def placeholders(command: Sequence[str]) -> List[str]:
    """The placeholders of a command, each once."""
    found = [name for word in command for name in _names(word) if name in PLACEHOLDERS]
    return list(dict.fromkeys(found))


def unknown(command: Sequence[str]) -> Optional[Unknown]:
    """The first placeholder that nothing fills in; None when there is none."""
    for word in command:
        for name in _names(word):
            if name not in PLACEHOLDERS:
                return Unknown(name)
    return None


def _names(word: str) -> Iterator[str]:
    for match in _TOKEN.finditer(word):
        if match.group() not in ("{{", "}}"):
            yield match.group(1) or ""


def fill(command: Sequence[str], values: Dict[str, str]) -> List[str]:
    """The command with its placeholders filled in. Raises ValueError for an unknown one."""
    bad = unknown(command)
    if bad is not None:
        known = ", ".join("{%s}" % name for name in PLACEHOLDERS)
        raise ValueError("the command has {%s}, which is none of %s" % (bad.name, known))

    def put(match: "re.Match[str]") -> str:
        text = match.group()
        return text[0] if text in ("{{", "}}") else values[match.group(1)]

    return [_TOKEN.sub(put, word) for word in command]


class NoNumber(ValueError):
    """What was looked for is not in the output."""


def read(reading: Reading, stdout: str, stderr: str) -> float:
    """The number that ``reading`` finds in stdout, else in stderr. Raises :class:`NoNumber` when there is
    none, or one that no speed can have."""
    for text in (stdout, stderr):
        found = _by_regex(reading.regex, text) if reading.regex else _by_path(reading.json, text)
        if found is None:
            continue
        if not math.isfinite(found) or found <= 0:
            raise NoNumber("%s is %s, which is no speed" % (described(reading), found))
        return found
    raise NoNumber("no number for %s" % described(reading))


def described(reading: Reading) -> str:
    """A reading as messages call it."""
    return 'the regex "%s"' % reading.regex if reading.regex else 'the JSON path "%s"' % reading.json


def _by_regex(regex: str, text: str) -> Optional[float]:
    found = None
    for match in re.finditer(regex, text, re.MULTILINE):
        try:
            found = float(match.group(1))
        except (TypeError, ValueError):
            # A group that took no part, or text that is no number.
            continue
    return found


def _by_path(path: str, text: str) -> Optional[float]:
    for document in documents(text):
        value = document
        for part in path.split("."):
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                break
        else:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return _float(value)
    return None


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def documents(text: str) -> Iterator[Any]:
    """JSON objects and lists in an output that holds other things, too: lines of their own, the last first,
    then what begins at the start of a line and goes over many."""
    lines = [line.strip() for line in text.splitlines()]
    for line in reversed(lines):
        if line[:1] in ("{", "["):
            found = _parsed(line)
            if found is not None:
                yield found
    decoder = json.JSONDecoder()
    for match in re.finditer(r"^[\[{]", text, re.MULTILINE):
        try:
            found, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        yield found
        return


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
