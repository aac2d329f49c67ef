"""The device's own noise: what A/A shows, one case against itself.

Two samples of half the size are drawn from the replicates of one case again and again, by chance. What their
medians differ by, nothing caused: the 95th percentile of it is the *noise floor*, and no comparison calls a
smaller change one. They are drawn with replacement: two disjoint halves of one sample differ less than two
samples do, which makes their 95th percentile 10 to 15 % too low (12 to 40 replicates, simulated).

The difference between the first half in time and the second is the *drift*, which comparisons of campaigns
that were not interleaved have to grant as well. Both are kept per board, model, workload and threads in
``noise.jsonl`` in the cache directory, with where they come from.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stbench.comparison import inference
from stbench.comparison.compare import Floor
from stbench.comparison.inference import FEWEST, Floats
from stbench.errors import InputError, StoreError
from stbench.paths import cache_dir
from stbench.records.sides import Side
from stbench.wording import case_label

FILE = "noise.jsonl"

SPLITS = 2000
PERCENTILE = 0.95
SEED = 0

_CASE = ("device", "fingerprint", "engine", "model", "switches", "workload", "threads")


@dataclass(frozen=True)
class Noise:
    """The noise of one case. ``spread``: standard deviation of the logarithm of single speeds. ``floor`` and
    ``drift`` are shares (0.02: 2 %), for halves of ``half`` replicates. ``alarms``: the share of A/A
    comparisons of neighbours that were called a change."""

    device: str
    fingerprint: str
    engine: str
    model: str
    switches: str
    workload: str
    threads: int
    metric: str
    half: int
    floor: float
    drift: float
    spread: float
    alarms: float
    campaign: str
    library: str
    measured_at: str
    stored_at: str = ""

    @property
    def label(self) -> str:
        """The case as a person types it, by board."""
        return f"{self.device}:{self.model}/{self.switches}/t{self.threads}/{self.workload}"


def noise_of(
    side: Side, metric: str = "decode_tps", fewest: int = 2 * FEWEST
) -> tuple[list[Noise], list[str]]:
    """The noise of every case with at least ``fewest`` usable, undisturbed replicates, and a sentence for
    each that has fewer."""
    frame = side.frame
    found, notes = [], []
    # What is kept names no limits: a limited case must not stand for the unlimited one.
    limited = (frame["memory_limit_bytes"] > 0) | (frame["cache"] != "") | (frame["routing"] != "")
    labels = sorted({case_label(label) for label in frame.loc[limited, "label"]})
    notes += [f"{label}: limited runs have no noise of their own" for label in labels]
    frame = frame[~limited]
    builds = frame[frame[metric].notna()].groupby("label")["library"].nunique()
    # A campaign that was resumed after an upgrade holds two builds: what they differ by is no noise.
    for _, group in frame[frame[metric].notna()].groupby([*_CASE, "campaign", "library"], sort=False):
        rows = group[group["usable"] & ~group["disturbed"]]
        if len(rows) < fewest:
            first = group.iloc[0]
            label = case_label(first["label"])
            if builds[first["label"]] > 1:
                label += f", build {str(first['library'])[:12] or 'unknown'}"
            disturbed = int(group["disturbed"].sum())
            notes.append(
                f"{label}: {len(rows)} usable replicates, {disturbed} disturbed; two halves need {fewest}"
            )
            continue
        # Not by started_at: a board's clock jumps when it is set.
        found.append(_noise(rows.sort_values("replicate"), metric))
    return found, notes


def _noise(rows: pd.DataFrame, metric: str) -> Noise:
    values = rows[metric].to_numpy(dtype=np.float64)
    half = len(values) // 2
    rng = np.random.default_rng(SEED)
    drawn = rng.choice(values, (2, SPLITS, half))
    differences = np.abs(_log_ratio(drawn[0], drawn[1]))
    drift = abs(float(_log_ratio(values[:half], values[-half:])))
    first = rows.iloc[0]
    return Noise(
        **{name: str(first[name]) for name in _CASE if name != "threads"},
        threads=int(first["threads"]),
        metric=metric,
        half=half,
        floor=math.expm1(float(np.quantile(differences, PERCENTILE))),
        drift=math.expm1(drift),
        spread=float(np.std(np.log(values), ddof=1)),
        alarms=_alarms(values, rng),
        campaign=str(first["campaign"]),
        library=str(first["library"]),
        measured_at=str(rows["started_at"].iloc[-1]),
    )


def _log_ratio(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.log(np.median(b, axis=-1)) - np.log(np.median(a, axis=-1)))


def _alarms(values: Floats, rng: np.random.Generator, trials: int = 200) -> float:
    """Neighbours in time as pairs, A and B by chance: the share of verdicts that call it a change."""
    half = len(values) // 2
    pairs = values[: 2 * half].reshape(half, 2)
    flipped = rng.random((trials, half, 1)) < 0.5
    both = np.where(flipped, pairs[:, ::-1], pairs)
    a, b = both[..., 0], both[..., 1]
    p = np.array([inference.signed_rank_p(row) for row in np.log(b) - np.log(a)])
    verdict = inference.verdicts(inference.paired_ratio(a, b, draws=1000), p, 0.02, 0.0)
    return float(((verdict == inference.IMPROVED) | (verdict == inference.REGRESSED)).mean())


# ---- kept -------------------------------------------------------------------------------------------------


def store(found: Sequence[Noise], path: Path | None = None) -> Path:
    """Appends to the device's file, one line each; returns its path. Raises :class:`StoreError`."""
    path = path or cache_dir() / FILE
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [
        json.dumps(dataclasses.asdict(dataclasses.replace(noise, stored_at=now)), allow_nan=False) + "\n"
        for noise in found
    ]
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    return path


