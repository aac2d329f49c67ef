"""What a check measures: the cases of its baseline, or the part of them that its options name.

An option that asks for anything else is refused. Measuring it would take the minutes of a check and end with
cases that the baseline says nothing of.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stbench.errors import SweepError, UsageError
from stbench.sweeps.axes import AUTO_THREADS
from stbench.sweeps.limited import bytes_label
from stbench.sweeps.sweep import RENAMED, WORKLOADS, Sweep, checked_options, option, unsettled

_WORK = (*WORKLOADS, "depth")
_HINT = "a check measures the baseline's cases or a part of them; other cases: stbench sweep, stbench compare"


def narrowed(stored: Sequence[Sweep], typed: Mapping[str, Any], where: str) -> list[Sweep | None]:
    """Each sweep of the baseline ``where``, reduced to what options (keys of SweepEntry, as typed) name; None
    where nothing is left of it. Raises :class:`UsageError` where an option names what no sweep has."""
    problems: list[str] = []
    wanted = checked_options(typed, problems)
    if problems:
        raise SweepError(problems)
    known = [unsettled(sweep) for sweep in stored]
    for key, asked in wanted.items():
        there = [value for values in known for value in _items(values[key])]
        missing = [value for value in _items(asked) if value not in there]
        if missing:
            measured = _said(key, dict.fromkeys(there))
            raise UsageError(
                f"{option(key)} {_said(key, missing)}: {where} was measured with "
                + (f"{option(key)} {measured}" if measured else f"no {option(key)}"),
                hint=_HINT,
            )
    parts = [_part(sweep, values, wanted) for sweep, values in zip(stored, known, strict=True)]
    if not any(parts):
        said = " ".join(f"{option(key)} {_said(key, _items(asked))}" for key, asked in wanted.items())
        raise UsageError(f"{said}: {where} has no case with all of that", hint=_HINT)
    return parts


def fitting(labels: Iterable[str], patterns: str, where: str) -> list[str]:
    """Those of a baseline's labels that ``--filter`` selects, as in a sweep. Raises :class:`UsageError`."""
    listed = list(labels)
    named = [pattern.strip() for pattern in patterns.split(",")]

    def fits(label: str) -> bool:
        texts = (label, label.partition(":")[2])
        return any(fnmatch.fnmatchcase(text, pattern) for pattern in named for text in texts)

    found = [label for label in listed if fits(label)]
    if not found:
        raise UsageError(
            f"--filter {patterns}: no case of {where} fits", hint=f"there are {', '.join(listed)}"
        )
    return found


def _part(sweep: Sweep, values: Mapping[str, Any], wanted: Mapping[str, Any]) -> Sweep | None:
    changes: dict[str, Any] = {}
    for key, asked in wanted.items():
        if key in _WORK:
            continue
        kept = [value for value in _items(values[key]) if value in _items(asked)]
        if not kept:
            return None
        if isinstance(values[key], list):
            changes[RENAMED.get(key, key)] = tuple(kept)
    works = tuple(work for work in sweep.workloads if _is_asked(work, wanted))
    return replace(sweep, workloads=works, **changes) if works else None


def _is_asked(work: tuple[int, int, int], wanted: Mapping[str, Any]) -> bool:
    """Whether -p, -n, -pg and -d name a workload; what none of them is about stays."""
    prompt, gen, depth = work
    if "depth" in wanted and depth not in wanted["depth"]:
        return False
    if not any(key in wanted for key in WORKLOADS):
        return True
    if prompt and gen:
        return (prompt, gen) in [tuple(pair) for pair in wanted.get("prompt_gen", ())]
    return prompt in wanted.get("prompt", ()) if prompt else gen in wanted.get("gen", ())


def _items(value: Any) -> list[Any]:
    """The values of an axis. One that has none in a sweep is the device's own: threads."""
    if isinstance(value, (list, tuple)):
        return [tuple(item) if isinstance(item, list) else item for item in value]
    return [] if value is None else [value]


def _said(key: str, values: Iterable[Any]) -> str:
    """Values as they are typed."""
    words = {"threads": {0: "all", AUTO_THREADS: "auto"}, "memory_limit": {0: "none"}}.get(key, {})
    said = []
    for value in values:
        if isinstance(value, bool):
            text = "on" if value else "off"
        elif value in words:
            text = words[value]
        elif key == "memory_limit":
            text = bytes_label(value)
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value) or "none"
        said.append(text)
    return (";" if key == "prompt_gen" else ",").join(said)
