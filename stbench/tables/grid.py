"""Records -> tables in the published shape, with a column per measured device beside the published ones.

A number in the grid is the median of processes that ran *one* case: cells never mix campaigns, workloads,
engines, thread counts, instruction sets, builds or boards. Where records of several exist, one is selected,
and the notes say which and why:

- a column is one device and one engine; its workload and settings are those that fill most rows (then: most
  replicates, then the newest); rows that these leave open come from other campaigns of the same board
  (:mod:`stbench.tables.merging`) and are marked;
- the thread count of a cell follows the rule of the published tables: 4 on i9-14900 and Snapdragon 8 Elite,
  elsewhere the fastest of those measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from stbench.agent.wire import RunRecord
from stbench.devices.engine_names import needs_llama_cpp
from stbench.errors import UsageError
from stbench.records.frame import filled, to_frame
from stbench.records.limited_columns import LIMITED
from stbench.records.one_run import finished
from stbench.records.rows import joined
from stbench.sweeps.sweep import ENGINE, switches_label
from stbench.tables import cells, engine_view, limited_grid, merging, notes, published
from stbench.tables.merging import CONDITION
from stbench.tables.published import PublishedRow, PublishedTable
from stbench.tables.table import ELSEWISE, NO_ENGINE, NO_LIMIT, TIMES, Cell, Column, Row, Table, join_marks
from stbench.wording import clean, number

if TYPE_CHECKING:
    from rich.console import Console

# What may differ between the cells of a column.
CELL = ("campaign", "digest", "threads_requested", "cpus")
CASE = ("device", "engine", "model", "sparse_ffn", "sparse_lm_head", *CONDITION, *CELL, *LIMITED)

# The 21B table is printed when one of these was measured; Gemma 3n E2B is in both tables.
_ONLY_21B = ("smallthinker-21b", "qwen3-30b-a3b", "gemma3n-e4b")

_VARIANTS = {
    (True, True): "+sparse ffn +sparse lm_head",
    (True, False): "+sparse ffn only",
    (False, True): "+sparse lm_head only",
    (False, False): "neither (dense)",
}


@dataclass(frozen=True)
class _RowSpec:
    """One row to fill: of the published table, or a variant of ``parent``'s model with other switches."""

    key: str
    label: str
    model: str
    sparse_ffn: bool
    sparse_lm_head: bool
    limited: bool
    published: PublishedRow | None
    parent: str = ""


def build_tables(
    records: Iterable[RunRecord], ratio_to: Mapping[str, str] | None = None, engine: str = engine_view.ALL
) -> list[Table]:
    """The 4B table, the 21B table when a model of it was measured, all limited cases with what each limit
    cost, and a list of the other cases that these do not show. Cancelled runs are no results and not counted.

    ``ratio_to`` maps a measured device to the published device that it is (key of published_speed.csv), for a
    ratio column. Devices called like a published one need no entry; comparing others is not meaningful.
    Raises KeyError for an unknown published device, :class:`UsageError` for an ``engine`` without records.
    """
    kept, claims = finished(records)
    frame = engine_view.rows_of_engine(to_frame(kept), engine)
    return tables_of(frame, notes.device_facts(kept), claims, ratio_to)


def tables_of(
    frame: pd.DataFrame,
    facts: notes.Facts,
    claims: Sequence[str],
    ratio_to: Mapping[str, str] | None = None,
) -> list[Table]:
    """:func:`build_tables` of rows that were read otherwise (:mod:`stbench.records.gathering`): finished
    measurements, ordered by start and id. ``claims``: sentences on records that claim to be one run."""
    ratio_to = dict(ratio_to or {})
    for reference in ratio_to.values():
        published.published_device(reference)
    frame = filled(frame)
    keys = ["4B"] + (["21B"] if frame["catalogue_model"].isin(_ONLY_21B).any() else [])
    tables: list[Table] = []
    shown: set[int] = set()
    for key in keys:
        table, used = _published_shape(published.published_table(key), frame, facts, ratio_to)
        tables.append(table)
        shown |= used
    described = {str(chosen["device"]) for table in tables for chosen in table.selection}
    limited = limited_grid.is_limited(frame)
    if limited.any():
        tables.append(_limited_cases(frame[limited], facts, described))
        described |= set(frame[limited]["device"])
    rest = frame[~limited & ~frame.index.isin(sorted(shown))]
    if len(rest):
        tables.append(_other_cases(rest, facts, described))
    if claims:
        tables[0] = replace(tables[0], notes=(*claims, *tables[0].notes))
    return tables


