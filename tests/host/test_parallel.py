"""Many boards at once: side by side in their own order, and each alone when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stbench.agent.wire import JobSpec, RunRecord
from stbench.campaigns import models_made
from stbench.campaigns.agentclient import Agent
from stbench.campaigns.ledger import Ledger, Progress
from stbench.campaigns.models_made import Needs
from stbench.campaigns.references import References
from stbench.campaigns.reruns import Reruns
from stbench.campaigns.stopping import Stop
from stbench.devices.inventory import Device
from stbench.errors import LinkLost, StoreError
from stbench.records.store import Store, read_records
from stbench.sweeps.plan import DeviceModel, build_plan
from stbench.sweeps.sweep import build_sweep
from tests.host.fleet import MODELS, Fleet, sweep
from tests.host.test_plan import QUICK, ROWS, target
from tests.tables import factory


class Said:
    """An observer that keeps notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, text: str, done: float, total: float, device: str = "") -> None:
        pass

    def job_started(self, job: JobSpec, standing: Progress) -> None:
        pass

    def job_ended(self, record: RunRecord) -> None:
        pass

    def device_ended(self, device: str, why: str) -> None:
        pass


# ---- side by side ------------------------------------------------------------------------------------


def test_boards_run_side_by_side_in_the_order_of_the_plan(fleet: Fleet) -> None:
    fleet.boards(3)
    # Every first job waits until all three run.
    meet: dict[str, object] = {"meet": threading.Barrier(3), "latency": 0.02}
    code, _, err = fleet.run("sweep", sweep(fleet), "--campaign", "c", all=meet)
    assert code == 0, err
    assert "3 boards are measured side by side: b1, b2, b3\n" in err
    assert len(fleet.records()) == 18
    assert fleet.ran() == fleet.planned()
    assert "b2:fake:noise/dense/t2/tg4/fake #3: " in err


def test_this_machine_is_measured_when_the_boards_have_ended(fleet: Fleet) -> None:
    fleet.boards(2, local=True)
    path = fleet.sandbox.fake_sweep("fake", replicates=2, extra="bracket_ms: 0\n")
    code, _, err = fleet.run("sweep", path, "--campaign", "c", all={"kind": "hosted"})
    assert code == 0, err
    assert "so that nothing disturbs this machine, its own devices in turn: local" in err
    devices = [record.device for record in fleet.records()]
    assert devices[-2:] == ["local", "local"]
    assert fleet.ran() == fleet.planned()


def test_a_reference_is_computed_once_for_all_boards(fleet: Fleet) -> None:
    fleet.boards(6)
    # Whoever computes the first waits until somebody computes the other.
    meet: dict[str, object] = {"references_meet": threading.Barrier(2)}
    code, _, err = fleet.run("sweep", sweep(fleet, 1), "--campaign", "c", all=meet)
    assert code == 0, err
    assert len(fleet.heard("reference")) == len(MODELS)
    assert len(set(fleet.heard("reference"))) == 2, "two boards share the work"
    assert {r.check.verdict for r in fleet.records() if r.check} == {"ok"}


def test_who_waits_for_a_reference_takes_over_when_its_computer_fails(tmp_path: Path) -> None:
    references, stop = References(tmp_path), Stop()
    waits, got = threading.Event(), []

    def other() -> None:
        with references.turn(["k"], [], stop, waits.set) as key:
            got.append(key)

    second = threading.Thread(target=other)
    with contextlib.suppress(LinkLost), references.turn(["k"], [], stop, lambda: None) as key:
        assert key == "k"
        second.start()
        assert waits.wait(60)
        assert got == []
        raise LinkLost("b1: cut")
    second.join(60)
    assert got == ["k"]


def test_who_waits_for_a_reference_hears_a_stop(tmp_path: Path) -> None:
    references, stop = References(tmp_path), Stop()
    waits, ended = threading.Event(), threading.Event()

    def other() -> None:
        with pytest.raises(KeyboardInterrupt), references.turn(["k"], [], stop, waits.set):
            pass
        ended.set()

    with references.turn(["k"], [], stop, lambda: None):
        threading.Thread(target=other, daemon=True).start()
        assert waits.wait(60)
        stop.ask()
        assert ended.wait(60)


