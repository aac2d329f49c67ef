"""Disturbed runs are repeated within the bound, marked when that did not help, and never averaged in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stbench.agent.wire import RunRecord
from stbench.records.disturbance import judge
from stbench.records.store import read_records
from tests.host.conftest import Sandbox


def records(sandbox: Sandbox, campaign: str = "c") -> list[RunRecord]:
    return read_records(sandbox.directory / "results" / campaign).records


def attempts(sandbox: Sandbox, campaign: str = "c") -> dict[str, list[int]]:
    """Model -> the attempts of its records, in order."""
    found: dict[str, list[int]] = {}
    for record in records(sandbox, campaign):
        found.setdefault(record.model.name, []).append(record.attempt)
    return found


def test_a_disturbed_run_is_repeated_at_the_end_of_its_round(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", "fake:disturbed", replicates=3)
    code, out, err = sandbox.run("sweep", sweep, "--campaign", "c")
    assert code == 0, err
    found = records(sandbox)
    assert attempts(sandbox) == {"fake": [0] * 3, "fake:disturbed": [0, 1] * 3}
    assert [record.replicate for record in found] == sorted(record.replicate for record in found)
    assert [record.attempt for record in found] == [0, 0, 1] * 3
    assert len({record.id for record in found}) == 6
    latest = read_records(sandbox.directory / "results" / "c").latest()
    assert not any(verdict.disturbed for verdict in judge(latest))
    assert "disturbed runs are run again: at most 3 (--max-reruns), each once" in err
    assert "disturbed, running again: local:fake:disturbed/dense/t2/tg4/fake #1 (0 of at most 3" in err
    assert "#3 again: " in err
    assert "stay disturbed" not in out


def test_the_bound_holds_and_what_stays_disturbed_is_marked(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", "fake:disturbed=9", replicates=4)
    code, _, err = sandbox.run("sweep", sweep, "--campaign", "c", "--max-reruns", "2")
    assert code == 0
    assert attempts(sandbox) == {"fake": [0] * 4, "fake:disturbed=9": [0, 1, 0, 1, 0, 0]}
    assert "disturbed, in spite of 2 re-runs, and marked: local:fake:disturbed=9/dense/t2/tg4/fake" in err
    table = (sandbox.directory / "reports" / "c" / "table.md").read_text()
    assert "every replicate was disturbed" in table
    assert "4 of 4 replicates disturbed and shown for want of others" in table


def test_no_reruns_on_request_and_none_without_brackets(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake:disturbed", replicates=2)
    _, _, err = sandbox.run("sweep", sweep, "--campaign", "c", "--max-reruns", "0")
    assert attempts(sandbox) == {"fake:disturbed": [0, 0]}
    assert "disturbed runs are marked and not run again" in err
    assert "disturbed, not run again, and marked: local:fake:disturbed/dense/t2/tg4/fake" in err
    sandbox.run("sweep", sweep, "--campaign", "d", "--bracket-ms", "0")
    assert [record.bracket for record in records(sandbox, "d")] == [None, None]


def test_resume_repeats_nothing_done_and_no_exhausted_attempt(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", "fake:disturbed=9", replicates=2)
    sandbox.run("sweep", sweep, "--campaign", "c")
    before = records(sandbox)
    assert Counter(record.attempt for record in before) == {0: 4, 1: 2}
    code, out, err = sandbox.run("sweep", "--campaign", "c", "--resume", "--json")
    assert code == 0, err
    assert records(sandbox) == before
    summary = json.loads(out)
    assert (summary["ran"], summary["reruns"], summary["already_done"]) == (0, 0, 4)
    bad = [one for one in summary["records"] if one["disturbed"]]
    assert [(one["attempt"], one["disturbed"][0][:21]) for one in bad] == [(1, "memory bandwidth fell")] * 2


def test_resume_after_a_kill_at_any_record_ends_alike(sandbox: Sandbox) -> None:
    """Also between a round's last run and its repetition, and with the repetition cancelled."""
    sweep = sandbox.fake_sweep("fake", "fake:disturbed", replicates=2)
    sandbox.run("sweep", sweep, "--campaign", "c")
    path = sandbox.directory / "results" / "c" / "records.jsonl"
    whole = [(record.id, record.attempt) for record in records(sandbox)]
    lines = path.read_text().splitlines(keepends=True)
    assert [attempt for _, attempt in whole] == [0, 0, 1, 0, 0, 1]
    for kept in range(1, 6):
        left = lines[:kept]
        if whole[kept][1]:
            left.append(re.sub(r'"status": ?"ok"', '"status": "cancelled"', lines[kept]))
        path.write_text("".join(left))
        assert sandbox.run("sweep", "--campaign", "c", "--resume")[0] == 0
        ended = [(record.id, record.attempt) for record in records(sandbox) if record.status == "ok"]
        assert sorted(ended) == sorted(whole), f"killed after {kept} records"