def named(tables: Sequence[Table], names: Sequence[str]) -> list[Table]:
    """Those of the tables that are named (case does not matter), all without names, in their own order.
    Raises :class:`UsageError` for a table that is not there."""
    by_name = {table.key.lower(): table for table in tables}
    for name in names:
        if name.lower() not in by_name:
            raise UsageError(f"--table {name}: these results have the tables {', '.join(by_name)}")
    wanted = {name.lower() for name in names} or set(by_name)
    return [table for name, table in by_name.items() if name in wanted]


def render_grid(
    records: Iterable[RunRecord], console: Console, ratio_to: Mapping[str, str] | None = None
) -> None:
    """Prints the tables of :func:`build_tables` on a rich console."""
    from stbench.tables import render

    for table in build_tables(records, ratio_to):
        render.print_rich(table, console)


def _row_specs(table: PublishedTable, measured: set[tuple[str, bool, bool]]) -> list[_RowSpec]:
    """Published rows in their order; behind the unlimited SmallThinker row its other switches: those of the
    4B model always, those of the 21B model (published without a sparse lm_head) when measured."""
    specs = []
    for row in table.rows:
        specs.append(
            _RowSpec(row.key, row.label, row.model, row.sparse_ffn, row.sparse_lm_head, row.limited, row)
        )
        if row.limited or not row.model.startswith("smallthinker"):
            continue
        for (ffn, head), label in _VARIANTS.items():
            is_published = (ffn, head) == (row.sparse_ffn, row.sparse_lm_head)
            always = row.sparse_lm_head or not head
            if not is_published and (always or (row.model, ffn, head) in measured):
                key = f"{row.model}/{switches_label(ffn, head)}"
                specs.append(_RowSpec(key, label, row.model, ffn, head, False, None, row.key))
    return specs


def _published_shape(
    table: PublishedTable,
    frame: pd.DataFrame,
    facts: notes.Facts,
    ratio_to: Mapping[str, str],
) -> tuple[Table, set[int]]:
    """The table and the rows of ``frame`` that are in it."""
    known = frame["catalogue_model"].isin({row.model for row in table.rows}) & (frame["routing"] == "")
    limits = {limited_grid.published_limit(row.memory) for row in table.rows if row.limited}
    unlimited = ~limited_grid.is_limited(frame)
    own = frame[known & (unlimited | frame["memory_limit_bytes"].isin(limits)) & (frame["n_gen"] > 0)]
    free = own[~limited_grid.is_limited(own)]
    measured = set(zip(free["catalogue_model"], free["sparse_ffn"], free["sparse_lm_head"], strict=True))
    specs = _row_specs(table, measured)
    cells_by_row = {spec.key: _published_cells(spec) for spec in specs}
    headers = {device.key: device.header for device in table.devices}
    columns = [Column("row", "Model", "label"), Column("memory", table.memory_header, "memory", "GiB")]
    columns += [
        Column(f"published:{key}", header, "published", "tokens/s", key) for key, header in headers.items()
    ]
    selected: list[Mapping[str, Any]] = []
    picked: list[pd.DataFrame] = []
    # Our engine first: its column is what the rows are named after.
    groups = own.assign(program=own["engine"] != ENGINE).groupby(["device", "program", "engine"], sort=True)
    for (device, _, engine), group in groups:
        name = clean(str(device), 40)
        if engine != ENGINE or own.loc[own["device"] == device, "engine"].nunique() > 1:
            name += f" ({clean(str(engine), 20)})"
        chosen, condition = merging.select_condition(group)
        key = f"measured:{device}:{engine}"
        filled: dict[str, merging.Taken] = {}
        rule = published.published_threads(str(device))
        for spec in specs:
            found = merging.take(_candidates(spec, group), condition, rule, limited=spec.limited)
            cells_by_row[spec.key][key] = _measured_cell(spec, found, str(engine))
            if len(found.rows):
                filled[spec.key] = found
        rows = [found.rows for found in filled.values()]
        picked += rows
        reference = ratio_to.get(str(device), str(device))
        _derive(specs, cells_by_row, key, reference, filled)
        against = "published" if reference == device else f"published {headers.get(reference)}"
        probed = any(frame["read_gb_per_s"].notna().any() for frame in rows)
        columns += _columns(key, name, str(device), against if reference in headers else "", probed)
        elsewise = sum(len(found.rows) for found in filled.values() if found.elsewise)
        left = len(group) - len(chosen) - elsewise
        selected.append(notes.selection(name, str(device), str(engine), condition, filled, left))
    shown = joined(picked) if picked else own.iloc[:0]
    profiles = tuple(notes.synthetic_sentences(shown))
    labels = {spec.key: _full_label(spec, specs) for spec in specs}
    first = [published.THREAD_NOTE, *notes.device_sentences(selected, facts)]
    first += [line for chosen in selected for line in notes.selection_sentences(chosen, labels)]
    proofs = notes.proofs(selected, labels, shown, profiles)
    first += notes.failure_sentences(shown)
    rows_out = tuple(Row(s.key, s.label, cells_by_row[s.key], s.parent) for s in specs)
    title = f"{table.title}: decode, tokens/s"
    made = Table(
        table.key,
        title,
        tuple(columns),
        rows_out,
        (*first, *proofs),
        tuple(selected),
        profiles,
        tuple(proofs),
    )
    return made, set(shown.index)


