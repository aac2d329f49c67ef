"""Routing traces on the user's machine: drawn by a seed, read from other tools' logs, described.

The file itself is :mod:`stbench.agent.routing`, which devices have, too.
"""

from __future__ import annotations

import array
import csv
import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stbench.agent import routing
from stbench.agent.routing import Routing, RoutingError
from stbench.errors import InputError, UsageError, unreadable

KINDS = ("uniform", "hot")

# The hot set of the SmallThinker report, figures 4 and 5: 20 to 30 % of the experts are used by 40 to 60 % of
# tokens, all others by fewer than 14 %.
HOT_EXPERTS = (0.20, 0.30)
HOT_RATES = (0.40, 0.60)
COLD_RATE = 0.14
# Of what a token uses, the hot ones take about this much where the rates leave a choice.
_HOT_TAKES = 0.8

MAX_IMPORT_BYTES = 2 << 30

# Indices that are compared at once: a few MiB.
_REUSE_VALUES = 1 << 20


def load(path: Path) -> Routing:
    """Reads a trace. Raises :class:`InputError`."""
    try:
        return routing.read(str(path))
    except RoutingError as error:
        foreign = "not a routing" in str(error)
        hint = "`stbench routing import` reads logs of other tools (CSV, JSON Lines)" if foreign else ""
        raise InputError(str(error), hint=hint) from error
    except OSError as error:
        raise unreadable(path, error) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as records name the trace that a run replayed. Raises :class:`InputError`."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def save(path: Path, trace: Routing) -> None:
    """Writes a trace, whole or not at all. Raises :class:`InputError`."""
    try:
        routing.write(str(path), trace)
    except RoutingError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise unreadable(path, error) from error


# ---- synthetic ones ----


def make(
    kind: str,
    n_layer: int,
    n_expert: int,
    n_expert_used: int,
    n_tokens: int,
    seed: int = 1,
    *,
    stay: float = 0.0,
    tasks: int = 1,
    model: str = "",
) -> Routing:
    """A drawn trace; the same arguments give the same digest everywhere. ``stay``: the probability with which
    a layer keeps the set of the token before. ``tasks``: equal stretches of tokens with hot experts of their
    own. Raises :class:`UsageError` for a shape or rates that cannot be."""
    if kind not in KINDS:
        raise UsageError(f"--kind {kind}: expected one of {', '.join(KINDS)}")
    if not 0 <= stay < 1:
        raise UsageError(f"--stay {stay}: expected a probability of 0 or more and below 1")
    if not 1 <= tasks <= max(n_tokens, 1):
        raise UsageError(f"--tasks {tasks}: expected 1 up to the number of tokens")
    # random() alone gives the same numbers under every version of Python.
    rng = random.Random(f"{kind} {n_layer} {n_expert} {n_expert_used} {seed}")
    words = (
        f"made: {kind}, seed {seed}"
        + (f", stay {stay}" if stay else "")
        + (f", {tasks} tasks" if tasks > 1 else "")
    )
    try:
        routing.check_shape(n_layer, n_expert, n_expert_used, n_tokens)
        values = array.array("H", bytes(2 * n_tokens * n_layer * n_expert_used))
        for task in range(tasks):
            begin, end = task * n_tokens // tasks, (task + 1) * n_tokens // tasks
            for layer in range(n_layer):
                rates = _hot_rates(n_expert, n_expert_used, rng) if kind == "hot" else None
                chosen: list[int] = []
                for token in range(begin, end):
                    if not chosen or rng.random() >= stay:
                        chosen = _draw(rates, n_expert, n_expert_used, rng)
                    at = (token * n_layer + layer) * n_expert_used
                    values[at : at + n_expert_used] = array.array("H", chosen)
        trace = Routing(n_layer, n_expert, n_expert_used, values, model=model, source=words)
        routing.validate(trace)
    except RoutingError as error:
        raise UsageError(str(error)) from error
    return trace