def test_a_bound_that_is_short_goes_to_cases_without_a_calm_replicate(sandbox: Sandbox) -> None:
    """Round one uses it up; in round two the other case would have been as good."""
    sweep = sandbox.fake_sweep("fake:disturbed", "fake:disturbed,step=2000000", "fake", replicates=2)
    sandbox.run("sweep", sweep, "--campaign", "c", "--max-reruns", "2")
    found = attempts(sandbox)
    assert sum(sum(numbers) for numbers in found.values()) == 2
    assert found["fake:disturbed"].count(1) == 1
    assert found["fake:disturbed,step=2000000"].count(1) == 1


def test_plan_prints_the_bound(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", replicates=5)
    _, out, _ = sandbox.run("plan", sweep)
    assert re.search(r"at most 3 \(--max-reruns\), each once; about \d+ s more", " ".join(out.split()))


# ---- for real ---------------------------------------------------------------------------------------


@contextmanager
def hogs() -> Iterator[None]:
    """A busy loop pinned to every CPU, two where there is one, as `yes > /dev/null` would be. All run."""
    code = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nprint('up', flush=True)\n"
    code += "while True: pass"
    cpus = sorted(os.sched_getaffinity(0))
    pinned = cpus if len(cpus) > 1 else cpus * 2
    commands = [[sys.executable, "-c", code, str(cpu)] for cpu in pinned]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


@pytest.mark.quiet
def test_a_cpu_hog_started_mid_sweep_is_marked_and_its_runs_repeated(
    sandbox: Sandbox, library_path: Path
) -> None:
    """On a machine that is noisy anyway more may be marked; what the hogs had must be."""
    axes = ["--models", "tiny-smallthinker", "--sparse-ffn", "on,off", "-n", "800", "-r", "3"]
    options = [*axes, "--bracket-ms", "20", "--library", str(library_path), "--campaign", "c"]
    running = sandbox.start("sweep", *options)
    path = sandbox.directory / "results" / "c" / "records.jsonl"

    def lines() -> int:
        return path.read_bytes().count(b"\n") if path.exists() else 0

    try:
        deadline = time.monotonic() + 100
        while lines() < 2 and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        with hogs():
            first = lines() + 1
            out, err = running.communicate(timeout=200)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0, err
    found = records(sandbox)
    hogged = found[first:]
    assert len(hogged) >= 2, "the hogs came too late"
    verdicts = dict(zip(map(id, found), judge(found), strict=True))
    unmarked = [
        (record.label, record.replicate, record.bracket, record.telemetry)
        for record in hogged
        if not verdicts[id(record)].disturbed
    ]
    assert not unmarked
    assert any("other processes took" in reason for r in hogged for reason in verdicts[id(r)].reasons)
    assert any(record.attempt == 1 for record in hogged), "nothing was run again"
    assert sum(record.attempt for record in found) <= 3, "more than half of the jobs were run again"
    assert "running again" in err
    assert "marked: local:tiny-smallthinker/" in err or " D" in out or " d" in out
