"""``stbench find-limit`` as typed: a tiny model in real groups, and the fake engine for what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stbench.agent.wire import JobSpec, RunRecord
from stbench.caches import limit_probe
from stbench.caches.find_limit import MIB, Outcome
from stbench.errors import DeviceError
from stbench.records import store
from tests.host.conftest import Sandbox


def typed(sandbox: Sandbox, library: Path, *more: str) -> tuple[int, str, str]:
    axes = ("--models", "tiny-smallthinker", "-pg", "8,8", "--n-ctx", "256", "--bracket-ms", "0")
    return sandbox.run("find-limit", *axes, "--library", str(library), "--campaign", "c", *more)


def stored(sandbox: Sandbox) -> list[RunRecord]:
    return store.read_records(sandbox.directory / "results" / "c").records


def test_a_real_model_under_real_groups(sandbox: Sandbox, library_path: Path) -> None:
    """The smallest limit, held; then a finer search and a speed that takes up its records."""
    search = ("--from", "8MiB", "--to", "72MiB", "--resolution", "16MiB")
    code, out, err = typed(sandbox, library_path, *search, "-r", "2", "--json")
    assert code == 0, err
    (case,) = json.loads(out)["cases"]
    assert case["case"] == "local:tiny-smallthinker/dense/t2/cacheauto/pp8+tg8"
    limit, below = case["runs"]["limit_bytes"], case["runs"]["below_bytes"]
    assert 8 * MIB <= below < limit <= 40 * MIB
    assert limit - below <= 16 * MIB
    assert "out-of-memory" in case["runs"]["why_not_below"]
    records = stored(sandbox)
    for found in records:
        assert found.limit is not None
        assert found.limit.verdict == "held", found.limit
        if found.status == "ok":
            assert found.check is not None
            assert found.check.verdict == "ok"
    # One try of what is too little, two of what runs.
    assert len(records) == sum(2 if step["ran"] else 1 for step in case["steps"])

    search = ("--from", "8MiB", "--to", "72MiB", "--resolution", "8MiB")
    code, out, err = typed(sandbox, library_path, *search, "-r", "2", "--reach", "1")
    assert code == 0, err
    more = stored(sandbox)
    assert len(more) - len(records) in (1, 2), "one limit more"
    assert "runs in" in out
    assert "1 tokens/s are reached in" in out
    ids = [found.id for found in more]
    assert len(set(ids)) == len(ids)
    # They are ordinary records: a sweep goes on with them, and a table has them.
    code, out, err = sandbox.run("grid", "results/c")
    assert code == 0, err
    assert "out-of-memory" in out
    assert "held" in out
    library = ("--library", str(library_path))
    code, out, err = sandbox.run("sweep", "--resume", "--campaign", "c", *library, "--dry-run")
    assert code == 0, err
    assert "/mem8m/cacheauto" in out


def test_what_the_kernel_kills_does_not_run(sandbox: Sandbox, library_path: Path) -> None:
    """A KV cache that is touched from its first to its last byte, and nothing that asks whether it fits."""
    search = ("--from", "16MiB", "--to", "160MiB", "--resolution", "80MiB", "-r", "1")
    code, out, err = typed(sandbox, library_path, *search, "--cache", "none", "--n-ctx", "65536")
    assert code == 0, err
    assert "out-of-memory: killed by the kernel's out-of-memory killer during" in out
    killed = [found for found in stored(sandbox) if found.status == "out-of-memory"]
    assert killed
    for found in killed:
        assert found.limit is not None
        assert found.limit.oom_kills


def fake(sandbox: Sandbox, model: str, *more: str) -> tuple[int, str, str]:
    axes = ("--models", model, "--engines", "fake", "-n", "4", "--n-ctx", "256", "--bracket-ms", "0")
    return sandbox.run("find-limit", *axes, "--campaign", "c", *more)


def test_without_a_range_a_run_without_a_limit_says_it(sandbox: Sandbox) -> None:
    """64 units of 4 MB, of which a cache takes 4 at least; the fake engine's speed is the same at all."""
    code, out, err = fake(sandbox, "fake:unit=4000000", "-r", "1", "--reach", "5000")
    assert code == 3, err
    assert "runs in" in out
    assert "5000 tokens/s are not reached in" in out
    assert "without a limit 9" in out
    free = [found for found in stored(sandbox) if not found.settings.memory_limit_bytes]
    assert len(free) == 1


def test_a_device_without_limits_is_refused_and_nothing_is_bisected(sandbox: Sandbox) -> None:
    sandbox.write(
        "devices.yaml",
        "devices:\n  local: {enabled: true, connector: local, threads: 2, memory_limit: none}\n",
    )
    code, _, err = fake(sandbox, "fake:")
    assert code == 3
    assert "local holds no memory limit (devices.yaml: memory_limit: none)" in err
    assert not (sandbox.directory / "results").exists()


