"""Sweeps of the fake engine, from the command line to the records: what fails, what is skipped, what is
said."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.agent.wire import JobSpec, Reference, RunRecord
from stbench.campaigns import references
from stbench.campaigns.agentclient import Agent
from stbench.campaigns.stopping import Stop
from stbench.errors import AgentError
from stbench.records.store import Store, read_records
from tests.host.conftest import Sandbox

Eventually = Callable[[Callable[[], bool]], None]


def records(sandbox: Sandbox, campaign: str = "c") -> list[RunRecord]:
    reading = read_records(sandbox.directory / "results" / campaign)
    assert reading.problems == []
    return reading.records


def statuses(sandbox: Sandbox, campaign: str = "c") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in records(sandbox, campaign):
        found.setdefault(record.model.name, []).append(record.status)
    return found


def test_a_sweep_stores_checks_and_reports(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", replicates=2, extra="sparse_lm_head: on,off\n")
    code, out, err = sandbox.run("sweep", sweep, "--campaign", "c")
    assert code == 0, err
    found = records(sandbox)
    assert Counter(r.label for r in found) == {
        "local:fake/lmhead/t2/tg4/fake": 2,
        "local:fake/dense/t2/tg4/fake": 2,
    }
    for record in found:
        assert (record.status, record.campaign, record.settings.threads) == ("ok", "c", 2)
        assert record.check is not None
        assert record.check.verdict == "ok"
        assert record.facts is not None
        assert record.samples is not None
        assert len(record.samples.decode_ns) == 4
    assert "local:fake/dense/t2/tg4/fake #2: " in err
    assert "SmallThinker 4B" in out
    assert "wrote reports/c/table.md" in err
    assert (sandbox.directory / "reports" / "c" / "table.md").is_file()
    described = json.loads((sandbox.directory / "results" / "c" / "campaign.json").read_text())
    assert described["plan"]["order"] == [record.id for record in found]
    assert described["sweep"]["seed"] == 0


def test_a_failing_case_never_ends_the_sweep(sandbox: Sandbox) -> None:
    models = (
        "fake:crash",
        "fake:unsupported",
        "fake:oom",
        "fake:exit",
        "fake:fail",
        "fake:wrong",
        "fake:noise",
        "fake",
    )
    sweep = sandbox.fake_sweep(*models, replicates=1)
    code, out, err = sandbox.run("sweep", sweep, "--campaign", "c")
    assert code == 3
    assert statuses(sandbox) == {
        "fake:crash": ["crashed"],
        "fake:unsupported": ["unsupported"],
        "fake:oom": ["out-of-memory"],
        "fake:exit": ["crashed"],
        "fake:fail": ["failed"],
        "fake:wrong": ["wrong-output"],
        "fake:noise": ["ok"],
        "fake": ["ok"],
    }
    assert "failed: local:fake:crash/" in err
    assert "--resume --campaign c --retry-failed" in err
    assert "SmallThinker 4B" in out


def test_a_job_that_hangs_is_ended_and_the_next_one_runs(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Agent.run

    def hasty(agent: Agent, job: JobSpec, stop: Stop, tell: Callable[[str], None]) -> RunRecord:
        """The other job has all the time that a busy machine takes for it."""
        return run(agent, replace(job, timeout_s=1.0) if "hang" in job.model.name else job, stop, tell)

    monkeypatch.setattr(Agent, "run", hasty)
    code, _, _ = sandbox.run(
        "sweep", sandbox.fake_sweep("fake:hang", "fake", replicates=1), "--campaign", "c"
    )
    assert code == 3
    assert statuses(sandbox) == {"fake:hang": ["timeout"], "fake": ["ok"]}


def test_a_wrong_output_has_no_speed_in_the_table(sandbox: Sandbox) -> None:
    code, out, _ = sandbox.run(
        "sweep", sandbox.fake_sweep("fake:wrong", replicates=1), "--campaign", "c", "--json"
    )
    assert code == 3
    (summary,) = json.loads(out)["records"]
    assert (summary["status"], summary["check"], summary["tokens_per_s"]) == ("wrong-output", "wrong", None)


def test_resume_runs_what_is_missing_and_nothing_else(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", "fake:exit", replicates=3)
    assert sandbox.run("sweep", sweep, "--campaign", "c")[0] == 3
    before = records(sandbox)
    path = sandbox.directory / "results" / "c" / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]))

    code, _, err = sandbox.run("sweep", "--campaign", "c", "--resume")
    assert code == 3, "the failed case is still failed"
    after = records(sandbox)
    assert [r.id for r in after] == [r.id for r in before], "same jobs in the same order"
    assert err.count(" #") == len(before) - 2
    assert sandbox.run("sweep", "--campaign", "c", "--resume")[0] == 3
    assert len(records(sandbox)) == len(before)


def test_retry_failed_repeats_only_those(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", "fake:exit", replicates=1)
    sandbox.run("sweep", sweep, "--campaign", "c")
    sandbox.run("sweep", "--campaign", "c", "--resume", "--retry-failed")
    assert {name: len(found) for name, found in statuses(sandbox).items()} == {"fake": 1, "fake:exit": 2}
    assert len(read_records(sandbox.directory / "results" / "c").latest()) == 2


def test_resume_without_a_name_takes_the_newest(sandbox: Sandbox) -> None:
    sandbox.run("sweep", sandbox.fake_sweep("fake", replicates=1), "--campaign", "older")
    sandbox.run(
        "sweep", sandbox.fake_sweep("fake", replicates=1, gen=2), "--campaign", "newer", "--max-time", "1m"
    )
    (sandbox.directory / "results" / "newer" / "records.jsonl").write_text("")
    assert sandbox.run("sweep", "--resume")[0] == 0
    assert [r.workload.n_gen for r in records(sandbox, "newer")] == [2]


def test_resume_goes_on_with_the_stored_sweep_and_no_other(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", replicates=2)
    assert sandbox.run("sweep", sweep, "--campaign", "c", "--max-time", "1h")[0] == 0
    path = sandbox.directory / "results" / "c" / "campaign.json"
    before = path.read_text()
    for other in (["-r", "1"], ["--preset", "quick"], ["--filter", "*"]):
        code, out, err = sandbox.run("sweep", "--campaign", "c", "--resume", *other)
        assert (code, out) == (2, "")
        assert "--resume goes on with the stored sweep; --" in err
        assert "another --campaign NAME" in err
    sandbox.fake_sweep("fake", replicates=1)
    assert "sweep.yaml would change it" in sandbox.run("sweep", sweep, "--resume")[2]
    assert path.read_text() == before
    assert sandbox.run("sweep", "--resume", "-r", "2", "--max-time", "5m", "--max-failures", "1")[0] == 0
    stored, again = json.loads(before), json.loads(path.read_text())
    assert again["sweep"] == {**stored["sweep"], "max_time_s": 300.0, "max_failures": 1}
    assert again["plan"] == stored["plan"]


def test_resume_of_a_campaign_that_never_began(sandbox: Sandbox) -> None:
    code, _, err = sandbox.run("sweep", sandbox.fake_sweep("fake"), "--resume", "--campaign", "c")
    assert code == 2
    assert "results/c has no campaign.json" in err
    assert "try: without --resume" in err
    assert not (sandbox.directory / "results").exists()


def test_the_command_that_goes_on_is_complete(sandbox: Sandbox) -> None:
    sandbox.write("my lab.yaml", "devices: {pc1: {connector: local, threads: 1}}")
    places = ["--devices", "my lab.yaml", "--results", "elsewhere", "--reports", "out", "--device", "pc[1]"]
    sweep = sandbox.fake_sweep("fake:exit", replicates=2)
    code, _, err = sandbox.run("sweep", sweep, "--campaign", "c", "--max-failures", "1", *places)
    assert code == 3
    command = (
        "stbench sweep --resume --campaign c "
        "--devices 'my lab.yaml' --results elsewhere --reports out --device 'pc[1]'"
    )
    assert f"go on with: {command}\n" in err
    assert f"try: {command} --retry-failed\n" in err
    code, _, err = sandbox.run(*shlex.split(command)[1:], "--retry-failed", "--max-failures", "9")
    assert code == 3
    assert [r.status for r in read_records(sandbox.directory / "elsewhere" / "c").latest()] == ["crashed"] * 2


def test_resume_says_that_a_torn_line_was_recovered(sandbox: Sandbox) -> None:
    sandbox.run("sweep", sandbox.fake_sweep("fake", replicates=2), "--campaign", "c")
    path = sandbox.directory / "results" / "c" / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    code, _, err = sandbox.run("sweep", "--campaign", "c", "--resume")
    assert code == 0
    assert "records.jsonl:2: the last line is unfinished" in err
    assert len(records(sandbox)) == 2
    assert (sandbox.directory / "results" / "c" / "records.jsonl.torn").is_file()


def test_a_taken_name_needs_resume(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", replicates=1)
    sandbox.run("sweep", sweep, "--campaign", "c")
    code, _, err = sandbox.run("sweep", sweep, "--campaign", "c")
    assert code == 2
    assert "results/c already has 1 records" in err
    for _ in range(2):
        assert sandbox.run("sweep", sweep)[0] == 0
    names = sorted(path.name for path in (sandbox.directory / "results").iterdir() if path.name != "c")
    assert names[1] == names[0] + "-2"


def test_max_failures_stops(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake:exit", replicates=5)
    code, _, err = sandbox.run("sweep", sweep, "--campaign", "c", "--max-failures", "2")
    assert code == 3
    assert len(records(sandbox)) == 2
    assert "stopped: 2 jobs failed (--max-failures); 3 jobs left" in err


def test_max_time_stops(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake:sleep=0.5", "fake", replicates=20)
    code, _, err = sandbox.run("sweep", sweep, "--campaign", "c", "--max-time", "2s")
    assert code in (0, 3)
    assert "--max-time 2s is over" in err
    assert len(records(sandbox)) < 40


def children(pid: int) -> list[int]:
    """Processes that one has started."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def test_ctrl_c_stores_the_job_as_cancelled_and_resume_repeats_it(
    sandbox: Sandbox, eventually: Eventually
) -> None:
    # Where agents run; the job waits for this file, and so does the one that computes its reference.
    go = sandbox.directory.parent / "cache" / "stbench" / "devices" / "local" / "go"
    go.parent.mkdir(parents=True)
    go.touch()
    sweep = sandbox.fake_sweep("fake:until=go", replicates=1)
    assert sandbox.run("sweep", sweep, "--references-only")[0] == 0
    go.unlink()
    running = sandbox.start("sweep", sweep, "--campaign", "c")
    path = sandbox.directory / "results" / "c" / "campaign.json"
    # From when it is stored on, agents run jobs only; this one has a process that works for it.
    eventually(lambda: path.exists() and any(map(children, children(running.pid))))
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "interrupted;" in err
    assert "Traceback" not in err
    assert [r.status for r in records(sandbox)] == ["cancelled"]
    go.touch()
    assert sandbox.run("sweep", "--campaign", "c", "--resume")[0] == 0
    assert {r.status for r in read_records(path.parent).latest()} == {"ok"}


