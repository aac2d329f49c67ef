"""One line of a records file -> a record, or a sentence that says why it is none.

Whatever reads records reads them here: :func:`read_lines` streams a file of any size, a line at a time,
:func:`parse_record` judges one line, :class:`Problems` says what was found without drowning the reader, and
:class:`Repetitions` finds jobs that stand there twice. A line that is refused never hides the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stbench.agent import wire
from stbench.agent.wire import RunRecord
from stbench.errors import unreadable
from stbench.wording import case_label, clean

# A record of this status says only that there is no result yet; all others are results, also bad ones.
UNFINISHED = "cancelled"

# Schema version n -> what turns the JSON object of such a record into one of version n + 1.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

# Ours have 3 to 40 KB; one of a long timeline and a reference some MB. A file without line ends stops here.
MAX_LINE_BYTES = 64 << 20

# Of one kind of problem so many lines are named, and the rest is counted.
NAMED = 5

# Longer than any of ours with all that it quotes in short.
_SENTENCE = 2000

# What ``versions.runtime`` may hold within each other; it is the one part whose shape is not described.
_DEEPEST = 32

_INT64 = 2**63
# A search for 19 digits in a line takes 45 us by a regular expression, and 5 us for noughts in a copy.
_NOUGHTS = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 19
# Programs have masks of CPUs as whole numbers; Linux has at most so many.
_MAX_CPUS = 4096
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BOM = b"\xef\xbb\xbf"


class LineError(wire.WireError):
    """Why a line is no record. ``kind`` is the same for lines with the same fault."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


@dataclass(frozen=True)
class Line:
    """A line of a file: its number from 1, its first byte and its length with line end. ``record`` None:
    ``problem`` says why, and ``kind`` names the fault; with a record, ``problem`` is a remark or "".
    ``torn``: the file ends within it. ``digest`` is of its bytes."""

    number: int
    offset: int
    size: int
    record: RunRecord | None
    problem: str = ""
    kind: str = ""
    torn: bool = False
    digest: bytes = b""