def _hot_rates(n_expert: int, n_expert_used: int, rng: random.Random) -> list[float]:
    """How often each expert of a layer is used, with the report's shares; their sum is n_expert_used."""
    lowest = HOT_RATES[0]
    for hot in range(-int(-HOT_EXPERTS[0] * n_expert // 1), int(HOT_EXPERTS[1] * n_expert) + 1):
        # Evenly spread around a mean, strictly within the report's range.
        mean = min(max(_HOT_TAKES * n_expert_used / hot, lowest + 0.01), 0.5)
        cold = (n_expert_used - hot * mean) / (n_expert - hot)
        if 0 <= cold < COLD_RATE:
            spread = 0.9 * (mean - lowest)
            rates = [mean + spread * (2 * i + 1 - hot) / hot for i in range(hot)] + [cold] * (n_expert - hot)
            order = list(range(n_expert))
            order.sort(key=lambda _: rng.random())
            return [rates[i] for i in order]
    raise UsageError(
        f"--kind hot: with {n_expert_used} of {n_expert} experts, 20 to 30 % of them cannot be used by 40 to "
        "60 % of tokens and the others by fewer than 14 %",
        hint="--kind uniform, or a shape that uses about an eighth of its experts",
    )


def _draw(rates: Sequence[float] | None, n_expert: int, n_expert_used: int, rng: random.Random) -> list[int]:
    """One set. Systematic sampling over the experts in random order: a fixed number of them, each with
    exactly its rate."""
    order = list(range(n_expert))
    order.sort(key=lambda _: rng.random())
    if rates is None:
        return sorted(order[:n_expert_used])
    chosen: list[int] = []
    total, mark = 0.0, rng.random()
    for expert in order:
        total += rates[expert]
        if total > mark and len(chosen) < n_expert_used:
            chosen.append(expert)
            mark += 1
    # Rounding of the sum may leave the last mark unreached.
    for expert in order:
        if len(chosen) < n_expert_used and expert not in chosen:
            chosen.append(expert)
    return sorted(chosen)


# ---- logs of other tools ----


def import_log(path: Path, n_expert: int = 0, model: str = "") -> Routing:
    """A trace from lines of token, layer and experts (CSV or JSON Lines, docs/routing.md). ``n_expert`` 0:
    one more than the highest that occurs. Raises :class:`InputError` with file and line."""
    try:
        if path.stat().st_size > MAX_IMPORT_BYTES:
            raise InputError(f"{path}: more than {MAX_IMPORT_BYTES >> 30} GiB; import a part of it")
        with path.open(encoding="utf-8-sig", newline="") as file:
            sets = _collect(path, file)
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError:
        raise InputError(f"{path}: not text in UTF-8, so neither CSV nor JSON Lines") from None
    if not sets:
        raise InputError(f"{path}: no line of token, layer and experts in it")
    tokens = {token: i for i, token in enumerate(sorted({token for token, _ in sets}))}
    layers = sorted({layer for _, layer in sets})
    ordered = []
    for token in tokens:
        for layer in layers:
            if (token, layer) not in sets:
                raise InputError(
                    f"{path}: token {token} has no line for layer {layer}, which other tokens have"
                )
            ordered.append(sets[token, layer])
    highest = max(max(chosen) for chosen in ordered)
    if n_expert and highest >= n_expert:
        raise InputError(f"{path}: expert {highest} occurs, but there are {n_expert} (numbered from 0)")
    try:
        return routing.from_sets(
            ordered,
            len(layers),
            n_expert or highest + 1,
            len(ordered[0]),
            model=model,
            source=f"imported from {path.name}"[: routing.MAX_TEXT],
        )
    except RoutingError as error:
        raise InputError(f"{path}: {error}") from error


def _collect(path: Path, lines: Iterable[str]) -> dict[tuple[int, int], list[int]]:
    sets: dict[tuple[int, int], list[int]] = {}
    used = values = 0
    for number, (token, layer, chosen) in _rows(path, lines):
        where = f"{path}:{number}"
        if (token, layer) in sets:
            raise InputError(f"{where}: token {token}, layer {layer} is there twice")
        if not chosen or len(set(chosen)) != len(chosen):
            raise InputError(f"{where}: expected different experts, got {chosen}")
        if used and len(chosen) != used:
            raise InputError(f"{where}: {len(chosen)} experts, but {used} in the lines before")
        if min(token, layer, *chosen) < 0 or max(chosen) >= routing.MAX_EXPERTS:
            raise InputError(f"{where}: tokens, layers and experts are numbers from 0, experts below 65536")
        used = len(chosen)
        values += used
        if values > routing.MAX_VALUES:
            raise InputError(f"{where}: more than {routing.MAX_VALUES} experts; import a part of it")
        sets[token, layer] = chosen
    return sets


def _rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, tuple[int, int, list[int]]]]:
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()):
            continue
        try:
            row = _json_row(text) if text[0] == "{" else _csv_row(text)
        except (ValueError, csv.Error, RecursionError):
            if number == 1 and text[0] != "{" and not any(c.isdigit() for c in text):
                continue  # a header
            shown = text if len(text) <= 60 else text[:57] + "..."
            raise InputError(
                f'{path}:{number}: expected a token, a layer and its experts, got "{shown}"',
                hint='a line is `0,5,3 17 20 31` or `{"token": 0, "layer": 5, "experts": [3, 17, 20, 31]}`',
            ) from None
        yield number, row


