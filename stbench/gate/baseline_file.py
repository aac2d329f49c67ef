"""A baseline: samples of cases as they were, with where they come from; a JSON file to commit.

It holds what a comparison needs and no more: of every case the names and conditions by which rows are
matched, of every replicate its metrics. The same records give the same bytes, so that a commit shows what
changed: no date of today, no host name, no path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stbench.atomic import write_atomically
from stbench.comparison.matching import FIELDS
from stbench.errors import InputError
from stbench.gate.thresholds import METRICS
from stbench.records.frame import COLUMNS
from stbench.records.sides import Side
from stbench.wording import clean

VERSION = 1

# Of a case, besides what it is matched by; and of each of its replicates, besides its metrics.
_CASE = ("label", "case", "campaign", "library", "isa", "n_prompt", "n_gen", "n_depth")
_SAMPLE = (
    "record_id",
    "started_at",
    "replicate",
    "output_hash",
    "read_gb_per_s",
    "core_gb_per_s",
    "judged_by",
)
# Said of a replicate only where it is so.
_MARK = "disturbed"
_KEPT = tuple(dict.fromkeys((*_CASE, *FIELDS)))
# Rows of a baseline are runs that counted.
_COUNTED = {"status": "ok", "check": "ok", "purpose": "measure", "usable": True}


@dataclass(frozen=True)
class BaselineCase:
    """One case. ``settings``: columns of the frame that its replicates share; ``sweep``: the place in
    :attr:`Baseline.sweeps` of what measured it, None where that is not known; ``samples``: a mapping per
    replicate."""

    settings: Mapping[str, Any]
    samples: tuple[Mapping[str, Any], ...]
    sweep: int | None = None

    @property
    def label(self) -> str:
        """The case as a person types it."""
        return str(self.settings["label"])

    @property
    def disturbed(self) -> int:
        """How many of its replicates were. Of such a case the samples decide nothing (:mod:`.taking`)."""
        return sum(bool(sample.get(_MARK)) for sample in self.samples)


@dataclass(frozen=True)
class Baseline:
    """``devices`` and ``builds`` are provenance: device name to what it is, library digest to what built it.
    ``sweeps``: stored sweeps (:func:`stbench.sweeps.sweep.sweep_from_json`)."""

    stbench: str
    devices: Mapping[str, Mapping[str, Any]]
    builds: Mapping[str, Mapping[str, Any]]
    sweeps: tuple[Mapping[str, Any], ...]
    cases: tuple[BaselineCase, ...]

    def side(self, name: str) -> Side:
        """The samples as rows of the frame: the A of a comparison."""
        rows = [
            {**_empty(), **_COUNTED, **case.settings, **sample}
            for case in self.cases
            for sample in case.samples
        ]
        columns = {key: pd.Series([row[key] for row in rows], dtype=kind) for key, kind in COLUMNS.items()}
        return Side(name, pd.DataFrame(columns))


def case_of(rows: pd.DataFrame, sweep: int | None) -> BaselineCase:
    """The case of its rows: what they share is that of the first."""
    first = rows.iloc[0]
    settings = {name: _plain(first[name]) for name in _KEPT}
    names = (*_SAMPLE, *METRICS)
    samples = tuple(
        {name: value for name in names if (value := _plain(row[name])) is not None}
        | ({_MARK: True} if row[_MARK] else {})
        for _, row in rows.sort_values(["replicate", "record_id"]).iterrows()
    )
    return BaselineCase(settings, samples, sweep)


def text_of(baseline: Baseline) -> str:
    """The file's content."""
    data = {
        "stbench_baseline": VERSION,
        "stbench": baseline.stbench,
        "devices": {key: dict(value) for key, value in sorted(baseline.devices.items())},
        "builds": {key: dict(value) for key, value in sorted(baseline.builds.items())},
        "sweeps": [dict(sweep) for sweep in baseline.sweeps],
        "cases": [
            {"sweep": case.sweep, "settings": dict(case.settings), "samples": [dict(s) for s in case.samples]}
            for case in sorted(baseline.cases, key=lambda case: json.dumps(case.settings, sort_keys=True))
        ],
    }
    return json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write(baseline: Baseline, path: Path) -> None:
    """Replaces the file as a whole. Raises OSError."""
    write_atomically(path, text_of(baseline).encode())


def read(path: Path) -> Baseline:
    """Raises :class:`InputError` for what is no baseline, with what is wrong."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}", hint=f"stbench baseline set {path} RESULTS makes one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    version = data.get("stbench_baseline") if isinstance(data, dict) else None
    if version != VERSION:
        what = f"a baseline of version {clean(str(version), 20)}" if version else "no baseline of stbench"
        raise InputError(
            f"{path}: {what}; this stbench reads version {VERSION}",
            hint=f"stbench baseline set {path} RESULTS makes one",
        )
    try:
        made = Baseline(
            str(data["stbench"]),
            {str(key): dict(value) for key, value in data["devices"].items()},
            {str(key): dict(value) for key, value in data["builds"].items()},
            tuple(dict(sweep) for sweep in data["sweeps"]),
            tuple(_read_case(case, len(data["sweeps"])) for case in data["cases"]),
        )
        made.side("")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: not a whole baseline: {clean(repr(error), 200)}") from error
    if not made.cases:
        raise InputError(f"{path}: a baseline without cases", hint=f"stbench baseline set {path} RESULTS")
    return made


def _read_case(data: Mapping[str, Any], sweeps: int) -> BaselineCase:
    settings, sweep = dict(data["settings"]), data["sweep"]
    missing = sorted(set(_KEPT) - set(settings))
    if missing or not data["samples"]:
        raise ValueError(f"a case without {', '.join(missing) or 'samples'}")
    if sweep is not None and (type(sweep) is not int or not 0 <= sweep < sweeps):
        raise ValueError(f"there is no sweep {sweep!r}")
    samples = tuple(_read_sample(sample) for sample in data["samples"])
    return BaselineCase({name: settings[name] for name in _KEPT}, samples, sweep)


def _read_sample(data: Mapping[str, Any]) -> dict[str, Any]:
    sample = {name: data[name] for name in (*_SAMPLE, *METRICS, _MARK) if name in data}
    if type(sample.get(_MARK, True)) is not bool:
        raise ValueError(f"{_MARK} is {sample[_MARK]!r}")
    for name in METRICS:
        value = sample.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name} is {value!r}")
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value!r}")
    return sample


def _empty() -> dict[str, Any]:
    unset: dict[str, Any] = {"object": "", "bool": False, "int64": 0, "float64": math.nan}
    return {name: unset[kind] for name, kind in COLUMNS.items()}


def _plain(value: Any) -> Any:
    """JSON-ready; None for a number that is not there."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def restricted(baseline: Baseline, labels: Iterable[str]) -> Baseline:
    """Only these cases."""
    kept = set(labels)
    cases = tuple(case for case in baseline.cases if case.label in kept)
    return Baseline(baseline.stbench, baseline.devices, baseline.builds, baseline.sweeps, cases)