def read_floors(path: Path | None = None) -> tuple[list[Noise], list[str]]:
    """Everything stored, oldest first, and a sentence for every line that is no entry. No file: nothing."""
    path = path or cache_dir() / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return [], []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}", hint="delete it and run `stbench noise` again") from error
    found, problems = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        try:
            found.append(_entry(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            problems.append(f"{path}:{number}: no entry of `stbench noise`: {error}")
    return found, problems


def _entry(data: Any) -> Noise:
    noise = Noise(**data)
    for field in dataclasses.fields(Noise):
        value = getattr(noise, field.name)
        kinds = {"str": (str,), "int": (int,), "float": (int, float)}[str(field.type)]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{field.name} is {value!r}")
        if isinstance(value, float) and not 0 <= value < 100:
            raise ValueError(f"{field.name} is {value!r}")
    if noise.half < 1:
        raise ValueError(f"half is {noise.half}")
    return noise


def floor_of(stored: Sequence[Noise], metric: str) -> Floor:
    """Looks up the floor of a case: the newest entry of its engine and switches, else the largest of the
    newest ones of others with the same board, model, workload and threads; 0 where there is none."""
    newest: dict[tuple[Any, ...], dict[tuple[str, str], Noise]] = {}
    for noise in stored:
        if noise.metric == metric:
            key = (noise.fingerprint, noise.model, noise.workload, noise.threads)
            newest.setdefault(key, {})[noise.engine, noise.switches] = noise

    def floor(row: pd.Series[Any], paired: bool, n: int) -> float:
        key = (row["fingerprint"], row["model"], row["workload"], int(row["threads"]))
        of_case = newest.get(key, {})
        own = of_case.get((row["engine"], row["switches"]))
        return max((_floor(noise, paired, n) for noise in ([own] if own else of_case.values())), default=0.0)

    return floor


def _floor(noise: Noise, paired: bool, n: int) -> float:
    """Chance differences shrink with the square root of the replicates; drift does not."""
    by_chance = math.expm1(math.log1p(noise.floor) * math.sqrt(noise.half / n))
    return by_chance if paired else max(by_chance, noise.drift)
