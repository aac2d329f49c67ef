"""A table between records and its renderings: what every cell says, what its marks mean, what proves it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Marks behind a cell. The legend of a table lists only those that occur, in this order.
SYNTHETIC = "†"
UNCHECKED = "‡"
FEW = "r"
PARTIAL = "!"
NOISY = "~"
DISTURBED = "D"
SOME_DISTURBED = "d"
WRONG = "✗"
UNEQUAL = "≠"
THROTTLED = "T"
NO_SENSORS = "?"
NO_LIMIT = "m"
NOT_ENFORCED = "n"
EXCEEDED = "x"
VOID = "v"
BALLAST = "b"
NO_ENGINE = "e"
NO_SHARE = "c"
ELSEWISE = "o"

# Ratios read "x dense"; escaped because it looks like the letter.
TIMES = "\u00d7"

MEANINGS = {
    SYNTHETIC: "synthetic weights (of the named shapes), not a released model",
    UNCHECKED: "output not checked against a reference",
    FEW: "(a…b) is the range of fewer than 6 replicates, not a confidence interval",
    PARTIAL: "some replicates ended otherwise and are not in the number",
    NOISY: "too noisy: interval or range reaches more than 10 % from the median",
    DISTURBED: "every replicate was disturbed by something else on the machine: does not compare",
    SOME_DISTURBED: "disturbed replicates were left out of the number",
    WRONG: "computed wrong output: no speed is shown",
    UNEQUAL: "replicates of this cell computed different outputs",
    THROTTLED: "the device throttled during at least one replicate",
    NO_SENSORS: "throttling unknown: the device has no sensors that could tell",
    NO_LIMIT: "limited rows: stbench sweep --preset limited-4b (limited-21b)",
    NOT_ENFORCED: "the memory limit was not enforced: does not compare with limited runs",
    EXCEEDED: "the memory limit was exceeded: does not compare with limited runs",
    VOID: "the memory limit proves nothing, for the reason noted: weights lay in memory that nobody counted",
    BALLAST: "limited by locked ballast: does not compare with limits of control groups",
    NO_ENGINE: "Gemma 3n is measured through llama.cpp: --engines sbr,llama-bench",
    NO_SHARE: "no percentage of the memory's limit, for the reason noted",
    ELSEWISE: "measured under other conditions than the rest of its column, as noted",
}

# What a column holds. "published" cells come from the published tables, all others from records.
ROLES = ("label", "memory", "published", "speed", "ratio", "limit", "rss", "text")


@dataclass(frozen=True)
class Cell:
    """``text`` is without marks. Of a measured speed: ``value`` is the median, ``low`` and ``high`` the
    interval or range (``kind``), in the column's unit; ``details`` is the proof, JSON-ready."""

    text: str = ""
    marks: tuple[str, ...] = ()
    value: float | None = None
    low: float | None = None
    high: float | None = None
    kind: str = ""
    n: int = 0
    coverage: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """Text and marks."""
        return f"{self.text} {''.join(self.marks)}".strip()


@dataclass(frozen=True)
class Column:
    """``role`` is one of :data:`ROLES`; ``unit`` is "" for text; ``device`` is the measured or published one.
    ``header`` may have a line break where a narrow rendering should have one."""

    key: str
    header: str
    role: str
    unit: str = ""
    device: str = ""


@dataclass(frozen=True)
class Row:
    """``label`` is exactly as published; one with ``parent`` is a variant of the row of that key."""

    key: str
    label: str
    cells: Mapping[str, Cell]
    parent: str = ""


@dataclass(frozen=True)
class Table:
    """``notes`` are full sentences; ``profiles`` are those of them that say what is synthetic, and how, and
    ``fine_print`` those that prove rather than explain: pages that can fold text away do so with them.
    ``selection`` says per measured column which records it holds."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    selection: tuple[Mapping[str, Any], ...] = ()
    profiles: tuple[str, ...] = ()
    fine_print: tuple[str, ...] = ()

    def legend(self) -> list[tuple[str, str]]:
        """The marks that occur, with their meanings, in a fixed order."""
        present = {mark for row in self.rows for cell in row.cells.values() for mark in cell.marks}
        return [(mark, meaning) for mark, meaning in MEANINGS.items() if mark in present]

    def intervals(self) -> list[str]:
        """One sentence per kind of interval that occurs, with its exact coverage."""
        found = {
            (cell.n, cell.coverage)
            for row in self.rows
            for cell in row.cells.values()
            if cell.coverage is not None
        }
        return [
            f"[a, b] with {n} replicates is an order-statistic interval: it contains the true median with "
            f"probability {100 * (coverage or 0):.2f} %, whatever the distribution."
            for n, coverage in sorted(found)
        ]

    def first_notes(self) -> list[str]:
        """The notes that are no fine print: what a reader needs beside the numbers."""
        folded = set(self.fine_print)
        return [note for note in self.notes if note not in folded]

    def telling_columns(self) -> list[Column]:
        """The columns without those that say nothing: derived ones without any cell, and ratios to the dense
        row where nothing but that row was measured."""

        def tells(column: Column) -> bool:
            if column.role not in ("ratio", "limit", "rss"):
                return True
            texts = {row.cells[column.key].text for row in self.rows if column.key in row.cells} - {""}
            return bool(texts - {"1.00"} if column.key.startswith("dense:") else texts)

        return [column for column in self.columns if tells(column)]

    def speed_columns(self) -> list[Column]:
        """The measured ones."""
        return [column for column in self.columns if column.role == "speed"]

    def full_label(self, row: Row) -> str:
        """The row's label, that of a variant behind the label of its published row."""
        parent = next((other.label for other in self.rows if other.key == row.parent), "")
        return f"{parent}: {row.label}" if parent else row.label


def join_marks(marks: Iterable[str]) -> tuple[str, ...]:
    """Each mark once, in the legend's order."""
    present = set(marks)
    return tuple(mark for mark in MEANINGS if mark in present)
