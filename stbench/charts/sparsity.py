"""How many neurons of each layer are active, beside what a synthetic model was made to have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stbench.agent.wire import RunRecord
from stbench.charts.kinds import Drawn, Kind, Request
from stbench.charts.results import Results
from stbench.charts.series import MOST_LINES, mark_meanings
from stbench.charts.sheet import GHOST, Key, Panel, name_axes, sheet
from stbench.charts.style import RC, THEMES, Stroke, legible, strokes
from stbench.tables.table import SYNTHETIC
from stbench.wording import count

# What decides which neurons are active: the weights, the tokens, and which experts are used. Not the machine.
_KEYS = ("model", "digest", "n_prompt", "n_gen", "n_depth", "seed", "routing")


@dataclass(frozen=True)
class Layers:
    """One model's share of active neurons per layer, in percent: the median over ``runs`` runs, smallest and
    largest. ``target`` is what a synthetic model was made to have, empty for real weights."""

    label: str
    runs: int
    devices: int
    median: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    target: Sequence[float]


def layers_of(results: Results) -> list[Layers]:
    """Of all models with ReLU whose runs counted per layer, SmallThinker first."""
    frame = results.frame
    frame = frame[frame["usable"]]
    counted = [i for i in frame.index if _shares(results.records[i]) is not None]
    groups = [rows for _, rows in frame.loc[counted].groupby(list(_KEYS), sort=True)]
    labels = _labels(groups)
    made = []
    for rows, label in zip(groups, labels, strict=True):
        records = results.of(rows)
        depth = len(_shares(records[0]) or [])
        shares = np.array([each for record in records if len(each := _shares(record) or []) == depth])
        spec = records[0].model.synthetic
        zero = list(spec.zero_share or []) if spec is not None else []
        made.append(
            Layers(
                label,
                len(shares),
                rows["device"].nunique(),
                np.median(shares, axis=0).tolist(),
                shares.min(axis=0).tolist(),
                shares.max(axis=0).tolist(),
                [100 - share / 10 for share in zero] if len(zero) == depth else [],
            )
        )
    return sorted(made, key=lambda each: (not each.label.startswith("smallthinker"), each.label))


def sparsity_figure(found: Sequence[Layers], theme: str = "light") -> Figure:
    """A line per model, hollow marks where its statistics were set."""
    colours = THEMES[theme]
    shown = found[:MOST_LINES]
    looks = strokes(len(shown), colours)
    synthetic = any(each.target for each in shown)
    keys = [
        Key(f"{each.label} {SYNTHETIC if each.target else ''}".strip(), look)
        for each, look in zip(shown, looks, strict=True)
    ]
    if synthetic:
        keys.append(Key("as the synthetic model was made", Stroke(colours.muted, GHOST, "")))
    spread = any(each.low != each.high for each in shown)
    captions = [
        "Neurons with a non-zero ReLU output over neurons examined, prompt and generation together; "
        + ("bars: range of the runs." if spread else "all runs of a model counted the same."),
        *mark_meanings([SYNTHETIC] if synthetic else []),
    ]
    if len(found) > len(shown):
        captions.append(
            f"Left out: {count(len(found) - len(shown), 'further model')} (--filter GLOB chooses)."
        )
    with matplotlib.rc_context(RC):
        figure, (axes,) = sheet("Active neurons per layer", [Panel("", 2.7)], keys, captions, colours)
        highest = 0.0
        for each, look in zip(shown, looks, strict=True):
            xs = range(len(each.median))
            axes.plot(xs, each.median, look.dash, color=look.colour, linewidth=1.4, zorder=3)
            axes.plot(xs, each.median, look.marker, color=look.colour, markersize=4.5, zorder=5)
            if each.low != each.high:
                below = np.subtract(each.median, each.low)
                above = np.subtract(each.high, each.median)
                axes.errorbar(
                    xs, each.median, [below, above], fmt="none", ecolor=colours.text, elinewidth=1.0,
                    capsize=2, zorder=6,
                )  # fmt: skip
            if each.target:
                axes.plot(
                    xs, each.target, look.marker, markersize=8, markerfacecolor="none",
                    markeredgecolor=look.colour, markeredgewidth=0.9, zorder=4,
                )  # fmt: skip
            highest = max(highest, *each.high, *(each.target or [0.0]))
        axes.set_xlim(-0.5, max(len(each.median) for each in shown) - 0.5)
        axes.set_ylim(0, min(highest * 1.1, 102) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        name_axes(axes, "layer", "active neurons, %", colours)
    return figure


def _shares(record: RunRecord) -> list[float] | None:
    counters = record.counters
    if counters is None or not counters.layer_neurons_examined:
        return None
    examined, active = counters.layer_neurons_examined, counters.layer_neurons_active
    if len(examined) != len(active) or any(n <= 0 for n in examined):
        return None
    # Without ReLU every neuron counts as active, which says nothing.
    if sum(active) >= sum(examined):
        return None
    return [100 * a / n for a, n in zip(active, examined, strict=True)]


def _labels(groups: Sequence[pd.DataFrame]) -> list[str]:
    out = []
    for rows in groups:
        first = rows.iloc[0]
        alike = [other.iloc[0] for other in groups if other.iloc[0]["model"] == first["model"]]
        label = legible(str(first["model"]), 60)
        for key, text in (
            ("workload", str(first["workload"])),
            ("digest", f"file {str(first['digest'])[:6]}"),
            ("seed", f"seed {first['seed']}"),
            ("routing", f"routing {str(first['routing'])[:6] or 'own'}"),
        ):
            if len({str(other[key]) for other in alike}) > 1:
                label += f", {legible(text, 40)}"
        out.append(label)
    return out


def _draw(request: Request) -> list[Drawn]:
    found = layers_of(request.results)
    if not found:
        return []
    parts = []
    for each in found[:8]:
        n, shares = len(each.median), each.median
        parts.append(
            f"{each.label}: {shares[0]:.1f} % in the first of {n} layers, {shares[n // 2]:.1f} % in the "
            f"middle, {shares[-1]:.1f} % in the last; {count(each.runs, 'run')} "
            f"on {count(each.devices, 'device')}."
        )
    alt = "Lines: share of active neurons per layer. " + " ".join(parts)
    figure = sparsity_figure(found, request.theme)
    return [Drawn("sparsity", KIND.name, "Active neurons per layer", alt, figure)]


KIND = Kind(
    "sparsity",
    "active neurons per layer",
    "runs of the runtime's own engine of a model with ReLU",
    "stbench sweep --models smallthinker-4b --sparse-ffn on -n 128",
    _draw,
)
