"""One record per run: which of several that claim to be the same run of a campaign counts, and what is said
of them. Edited copies of a campaign come to this; copies that nobody edited are the same record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Protocol

from stbench.agent.wire import RunRecord, to_json
from stbench.records.lines import UNFINISHED
from stbench.wording import case_label, clean


class Claim(Protocol):
    """What a record says of the run that it is of. Every RunRecord is one."""

    @property
    def campaign(self) -> str:
        """Its campaign."""

    @property
    def device(self) -> str:
        """Its device."""

    @property
    def id(self) -> str:
        """The job."""

    @property
    def label(self) -> str:
        """Its case."""

    @property
    def replicate(self) -> int:
        """Which of the case's."""

    @property
    def attempt(self) -> int:
        """How often it had been repeated."""


def one_per_run(claims: Sequence[Claim]) -> tuple[list[int], list[str]]:
    """The places of the records that count, of several of one run of one campaign the last, the newest; and a
    sentence for each such run whose records do not just count attempts. ``claims`` are in the order of their
    starts."""
    runs: dict[tuple[str, str, str], list[int]] = {}
    for place, claim in enumerate(claims):
        runs.setdefault((claim.campaign, claim.device, claim.id), []).append(place)
    said = []
    for places in runs.values():
        if len({claims[place].attempt for place in places}) < len(places):
            first = claims[places[0]]
            said.append(
                f"{case_label(first.label)}: {len(places)} different records of campaign "
                f"{clean(first.campaign, 60) or '-'} claim to be replicate {first.replicate}: the newest is "
                f"taken."
            )
    return sorted(places[-1] for places in runs.values()), sorted(said)


def counts(purpose: str, status: str) -> bool:
    """Whether a record is a finished measurement, of which tables, charts and comparisons are made."""
    return purpose == "measure" and status != UNFINISHED


def finished(records: Iterable[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """The finished measurements among them, one per run, in the order of their starts, and sentences on those
    that claim to be one run."""
    kept = [record for record in unique_records(records) if counts(record.purpose, record.status)]
    places, claims = one_per_run(kept)
    return [kept[place] for place in places], claims


def canonical(record: RunRecord) -> str:
    """The same text for the same record, however its line was written."""
    return json.dumps(to_json(record), sort_keys=True)


def unique_records(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The records without exact repetitions (one file read twice), in an order that does not depend on the
    order given: by start, id, then content."""
    keyed = {canonical(record): record for record in records}
    return [
        keyed[key] for key in sorted(keyed, key=lambda text: (keyed[text].started_at, keyed[text].id, text))
    ]
