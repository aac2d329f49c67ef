"""What the numbers of a table rest on, a line per measured cell: replicates, threads, instruction set, what
was skipped and read, the hash of the output and its check."""

from __future__ import annotations

from typing import Any

from stbench.tables.table import Cell, Table
from stbench.wording import clean

_HEADER = (
    "Cell",
    "replicates",
    "threads (affinity)",
    "ISA",
    "zeros skipped",
    "lm_head rows",
    "MB/token",
    "GB/s",
    "load s",
    "TTFT ms",
    "prefill tokens/s",
    "output hash",
    "throttled",
)
# Only where some device measures it.
_ENERGY_HEADER = "J/token"

_EMPTY = Cell()


def proof(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and lines, plain text; without lines where nothing was measured."""
    cells = [cell for row in table.rows for cell in row.cells.values()]
    energy = any(cell.details.get("joules_per_token") is not None for cell in cells if cell.details)
    lines = []
    for row in table.rows:
        for column in table.speed_columns():
            cell = row.cells.get(column.key, _EMPTY)
            if cell.details and not (
                column.key == "prefill" and "decode" in row.cells and row.cells["decode"].details
            ):
                where = f"{column.header.splitlines()[0]}: " if column.device else ""
                texts = [clean(where + table.full_label(row), 160), *_texts(cell.details)]
                if energy:
                    texts.append(_scaled(cell.details.get("joules_per_token"), 1, 3))
                lines.append(texts)
    return [*_HEADER, *([_ENERGY_HEADER] if energy else [])], lines


def _texts(details: Any) -> list[str]:
    threads = "/".join(map(str, details["threads"]))
    affinity = clean("; ".join(details["affinity"]), 60)
    sparse = [s for s in details["sparse_ffn"] if s not in ("off", "dense")]
    zeros = 1 - details["active_share"] if sparse and details["active_share"] is not None else None
    checks = ", ".join(details["check"])
    hashes = ", ".join(clean(text, 16) for text in details["output_hash"])
    return [
        f"{details['usable']} of {details['replicates']}",
        f"{threads} ({affinity})" if affinity else threads,
        clean("/".join(details["isa"]), 40),
        _share(zeros),
        _share(details["lm_head_share"]),
        _scaled(details["weight_bytes_per_token"], 1e6, 1),
        _scaled(details["weight_gb_per_s"], 1, 2),
        _scaled(details["load_ms"], 1e3, 2),
        _scaled(details["ttft_ms"], 1, 1),
        _scaled(details["prefill_tps"], 1, 1),
        f"{hashes} ({checks})" if hashes else checks,
        ", ".join(details["throttled"]),
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _scaled(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"
