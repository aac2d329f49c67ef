"""Campaign against campaign in the page: the verdicts of :mod:`stbench.comparison`, and a picture of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stbench.comparison import compare, noise, verdict_table
from stbench.comparison.compare import Comparison
from stbench.errors import CellsFailed, InputError
from stbench.records.sides import Side
from stbench.tables.table import Table

METRICS = ("decode_tps", "prefill_tps")


@dataclass(frozen=True)
class Difference:
    """``tables`` and ``cases`` of every metric that can be compared; ``refused``: why another cannot."""

    a: str
    b: str
    tables: tuple[Table, ...]
    cases: tuple[Comparison, ...]
    refused: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Verdict -> number of cases, over all metrics."""
        return dict(sorted(Counter(case.verdict for case in self.cases).items()))


def difference(a: Side, b: Side, floors: Sequence[noise.Noise]) -> Difference:
    """Compares A with B by every metric; ``floors`` as :func:`stbench.comparison.noise.read_floors` has them.
    What cannot be compared is said in ``refused``, and nothing raised for it."""
    tables: list[Table] = []
    cases: list[Comparison] = []
    refused: list[str] = []
    for metric in METRICS:
        try:
            found = compare.compare(a, b, metric=metric, floor=noise.floor_of(floors, metric))
        except (InputError, CellsFailed) as error:
            refused.append(f"{metric}: {error}" + (f" ({error.hint})" if error.hint else ""))
            continue
        made = verdict_table.verdict_table(found, a.name, b.name)
        tables.append(dataclasses.replace(made, key=f"difference-{metric.partition('_')[0]}"))
        cases += found.cases
    return Difference(a.name, b.name, tuple(tables), tuple(cases), tuple(refused))
