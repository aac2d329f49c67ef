"""What stands at the top: what was measured, on what, what of it can be trusted, what is missing; in plain
sentences, each with how good or bad that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from stbench.agent.wire import DeviceFacts
from stbench.tables.notes import device_sentence
from stbench.tables.table import TIMES, Cell, Table
from stbench.wording import clean, count

FACT, GOOD, CAUTION, BAD = "fact", "good", "caution", "bad"

# Of one part; what is longer is counted.
MOST_SENTENCES = 12


@dataclass(frozen=True)
class Sentence:
    """``kind`` is FACT, GOOD, CAUTION or BAD."""

    kind: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """``parts``: heading and sentences; ``figures``: a number, what it is of, and its kind."""

    parts: tuple[tuple[str, tuple[Sentence, ...]], ...]
    figures: tuple[tuple[str, str, str], ...]


def verdict(
    frame: pd.DataFrame,
    tables: Sequence[Table],
    facts: Mapping[tuple[str, str], DeviceFacts],
    problems: Sequence[str],
    unfinished: int,
) -> Verdict:
    """``frame`` is of finished measuring runs; ``problems`` are sentences about lines that could not be read,
    ``unfinished`` counts cancelled runs, which are no results."""
    parts = (
        ("What was measured", _measured(frame, tables)),
        ("On what", _boards(frame, facts)),
        ("What can be trusted", _trust(frame, tables)),
        ("What is missing", _missing(frame, tables, problems, unfinished)),
    )
    shortened = tuple((name, tuple(_shortened(sentences))) for name, sentences in parts)
    return Verdict(shortened, _figures(frame))


def _shortened(sentences: list[Sentence]) -> list[Sentence]:
    if len(sentences) <= MOST_SENTENCES:
        return sentences
    rest = len(sentences) - MOST_SENTENCES
    return [
        *sentences[:MOST_SENTENCES],
        Sentence(FACT, f"And {rest} more of this kind, in the tables below."),
    ]


def _measured(frame: pd.DataFrame, tables: Sequence[Table]) -> list[Sentence]:
    if not len(frame):
        return [Sentence(BAD, "Nothing: these results hold no finished measurement.")]
    models = sorted(set(frame["model"]))
    campaigns = sorted(set(frame["campaign"]))
    out = [
        Sentence(
            FACT,
            f"{count(len(frame), 'run')} of {count(frame['case'].nunique(), 'case')}, "
            f"{count(len(models), 'model')} ({_some(models)}), from {count(len(campaigns), 'campaign')} "
            f"({_some(campaigns)}), {_span(frame)}.",
        )
    ]
    for table in tables:
        for column in table.speed_columns() if table.columns[1].role == "memory" else ():
            said = [
                f"{row.label} {cell.text}"
                for row in table.rows
                if not row.parent and (cell := row.cells.get(column.key, Cell())).value is not None
            ]
            if said:
                head = column.header.partition("\n")[0]
                out.append(
                    Sentence(
                        FACT, f"{head} decodes, in tokens/s: {'; '.join(said)}{_gain(table, column.key)}."
                    )
                )
    return out


def _gain(table: Table, column: str) -> str:
    """What sparsity gave, of the first row that says it."""
    for row in table.rows:
        dense = row.cells.get(f"dense:{column}", Cell())
        if not row.parent and dense.value is not None and dense.text:
            return (
                f". Sparse {row.label.partition('+')[0].strip()} is at {dense.text} {TIMES} its dense speed"
            )
    return ""


def _boards(frame: pd.DataFrame, facts: Mapping[tuple[str, str], DeviceFacts]) -> list[Sentence]:
    boards = sorted(set(zip(frame["device"], frame["fingerprint"], strict=True)))
    known = [
        board for board in boards if board[1] or (board[0] not in {name for name, mark in boards if mark})
    ]
    return [
        Sentence(FACT, device_sentence(clean(str(device), 60), facts.get((device, fingerprint))))
        for device, fingerprint in known
    ]


def _trust(frame: pd.DataFrame, tables: Sequence[Table]) -> list[Sentence]:
    usable = frame[frame["usable"]]
    if not len(frame):
        return []
    return [
        *_output(frame, usable),
        *_calm(usable),
        *_limits(usable),
        *_intervals(tables),
        *_heat(usable),
        *_weights(frame),
    ]


def _output(frame: pd.DataFrame, usable: pd.DataFrame) -> list[Sentence]:
    wrong = int(((frame["status"] == "wrong-output") | (frame["check"] == "wrong")).sum())
    right = int((usable["check"] == "ok").sum())
    unchecked = usable[usable["check"] == "unchecked"]
    out = []
    if wrong:
        out.append(Sentence(BAD, f"{count(wrong, 'run')} computed wrong output; their cells show no speed."))
    if right:
        out.append(
            Sentence(
                GOOD,
                f"{count(right, 'run')} computed the reference's output: their speeds are of the right work.",
            )
        )
    if len(unchecked):
        engines = _some(sorted(set(unchecked["engine"])))
        out.append(
            Sentence(
                CAUTION, f"{count(len(unchecked), 'run')} not checked against a reference (engine {engines})."
            )
        )
    return out


def _calm(usable: pd.DataFrame) -> list[Sentence]:
    judged = usable[usable["read_gb_per_s"].notna() | usable["disturbed"]]
    hit = int(judged["disturbed"].sum())
    out = []
    if hit:
        of = f"{hit} of {count(len(judged), 'run')}"
        out.append(
            Sentence(
                CAUTION if 2 * hit > len(judged) else FACT,
                f"{of} disturbed by something else on the machine: left out of the numbers, or marked D "
                "where a cell has no others.",
            )
        )
    elif len(judged):
        out.append(
            Sentence(
                GOOD, f"None of {count(len(judged), 'run')} was disturbed by anything else on the machine."
            )
        )
    if len(usable) > len(judged):
        rest = count(len(usable) - len(judged), "run")
        out.append(Sentence(CAUTION, f"{rest}: whether the machine was disturbed was not measured."))
    return out


def _limits(usable: pd.DataFrame) -> list[Sentence]:
    limited = usable[usable["memory_limit_bytes"] > 0]
    if not len(limited):
        return []
    held = int((limited["limit_verdict"] == "held").sum())
    out = []
    if held:
        out.append(
            Sentence(
                GOOD, f"The memory limit held, with proof, in {held} of {count(len(limited), 'limited run')}."
            )
        )
    for verdict_, n in sorted(Counter(limited["limit_verdict"]).items()):
        if verdict_ != "held":
            said = clean(str(verdict_), 40) or "without a proof"
            out.append(
                Sentence(BAD, f"{count(n, 'run')}: memory limit {said}; not comparable with limited runs.")
            )
    return out


def _intervals(tables: Sequence[Table]) -> list[Sentence]:
    kinds = Counter(
        cell.kind
        for table in tables
        for row in table.rows
        for column in table.speed_columns()
        if (cell := row.cells.get(column.key, Cell())).value is not None
    )
    total = sum(kinds.values())
    if not total:
        return []
    good = kinds["interval"]
    if good == total:
        return [Sentence(GOOD, f"All {total} speeds have an interval for their median.")]
    rest = f"{total - good} of {count(total, 'speed')} rest on fewer than 6 undisturbed replicates"
    return [Sentence(CAUTION, f"{rest}: these show the range (a…b) that occurred, and decide nothing.")]


def _heat(usable: pd.DataFrame) -> list[Sentence]:
    seen = Counter(usable["throttled"])
    if not len(usable):
        return []
    if seen["yes"]:
        return [Sentence(BAD, f"The device throttled in {count(seen['yes'], 'run')} of {len(usable)}.")]
    if seen["no"] == len(usable):
        return [Sentence(GOOD, "No run throttled.")]
    unknown = usable[usable["throttled"] != "no"]
    devices = _some(sorted(set(unknown["device"])))
    return [Sentence(CAUTION, f"Whether {devices} throttled is not known: no sensor there could tell.")]


def _weights(frame: pd.DataFrame) -> list[Sentence]:
    synthetic = int(frame["synthetic"].sum())
    if not synthetic:
        return [Sentence(GOOD, "All models are real files.")]
    which = "All" if synthetic == len(frame) else f"{synthetic} of {len(frame)}"
    return [
        Sentence(
            CAUTION,
            f"{which} runs used synthetic weights of the named models' shapes, with the sparsity that the "
            "notes state: they speak for speed and memory, not for what a model says.",
        )
    ]


def _missing(
    frame: pd.DataFrame, tables: Sequence[Table], problems: Sequence[str], unfinished: int
) -> list[Sentence]:
    out = [Sentence(BAD, clean(problem, 300)) for problem in problems]
    failed = frame[~frame["usable"]]
    for status, group in failed.groupby("status", sort=True):
        kind = "unusable" if status == "ok" else clean(str(status), 40)
        out.append(
            Sentence(
                BAD, f"{count(len(group), 'run')} ended as {kind}: {_some(sorted(set(group['label'])))}."
            )
        )
    if unfinished:
        out.append(
            Sentence(CAUTION, f"{count(unfinished, 'run')} cancelled before the end, which is no result.")
        )
    for table in tables:
        if table.columns[1].role != "memory":
            continue
        for column in table.speed_columns():
            absent = [
                row.label for row in table.rows if not row.parent and row.cells[column.key].text == "not run"
            ]
            if absent:
                head = column.header.partition("\n")[0]
                out.append(
                    Sentence(
                        CAUTION, f"{table.title.partition(':')[0]} on {head}, not run: {'; '.join(absent)}."
                    )
                )
    if len(frame) and not frame["joules_per_token"].notna().any():
        out.append(Sentence(FACT, "Energy was not measured: no run had a sensor for it."))
    return out or [Sentence(FACT, "Nothing that these records could tell of.")]


def _figures(frame: pd.DataFrame) -> tuple[tuple[str, str, str], ...]:
    usable = frame[frame["usable"]]
    checked = usable[usable["check"] == "ok"]
    figures = [
        (
            str(len(usable)),
            f"of {count(len(frame), 'run')} ended well",
            GOOD if len(usable) == len(frame) else CAUTION,
        ),
        (str(len(checked)), "had their output checked and right", GOOD if len(checked) else CAUTION),
        (str(int((~usable["disturbed"]).sum())), "ran on an undisturbed machine", FACT),
    ]
    limited = usable[usable["memory_limit_bytes"] > 0]
    if len(limited):
        held = int((limited["limit_verdict"] == "held").sum())
        kind = GOOD if held == len(limited) else BAD
        figures.append((str(held), f"of {count(len(limited), 'limited run')} held their memory limit", kind))
    wrong = int(((frame["status"] == "wrong-output") | (frame["check"] == "wrong")).sum())
    if wrong:
        figures.append((str(wrong), "computed wrong output", BAD))
    return tuple(figures)


def _span(frame: pd.DataFrame) -> str:
    days = [clean(str(day)[:10], 10) for day in (frame["started_at"].min(), frame["started_at"].max())]
    return f"on {days[0]}" if days[0] == days[1] else f"{days[0]} to {days[1]}"


def _some(names: Sequence[object], most: int = 6) -> str:
    shown = ", ".join(clean(str(name), 60) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
