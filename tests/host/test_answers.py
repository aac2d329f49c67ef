"""What an agent says is judged as it will be when it is read back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stbench.agent import wire
from stbench.agent.wire import JobSpec
from stbench.campaigns.answers import own_record
from stbench.records.lines import LineError, parse_record
from tests.tables.factory import record

GOOD = record()
JOB = JobSpec(
    library="/srv/libsbr.so",
    **{name: getattr(GOOD, name) for name in ("id", "label", "campaign", "device", "case", "replicate")},
    **{name: getattr(GOOD, name) for name in ("engine", "model", "workload", "settings", "attempt")},
)


def test_the_job_s_own_record_is_taken() -> None:
    assert own_record(JOB, wire.dumps(GOOD)) == GOOD


@pytest.mark.parametrize(
    "changes",
    [
        {"replicate": -1},
        {"wall_s": -1.0},
        {"settings": replace(GOOD.settings, cpus=[1 << 62])},
        {"detail": "\ud800"},
        {"schema": wire.SCHEMA_VERSION + 1},
    ],
    ids=str,
)
def test_a_record_that_would_not_be_read_back_is_none(changes: dict[str, Any]) -> None:
    line = wire.dumps(replace(GOOD, **changes))
    with pytest.raises(LineError):
        parse_record(line)
    assert own_record(JOB, line) is None