def _csv_row(text: str) -> tuple[int, int, list[int]]:
    token, layer, *experts = next(csv.reader([text]))
    words = [word for cell in experts for word in cell.replace(";", " ").split()]
    return _number(token), _number(layer), [_number(word) for word in words]


def _number(word: str) -> int:
    # int() alone would also take "1_0" and other scripts' digits.
    if not re.fullmatch(r"-?[0-9]{1,18}", word.strip()):
        raise ValueError
    return int(word)


def _json_row(text: str) -> tuple[int, int, list[int]]:
    data = json.loads(text)
    token, layer, experts = data.get("token"), data.get("layer"), data.get("experts")
    if not isinstance(experts, list) or any(type(n) is not int for n in (token, layer, *experts)):
        raise ValueError
    return token, layer, experts


# ---- what is in one ----


@dataclass(frozen=True)
class Description:
    """Shares are of 0 to 1. ``taken_by_top``: of all selections, the share that each layer's most used
    experts take together, for some shares of its experts. ``rate_histogram``: how many of all units (experts
    of all layers) are used by what share of tokens, in tenths; ``below_cold`` and ``in_hot``: the shares of
    units below 14 % and within 40 to 60 %. ``reuse_previous``: of a token's selections, how many the token
    before used in the same layer; ``reuse_expected``: the same if tokens were independent."""

    n_tokens: int
    n_layer: int
    n_expert: int
    n_expert_used: int
    digest: str
    model: str
    model_digest: str
    source: str
    units_used: int
    taken_by_top: dict[str, float]
    rate_histogram: list[int]
    below_cold: float
    in_hot: float
    reuse_previous: float
    reuse_expected: float


def describe(trace: Routing) -> Description:
    """Statistics of a trace."""
    experts = experts_array(trace)
    n_tokens, n_layer, used = experts.shape
    counts = np.stack(
        [np.bincount(experts[:, layer].ravel(), minlength=trace.n_expert) for layer in range(n_layer)]
    )
    rates = counts / n_tokens
    most_used = np.sort(counts, axis=1)[:, ::-1]
    top = {}
    for share in (0.05, 0.10, 0.25, 0.50):
        n = max(round(share * trace.n_expert), 1)
        top[f"{n} of {trace.n_expert}"] = float(most_used[:, :n].sum() / counts.sum())
    histogram = np.histogram(rates, bins=10, range=(0, 1))[0]
    return Description(
        n_tokens=n_tokens,
        n_layer=n_layer,
        n_expert=trace.n_expert,
        n_expert_used=used,
        digest=trace.digest(),
        model=trace.model,
        model_digest=trace.model_digest,
        source=trace.source,
        units_used=int((counts > 0).sum()),
        taken_by_top=top,
        rate_histogram=[int(n) for n in histogram],
        below_cold=float((rates < COLD_RATE).mean()),
        in_hot=float(((rates >= HOT_RATES[0]) & (rates <= HOT_RATES[1])).mean()),
        reuse_previous=_reuse(experts),
        reuse_expected=float((rates**2).sum() / (n_layer * used)),
    )


def experts_array(trace: Routing) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The experts as [n_tokens, n_layer, n_expert_used], without a copy."""
    flat = np.frombuffer(trace.experts, dtype=np.uint16)
    return flat.reshape(trace.n_tokens, trace.n_layer, trace.n_expert_used)


def _reuse(experts: np.ndarray[Any, np.dtype[np.uint16]]) -> float:
    n_tokens, n_layer, used = experts.shape
    if n_tokens < 2:
        return 0.0
    found = 0
    at_once = max(_REUSE_VALUES // (n_layer * used), 1)
    for begin in range(0, n_tokens - 1, at_once):
        end = min(begin + at_once, n_tokens - 1)
        # A set names nobody twice: who stands there twice is in both.
        both = np.concatenate([experts[begin:end], experts[begin + 1 : end + 1]], axis=2)
        both.sort(axis=2)
        found += int((both[..., 1:] == both[..., :-1]).sum())
    return found / float((n_tokens - 1) * n_layer * used)
