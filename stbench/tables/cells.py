"""The replicates of one case -> one cell: the median with its interval, its marks and its proof."""

import math
from collections import Counter
from typing import Any

import pandas as pd

from stbench.comparison.intervals import median_estimate
from stbench.tables.table import (
    BALLAST,
    DISTURBED,
    EXCEEDED,
    FEW,
    NO_SENSORS,
    NO_SHARE,
    NOISY,
    NOT_ENFORCED,
    PARTIAL,
    SOME_DISTURBED,
    SYNTHETIC,
    THROTTLED,
    UNCHECKED,
    UNEQUAL,
    VOID,
    WRONG,
    Cell,
    join_marks,
)
from stbench.wording import clean, number

WRONG_OUTPUT = "wrong-output"

# A median whose interval, or range, reaches further than this share of it says little: five times what
# `stbench compare` calls a change (2 %).
TOO_NOISY = 0.10

# What a cell with wrong output says nothing of.
_SPEEDS = (
    "decode_tps",
    "prefill_tps",
    "ttft_ms",
    "tpot_ms",
    "tpot_p95_ms",
    "weight_gb_per_s",
    "limit_share",
    "joules_per_token",
)

# Of runs with a cache of units.
_CACHE = (
    "cache_bytes",
    "cache_total_bytes",
    "hit_rate",
    "storage_bytes_per_token",
    "io_wait_share",
    "io_busy_share",
    "late_share",
    "prefetch_precision",
    "prefetch_recall",
)


def speed_cell(replicates: pd.DataFrame, metric: str, details: dict[str, Any] | None = None) -> Cell:
    """A cell for rows of one case (at least one), ``metric`` being "decode_tps" or "prefill_tps"; ``details``
    are those of the case where they are known.

    One replicate that computed wrong output takes the speed of the whole cell away: the others ran the same
    code. Without any usable replicate the cell says how they ended instead. Disturbed replicates are left out
    unless there are no others.
    """
    details = details_of(replicates) if details is None else details
    marks = [SYNTHETIC] if replicates["synthetic"].any() else []
    if is_wrong(replicates):
        return Cell(WRONG_OUTPUT, join_marks([*marks, WRONG]), details=details)
    usable = replicates[replicates["usable"] & replicates[metric].notna()]
    if len(usable) < len(replicates):
        marks.append(PARTIAL)
    if not len(usable):
        return Cell(_most_common_end(replicates), join_marks(marks), details=details)
    shown = undisturbed(usable)
    if len(shown) < len(usable):
        marks.append(SOME_DISTURBED)
    elif shown["disturbed"].any():
        marks.append(DISTURBED)
    estimate = median_estimate(shown[metric].tolist())
    if max(estimate.high - estimate.median, estimate.median - estimate.low) > TOO_NOISY * estimate.median:
        marks.append(NOISY)
    marks += _run_marks(usable)
    text = number(estimate.median)
    if estimate.kind == "interval":
        text += f" [{number(estimate.low)}, {number(estimate.high)}]"
    else:
        marks.append(FEW)
        if estimate.n > 1:
            text += f" ({number(estimate.low)}…{number(estimate.high)})"
    return Cell(
        text,
        join_marks(marks),
        estimate.median,
        estimate.low,
        estimate.high,
        estimate.kind,
        estimate.n,
        estimate.coverage,
        details,
    )


def limit_cell(cell: Cell) -> Cell:
    """Percent of what the memory allowed, of the runs behind a speed cell."""
    share = cell.details.get("limit_share")
    weights = {key: cell.details[key] for key in ("synthetic", "profile") if key in cell.details}
    if share is not None:
        return Cell(f"{100 * share:.0f} %", value=100 * share, details=weights)
    return Cell("n/a", (NO_SHARE,), details=weights) if cell.details.get("limit_why") else Cell()


def is_wrong(replicates: pd.DataFrame) -> bool:
    """Whether any replicate computed wrong output, by its status or by its check."""
    return bool(((replicates["status"] == WRONG_OUTPUT) | (replicates["check"] == "wrong")).any())


def undisturbed(usable: pd.DataFrame) -> pd.DataFrame:
    """Of usable replicates those that count: the undisturbed ones, or all where there is none."""
    calm = usable[~usable["disturbed"]]
    return calm if len(calm) else usable


def thread_rank(replicates: pd.DataFrame) -> tuple[Any, ...]:
    """Orders the thread settings of one case: right before wrong, then by median decode speed, then fewer
    threads and lower CPU numbers."""
    speeds = undisturbed(replicates[replicates["usable"]])["decode_tps"]
    median = float(speeds.median()) if len(speeds) else -1.0
    first = replicates.iloc[0]
    return (not is_wrong(replicates), median, -int(first["threads_requested"]), str(first["cpus"]))


# A limit's verdict that is not "held" -> its mark.
_NOT_HELD = {"not-enforced": NOT_ENFORCED, "exceeded": EXCEEDED, "void": VOID}


