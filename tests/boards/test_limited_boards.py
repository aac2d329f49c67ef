"""Limited sweeps on boards: real control groups, bundles made there, traces that travel both ways."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.agent import routing
from stbench.agent.wire import RunRecord
from stbench.caches.routings import file_digest
from stbench.campaigns import traces
from stbench.connectors import connector_for
from tests.boards.conftest import Boards, Controller, device_of
from tests.boards.fleet import Desk
from tests.boards.sshd import ROOT, Board
from tests.conftest import require

pytestmark = pytest.mark.timeout(600)

TINY = ("--models", "tiny-smallthinker", "-pg", "8,8", "-r", "1", "--max-reruns", "0", "--bracket-ms", "0")


@pytest.fixture
def board(boards: Boards) -> Board:
    require(ROOT, "control groups need root here")
    return boards("pi")


@pytest.fixture
def desk(tmp_path: Path, controller: Controller, board: Board) -> Desk:
    desk = Desk(tmp_path / "desk")
    desk.devices({board.name: board.device_keys(threads=2)})
    return desk


def by_case(desk: Desk, campaign: str = "c") -> dict[str, RunRecord]:
    return {record.case: record for record in desk.records(campaign)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*")) if folder.exists() else []


def test_limits_bundles_and_traces(desk: Desk, board: Board) -> None:
    """Bundles are made there and never sent, recorded routings come back, one of them is replayed there."""
    axes = ("--memory-limit", "64MiB", "--cache", "25%,none", "--record-routing")
    done = desk.run("sweep", *TINY, *axes, "--campaign", "c")
    assert done.code == 0, done.err
    assert "pi: making the bundle of tiny-smallthinker" in done.err
    found = by_case(desk)
    assert sorted("cache" in case for case in found) == [False, True]
    fetched: list[Path] = []
    for case, record in found.items():
        proof, trace = record.limit, record.routing
        assert proof is not None, case
        assert trace is not None, case
        assert (proof.verdict, proof.limit_bytes, proof.start) == ("held", 64 << 20, "cold"), case
        assert 0 < (proof.peak_bytes or 0) <= 64 << 20
        assert (record.cache is not None) == ("cache" in case)
        fetched.append(desk.directory / "results" / "c" / trace.path)
        assert routing.read(str(fetched[-1])).n_tokens == 16
    assert len({record.check.output_hash for record in found.values() if record.check}) == 1
    assert names(board.work_dir / "routing") == []
    bundles = list((board.work_dir / "models").glob("*.bundle"))
    before = [path.stat().st_mtime_ns for path in bundles]
    assert len(before) == 1

    replay = ("--cache", "25%", "--replay-routing", str(fetched[0]))
    done = desk.run("sweep", *TINY, *replay, "--campaign", "d")
    assert done.code == 0, done.err
    assert "making" not in done.err
    assert [path.stat().st_mtime_ns for path in bundles] == before
    (record,) = desk.records("d")
    assert record.check is not None
    assert (record.status, record.check.verdict) == ("ok", "ok")
    digest = file_digest(fetched[0])
    assert record.settings.routing_digest == digest
    assert names(board.work_dir / "routing") == [f"{digest[:16]}.routing"]

    cleaned = desk.run("devices", "clean", board.name)
    assert cleaned.code == 0, cleaned.err
    assert names(board.work_dir / "routing") == []
    assert all(path.exists() for path in bundles), "its model is there"
    plan = desk.run("plan", *TINY, *axes, "--json")
    assert json.loads(plan.out)["bundles_to_make"] == {"pi": []}


def test_the_smallest_limit_of_a_board(desk: Desk) -> None:
    search = ("--from", "16MiB", "--to", "64MiB", "--resolution", "40MiB", "--bracket-ms", "0")
    case = ("--models", "tiny-smallthinker", "-n", "4", "-r", "1", "--max-reruns", "0")
    done = desk.run("find-limit", *case, *search, "--device", "pi", "--campaign", "f", "--json")
    assert done.code == 0, done.err
    records = desk.records("f")
    assert [record.status for record in records][:2] == ["out-of-memory", "ok"]
    assert {record.limit.verdict for record in records if record.limit and record.status == "ok"} == {"held"}
    assert "the smallest limit for it is" in records[0].detail


def test_a_bundle_that_does_not_fit_fails_before_anything_runs(desk: Desk, board: Board) -> None:
    """The model fits, and 256 MiB stay free beside it; its bundle would take of these."""
    models = board.work_dir / "models"
    models.mkdir(parents=True)
    first = desk.run("sweep", *TINY, "--campaign", "whole")
    assert first.code == 0, first.err
    keep = [(path.name, path.read_bytes(), path.stat().st_mtime_ns) for path in models.glob("*.gguf*")]
    board.run(["mount", "-t", "tmpfs", "-o", f"size={(256 << 20) + (700 << 10)}", "none", models])
    for name, data, mtime_ns in keep:
        part = board.directory / name
        part.write_bytes(data)
        os.utime(part, ns=(mtime_ns, mtime_ns))
        board.run(["cp", "-p", part, models / name])
    planned = desk.run("sweep", *TINY, "--cache", "25%", "--campaign", "c")
    assert planned.code != 0
    assert "pi: the models and bundles take 0.0 GB at once; 0.3 GB are free" in planned.err
    assert desk.records() == []


def test_a_record_whose_trace_was_fetched_before_a_kill(desk: Desk, board: Board) -> None:
    """Killed between a trace's arrival and its record: the board's copy is gone, ours is taken."""
    axes = ("--record-routing", "--campaign", "c")
    assert desk.run("sweep", *TINY, *axes).code == 0
    (record,) = desk.records()
    assert record.routing is not None
    trace = replace(record.routing, path=f"{board.work_dir}/routing/x.routing")
    folder = desk.directory / "results" / "c"
    connector = connector_for(device_of(board))
    connector.connect()
    again = traces.fetched(connector, replace(record, routing=trace), folder)
    assert again == record
    gone = traces.fetched(connector, replace(record, routing=replace(trace, sha256="0" * 64)), folder)
    assert gone.routing is None
    assert "is gone from the device" in gone.warnings[-1]
    connector.close()


def test_a_board_without_the_memory_controller(desk: Desk, board: Board, tmp_path: Path) -> None:
    """As a Pi's firmware leaves it: the doctor has the line, the record says that nothing was enforced, the
    table marks it."""
    cgroups = tmp_path / "cgroups"
    cgroups.write_text("#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t50\t0\n")
    board.run(["mount", "-t", "tmpfs", "none", "/sys/fs/cgroup"])
    board.run(["mount", "--bind", cgroups, "/proc/cgroups"])
    said = desk.run("devices", "doctor", "pi")
    assert "the memory controller is switched off" in said.out
    assert "cgroup_enable=memory" in said.out
    done = desk.run("sweep", *TINY, "--memory-limit", "64MiB", "--campaign", "c")
    assert done.code == 0, done.err
    (record,) = desk.records()
    assert record.limit is not None
    assert (record.limit.method, record.limit.verdict) == ("none", "not-enforced")
    assert "cgroup_enable=memory" in record.limit.detail
