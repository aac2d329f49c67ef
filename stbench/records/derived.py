"""What only the whole of a campaign tells of its rows, computed from columns.

The columns of :func:`evidence_of` are kept of every record for that, so that a million of them need not be in
memory as objects. The judgements are those of :mod:`stbench.records.disturbance` and
:mod:`stbench.records.storage_bound`; rows that need none are passed over together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from stbench.agent.wire import RunRecord
from stbench.records import disturbance, storage_bound
from stbench.records.columnar import Array
from stbench.records.frame import COLUMNS, machine_columns
from stbench.records.lines import UNFINISHED, Outcome, Problems, Repetitions, has_result

# Columns of the frame that these are, and whether a row counts at all.
JOINT = (
    *("disturbed", "off_level", "disturbance"),
    *("compute_tps", "compute_from", "bound_tps", "bound_share"),
)
DERIVED = {**{name: COLUMNS[name] for name in JOINT}, "_keep": "bool"}
EVIDENCE = {
    "_facts": "bool",
    "_machine": "object",
    "_yardstick": "object",
    "_before": "float64",
    "_after": "float64",
    "_counted": "bool",
    "_cpu": "object",
    "_disk": "object",
    "_free": "bool",
    "_cached": "bool",
    "_conditions": "object",
    "_own_tps": "float64",
}

# A column by its name: of the frame, or of EVIDENCE.
ColumnOf = Callable[[str], Array]


def evidence_of(record: RunRecord) -> dict[str, Any]:
    """EVIDENCE of a record, with those columns of the bound that it tells alone."""
    machine, bound = disturbance.evidence_of(record), storage_bound.evidence_of(record)
    return {
        **storage_bound.own_columns(bound),
        "_facts": record.facts is not None,
        "_machine": machine.machine,
        "_yardstick": machine.yardstick,
        "_before": machine.before,
        "_after": machine.after,
        "_counted": machine.cpu is not None,
        "_cpu": "; ".join(machine.cpu or ()),
        "_disk": "; ".join(machine.disk),
        "_free": bound.free,
        "_cached": bound.cached,
        "_conditions": bound.conditions,
        "_own_tps": bound.own_tps,
    }


def derive(column: ColumnOf) -> dict[str, Array]:
    """DERIVED, of columns that have all lines of a file in their order."""
    status, keep = column("status"), _latest(column("record_id"), column("status") == UNFINISHED)
    keep &= (column("purpose") == "measure") & (status != UNFINISHED)
    return {**jointly(column, keep), "_keep": keep}


def jointly(column: ColumnOf, keep: Array) -> dict[str, Array]:
    """JOINT, of the rows in ``keep``, which are all of some campaigns."""
    judged = _judged(column, column("status") == "ok", keep)
    return {**judged, **_bounds(column, keep, judged["disturbed"])}


def repetitions(column: ColumnOf) -> Problems:
    """What lines of one job and attempt have to be said of, as reading says it; lines are those of a file."""
    said = Problems()
    ids = column("record_id")
    again = pd.Series(ids).duplicated(keep=False).to_numpy()
    if not again.any():
        return said
    names = ("status", "purpose", "_line", "attempt", "label", "replicate", "_digest", "_result")
    status, purpose, line, attempt, label, replicate, digest, result = (column(name) for name in names)
    found = Repetitions()
    for i in np.flatnonzero(again).tolist():
        if not has_result(status[i], purpose[i]):
            continue
        number = int(line[i])
        one = Outcome(
            *(number, str(ids[i]), int(attempt[i]), str(label[i])),
            *(int(replicate[i]), int(digest[i]), str(result[i])),
        )
        if sentence := found.look_at(one):
            said.add(sentence[0], number, sentence[1])
    return said


def _latest(ids: Array, unfinished: Array) -> Array:
    """Of each id the last line, and of lines that ended the last of these where there is one."""
    keep = ~pd.Series(ids).duplicated(keep="last").to_numpy()
    if not unfinished.any():
        return np.asarray(keep)
    ended = np.zeros(len(ids), dtype=bool)
    ended[~unfinished] = ~pd.Series(ids[~unfinished]).duplicated(keep="last").to_numpy()
    return np.asarray(ended | (keep & unfinished & ~np.isin(ids, ids[~unfinished])))


def _judged(column: ColumnOf, ok: Array, keep: Array) -> dict[str, Array]:
    yardstick, before, after = column("_yardstick"), column("_before"), column("_after")
    cpu, disk = column("_cpu"), column("_disk")
    counted = column("_counted")
    codes, machines = pd.factorize(column("_machine"))
    n = len(ok)
    disturbed, off_level = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    why = np.full(n, "", dtype=object)
    for code in range(len(machines)):
        mine = (codes == code) & ok & keep
        rates = np.concatenate([before[mine], after[mine]])
        rates = rates[rates > 0]
        level = disturbance.level(rates.tolist()) if len(rates) else None
        # Most runs are as they should be; only the others need words.
        odd = mine & ((cpu != "") | (disk != ""))
        if level is not None:
            limit = disturbance.BANDWIDTH_LIMIT
            with np.errstate(invalid="ignore"):
                moved = np.abs(before - after) > limit * np.maximum(before, after)
                far = np.maximum(np.abs(before / level - 1), np.abs(after / level - 1)) > limit
            odd |= mine & (moved | far)
        for i in np.flatnonzero(odd).tolist():
            found = disturbance.Evidence(
                True,
                "",
                str(yardstick[i]),
                float(before[i]),
                float(after[i]),
                ((str(cpu[i]),) if cpu[i] else ()) if counted[i] else None,
                (str(disk[i]),) if disk[i] else (),
            )
            said = machine_columns(disturbance.verdict(found, level))
            disturbed[i], off_level[i], why[i] = said["disturbed"], said["off_level"], said["disturbance"]
    return {"disturbed": disturbed, "off_level": off_level, "disturbance": why}


def _bounds(column: ColumnOf, keep: Array, disturbed: Array) -> dict[str, Array]:
    tps, cached = column("decode_tps"), column("_cached") & keep
    n = len(tps)
    made: dict[str, Array] = {
        name: np.full(n, np.nan) for name in ("compute_tps", "bound_tps", "bound_share")
    }
    made["compute_from"] = np.full(n, "", dtype=object)
    if not cached.any():
        return made
    names = ("_free", "_conditions", "_own_tps", "storage_gb_per_s", "static_bytes_per_token", "replicate")
    free, conditions, own, storage, missed, replicate = (column(name) for name in names)

    def evidence(i: int) -> storage_bound.Evidence:
        return storage_bound.Evidence(
            bool(free[i]),
            bool(cached[i]),
            str(conditions[i]),
            float(own[i]),
            float(storage[i]),
            float(missed[i]),
        )

    partners: storage_bound.Partners = {}
    wanted = set(conditions[cached])
    started, ids = column("started_at"), column("record_id")
    useful = [i for i in np.flatnonzero(free & keep).tolist() if conditions[i] in wanted]
    # Of two jobs of a replicate under the same conditions the newest counts, wherever its line stands.
    for i in sorted(useful, key=lambda i: (started[i], ids[i])):
        storage_bound.add_partner(
            partners, evidence(i), int(replicate[i]), float(tps[i]), disturbed=bool(disturbed[i])
        )
    for i in np.flatnonzero(cached).tolist():
        for name, value in storage_bound.bound(
            evidence(i), int(replicate[i]), float(tps[i]), partners
        ).items():
            made[name][i] = value
    return made