def _run_marks(usable: pd.DataFrame) -> list[str]:
    marks = _limit_marks(usable[usable["memory_limit_bytes"] > 0])
    if (usable["check"] == "unchecked").any():
        marks.append(UNCHECKED)
    if len(set(usable["output_hash"]) - {""}) > 1:
        marks.append(UNEQUAL)
    verdicts = set(usable["throttled"])
    if "yes" in verdicts:
        marks.append(THROTTLED)
    elif verdicts - {"no"}:
        marks.append(NO_SENSORS)
    return marks


def _limit_marks(limited: pd.DataFrame) -> list[str]:
    if not len(limited):
        return []
    # A record without a proof proves nothing.
    marks = {
        _NOT_HELD.get(str(verdict), NOT_ENFORCED) for verdict in set(limited["limit_verdict"]) - {"held"}
    }
    if (limited["limit_method"] == "ballast").any():
        marks.add(BALLAST)
    return sorted(marks)


def _most_common_end(replicates: pd.DataFrame) -> str:
    ends = Counter("unusable" if status == "ok" else str(status) for status in replicates["status"])
    return clean(min(ends, key=lambda end: (-ends[end], end)), 40)


def details_of(replicates: pd.DataFrame) -> dict[str, Any]:
    """JSON-ready facts of a cell, for the proof: numbers are medians over the replicates that count."""
    all_usable = replicates[replicates["usable"]]
    ran = all_usable if len(all_usable) and not is_wrong(replicates) else replicates
    usable = undisturbed(all_usable)
    details = {
        "records": sorted(set(replicates["record_id"])),
        "case": _texts(replicates["case"]),
        "campaign": _texts(replicates["campaign"]),
        "replicates": len(replicates),
        "usable": len(all_usable),
        "statuses": dict(sorted(Counter(replicates["status"]).items())),
        "model": _texts(replicates["model"]),
        "digest": _texts(replicates["digest"]),
        "synthetic": bool(replicates["synthetic"].any()),
        "profile": _texts(replicates["profile"]),
        "threads": sorted({int(n) for n in set(ran["threads"])}),
        "affinity": _texts(ran["affinity"]),
        "isa": _texts(ran["isa"]),
        "load": _texts(ran["load"]),
        "load_ms": _median(usable["load_ms"]),
        "sparse_ffn": _texts(ran["sparse_ffn_effective"]),
        "down_layout": _texts(ran["down_layout"]),
        "check": dict(sorted(Counter(ran["check"]).items())),
        "check_positions": sorted({int(n) for n in set(ran["check_positions"])}),
        "output_hash": _texts(ran["output_hash"]),
        "throttled": dict(sorted(Counter(ran["throttled"]).items())),
        "decode_tps": _median(usable["decode_tps"]),
        "prefill_tps": _median(usable["prefill_tps"]),
        "ttft_ms": _median(usable["ttft_ms"]),
        "tpot_ms": _median(usable["tpot_ms"]),
        "tpot_p95_ms": _median(usable["tpot_p95_ms"]),
        "peak_rss_bytes": _median(usable["peak_rss_bytes"]),
        "weight_bytes_per_token": _median(usable["weight_bytes_per_token"]),
        "weight_gb_per_s": _median(usable["weight_gb_per_s"]),
        "active_share": _median(usable["active_share"]),
        "lm_head_share": _median(usable["lm_head_share"]),
    }
    if (replicates["memory_limit_bytes"] > 0).any():
        details |= {
            "memory_limit_bytes": int(replicates["memory_limit_bytes"].max()),
            "limit_verdicts": dict(sorted(Counter(ran["limit_verdict"]).items())),
            "limit_methods": _texts(ran["limit_method"]),
            "limit_peak_bytes": _median(usable["limit_peak_bytes"]),
            "limit_start": _texts(ran["limit_start"]),
        }
    if usable["cache_bytes"].notna().any():
        details |= {name: _median(usable[name]) for name in _CACHE}
    if replicates["throttled_by"].any():
        details["throttled_by"] = _texts(ran["throttled_by"])
    if replicates["gate"].any():
        details["gate"] = dict(sorted(Counter(replicates["gate"]).items()))
    if usable["joules_per_token"].notna().any():
        details["joules_per_token"] = _median(usable["joules_per_token"])
        details["energy_sensor"] = _texts(usable["energy_sensor"])
    if replicates["read_gb_per_s"].notna().any():
        details |= {
            "disturbed": int(all_usable["disturbed"].sum()),
            "disturbances": _texts(all_usable["disturbance"]),
            "attempts": int(replicates["attempt"].max()) + 1,
            "read_gb_per_s": _median(usable["read_gb_per_s"]),
            "gather_gb_per_s": _median(usable["gather_gb_per_s"]),
            "limit_share": _median(usable["limit_share"]),
            "limit_why": _texts(usable["limit_why"]),
        }
    if is_wrong(replicates):
        details.update(dict.fromkeys(key for key in _SPEEDS if key in details))
    return details


def _texts(column: "pd.Series[Any]") -> list[str]:
    return sorted({str(value) for value in column.unique()} - {""})


def _median(column: "pd.Series[Any]") -> float | None:
    value = float(column.median()) if len(column) else math.nan
    return value if math.isfinite(value) else None