def test_a_board_that_is_lost_over_a_reference_leaves_it_to_others(fleet: Fleet) -> None:
    fleet.boards(3)
    cut: dict[str, object] = {"dies_of_references": True, "latency": 0.3}
    path = fleet.sandbox.fake_sweep("fake", replicates=1, extra="bracket_ms: 0\n")
    fleet.run("sweep", path, "--campaign", "c", b1=cut, b2=cut)
    *lost, computed = fleet.heard("reference")
    assert computed == "b3"
    assert {r.device for r in fleet.records()} == {"b1", "b2", "b3"} - set(lost)
    assert {r.check.verdict for r in fleet.records() if r.check} == {"ok"}


def test_a_reference_that_no_board_can_compute_is_given_up(fleet: Fleet) -> None:
    fleet.boards(6)
    path = fleet.sandbox.fake_sweep("fake", replicates=1, extra="bracket_ms: 0\n")
    code, _, err = fleet.run("sweep", path, "--campaign", "c", all={"fails_references": True})
    assert code == 0, err
    assert len(fleet.heard("reference")) == 3
    assert err.count("no reference (failed: as told)") == 6
    assert len(fleet.records()) == 6


def test_every_board_has_its_own_bound_of_reruns(fleet: Fleet) -> None:
    fleet.boards(2)
    path = fleet.sandbox.fake_sweep("fake:disturbed=9", "fake", replicates=4)
    code, _, err = fleet.run("sweep", path, "--campaign", "c", "--max-reruns", "2")
    assert code == 0, err
    again = Counter(record.device for record in fleet.records() if record.attempt)
    assert again == {"b1": 2, "b2": 2}
    assert "at most 4 (--max-reruns: 2 of each device)" in err
    assert "b2: disturbed, running again: b2:fake:disturbed=9/dense/t2/tg4/fake #1 (0 of at most 2" in err


# ---- failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["LinkLost", "BusyError", "NoSpace"])
def test_a_board_that_dies_ends_alone_and_resume_completes(fleet: Fleet, how: str) -> None:
    fleet.boards(3)
    code, _, err = fleet.run(
        "sweep", sweep(fleet), "--campaign", "c", b2={"dies_after": 2, "dies_of": how}, all={"latency": 0.01}
    )
    assert code == 3
    assert "b2 has jobs left: b2: pulled?[31m out" in err, "and no escape sequence reaches the terminal"
    assert "\x1b" not in err
    assert "not run: b2:fake/dense/t2/tg4/fake, b2:fake:noise/dense/t2/tg4/fake" in err
    assert "try: stbench sweep --resume --campaign c\n" in err
    planned = fleet.planned()
    assert fleet.ran() == {**planned, "b2": planned["b2"][:2]}
    before = fleet.log.read_text()

    code, _, err = fleet.run("sweep", "--campaign", "c", "--resume")
    assert code == 0, err
    assert fleet.ran() == planned
    repeated = fleet.log.read_text().removeprefix(before).splitlines()
    assert [line.split()[0] for line in repeated] == ["b2"] * 4


def test_a_board_that_cannot_be_reached_is_left_out_and_comes_back(fleet: Fleet) -> None:
    fleet.boards(3)
    code, _, err = fleet.run("sweep", sweep(fleet), "--campaign", "c", b3={"unreachable": True})
    assert code == 3
    assert "b3: left out: no route" in err
    assert "not run: b3:*" in err
    assert "try: stbench sweep --resume --campaign c\n" in err
    assert len(fleet.records()) == 12
    code, out, err = fleet.run("sweep", "--campaign", "c", "--resume", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["ran"], summary["already_done"], summary["unreachable"]) == (6, 12, {})
    assert fleet.ran() == fleet.planned()