def test_two_sweeps_at_once_are_refused(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", replicates=1)
    with Store.open(sandbox.directory / "results" / "c"):
        code, _, err = sandbox.run("sweep", sweep, "--campaign", "c")
    assert code == 4
    assert "in use by another stbench" in err


def test_references_are_computed_once(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", replicates=1)
    assert "reference 1 of 1: local:fake/dense/" in sandbox.run("sweep", sweep, "--campaign", "a")[2]
    assert "reference 1 of" not in sandbox.run("sweep", sweep, "--campaign", "b")[2]


@pytest.mark.parametrize("damage", ["cut", "not text", "of another model"])
def test_a_damaged_cached_reference_is_computed_again(sandbox: Sandbox, damage: str) -> None:
    sweep = sandbox.fake_sweep("fake", "fake:noise", replicates=1)
    sandbox.run("sweep", sweep, "--references-only")
    first, second = sorted((sandbox.directory.parent / "cache" / "stbench" / "references").glob("*.json"))
    whole = first.read_bytes()
    wrong = {"cut": whole[:-40], "not text": b"\xff\0", "of another model": second.read_bytes()}
    first.write_bytes(wrong[damage])
    code, _, err = sandbox.run("sweep", sweep, "--campaign", "c")
    assert code == 0, err
    assert f"{first.name}: the reference {first.stem} " in " ".join(err.split())
    assert "it is removed and computed again" in " ".join(err.split())
    assert "reference 1 of 1" in err
    assert first.read_bytes() == whole
    assert [r.check.verdict for r in records(sandbox) if r.check] == ["ok", "ok"]


def test_a_reference_that_cannot_be_computed_leaves_outputs_unchecked(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Agent.run

    def fails_on_references(agent: Agent, job: JobSpec, stop: Stop, tell: Callable[[str], None]) -> RunRecord:
        if job.purpose == "reference":
            raise AgentError("local: the agent ended with exit code 9")
        return run(agent, job, stop, tell)

    monkeypatch.setattr(Agent, "run", fails_on_references)
    code, _, err = sandbox.run("sweep", sandbox.fake_sweep("fake", replicates=1), "--campaign", "c")
    assert code == 0, err
    assert "no reference (local: the agent ended with exit code 9)" in " ".join(err.split())
    assert [r.check.verdict for r in records(sandbox) if r.check] == ["unchecked"]


def test_a_reference_that_cannot_be_kept_leaves_outputs_unchecked(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(references, "write_atomically", full)
    code, _, err = sandbox.run("sweep", sandbox.fake_sweep("fake", replicates=1), "--campaign", "c")
    assert code == 0, err
    assert "No space left on device" in " ".join(err.split())
    assert [r.check.verdict for r in records(sandbox) if r.check] == ["unchecked"]


def test_a_reference_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[list[str]] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        fsync(handle)
        synced.append(sorted(path.name for path in tmp_path.iterdir()))

    monkeypatch.setattr(os, "fsync", watched)
    references.References(tmp_path).store(Reference("k", "d", []))
    (part,), named = synced
    assert part.startswith(".k.json."), "the file first"
    assert named == ["k.json"], "then its directory"


def test_references_only_measures_nothing(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", "fake:noise", replicates=3)
    code, out, _ = sandbox.run("sweep", sweep, "--references-only")
    assert code == 0
    assert len({Path(line).read_text() for line in out.splitlines()}) == 2
    assert not (sandbox.directory / "results").exists()
    assert "reference 1 of" not in sandbox.run("sweep", sweep, "--campaign", "c")[2]


def test_a_broken_agent_python_is_a_device_problem(sandbox: Sandbox) -> None:
    sandbox.write("devices.yaml", "devices: {local: {python: /bin/false}}")
    code, _, err = sandbox.run("sweep", sandbox.fake_sweep("fake"), "--campaign", "c")
    assert code == 4
    assert "local: /bin/false there failed" in err
    assert "Python 3.8 or newer" in err


def test_plan_measures_nothing(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", "fake:crash", replicates=3)
    code, out, _ = sandbox.run("plan", sweep, "--campaign", "c")
    assert code == 0
    assert "c: 6 jobs, seed 0" in out
    assert "local:fake:crash/dense/t2/tg4/fake" in out
    assert not (sandbox.directory / "results").exists()
    dry = sandbox.run("sweep", sweep, "--campaign", "c", "--dry-run", "--json")
    assert dry[:2] == sandbox.run("plan", sweep, "--campaign", "c", "--json")[:2]
    assert len(json.loads(dry[1])["order"]) == 6


def test_plan_and_dry_run_answer_beside_a_sweep(sandbox: Sandbox) -> None:
    sweep = sandbox.fake_sweep("fake", replicates=1)
    lease = sandbox.directory.parent / "cache" / "stbench" / "local.lease"
    lease.parent.mkdir(parents=True, exist_ok=True)
    with lease.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = sandbox.run("sweep", sweep)
        assert code == 4
        assert "local: this machine is in use by another stbench" in err
        assert sandbox.run("plan", sweep)[0] == 0
        assert sandbox.run("sweep", sweep, "--dry-run")[0] == 0
    assert sandbox.run("sweep", sweep)[0] == 0


def test_quiet_leaves_stderr_to_errors(sandbox: Sandbox) -> None:
    code, out, err = sandbox.run("sweep", sandbox.fake_sweep("fake", replicates=1), "--quiet", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["ran"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "rpi*"], "--device rpi*: no enabled device fits; enabled: local"),
        (["--device", "rpi*"], "try: stbench devices add"),
        (["--retry-failed"], "--retry-failed needs --resume"),
        (["--campaign", "../x"], "is no name for a campaign"),
        (["--resume"], "results: no campaign to resume"),
        (["--devices", "nothing.yaml"], "nothing.yaml: No such file"),
        (["--filter", "zzz"], "nothing is left to run after --filter zzz"),
    ],
)
def test_usage_errors(sandbox: Sandbox, arguments: list[str], said: str) -> None:
    sandbox.fake_sweep("fake")
    code, out, err = sandbox.run("sweep", "sweep.yaml", *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_devices_lists_facts(sandbox: Sandbox) -> None:
    code, out, _ = sandbox.run("devices", "--json")
    assert code == 0
    (device,) = json.loads(out)
    assert device["name"] == "local"
    assert device["facts"]["n_cpus"] >= 1
    code, out, _ = sandbox.run("devices")
    assert "local: enabled, local, threads 2" in out
    assert "memory" in out
