"""A profile as text: tables for :mod:`rich`, and the sentences around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from stbench.agent import timelines

if TYPE_CHECKING:
    from stbench.agent.wire import RunRecord
    from stbench.profiles.profile import Summary, Timeline


def heading(timeline: Timeline, summary: Summary, record: RunRecord | None) -> list[str]:
    """What ran, and what its record says of it."""
    lines = [timeline.label]
    if record is not None:
        if record.limit is not None:
            lines.append(f"memory limit {record.limit.requested_bytes >> 20} MiB: {record.limit.verdict}")
        if record.cache is not None:
            lines.append(f"cache of {record.cache.units} units, {record.cache.bytes >> 20} MiB")
        if record.check is not None:
            lines.append(f"output: {record.check.verdict}")
    n, ms = summary.n_tokens, summary.total / 1e6
    lines.append(f"{n} tokens of {ms:.3f} ms on average, {1000 / ms:.1f} tokens/s, with the timeline on")
    return lines


def tables(summary: Summary) -> list[Table]:
    """Parts of a token, storage beside compute, layers, top costs."""
    return [
        _parts(summary),
        _overlap(summary),
        *([_layers(summary), _top(summary)] if summary.layers else []),
    ]


def notes(summary: Summary) -> list[str]:
    """What a reader has to know."""
    lines = [
        "Parts are of thread 0, end to end; other is what lies between them. Compute: some thread works; "
        "reads under way: asked for, not arrived."
    ]
    if summary.n_lost:
        lines.append(
            f"{summary.n_lost} events were overwritten by later ones; only whole tokens are counted (a "
            "smaller -n keeps all)."
        )
    return lines


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    return table


def _row(table: Table, name: str, ns: float, total: float) -> None:
    table.add_row(name, f"{ns / 1e6:.3f}", f"{100 * ns / total:.1f} %")


def _parts(summary: Summary) -> Table:
    named = timelines.names()
    table = _table("Where a token's time goes, thread 0", "part", "ms/token", "share")
    for kind, ns in sorted(summary.parts.items(), key=lambda item: -item[1]):
        _row(table, named[kind], ns, summary.total)
    _row(table, "other", summary.other, summary.total)
    _row(table, "token", summary.total, summary.total)
    return table


def _overlap(summary: Summary) -> Table:
    table = _table("Compute and storage", "", "ms/token", "share")
    rows = (
        ("compute", summary.compute),
        ("reads under way", summary.io_busy),
        ("both at once", summary.overlap),
        ("neither", summary.idle),
        ("thread 0 waits for storage", summary.wait),
    )
    for name, ns in rows:
        _row(table, name, ns, summary.total)
    if summary.reads:
        table.caption = f"{summary.reads:.1f} reads, {summary.bytes_read / 1e6:.2f} MB per token"
    return table


def _layers(summary: Summary) -> Table:
    named = timelines.names()
    shown = sorted({kind for row in summary.layers for kind in row})
    table = _table("Layers, thread 0, µs per token", "layer", "all", *(named[kind] for kind in shown))
    for layer, row in enumerate(summary.layers):
        cells = (f"{row[kind] / 1e3:.1f}" if kind in row else "" for kind in shown)
        table.add_row(str(layer), f"{sum(row.values()) / 1e3:.1f}", *cells)
    return table


def _top(summary: Summary) -> Table:
    named = timelines.names()
    table = _table("Top costs", "part", "layer", "ms/token", "share")
    for kind, layer, ns in summary.top:
        table.add_row(named[kind], str(layer), f"{ns / 1e6:.3f}", f"{100 * ns / summary.total:.1f} %")
    return table