def test_a_limit_that_nobody_enforces_is_refused_after_one_run(sandbox: Sandbox) -> None:
    """A machine is booted with what it has: far more than is asked for here."""
    sandbox.write(
        "devices.yaml",
        "devices:\n  local: {enabled: true, connector: local, threads: 2, memory_limit: boot}\n",
    )
    code, _, err = fake(sandbox, "fake:", "--from", "64MiB")
    assert code == 3
    assert "local cannot enforce a memory limit, so that none can be found: boot: " in err
    assert len(stored(sandbox)) == 1


def test_other_failures_end_it_and_can_be_tried_again(sandbox: Sandbox) -> None:
    code, _, err = fake(sandbox, "fake:crash", "--from", "64MiB", "--to", "128MiB")
    assert code == 3
    assert "crashed, which says nothing about its limit" in err
    assert len(stored(sandbox)) == 1
    assert fake(sandbox, "fake:crash", "--from", "64MiB", "--to", "128MiB")[0] == 3
    assert len(stored(sandbox)) == 1
    fake(sandbox, "fake:crash", "--from", "64MiB", "--to", "128MiB", "--retry-failed")
    assert len(stored(sandbox)) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--memory-limit", "1GiB"), "--memory-limit is what find-limit looks for"),
        (("--from", "64MiB", "--to", "64MiB"), "--from has to be less than --to"),
        (("-t", "auto"), "-t auto would search for threads anew"),
        (("-n", "4", "-p", "8", "--reach", "3"), "a workload generates nothing"),
        (("--one-model-at-a-time",), "deletes the model after each limit"),
    ],
)
def test_options_that_do_not_fit_are_refused(sandbox: Sandbox, more: tuple[str, ...], said: str) -> None:
    code, _, err = fake(sandbox, "fake:", *more)
    assert code == 2
    assert said in err


def test_a_campaign_of_other_runs_is_left_alone(sandbox: Sandbox) -> None:
    assert fake(sandbox, "fake:", "--from", "64MiB", "--to", "96MiB", "-r", "1")[0] == 0
    code, _, err = fake(sandbox, "fake:", "--from", "64MiB", "--to", "96MiB", "-r", "1", "--policy", "lru")
    assert code == 2
    assert "is a campaign of other runs than this search would make" in err
    code, _, err = fake(sandbox, "fake:", "--from", "64MiB", "--to", "96MiB", "-r", "2")
    assert code == 0, err
    assert len(stored(sandbox)) == 2
    code, out, err = fake(sandbox, "fake:", "--from", "64MiB", "--to", "96MiB", "-r", "2", "--json")
    assert code == 0, err
    assert [step["reused"] for step in json.loads(out)["cases"][0]["steps"]] == [True]


def test_which_model_and_which_device_have_to_be_said(sandbox: Sandbox) -> None:
    code, _, err = sandbox.run("find-limit")
    assert code == 2
    assert "which model? --models NAME" in err
    sandbox.write(
        "devices.yaml",
        "devices:\n  a: {enabled: true, connector: local}\n  b: {enabled: true, connector: local}\n",
    )
    code, _, err = fake(sandbox, "fake:")
    assert code == 2
    assert "find-limit searches on one device" in err
    assert "--device a" in err


def test_several_cases_have_an_answer_each_in_one_table(sandbox: Sandbox) -> None:
    """One of three crashes: the others are answered, and what to do with it is said last."""
    search = ("--from", "64MiB", "--to", "96MiB", "-r", "1", "--warmup", "3")
    models = ("--models", "fake:,fake:crash,fake:unit=8000000")
    axes = ("--engines", "fake", "-n", "4", "--n-ctx", "256", "--bracket-ms", "0", "--campaign", "c")
    code, out, err = sandbox.run("find-limit", *models, *axes, *search)
    assert code == 3
    assert "no answer for local:fake:crash/dense/t2/cacheauto/tg4/fake: " in err
    assert "--retry-failed" in err
    assert out.count("runs in") == 3, "a column, and a sentence for each of two cases"
    lines = [line for line in out.splitlines() if line.strip().startswith("local:fake:")]
    assert any("64 MiB" in line for line in lines)
    assert len(stored(sandbox)) == 3

    # Again: nothing that is known is run once more.
    code, out, err = sandbox.run("find-limit", *models, *axes, *search, "--json")
    assert code == 3
    answer = json.loads(out)
    assert [step["reused"] for case in answer["cases"] for step in case["steps"]] == [True, True]
    assert list(answer["failed"]) == ["local:fake:crash/dense/t2/cacheauto/tg4/fake"]
    assert len(stored(sandbox)) == 3


def test_what_was_found_is_printed_when_the_rest_cannot_be(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is lost, or --max-time is over, after the first of two cases."""
    measure = limit_probe.Prober.measure
    first: list[str] = []

    def once(self: limit_probe.Prober, case: JobSpec, limit: int) -> Outcome:
        first.append(case.label)
        if case.label != first[0]:
            raise DeviceError("local: gone", hint="the same command with this --campaign goes on")
        return measure(self, case, limit)

    monkeypatch.setattr(limit_probe.Prober, "measure", once)
    code, out, err = fake(sandbox, "fake:,fake:noise", "--from", "64MiB", "--to", "96MiB", "-r", "1")
    assert code == 4
    assert "runs in 64 MiB" in out
    assert "this --campaign goes on" in err
