"""Every job of the presets in ``SHIPPED`` has an expected output that ships, so that a first sweep checks its
outputs without computing references.

The models' files are pinned, by the name that the cache gives them (a hash of the specification and of the
writer's format) and by digest. Whoever changes a preset, the writer, a specification or what a reference
depends on makes new references (``stbench sweep --preset NAME --references-only``) and pins the new digests.
"""

from __future__ import annotations

import json
from importlib import resources

import pytest

from stbench.agent import verify
from stbench.agent.wire import JobSpec, ModelRef
from stbench.devices.inventory import Device
from stbench.models import catalogue
from stbench.sweeps.plan import DeviceModel, Target, build_plan
from stbench.sweeps.prepare import file_name
from stbench.sweeps.sweep import PRESETS, Traits, build_sweep
from tests.tables.factory import facts

PINNED = {
    "smallthinker-4b": (
        "smallthinker-4b-4951843fc635.gguf",
        "2ea1a173dbdc517a245c3e15a5a551f1137fc40731b4bd1bcad9d5b865c6d022",
    ),
    "smallthinker-4b:standard": (
        "smallthinker-4b-standard-d49736d3eb67.gguf",
        "153df752aca01069bea1fcbf20f65d112a12bf5eeb188234adae4362418441d6",
    ),
    "qwen3-0.6b": (
        "qwen3-0.6b-2145ae6abba8.gguf",
        "0007f400fbefdd70569109a6da783fbe0c81107c90eb31a08a8f8f21b2826c28",
    ),
    "qwen3-1.7b": (
        "qwen3-1.7b-ea6a449db583.gguf",
        "9be4177549bb0e3c271e7a68f873898d65a11f152a0e502f0943ff4ee03a37d7",
    ),
}


# The 21B presets compute their references on their first run: they need 42 GB of files, one after the other.
SHIPPED = [preset for preset in PRESETS if not preset.endswith("-21b")]


def jobs(preset: str) -> list[JobSpec]:
    models = {}
    for name in PRESETS[preset]["models"]:
        entry = catalogue.lookup(name)
        ref = ModelRef(name, "", PINNED[name][1], entry.spec, entry.profile)
        relu = entry.spec.architecture == "smallthinker"
        models[name] = DeviceModel(ref, Traits(relu, entry.spec.predictor_rank > 0), 0)
    local = Target(Device("local"), facts(), "", "", models)
    return list(build_plan(build_sweep({"preset": preset}), [local], "c").jobs)


@pytest.mark.parametrize("name", list(PINNED))
def test_the_pinned_files_are_those_of_the_catalogue(name: str) -> None:
    assert file_name(name, catalogue.lookup(name).spec) == PINNED[name][0]


@pytest.mark.parametrize("preset", SHIPPED)
def test_every_job_of_a_preset_has_a_shipped_reference(preset: str) -> None:
    shipped = resources.files("stbench").joinpath("data", "references")
    for job in jobs(preset):
        found = shipped.joinpath(f"{verify.reference_key(job)}.json")
        assert found.is_file(), job.label
        reference = json.loads(found.read_text(encoding="utf-8"))
        assert reference["key"] == verify.reference_key(job)
        assert reference["model_digest"] == job.model.digest
        steps = [position["step"] for position in reference["positions"]]
        assert steps == (verify.positions(job.workload.n_gen) or [-1]), job.label


def test_no_shipped_reference_is_left_over() -> None:
    needed = {verify.reference_key(job) for preset in SHIPPED for job in jobs(preset)}
    shipped = resources.files("stbench").joinpath("data", "references")
    assert {path.name.removesuffix(".json") for path in shipped.iterdir()} == needed