def _columns(key: str, name: str, device: str, against: str, probed: bool) -> list[Column]:
    """The columns of a measured device: speed, ratio to dense, ratio to its published device, percent of the
    memory's limit where bandwidth was ``probed`` beside the runs, memory."""
    columns = [
        Column(key, f"{name}\ntokens/s", "speed", "tokens/s", device),
        Column(f"dense:{key}", f"{name}\n{TIMES} dense", "ratio", "", device),
    ]
    if against:
        columns.append(Column(f"ratio:{key}", f"{name}\n{TIMES} {against}", "ratio", "", device))
    if probed:
        columns.append(Column(f"limit:{key}", f"{name}\n% of limit", "limit", "%", device))
    return [*columns, Column(f"rss:{key}", f"{name}\nRSS GiB", "rss", "GiB", device)]


def _published_cells(spec: _RowSpec) -> dict[str, Cell]:
    if spec.published is None:
        return {}
    row = {"memory": Cell(spec.published.memory)}
    for device, speed in spec.published.speeds.items():
        text = "-" if speed is None else f"{speed:.2f}"
        row[f"published:{device}"] = Cell(text, value=speed)
    return row


def _candidates(spec: _RowSpec, group: pd.DataFrame) -> pd.DataFrame:
    """The records of a column, of any condition, that a row could show."""
    mask = (
        (group["catalogue_model"] == spec.model)
        & (group["sparse_ffn"] == spec.sparse_ffn)
        & (group["sparse_lm_head"] == spec.sparse_lm_head)
        & (limited_grid.is_limited(group) == spec.limited)
    )
    if spec.limited and spec.published is not None:
        mask &= group["memory_limit_bytes"] == limited_grid.published_limit(spec.published.memory)
    return group[mask]


def _measured_cell(spec: _RowSpec, taken: merging.Taken, engine: str) -> Cell:
    if not len(taken.rows):
        cell = _unmeasured(spec.model, engine)
        return Cell(cell.text, (*cell.marks, NO_LIMIT)) if spec.limited else cell
    cell = cells.speed_cell(taken.rows, "decode_tps")
    if not taken.elsewise:
        return cell
    return replace(cell, marks=join_marks([*cell.marks, ELSEWISE]))


def _unmeasured(model: str, engine: str) -> Cell:
    impossible = engine == ENGINE and needs_llama_cpp(model)
    return Cell("—", (NO_ENGINE,)) if impossible else Cell("not run")


def _full_label(spec: _RowSpec, specs: Sequence[_RowSpec]) -> str:
    parent = next((other.label for other in specs if other.key == spec.parent), "")
    return f"{parent}: {spec.label}" if parent else spec.label


def _derive(
    specs: Sequence[_RowSpec],
    cells_by_row: dict[str, dict[str, Cell]],
    column: str,
    reference: str,
    filled: Mapping[str, merging.Taken],
) -> None:
    """Fills ratio, limit and memory columns of a measured column. A ratio to the dense row is of cells under
    one condition."""
    elsewise = {key: found.elsewise for key, found in filled.items()}
    for spec in specs:
        row = cells_by_row[spec.key]
        cell = row[column]
        row[f"rss:{column}"] = _memory(cell)
        row[f"limit:{column}"] = cells.limit_cell(cell)
        dense = next(
            (
                cells_by_row[other.key][column]
                for other in specs
                if other.model == spec.model
                and elsewise.get(other.key) == elsewise.get(spec.key)
                and not (other.sparse_ffn or other.sparse_lm_head or other.limited)
                and spec.model.startswith("smallthinker")
            ),
            None,
        )
        row[f"dense:{column}"] = _ratio(cell, dense.value if dense else None)
        theirs = row.get(f"published:{reference}")
        row[f"ratio:{column}"] = _ratio(cell, theirs.value if theirs else None)


def _ratio(cell: Cell, base: float | None) -> Cell:
    if cell.value is None or not base:
        return Cell()
    return Cell(number(cell.value / base), value=cell.value / base, details=_weights(cell))


