"""One model on disk at a time: order, peak, refusal, deletion of what the campaign made and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from stbench.campaigns import disk
from stbench.errors import NoSpace, StoreError
from stbench.models import catalogue
from stbench.sweeps.plan import Plan, build_plan
from stbench.sweeps.sweep import build_sweep
from tests.host.conftest import Sandbox
from tests.host.test_plan import FACTS, target

BIG = ("smallthinker-21b", "qwen3-30b-a3b")
OPTIONS = {"models": ",".join(BIG), "sparse_ffn": "on,off", "gen": "1", "replicates": 3}


def plan_with(free: int | None, *, one: bool) -> Plan:
    sweep = build_sweep({**OPTIONS, "one_model_at_a_time": one})
    facts = replace(FACTS, storage_free_bytes=free)
    return build_plan(sweep, [replace(target(*BIG), facts=facts)], "c")


def bytes_of(name: str) -> int:
    return catalogue.lookup(name).sizes.weight_bytes


def test_all_replicates_of_a_file_run_together() -> None:
    jobs = plan_with(None, one=True).jobs
    models = [job.model.name for job in jobs]
    assert models == ["smallthinker-21b"] * 6 + ["qwen3-30b-a3b"] * 3
    assert [job.replicate for job in jobs] == [0, 0, 1, 1, 2, 2, 0, 1, 2]
    other = plan_with(None, one=False)
    assert {job.id for job in other.jobs} == {job.id for job in jobs}, "the order is no part of a job"
    assert [len(group) for group in plan_with(None, one=True).groups()] == [6, 3]
    assert [len(group) for group in other.groups()] == [9]


def test_the_peak_is_the_largest_file_or_all_of_them() -> None:
    assert plan_with(None, one=True).peak_disk_bytes("board") == bytes_of("qwen3-30b-a3b")
    assert plan_with(None, one=False).peak_disk_bytes("board") == sum(map(bytes_of, BIG))


def test_a_plan_that_cannot_fit_is_refused_with_the_way_out() -> None:
    room = bytes_of("qwen3-30b-a3b") + disk.RESERVE_BYTES
    plan_with(room, one=True).check_room()
    plan_with(None, one=False).check_room()
    with pytest.raises(NoSpace, match=r"board: the models take 17\.2 GB at once; 17\.5 GB are free"):
        plan_with(room - 1, one=True).check_room()
    with pytest.raises(NoSpace, match=r"take 29\.3 GB at once") as refused:
        plan_with(room, one=False).check_room()
    assert "--one-model-at-a-time" in str(refused.value.hint)
    (sentence,) = plan_with(room, one=True).room_sentences()
    assert "peak disk 17.22 GB" in sentence
    assert sentence.endswith("free: 17.49 GB")


def test_the_preset_fills_every_unlimited_row() -> None:
    sweep = build_sweep({"preset": "published-21b"})
    assert sweep.one_model_at_a_time
    names = {name for model in sweep.models for name in (model, model + catalogue.STANDARD_SUFFIX)}
    found = build_plan(sweep, [target(*(names & set(catalogue.names())))], "c")
    # No program was settled for this target: what is left is our own engine's.
    assert {(job.model.name, job.settings.sparse_ffn) for job in found.jobs} == {
        ("smallthinker-21b", True),
        ("smallthinker-21b", False),
        ("qwen3-30b-a3b", False),
    }
    assert any("gemma3n-e4b is measured through llama.cpp" in note for note in found.notes)


@pytest.mark.parametrize("preset", ["published-4b", "quick"])
def test_gemma_joins_a_preset_only_with_llama_bench(preset: str) -> None:
    assert "gemma3n-e2b" not in build_sweep({"preset": preset}).models
    assert "gemma3n-e2b" not in build_sweep({"preset": preset, "engines": "sbr"}).models
    assert build_sweep({"preset": preset, "engines": "sbr,llama-bench"}).models[-1] == "gemma3n-e2b"
    own = build_sweep({"preset": preset, "engines": "sbr,llama-bench", "models": "qwen3-0.6b"})
    assert own.models == ("qwen3-0.6b",)


# ---- real files --------------------------------------------------------------------------------------


def files(sandbox: Sandbox) -> list[str]:
    folder = sandbox.directory.parent / "cache" / "stbench" / "models"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def sweep_tiny(
    sandbox: Sandbox, library: Path, *more: str, models: str = "tiny-llama,tiny-qwen3moe"
) -> tuple[int, str, str]:
    common = ("--campaign", "c", "--library", str(library))
    if "--resume" in more:
        return sandbox.run("sweep", *common, *more)
    axes = ("--models", models, "-n", "1", "-r", "1", "--bracket-ms", "0")
    return sandbox.run("sweep", *axes, *common, *more)


def statuses(sandbox: Sandbox) -> list[tuple[str, str]]:
    lines = (sandbox.directory / "results" / "c" / "records.jsonl").read_text().splitlines()
    return [(data["model"]["name"], data["status"]) for data in map(json.loads, lines)]


ALL_OK = [("tiny-llama", "ok"), ("tiny-qwen3moe", "ok")]


def test_what_the_campaign_made_is_deleted_after_its_jobs(sandbox: Sandbox, library_path: Path) -> None:
    code, _, err = sweep_tiny(sandbox, library_path, "--one-model-at-a-time")
    assert code == 0, err
    assert statuses(sandbox) == ALL_OK
    assert files(sandbox) == []
    # The first is gone before the second is made.
    events = [line for line in err.splitlines() if "synthetic weights)" in line or "deleted" in line]
    assert ["making" in line for line in events] == [True, False, True, False]
    assert json.loads((sandbox.directory / "results" / "c" / disk.MADE).read_text()) == []

    code, _, err = sweep_tiny(sandbox, library_path, "--resume")
    assert code == 0, err
    assert "making" not in err
    assert files(sandbox) == []


def test_files_that_were_there_stay(sandbox: Sandbox, library_path: Path) -> None:
    def kept() -> list[str]:
        return [name for name in files(sandbox) if name.endswith(".gguf")]

    code, _, err = sweep_tiny(sandbox, library_path, "--references-only", models="tiny-llama")
    assert code == 0, err
    before = kept()
    assert len(before) == 1
    code, _, err = sweep_tiny(sandbox, library_path, "--one-model-at-a-time", models="tiny-llama")
    assert code == 0, err
    assert kept() == before


def test_resume_runs_the_rest_and_deletes_what_the_killed_campaign_made(
    sandbox: Sandbox, library_path: Path
) -> None:
    """Stopped between making and measuring: the file stays, and the campaign that goes on knows that it is
    its own."""
    code, _, _ = sweep_tiny(sandbox, library_path, "--one-model-at-a-time", "--max-time", "0.001s")
    assert code == 3, "nothing was run"
    assert len([name for name in files(sandbox) if name.endswith(".gguf")]) == 1
    code, _, err = sweep_tiny(sandbox, library_path, "--resume", "--max-time", "1h")
    assert code == 0, err
    assert sorted(statuses(sandbox)) == ALL_OK
    assert files(sandbox) == []


def test_a_damaged_list_of_made_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / disk.MADE).write_text("{")
    with pytest.raises(StoreError, match="no list of"):
        disk.MadeFiles(tmp_path)


def test_only_noted_files_are_deleted(tmp_path: Path) -> None:
    removed: list[str] = []

    class Recorder:
        def remove(self, path: str) -> None:
            removed.append(path)

    made = disk.MadeFiles(tmp_path)
    made.note("a", "/m.gguf")
    again = disk.MadeFiles(tmp_path)
    assert not again.delete("b", "/m.gguf", Recorder())
    assert not again.delete("a", "/other.gguf", Recorder())
    assert removed == []
    assert again.delete("a", "/m.gguf", Recorder())
    assert removed == expected_beside("/m.gguf")
    assert not disk.MadeFiles(tmp_path).delete("a", "/m.gguf", Recorder())


def expected_beside(path: str) -> Sequence[str]:
    return [path, f"{path}.json", f"{path}.lock"]
