"""kill -9 at twenty random moments: after resuming, the records are those of an undisturbed sweep."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stbench.agent.wire import RunRecord
from stbench.records.store import Store, read_records
from tests.host.conftest import Sandbox

KILLS = 20
REAL_KILLS = 6


def kill(running: subprocess.Popen[str], stored: Callable[[], int] | None, seconds: float) -> None:
    """So long after its start; with ``stored``, after it has stored something, however long that takes."""
    if stored is not None:
        before, deadline = stored(), time.monotonic() + 60
        while stored() == before and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.communicate(timeout=seconds)
    running.kill()
    running.communicate()


def what_matters(record: RunRecord) -> tuple[object, ...]:
    assert record.samples is None or record.samples.decode_ns
    times = tuple(record.samples.decode_ns) if record.samples else ()
    output = record.check.output_hash if record.check else ""
    return record.id, record.label, record.replicate, record.status, times, output


def stored_lines(sandbox: Sandbox) -> Callable[[], int]:
    """How many records of the campaign that is killed are stored by now."""
    path = sandbox.directory / "results" / "killed" / "records.jsonl"
    return lambda: path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_twenty_times_and_resumed(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake:vocab=64", "fake:exit", replicates=15, extra="sparse_lm_head: on,off\n")
    assert sandbox.run("sweep", sweep, "--campaign", "undisturbed")[0] == 3
    expected = read_records(sandbox.directory / "results" / "undisturbed")
    assert len(expected.records) == 60

    chance = random.Random(20)
    lines = stored_lines(sandbox)
    grew = stored = 0
    for number in range(KILLS):
        begun = (sandbox.directory / "results" / "killed" / "campaign.json").exists()
        running = sandbox.start("sweep", sweep, "--campaign", "killed", *["--resume"] * begun)
        # A job takes about 0.15 s, starting 0.7 s, both several times as long beside other work.
        if number % 3:
            kill(running, lines, chance.uniform(0.0, 0.5))
        else:
            kill(running, None, chance.uniform(0.2, 2.2))
        assert lines() >= stored, "a record was lost"
        grew += lines() > stored
        stored = lines()
    assert grew >= 3, "the kills came before anything ran"

    assert sandbox.run("sweep", sweep, "--campaign", "killed", "--resume")[0] == 3
    with Store.open(sandbox.directory / "results" / "killed") as opened:
        found = opened.reading
    assert found.problems == []
    assert Counter(r.id for r in found.records).most_common(1)[0][1] == 1, "a job ran twice"
    assert {what_matters(r) for r in found.records} == {what_matters(r) for r in expected.records}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_real_engine_killed_and_resumed(sandbox: Sandbox, library_path: Path) -> None:
    """With an empty cache, so that kills also fall into making the model and computing references."""
    axes = ["--models", "tiny-smallthinker", "--sparse-ffn", "on,off", "--sparse-lm-head", "on,off"]
    # A noisy machine would have some runs repeated, as asked; here each is to run once.
    sweep = [*axes, "-pg", "8,16", "-r", "6", "--max-reruns", "0", "--library", str(library_path)]
    chance = random.Random(6)

    def go_on() -> list[str]:
        """A kill before the sweep was stored leaves nothing to resume."""
        begun = (sandbox.directory / "results" / "killed" / "campaign.json").exists()
        return ["sweep", *sweep, "--campaign", "killed", *["--resume"] * begun]

    for number in range(REAL_KILLS):
        running = sandbox.start(*go_on())
        if number % 2:
            kill(running, stored_lines(sandbox), chance.uniform(0.0, 1.0))
        else:
            kill(running, None, chance.uniform(0.3, 3.0))
    code, out, log = sandbox.run(*go_on())
    assert code == 0, out + log
    assert sandbox.run("sweep", *sweep, "--campaign", "undisturbed")[0] == 0

    found = read_records(sandbox.directory / "results" / "killed").records
    expected = read_records(sandbox.directory / "results" / "undisturbed").records

    def what_was_computed(record: RunRecord) -> tuple[object, ...]:
        assert record.check is not None
        return record.case, record.replicate, record.status, record.check.verdict, record.check.output_hash

    assert Counter(r.id for r in found).most_common(1)[0][1] == 1, "a job ran twice"
    assert {what_was_computed(r) for r in found} == {what_was_computed(r) for r in expected}
    assert len(found) == len(expected) == 24