def read_lines(path: Path, *, offset: int = 0, number: int = 0) -> Iterator[Line]:
    """The lines of a file, one at a time in memory. ``offset`` is where to begin, behind ``number`` lines.

    Raises :class:`InputError` when the file cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while data := file.readline(MAX_LINE_BYTES):
                number += 1
                size = len(data)
                if size == MAX_LINE_BYTES and not data.endswith(b"\n"):
                    size += _skip(file)
                    yield _refused(number, offset, size, "too long", f"the line has {size} bytes")
                else:
                    yield _line(number, offset, data)
                offset += size
    except OSError as error:
        raise unreadable(path, error) from error


def _skip(file: Any) -> int:
    """Leaves a line that is too long behind; its further bytes."""
    skipped = 0
    while data := file.readline(MAX_LINE_BYTES):
        skipped += len(data)
        if data.endswith(b"\n"):
            break
    return skipped


def _line(number: int, offset: int, data: bytes) -> Line:
    size = len(data)
    if not data.endswith(b"\n"):
        sentence = f"the last line is unfinished ({size} bytes); its writer was killed"
        return dataclasses.replace(_refused(number, offset, size, "torn", sentence), torn=True)
    remark = kind = ""
    if number == 1 and data.startswith(_BOM):
        data = data[len(_BOM) :]
        remark, kind = "begins with a byte order mark, as editors write it; read all the same", "mark"
    elif data.endswith(b"\r\n"):
        remark, kind = "ends in CR LF, as editors of other systems write it; read all the same", "CR LF"
    try:
        digest = hashlib.blake2b(data.strip(), digest_size=16).digest()
        return Line(number, offset, size, parse_record(data), remark, kind, digest=digest)
    except LineError as error:
        return _refused(number, offset, size, error.kind, str(error))


def _refused(number: int, offset: int, size: int, kind: str, sentence: str) -> Line:
    return Line(number, offset, size, None, sentence, kind)


# ---- one line ----------------------------------------------------------------------------------------


def parse_record(line: str | bytes) -> RunRecord:
    """One line, upgraded to the present schema and checked: what comes out can be tabulated, stored and
    printed. Raises :class:`LineError`, a :class:`stbench.agent.wire.WireError`."""
    if isinstance(line, str):
        line = line.encode("utf-8", "surrogatepass")
    data = _upgraded(_object(line))
    try:
        record = wire.from_json(RunRecord, data)
    except wire.WireError as error:
        raise LineError("shape", str(error)) from None
    if record.status not in wire.STATUSES:
        raise LineError("status", f"status {record.status!r} is none of {', '.join(wire.STATUSES)}")
    problem = _impossible(record)
    if problem:
        raise LineError("impossible", problem)
    return record


def _object(line: bytes) -> dict[str, Any]:
    zeros = line.count(0)
    if zeros:
        raise LineError("NUL", f"{zeros} of its {len(line)} bytes are NUL, as a power cut leaves them")
    if not line.strip():
        raise LineError("empty", "an empty line")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError("UTF-8", f"not UTF-8 ({error.reason} at byte {error.start}): {error}") from None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LineError("JSON", f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise LineError("JSON", "not a JSON object")
    try:
        if _LONG_NUMBER in line.translate(_NOUGHTS):
            _check_numbers(data, "")
        if _SURROGATE.search(line):
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise LineError("UTF-8", "a text in it has half a character (a lone surrogate)") from None
    except RecursionError:
        raise LineError("JSON", "nested too deeply") from None
    return data


def _check_numbers(data: Any, path: str) -> None:
    """Tables hold whole numbers of 64 bits."""
    if isinstance(data, dict):
        for key, value in data.items():
            _check_numbers(value, f"{path}.{key}" if path else str(key))
    elif isinstance(data, list):
        for i, value in enumerate(data):
            _check_numbers(value, f"{path}[{i}]")
    elif isinstance(data, int) and not -_INT64 <= data < _INT64:
        raise LineError("too large", f"{path}: a number of {data.bit_length()} bits; 64 are the most")


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    schema = data.get("schema")
    if type(schema) is not int:
        raise LineError("schema", "not a record: no schema version")
    if schema > wire.SCHEMA_VERSION:
        raise LineError(
            "newer",
            f"written by a newer stbench (schema {schema}, this one reads {wire.SCHEMA_VERSION}); "
            "read it with that version",
        )
    while schema < wire.SCHEMA_VERSION:
        if schema not in UPGRADES:
            raise LineError("schema", f"schema {schema} is not known")
        data = UPGRADES[schema](data)
        schema += 1
        data["schema"] = schema
    return data


def _impossible(record: RunRecord) -> str:
    """What no run can have: times and counts below nothing, and parts without end."""
    workload = record.workload
    counts = {
        "replicate": record.replicate,
        "attempt": record.attempt,
        "wall_s": record.wall_s,
        "workload.n_prompt": workload.n_prompt,
        "workload.n_gen": workload.n_gen,
        "workload.n_depth": workload.n_depth,
    }
    for name, value in counts.items():
        if value < 0:
            return f"{name} is {value:g}, which is below nothing"
    for cpu in record.settings.cpus:
        if not 0 <= cpu < _MAX_CPUS:
            return f"settings.cpus has {cpu}, and CPUs have the numbers 0 to {_MAX_CPUS - 1}"
    if record.samples is not None:
        if record.samples.ttft_ns < 0:
            return f"samples.ttft_ns is {record.samples.ttft_ns} ns, a negative time"
        for name in ("prefill_ns", "prefill_tokens", "decode_ns", "decode_tokens"):
            values = getattr(record.samples, name)
            if values and min(values) < 0:
                at = next(i for i, value in enumerate(values) if value < 0)
                what = "a negative time" if name.endswith("_ns") else "a negative count"
                return f"samples.{name}[{at}] is {values[at]}, {what}"
    return _unstorable(record.versions.runtime, "versions.runtime", _DEEPEST) if record.versions else ""


def _unstorable(data: Any, path: str, left: int) -> str:
    """What could not be written as a line again; "" where all could."""
    if isinstance(data, (dict, list)):
        if not left:
            return f"{'.'.join(path.split('.')[:3])} is nested more than {_DEEPEST} deep"
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            # Of texts and whole numbers there is nothing to ask.
            if not isinstance(value, (str, int)) and (
                problem := _unstorable(value, f"{path}.{key}", left - 1)
            ):
                return problem
        return ""
    if isinstance(data, float) and not math.isfinite(data):
        return f"{path} is {data}, which is no number"
    return ""


# ---- many lines --------------------------------------------------------------------------------------


class Problems:
    """Sentences about a file's lines: the first few of each kind, and how many more there are. ``known`` goes
    on with what :meth:`state` gave."""

    def __init__(self, known: Mapping[str, Any] | None = None) -> None:
        self._kinds: dict[str, _Kind] = {}
        self._lines = self._left_out = 0
        if known is not None:
            self.absorb(known)

    def look_at(self, line: Line) -> None:
        """Counts a line, and keeps its problem if it has one."""
        self._lines += 1
        self._left_out += line.record is None
        if line.problem:
            self.add(line.kind, line.number, line.problem)

    def add(self, kind: str, number: int, sentence: str) -> None:
        """Keeps a sentence about the line with that number. What it quotes may be anybody's text, and it is
        printed on terminals."""
        self._kinds.setdefault(kind, _Kind()).add(1, [(number, clean(sentence, _SENTENCE))])

    @property
    def left_out(self) -> int:
        """How many lines are no record."""
        return self._left_out

    def state(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        kinds = {kind: [found.count, found.named] for kind, found in self._kinds.items()}
        return {"lines": self._lines, "left_out": self._left_out, "kinds": kinds}

    def absorb(self, state: Mapping[str, Any]) -> None:
        """Adds what was found in lines behind these."""
        self._lines += state["lines"]
        self._left_out += state["left_out"]
        for kind, (count, named) in state["kinds"].items():
            self._kinds.setdefault(kind, _Kind()).add(count, [(number, text) for number, text in named])

    def sentences(self, path: Path) -> list[str]:
        """What to show of a file, each once, kinds in the order of their first lines. A sum of what was left
        out follows where that is more than one line."""
        said = []
        for kind, found in sorted(self._kinds.items(), key=lambda item: item[1].named[0][0]):
            said += [f"{path}:{number}: {sentence}" for number, sentence in found.named]
            more = found.count - len(found.named)
            if more:
                said.append(f"{path}: and {more} more of that kind ({kind})")
        if self._left_out > 1:
            said.append(f"{path}: {self._left_out} of {self._lines} lines are left out")
        return said


@dataclass
class _Kind:
    """How often a fault was found, and the first of its lines."""

    count: int = 0
    named: list[tuple[int, str]] = dataclasses.field(default_factory=list)

    def add(self, count: int, named: Sequence[tuple[int, str]]) -> None:
        self.count += count
        self.named += named[: NAMED - len(self.named)]


@dataclass(frozen=True)
class Outcome:
    """Of which job and attempt a line has what result. ``mark``: of the line's bytes."""

    number: int
    id: str
    attempt: int
    label: str
    replicate: int
    mark: int
    result: str


