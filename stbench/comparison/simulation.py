"""Do the methods of :mod:`stbench.comparison.inference` hold? Simulated campaigns with known truth.

    python -m stbench.comparison.simulation            print the report and renew it in docs/methodology.md
    python -m stbench.comparison.simulation --check    fail if the committed report is not what this code
    gives

A tenth of a full run finds a stale report, too (:func:`stale`); the tests do that.

The report is a table of the methodology page, between two markers. It is part of the package because it
judges with the package's own functions, so whoever doubts a verdict can repeat it where the verdict was made.
Everything is seeded: the same numpy gives the same report.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stbench.comparison import inference
from stbench.comparison.inference import IMPROVED, REGRESSED, Floats

DOCS = Path(__file__).resolve().parents[2] / "docs" / "methodology.md"
BEGIN = "<!-- made by python -m stbench.comparison.simulation: do not edit between the markers -->"
END = "<!-- end of what stbench.comparison.simulation made -->"

SEED = 20260131
TRIALS = 1500
DRAWS = 400
SIZES = (*range(6, 21), 25, 30)
THRESHOLD = 0.02

# Noise of one process and the change to be found, both as shares.
QUESTIONS = ((0.01, 0.02), (0.03, 0.05))

# Cells of a simulated campaign, none of which changed.
CAMPAIGN_CELLS = 10


def _independent(rng: np.random.Generator, trials: int, n: int, noise: float) -> tuple[Floats, Floats]:
    return noise * rng.standard_normal((trials, n)), noise * rng.standard_normal((trials, n))


def _shared(rng: np.random.Generator, trials: int, n: int, noise: float) -> tuple[Floats, Floats]:
    a, b = _independent(rng, trials, n, noise)
    both = 3 * noise * rng.standard_normal((trials, n))
    return a + both, b + both


def _drift(rng: np.random.Generator, trials: int, n: int, noise: float) -> tuple[Floats, Floats]:
    a, b = _independent(rng, trials, n, noise)
    first = rng.random((trials, n)) < 0.5
    time = 2 * np.arange(n)
    slope = 5 * noise / (2 * n - 1)
    return a + slope * (time + ~first), b + slope * (time + first)


def _outliers(rng: np.random.Generator, trials: int, n: int, noise: float) -> tuple[Floats, Floats]:
    a, b = _independent(rng, trials, n, noise)
    slow = [(rng.random((trials, n)) < 0.1) * rng.exponential(5 * noise, (trials, n)) for _ in "ab"]
    return a - slow[0], b - slow[1]


def _step(rng: np.random.Generator, trials: int, n: int, noise: float) -> tuple[Floats, Floats]:
    a, b = _independent(rng, trials, n, noise)
    after = np.arange(n) >= rng.integers(0, n + 1, (trials, 1))
    return a - 0.5 * after, b - 0.5 * after


_Draw = Callable[[np.random.Generator, int, int, float], tuple[Floats, Floats]]

# Name -> logarithms of speeds of A and B, (trials, n), pairs being neighbours in time.
NOISE: dict[str, tuple[str, _Draw]] = {
    "log-normal": ("independent processes", _independent),
    "shared": ("each pair also shares noise three times as large", _shared),
    "drift": ("the machine drifts by five times the noise over the campaign; order in a pair random", _drift),
    "outliers": ("one process in ten is slower, by an exponential of mean five times the noise", _outliers),
    "step": ("at a random moment the machine becomes 40 % slower and stays so", _step),
}


@dataclass(frozen=True)
class Outcome:
    """Shares of trials, for one noise model, noise and number of replicates: intervals that contain the
    truth; A/A called changed; campaigns of 10 unchanged cells with any cell called changed; the change of
    the question found in its direction; the change called unchanged."""

    covered: float
    false_alarms: float
    campaign_alarms: float
    found: float
    missed: float


def simulate(
    model: str, n: int, noise: float, change: float, *, paired: bool, trials: int, seed: int = SEED
) -> Outcome:
    """Judges ``trials`` simulated cells of ``n`` replicates per side without, then with a change."""
    rng = np.random.default_rng([seed, n, list(NOISE).index(model), round(1e4 * noise), paired])
    log_a, log_b = NOISE[model][1](rng, trials, n, noise)
    estimate = inference.paired_ratio if paired else inference.unpaired_ratio
    ratio = estimate(np.exp(log_a), np.exp(log_b), draws=DRAWS)
    p_values = paired_ps if paired else unpaired_ps
    p = p_values(log_a, log_b)
    null = inference.verdicts(ratio, p, THRESHOLD, 0.0)
    changed = (null == IMPROVED) | (null == REGRESSED)

    cells = trials - trials % CAMPAIGN_CELLS
    q = np.concatenate([inference.benjamini_hochberg(list(row)) for row in p[:cells].reshape(-1, 10)])
    judged = inference.verdicts(_part(ratio, cells), q, THRESHOLD, 0.0)
    alarms = ((judged == IMPROVED) | (judged == REGRESSED)).reshape(-1, CAMPAIGN_CELLS).any(axis=1)

    # A faster B moves estimate and interval by just as much.
    shift = math.log1p(change)
    moved = inference.Ratio(ratio.estimate + shift, ratio.low + shift, ratio.high + shift, ratio.kind)
    verdict = inference.verdicts(moved, p_values(log_a, log_b + shift), THRESHOLD, 0.0)
    return Outcome(
        covered=float(((ratio.low <= 0) & (ratio.high >= 0)).mean()),
        false_alarms=float(changed.mean()),
        campaign_alarms=float(alarms.mean()),
        found=float((verdict == IMPROVED).mean()),
        missed=float((verdict == inference.UNCHANGED).mean()),
    )


def _part(ratio: inference.Ratio, cells: int) -> inference.Ratio:
    return inference.Ratio(ratio.estimate[:cells], ratio.low[:cells], ratio.high[:cells], ratio.kind)


# ---- p values of many trials: those of inference, looked up by the statistic ------------------------------


def paired_ps(a: Floats, b: Floats) -> Floats:
    """:func:`inference.signed_rank_p` of every row of ``b - a``, which must be without ties."""
    differences = b - a
    ranks = np.abs(differences).argsort(axis=1).argsort(axis=1) + 1
    positive: npt.NDArray[np.int64] = (ranks * (differences > 0)).sum(axis=1)
    return np.asarray(_signed_rank_table(a.shape[1])[positive])


def unpaired_ps(a: Floats, b: Floats) -> Floats:
    """:func:`inference.mann_whitney_p` of every row, which must be without ties."""
    n = a.shape[1]
    ranks = np.concatenate([a, b], axis=1).argsort(axis=1).argsort(axis=1) + 1
    wins: npt.NDArray[np.int64] = ranks[:, :n].sum(axis=1) - n * (n + 1) // 2
    return np.asarray(_mann_whitney_table(n)[wins])


@functools.lru_cache(maxsize=64)
def _signed_rank_table(n: int) -> npt.NDArray[np.float64]:
    """The p value for every sum of positive ranks."""
    values = []
    for total in range(n * (n + 1) // 2 + 1):
        signs, left = [], total
        for rank in range(n, 0, -1):
            signs.append(rank if rank <= left else -rank)
            left -= rank if rank <= left else 0
        values.append(inference.signed_rank_p([float(value) for value in signs]))
    return np.array(values)


@functools.lru_cache(maxsize=64)
def _mann_whitney_table(n: int) -> npt.NDArray[np.float64]:
    """The p value for every number of pairs in which A is above B, n of each."""
    values = []
    for wins in range(n * n + 1):
        full, rest = divmod(wins, n)
        above = [n] * full + [rest] * (full < n) + [0] * (n - full - 1)
        a = [count + 0.01 * i for i, count in enumerate(sorted(above), 1)]
        values.append(inference.mann_whitney_p(a, [i + 0.5 for i in range(n)]))
    return np.array(values)


# ---- the report -------------------------------------------------------------------------------------------


def report(trials: int = TRIALS, sizes: Sequence[int] = SIZES) -> str:
    """The Markdown between the markers."""
    runs = {
        (model, n, noise): simulate(model, n, noise, change, paired=True, trials=trials)
        for noise, change in QUESTIONS
        for model in NOISE
        for n in sizes
    }
    loose = {
        (model, n): simulate(model, n, 0.01, 0.02, paired=False, trials=trials)
        for model in ("log-normal", "outliers")
        for n in sizes
    }
    in_turn = _one_after_the_other(trials)
    return "\n".join(
        [
            f"{trials} simulated cells per number, standard error at most "
            f"{100 * 0.5 / math.sqrt(trials):.1f} percentage points ({_error(trials)} at 95 %). "
            f"Threshold 2 %, no stored noise floor, which could only lower the false alarms.",
            "",
            *(f"- *{name}*: {text}." for name, (text, _) in NOISE.items()),
            "",
            *_coverage_table(runs, loose, sizes),
            "",
            *_alarm_table(runs, loose, sizes),
            "",
            *_power_table(runs, sizes),
            "",
            f"Not interleaved (all of A, then all of B, 12 each, unpaired) and drifting: {_percent(in_turn)} "
            "false alarms. No method can tell such a drift from a change; interleaving can.",
        ]
    )


def _error(trials: int) -> str:
    return f"{100 * math.sqrt(0.05 * 0.95 / trials):.1f}"


_Runs = dict[tuple[str, int, float], Outcome]
_Loose = dict[tuple[str, int], Outcome]


def _coverage_table(runs: _Runs, loose: _Loose, sizes: Sequence[int]) -> list[str]:
    lines = ["**Coverage of the interval** that is called 95 %, at 1 % noise, in %:", ""]
    lines += _head(
        ["n", *(f"pairs, {model}" for model in NOISE), "unpaired, log-normal", "unpaired, outliers"]
    )
    for n in sizes:
        cells = [runs[model, n, 0.01].covered for model in NOISE]
        cells += [loose[model, n].covered for model in ("log-normal", "outliers")]
        lines.append(_row(str(n), *map(_percent_number, cells)))
    return lines


def _alarm_table(runs: _Runs, loose: _Loose, sizes: Sequence[int]) -> list[str]:
    """Cells: the worst of all noise models, so that no number hides behind another. Campaigns are a tenth as
    many, and the worst of few numbers would say more of chance than of the method."""
    lines = [
        "**False alarms**: A/A called improved or regressed, in %. Of cells the worst of the noise models; a "
        f"campaign (all noise models together) counts when any of its {CAMPAIGN_CELLS} cells is called so:",
        "",
    ]
    lines += _head(["n", "cell, 1 %", "cell, 3 %", "campaign, 1 %", "campaign, 3 %", "unpaired cell, 1 %"])
    for n in sizes:
        lines.append(
            _row(
                str(n),
                *(
                    _percent_number(max(runs[model, n, noise].false_alarms for model in NOISE))
                    for noise, _ in QUESTIONS
                ),
                *(
                    _percent_number(
                        sum(runs[model, n, noise].campaign_alarms for model in NOISE) / len(NOISE)
                    )
                    for noise, _ in QUESTIONS
                ),
                _percent_number(max(loose[model, n].false_alarms for model in ("log-normal", "outliers"))),
            )
        )
    return lines


def _power_table(runs: _Runs, sizes: Sequence[int]) -> list[str]:
    titles = [
        f"{100 * change:g} % at {100 * noise:g} %, {model}" for noise, change in QUESTIONS for model in NOISE
    ]
    lines = [
        "**Power**: a true change called by its name, one cell, in %; n are pairs. The last row is the first "
        "n with 80 %:",
        "",
    ]
    lines += _head(["n", *titles])
    keys = [(model, noise) for noise, _ in QUESTIONS for model in NOISE]
    for n in sizes:
        lines.append(_row(str(n), *(_percent_number(runs[model, n, noise].found) for model, noise in keys)))
    firsts = []
    for model, noise in keys:
        enough = [n for n in sizes if runs[model, n, noise].found >= inference.POWER]
        firsts.append(f"**{enough[0]}**" if enough else f"over {sizes[-1]}")
    missed = max(outcome.missed for outcome in runs.values())
    return [
        *lines,
        _row("80 %", *firsts),
        "",
        f"Called *unchanged* in spite of it: at most {_percent(missed)}.",
    ]


def _one_after_the_other(trials: int) -> float:
    rng = np.random.default_rng([SEED, 1])
    n, noise = 12, 0.01
    drift = 5 * noise * np.arange(2 * n) / (2 * n - 1)
    log = noise * rng.standard_normal((trials, 2 * n)) + drift
    ratio = inference.unpaired_ratio(np.exp(log[:, :n]), np.exp(log[:, n:]), draws=DRAWS)
    verdict = inference.verdicts(ratio, unpaired_ps(log[:, :n], log[:, n:]), THRESHOLD, 0.0)
    return float(((verdict == IMPROVED) | (verdict == REGRESSED)).mean())


def _percent_number(share: float) -> str:
    return f"{100 * share:.1f}"


def _percent(share: float) -> str:
    return f"{_percent_number(share)} %"


def _head(names: Sequence[str]) -> list[str]:
    return [_row(*names), _row(*("--:" for _ in names))]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def put_between_markers(page: str, made: str) -> str:
    """The page with a new report. Raises ValueError for a page without the markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def stale(page: str, trials: int, sizes: Sequence[int]) -> list[str]:
    """Numbers of the page's tables that a shorter simulation contradicts, by more than five of its standard
    errors: another seed would not explain that."""
    committed = _numbers(page.partition(BEGIN)[2].partition(END)[0])
    found = []
    for key, value in _numbers(report(trials, sizes)).items():
        share = min(max(committed.get(key, math.inf) / 100, 0.02), 0.98)
        if not abs(value - committed.get(key, math.inf)) <= 500 * math.sqrt(share * (1 - share) / trials):
            found.append(f"{key}: {committed.get(key)} on the page, {value} now")
    return found


def _numbers(made: str) -> dict[tuple[str, str, int], float]:
    """Table, n and column -> the number there, of a report."""
    numbers: dict[tuple[str, str, int], float] = {}
    table = ""
    for line in made.splitlines():
        if line.startswith("**"):
            table = line.partition("**")[2].partition("**")[0]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0].isdigit():
            numbers.update({(table, cells[0], i): float(cell) for i, cell in enumerate(cells[1:], 1)})
    return numbers


def main(argv: Sequence[str] | None = None) -> int:
    """Renews or checks the report; 1 when the check fails."""
    parser = argparse.ArgumentParser(
        prog="python -m stbench.comparison.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing, fail when it would")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the page that holds the report")
    args = parser.parse_args(argv)
    page = args.docs.read_text(encoding="utf-8")
    made = report()
    renewed = put_between_markers(page, made)
    if args.check:
        if renewed != page:
            print(f"{args.docs} does not hold the report of this code; run without --check", file=sys.stderr)
            return 1
        return 0
    args.docs.write_text(renewed, encoding="utf-8")
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