def _memory(cell: Cell) -> Cell:
    rss = cell.details.get("peak_rss_bytes")
    return Cell(f"{rss / 2**30:.2f}", value=rss / 2**30, details=_weights(cell)) if rss else Cell()


def _weights(cell: Cell) -> dict[str, Any]:
    """What a number that is derived from a measured cell has to say of the weights behind it."""
    return {key: cell.details[key] for key in ("synthetic", "profile")}


def _limited_cases(frame: pd.DataFrame, facts: notes.Facts, described: set[str]) -> Table:
    """One row per case under a limit, or with a cache of units; those in a published table, too."""
    sentences = _device_sentences(frame, facts, described)
    profiles = tuple(notes.synthetic_sentences(frame))
    sentences += limited_grid.sentences(frame)
    labelled = []
    rows = []
    groups = [group for _, group in frame.groupby(list(CASE), sort=True, dropna=False)]
    for i, (label, group) in enumerate(zip(_distinct_labels(groups), groups, strict=True)):
        rows.append(Row(f"limited:{i}", label, limited_grid.case_cells(group)))
        labelled.append((label, group))
    sentences += limited_grid.verdict_sentences(frame)
    sentences += [line for label, group in labelled for line in notes.failures(label, group)]
    folded = (*profiles, *notes.disturbances(labelled))
    title = "Under a memory limit, or with a cache of experts or layers"
    columns = tuple(limited_grid.columns())
    said = (*sentences, *folded)
    return Table("limited", title, columns, tuple(rows), said, profiles=profiles, fine_print=folded)


def _device_sentences(frame: pd.DataFrame, facts: notes.Facts, described: set[str]) -> list[str]:
    boards = sorted(set(zip(frame["device"], frame["fingerprint"], strict=True)))
    return [
        notes.device_sentence(clean(device, 40), facts.get((device, fingerprint)))
        for device, fingerprint in boards
        if device not in described
    ]


def _other_cases(frame: pd.DataFrame, facts: notes.Facts, described: set[str]) -> Table:
    """One row per case that no published table shows: other models, workloads, settings and thread counts.
    ``described``: devices that another table's notes describe."""
    columns = [
        Column("row", "Case", "label"),
        Column("decode", "decode\ntokens/s", "speed", "tokens/s"),
        Column("prefill", "prefill\ntokens/s", "speed", "tokens/s"),
        Column("rss", "peak\nRSS GiB", "rss", "GiB"),
    ]
    if frame["read_gb_per_s"].notna().any():
        columns.insert(2, Column("limit", "% of limit", "limit", "%"))
    sentences = _device_sentences(frame, facts, described)
    profiles = tuple(notes.synthetic_sentences(frame))
    labelled = []
    rows = []
    groups = [group for _, group in frame.groupby(list(CASE), sort=True, dropna=False)]
    for i, (label, group) in enumerate(zip(_distinct_labels(groups), groups, strict=True)):
        has_gen = bool(group["n_gen"].iloc[0])
        details = cells.details_of(group)
        decode = cells.speed_cell(group, "decode_tps", details) if has_gen else Cell()
        prefill = cells.speed_cell(group, "prefill_tps", details) if group["n_prompt"].iloc[0] else Cell()
        memory = _memory(decode if has_gen else prefill)
        made = {"decode": decode, "prefill": prefill, "limit": cells.limit_cell(decode), "rss": memory}
        rows.append(Row(f"case:{i}", label, made))
        sentences += notes.failures(label, group)
        labelled.append((label, group))
    folded = (
        *profiles,
        *notes.disturbances(labelled),
        *notes.auto_sentences(frame),
        *notes.limit_sentences(frame),
    )
    title = "Cases outside the published tables"
    said = (*sentences, *folded)
    return Table("other", title, tuple(columns), tuple(rows), said, profiles=profiles, fine_print=folded)


def _distinct_labels(groups: Sequence[pd.DataFrame]) -> list[str]:
    """The cases' labels; where several have the same one, what they differ in is added."""
    labels = [clean(str(group["label"].iloc[0]), 120) for group in groups]
    alike: dict[str, list[pd.DataFrame]] = {}
    for label, group in zip(labels, groups, strict=True):
        alike.setdefault(label, []).append(group)
    differing: dict[str, list[str]] = {}
    for label, same in alike.items():
        firsts = [group.iloc[0] for group in same] if len(same) > 1 else []
        differing[label] = [key for key in CASE if len({str(first[key]) for first in firsts}) > 1]
    out = []
    for label, group in zip(labels, groups, strict=True):
        first = group.iloc[0]
        extra = ", ".join(f"{key} {clean(str(first[key]), 20) or 'unknown'}" for key in differing[label])
        out.append(f"{label} [{extra}]" if extra else label)
    return out