def mark_of(line: Line) -> int:
    """The digest of a line as a number of 64 bits."""
    return int.from_bytes(line.digest[:8], "little", signed=True)


def has_result(status: str, purpose: str) -> bool:
    """Whether another line of the same job and attempt is worth a sentence: a run that was cancelled or
    failed may be run again, and a search for threads that was cut off begins anew with the resumed sweep."""
    return status == "ok" and purpose != "search"


def outcome_of(line: Line) -> Outcome | None:
    """None where there is none, or none that has to be the only one."""
    record = line.record
    if record is None or not has_result(record.status, record.purpose):
        return None
    mark, result = mark_of(line), result_of(record)
    return Outcome(line.number, record.id, record.attempt, record.label, record.replicate, mark, result)


class Repetitions:
    """Jobs that a file has twice. A run that is repeated on purpose has another ``attempt``; what is left was
    copied, merged or edited."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], Outcome] = {}

    def look_at(self, found: Outcome) -> tuple[str, str] | None:
        """(kind, sentence) where an earlier line is of the same job and attempt."""
        first = self._seen.get((found.id, found.attempt))
        self._seen[found.id, found.attempt] = found
        if first is None:
            return None
        if first.mark == found.mark:
            return "repeated", f"the same record as line {first.number}; it counts once"
        which = f"replicate {found.replicate}, attempt {found.attempt}"
        job = f"job {clean(found.id)} ({case_label(found.label)}), {which}"
        if first.result == found.result:
            return (
                "repeated",
                f"{job}, is in line {first.number}, too, with the same result; the later counts",
            )
        return "contradictory", (
            f"contradicts line {first.number}: {job}, has {found.result} here and {first.result} there; this "
            "later line counts, because records are only ever appended"
        )


def result_of(record: RunRecord) -> str:
    """What a line measured, in so many words that another result has others."""
    samples = record.samples
    if samples is None:
        return "no samples"
    total = sum(samples.decode_ns) or sum(samples.prefill_ns)
    return f"{total} ns of {'decoding' if sum(samples.decode_ns) else 'prefill'}"