def test_no_board_at_all_is_exit_4(fleet: Fleet) -> None:
    fleet.boards(2)
    code, _, err = fleet.run("sweep", sweep(fleet), "--campaign", "c", all={"unreachable": True})
    assert code == 4
    busy: dict[str, object] = {"dies_after": 0, "dies_of": "BusyError"}
    code, _, err = fleet.run("sweep", sweep(fleet), "--campaign", "d", all=busy)
    assert code == 4
    assert "stbench: nothing could be measured on b" in err
    assert "try: stbench sweep --resume --campaign d\n" in err


class Making:
    """An agent whose link is cut so often; what is made goes on at the next call."""

    def __init__(self, cuts: int) -> None:
        self.connector, self.name = None, "b1"
        self.cuts, self.reconnected = cuts, 0

    def reconnect(self, stop: Stop, why: str) -> None:
        assert "cut" in why
        self.reconnected += 1


def test_a_link_that_is_cut_while_a_model_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    board = target("tiny-smallthinker", device=Device("b1", connector="ssh"))
    (job, *_) = build_plan(build_sweep({"models": "tiny-smallthinker", "gen": "1"}), [board], "c").jobs

    def make(agent: Making, model: DeviceModel, on_bytes: object) -> DeviceModel:
        if agent.cuts:
            agent.cuts -= 1
            raise LinkLost("b1: cut")
        return replace(model, ref=replace(model.ref, digest="d"))

    monkeypatch.setattr(models_made, "make", make)
    for cuts, ends in ((2, False), (1000, True)):
        agent, said = Making(cuts), Said()
        prepared: Any = SimpleNamespace(agent=agent, target=board)
        needs = Needs([prepared], References(tmp_path), said, Stop())
        if ends:
            with pytest.raises(LinkLost):
                needs.make_models([job])
            assert agent.reconnected < 50
        else:
            needs.make_models([job])
            assert agent.reconnected == 2
            assert "b1: cut; connecting again" in said.notes


def test_limits_hold_over_all_boards(fleet: Fleet) -> None:
    fleet.boards(4)
    path = fleet.sandbox.fake_sweep("fake", replicates=50, extra="bracket_ms: 0\n")
    code, _, err = fleet.run("sweep", path, "--campaign", "c", "--max-time", "1s", all={"latency": 0.05})
    assert "stopped: --max-time 1s is over" in err
    assert len(fleet.records()) < 200
    fleet.boards(3, local=True)
    path = fleet.sandbox.fake_sweep("fake:exit", "fake", replicates=9, extra="bracket_ms: 0\n")
    code, _, err = fleet.run("sweep", path, "--campaign", "d", "--max-failures", "2", all={"latency": 0.05})
    assert code == 3
    assert "jobs failed (--max-failures)" in err
    found = read_records(fleet.sandbox.directory / "results" / "d").records
    # Two, and what ran on the other boards just then.
    assert 2 <= sum(record.status != "ok" for record in found) <= 4
    assert "local" not in {record.device for record in found}


def test_a_board_forgets_only_what_is_on_this_disk(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, bool]] = []

    def stored(agent: Agent, record: RunRecord) -> None:
        if record.purpose == "measure":
            # Another board's line may be half written just now.
            there = read_records(fleet.path).records
            told.append((record.id, record.id in {one.id for one in there}))

    monkeypatch.setattr(Agent, "stored", stored)
    fleet.boards(2)
    code, _, err = fleet.run("sweep", sweep(fleet, 1), "--campaign", "c", b2={"dies_after": 1})
    assert code == 3, err
    assert sorted(told) == sorted((record.id, True) for record in fleet.records())
    before = [record.id for record in fleet.records()]
    told.clear()
    assert fleet.run("sweep", "--campaign", "c", "--resume")[0] == 0
    new = fleet.records()[-1].id
    # The boards do not wait for each other with that.
    earlier = sorted(one for one in told if one[0] != new)
    assert earlier == sorted((one, True) for one in before), (
        "what an earlier controller stored, it may not have told"
    )
    assert [one for one in told if one[0] == new] == [(new, True)]


def test_many_threads_append_whole_lines_and_lose_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one of them always finds the disk full, after half a line."""
    write, chosen = os.write, factory.record()

    def short(handle: int, data: bytes) -> int:
        if b'"label":"full"' in data:
            written = write(handle, data[: len(data) // 2])
            time.sleep(0.001)
            return written
        return write(handle, data)

    monkeypatch.setattr(os, "write", short)
    with Store.open(tmp_path) as store:

        def append(label: str) -> None:
            for number in range(25):
                with contextlib.suppress(StoreError):
                    store.append(replace(chosen, id=f"{label}{number}", label=label))

        threads = [threading.Thread(target=append, args=(label,)) for label in ("full", "a", "b", "c")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    reading = read_records(tmp_path)
    assert reading.problems == []
    assert Counter(record.label for record in reading.records) == {"a": 25, "b": 25, "c": 25}


def test_a_record_that_comes_after_the_end_goes_into_no_other_file(tmp_path: Path) -> None:
    with Store.open(tmp_path / "c") as store:
        pass
    # The next file that is opened has the number that the store's had.
    with (tmp_path / "other").open("wb", buffering=0), pytest.raises(StoreError, match="came too late"):
        store.append(factory.record())
    assert (tmp_path / "other").read_bytes() == b""


def test_devices_of_one_worker_have_bounds_of_their_own() -> None:
    devices = [target(*ROWS, device=Device(name)) for name in ("one", "two")]
    both = build_plan(replace(QUICK, max_reruns=1), devices, "c")
    first = next(job for job in both.jobs if job.device == "one")
    again = replace(factory.record(), id=first.id, device="one", attempt=1)
    reruns = Reruns(both, both.jobs, [again])
    assert (both.max_reruns, reruns.left("one"), reruns.left("two")) == (2, 0, 1)


def test_the_plan_expects_the_longest_board_and_then_this_machine() -> None:
    three = [
        target(*ROWS, device=Device("slow", connector="ssh", threads=(1,))),
        target(*ROWS, device=Device("quick", connector="ssh", threads=(4,))),
        target(*ROWS, device=Device("here")),
    ]
    slow, quick, here = (build_plan(QUICK, [one], "c").expected_s() for one in three)
    together = build_plan(QUICK, three, "c")
    assert together.expected_s() == pytest.approx(slow + here)
    assert slow > quick
    assert together.boards == ("slow", "quick")


def test_a_full_disk_ends_all(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.boards(3)
    append, broke = Store.append, Ledger.broke
    stored: list[str] = []
    counting, known = threading.Lock(), threading.Event()

    def full(store: Store, record: RunRecord) -> None:
        with counting:
            stored.append(record.id)
            number = len(stored)
        if number == 4:
            raise StoreError("records.jsonl: no space left on the device")
        # Nobody is done with a second job before that is known.
        assert number < 4 or known.wait(60)
        append(store, record)

    def heard(ledger: Ledger, error: BaseException) -> None:
        broke(ledger, error)
        known.set()

    monkeypatch.setattr(Store, "append", full)
    monkeypatch.setattr(Ledger, "broke", heard)
    code, _, err = fleet.run("sweep", sweep(fleet, 20), "--campaign", "c", all={"latency": 0.02})
    assert code == 2
    assert "stbench: records.jsonl: no space left on the device" in err
    assert len(stored) <= 4 + 2, "others ended after the job that they were running"
    assert len(fleet.records()) == len(stored) - 1


def test_a_defect_in_one_worker_is_reported_as_one(fleet: Fleet) -> None:
    fleet.boards(2)
    # No class of errors that anything expects.
    defect: dict[str, object] = {"dies_after": 1, "dies_of": "Sequence"}
    code, _, err = fleet.run("sweep", sweep(fleet), "--campaign", "c", b1=defect)
    assert code == 70
    assert "this is a defect of stbench" in err
