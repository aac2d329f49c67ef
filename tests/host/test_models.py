"""The catalogue against the runtime, models on a device, the user's own files, references, deployment."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from stbench.agent import sbr
from stbench.agent.wire import JobSpec, ModelRef, Reference, ReferencePosition, Settings, Workload, to_json
from stbench.builds import build
from stbench.campaigns import references
from stbench.campaigns.agentclient import Agent
from stbench.campaigns.deploy import agent_archive, deploy
from stbench.campaigns.references import References, reference_job
from stbench.connectors.local import LocalConnector
from stbench.devices.engine_names import needs_llama_cpp
from stbench.devices.inventory import Device
from stbench.errors import BuildError, InputError, ModelError, NoSpace
from stbench.models import catalogue
from stbench.records.roofline import token_bytes
from stbench.sweeps import prepare
from stbench.sweeps.plan import DeviceModel
from stbench.sweeps.sweep import Traits
from tests.host.conftest import Sandbox

TINY = [name for name in catalogue.names() if name.startswith("tiny-")]


def ignore(_stage: str, _done: int, _total: int) -> None:
    """No progress is shown."""


@pytest.fixture
def library(library_path: Path) -> build.Library:
    return build.find_library(library_path)


@pytest.fixture
def agent(sandbox: Sandbox, library: build.Library) -> Agent:
    connector = LocalConnector(Device("local"))
    return Agent("local", connector, deploy(connector, library))


# ---- the catalogue -----------------------------------------------------------------------------------


def test_published_shapes() -> None:
    """Table 2 of the model page; the parameters that it rounds to 4B/0.6B and 21B/3B."""
    four, big = catalogue.lookup("smallthinker-4b").spec, catalogue.lookup("smallthinker-21b").spec
    keys = (
        "n_layer",
        "n_embd",
        "n_ff",
        "n_head",
        "n_head_kv",
        "n_expert",
        "n_expert_used",
        "n_vocab",
        "n_ctx_train",
    )
    assert [getattr(four, key) for key in keys] == [32, 1536, 768, 12, 2, 32, 4, 151936, 32768]
    assert [getattr(big, key) for key in keys] == [52, 2560, 768, 28, 4, 64, 6, 151936, 16384]
    assert (four.sliding_window, big.sliding_window, four.tied_output, big.tied_output) == (
        0,
        4096,
        True,
        False,
    )


def test_published_sizes() -> None:
    def gib(name: str) -> float:
        return catalogue.lookup(name).sizes.weight_bytes / 2**30

    assert gib("smallthinker-21b") == pytest.approx(11.3, abs=0.2)
    assert gib("smallthinker-4b") == pytest.approx(2.13, abs=0.1)
    assert catalogue.lookup("smallthinker-4b").sizes.params == pytest.approx(4.05e9, rel=0.01)
    assert catalogue.lookup("smallthinker-21b").sizes.params_active == pytest.approx(3.3e9, rel=0.02)
    assert catalogue.lookup("qwen3-0.6b").sizes.params == pytest.approx(0.596e9, rel=0.01)
    assert catalogue.lookup("qwen3-1.7b").sizes.params == pytest.approx(1.72e9, rel=0.01)


def test_the_shapes_of_the_other_rows() -> None:
    """Qwen3-30B-A3B and both Gemma 3n, with the sizes that llama.cpp reports of the written files."""
    qwen = catalogue.lookup("qwen3-30b-a3b")
    s = qwen.spec
    assert (s.n_layer, s.n_embd, s.n_ff, s.n_head, s.n_head_kv, s.head_dim) == (48, 2048, 768, 32, 4, 128)
    assert (s.n_expert, s.n_expert_used, s.n_vocab, s.tied_output) == (128, 8, 151936, False)
    assert qwen.sizes.params == pytest.approx(30.53e9, rel=0.001)
    assert qwen.sizes.params_active == pytest.approx(3.04e9, rel=0.01)
    small, large = (catalogue.lookup(f"gemma3n-{name}") for name in ("e2b", "e4b"))
    for entry, layers, width in ((small, 30, 8192), (large, 35, 16384)):
        s = entry.spec
        assert (s.n_layer, s.n_embd, s.n_ff, s.n_head, s.n_head_kv) == (layers, 2048, width, 8, 2)
        assert (s.head_dim, s.n_vocab, s.sliding_window, s.tied_output) == (256, 262144, 512, True)
    assert (small.sizes.params, small.sizes.weight_bytes) == (4455632480, 2578495872)
    assert large.sizes.params == pytest.approx(6.87e9, rel=0.001)
    # One row of the per-layer table is read, not the table: the published "1G / 2G, theoretically".
    assert token_bytes(small.spec).total == pytest.approx(1.45e9, rel=0.01)
    assert token_bytes(large.spec).total == pytest.approx(2.62e9, rel=0.01)


def test_the_profile_is_the_report_s() -> None:
    share = catalogue.report_zero_share(32)
    assert share[:4] == [970, 950, 920, 880]
    assert (share[4], share[-1]) == (620, 720)
    assert share[4:] == sorted(share[4:])
    assert len(catalogue.report_zero_share(52)) == 52
    assert catalogue.report_zero_share(2) == [970, 950]


@pytest.mark.parametrize("name", catalogue.names())
def test_every_entry_is_accepted_and_counted_right(name: str, library: build.Library) -> None:
    """The runtime would write it, and the file would be what the catalogue says plus a header."""
    entry = catalogue.lookup(name)
    size = sbr.synth_size(sbr.load(str(library.path)), to_json(entry.spec))
    header = size - entry.sizes.weight_bytes
    # Names of 151936 tokens take a few MB; alignment and scales a little.
    assert 0 <= header <= 64 * entry.spec.n_vocab + (1 << 20)


@pytest.mark.parametrize("name", TINY)
def test_a_made_file_has_the_parameters_of_the_catalogue(
    name: str, agent: Agent, library: build.Library
) -> None:
    model = prepare.make(agent, prepare.resolve(agent_device(), agent, name, library, ignore), ignore)
    entry = catalogue.lookup(name)
    described = prepare.describe(library, model.ref.path)
    assert described == (model.traits, entry.sizes)
    if needs_llama_cpp(name):
        return
    with sbr.Model(sbr.load(str(library.path)), model.ref.path) as loaded:
        info = loaded.info
        assert (info.n_params, info.n_params_active) == (entry.sizes.params, entry.sizes.params_active)
        assert info.weight_bytes == entry.sizes.weight_bytes


def agent_device() -> Device:
    return Device("local", models={})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smalthinker-4b", 'unknown model "smalthinker-4b"; did you mean smallthinker-4b?'),
        ("qwen3-0.6b:standard", 'unknown model "qwen3-0.6b:standard"'),
        ("zzz", "known: smallthinker-4b, smallthinker-4b:standard"),
    ],
)
def test_unknown_names(name: str, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        catalogue.lookup(name)
    assert said in str(caught.value)


# ---- on a device -------------------------------------------------------------------------------------


def test_a_model_is_made_once_and_its_digest_remembered(agent: Agent, library: build.Library) -> None:
    first = prepare.resolve(agent_device(), agent, "tiny-llama", library, ignore)
    assert first.to_make
    assert first.ref.digest == ""
    made = prepare.make(agent, first, ignore)
    again = prepare.resolve(agent_device(), agent, "tiny-llama", library, ignore)
    assert (again.to_make, again.ref.digest) == (False, made.ref.digest)
    assert again.ref.profile == "uniform"
    Path(made.ref.path).write_bytes(b"overwritten")
    assert prepare.resolve(agent_device(), agent, "tiny-llama", library, ignore).to_make


def test_too_little_room_is_said_before_writing(
    agent: Agent, library: build.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalConnector, "free_bytes", lambda self, path: 10 << 20)
    model = prepare.resolve(agent_device(), agent, "smallthinker-4b", library, ignore)
    with pytest.raises(NoSpace, match=r"local: smallthinker-4b needs 2\.3 GB; 0\.0 GB are free"):
        prepare.make(agent, model, ignore)
    assert not Path(model.ref.path).exists()


def test_a_user_s_own_file(sandbox: Sandbox, agent: Agent, library: build.Library) -> None:
    made = prepare.make(
        agent, prepare.resolve(agent_device(), agent, "tiny-smallthinker", library, ignore), ignore
    )
    own = sandbox.directory / "my model.gguf"
    own.write_bytes(Path(made.ref.path).read_bytes())
    found = prepare.resolve(agent_device(), agent, str(own), library, ignore)
    assert found.ref == ModelRef("my-model", str(own), made.ref.digest)
    assert found.traits == Traits(True, True, True)
    mapped = Device("local", models={"smallthinker-4b": str(own)})
    found = prepare.resolve(mapped, agent, "smallthinker-4b", library, ignore)
    assert (found.ref.name, found.ref.path, found.ref.synthetic) == ("smallthinker-4b", str(own), None)


def test_a_file_that_is_no_model(sandbox: Sandbox, agent: Agent, library: build.Library) -> None:
    path = sandbox.write("bad.gguf", "not a model")
    with pytest.raises(ModelError, match=r"bad\.gguf"):
        prepare.resolve(agent_device(), agent, str(path), library, ignore)
    with pytest.raises(ModelError, match="no such file on local"):
        prepare.resolve(agent_device(), agent, "./nothing.gguf", library, ignore)


def test_two_files_of_one_name_are_refused(sandbox: Sandbox, library_path: Path) -> None:
    for folder in ("a", "b"):
        (sandbox.directory / folder).mkdir()
        code, out, err = sandbox.run(
            "models", "make", "tiny-llama", "-o", f"{folder}/m.gguf", "--library", str(library_path)
        )
        assert (code, out.strip()) == (0, str(sandbox.directory / folder / "m.gguf")), err
    code, out, err = sandbox.run("models", "make", "tiny-llama", "-o", "a", "--library", str(library_path))
    made = Path(out.strip())
    assert (code, made.parent, made.is_file()) == (0, sandbox.directory / "a", True), err
    assert made.name.startswith("tiny-llama")
    code, _, err = sandbox.run("plan", "--models", "a/m.gguf,b/m.gguf", "--library", str(library_path))
    assert code == 2
    assert "two models would be called 'm' in labels" in err


def test_a_real_sweep_of_tiny_models(sandbox: Sandbox, library_path: Path) -> None:
    """The whole path with the native engine: every switch, checked against references."""
    code, out, err = sandbox.run(
        *(
            "sweep",
            "--models",
            "tiny-smallthinker,tiny-qwen3",
            "-pg",
            "8,8",
            "-r",
            "1",
            "--campaign",
            "c",
            "--json",
        ),
        *("--sparse-ffn", "on,off", "--sparse-lm-head", "on,off", "--library", str(library_path)),
        *("--max-reruns", "0"),
    )
    assert code == 0, err
    found = json.loads(out)["records"]
    assert len(found) == 5
    assert {(r["status"], r["check"]) for r in found} == {("ok", "ok")}
    assert "tiny-qwen3/sparse left out: the model has no ReLU experts" in err
    line = (sandbox.directory / "results" / "c" / "records.jsonl").read_text().splitlines()[0]
    model = json.loads(line)["model"]
    assert model["digest"]
    assert model["profile"] in ("tiny", "uniform")


def test_models_command(sandbox: Sandbox) -> None:
    code, out, _ = sandbox.run("models")
    assert code == 0
    assert "synthetic" in out
    rows = json.loads(sandbox.run("models", "list", "--json")[1])
    assert [row["name"] for row in rows] == catalogue.names()
    assert rows[0]["profile"] == "report-5.3"
    assert sandbox.run("models", "make")[0] == 2
    assert sandbox.run("models", "make", "nothing")[0] == 2
    assert sandbox.run("models", "list", "tiny-llama")[0] == 2


# ---- references --------------------------------------------------------------------------------------

JOB = JobSpec(
    id="j",
    label="d:m/lmhead/t2/tg4",
    campaign="c",
    device="d",
    case="m/lmhead/t2/tg4",
    replicate=0,
    engine="sbr",
    library="/l.so",
    model=ModelRef("m", "/m.gguf", "d1"),
    workload=Workload(0, 4),
    settings=Settings(threads=2, isa="avx2", sparse_lm_head=True),
)


def reference(job: JobSpec) -> Reference:
    position = ReferencePosition(0, 1.0, 3, 0.5, [3], [1.5], "hash")
    return Reference(References.key_of(job), job.model.digest, [position])


def test_references_are_kept_by_model_switches_and_workload(tmp_path: Path) -> None:
    kept = References(tmp_path)
    assert kept.lookup(JOB) is None
    kept.store(reference(JOB))
    for same in (
        JOB,
        replace(JOB, id="k", replicate=4, label="x"),
        replace(JOB, settings=replace(JOB.settings, threads=8, isa="scalar", n_batch=1)),
    ):
        assert References(tmp_path).lookup(same) == reference(JOB)
    for other in (
        replace(JOB, model=replace(JOB.model, digest="d2")),
        replace(JOB, workload=Workload(0, 4, seed=1)),
        replace(JOB, settings=replace(JOB.settings, sparse_ffn=True)),
        replace(JOB, settings=replace(JOB.settings, lm_head_threshold=-2.0)),
        replace(JOB, settings=replace(JOB.settings, kv_type="f32")),
    ):
        assert References(tmp_path).lookup(other) is None


def test_a_reference_file_that_is_damaged_or_another_model_s(tmp_path: Path) -> None:
    References(tmp_path).store(reference(JOB))
    path = tmp_path / f"{References.key_of(JOB)}.json"
    whole = path.read_text()
    for damaged, why in ((whole.replace("d1", "d9"), "is of another model"), (whole[:-9], "cannot be read")):
        path.write_text(damaged)
        said: list[str] = []
        assert References(tmp_path).lookup(JOB, said.append) is None
        assert why in said[0]
        assert str(path) in said[0]
        assert not path.exists()


def test_a_damaged_shipped_reference_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(references, "_shipped", lambda key: b"{}")
    with pytest.raises(InputError, match="cannot be read"):
        References(tmp_path).lookup(JOB)


def test_a_reference_job_is_scalar_and_has_more_time() -> None:
    job = reference_job(JOB)
    assert (job.purpose, job.settings.isa, job.settings.sparse_lm_head) == ("reference", "scalar", True)
    assert job.timeout_s > JOB.timeout_s
    assert References.key_of(job) == References.key_of(JOB)


# ---- deployment and build ----------------------------------------------------------------------------


def test_the_agent_s_archive_is_reproducible_and_runs_alone(tmp_path: Path) -> None:
    archive = agent_archive()
    assert archive == agent_archive()
    entries = zipfile.ZipFile(BytesIO(archive)).infolist()
    assert {entry.date_time for entry in entries} == {(2020, 1, 1, 0, 0, 0)}, "the clock is in it"
    names = [entry.filename for entry in entries]
    assert all(name.startswith(("stbench/agent/", "stbench/__init__.py", "__main__.py")) for name in names)
    path = tmp_path / "agent.pyz"
    path.write_bytes(archive)
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(path), "probe"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_cpus"] >= 1


def test_deploying_twice_writes_once(sandbox: Sandbox, tmp_path: Path) -> None:
    connector = LocalConnector(Device("local"))
    first = deploy(connector, None)
    before = connector.stat(first.agent)
    assert deploy(connector, None) == first
    assert connector.stat(first.agent) == before
    assert (first.library, first.library_sha256) == ("", "")


def test_a_library_that_is_missing_or_none(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError, match="no such file"):
        build.find_library(Path("nothing.so"))
    with pytest.raises(BuildError, match="not a shared library"):
        build.find_library(sandbox.write("text.so", "text"))
    monkeypatch.setattr(build, "_candidates", list)
    with pytest.raises(BuildError, match=r"the native runtime \(libsbr.so\) is not installed"):
        build.find_library()
    code, _, err = sandbox.run("sweep")
    assert code == 2
    assert "`pip install -e .` builds it" in err


def test_a_fake_needs_neither_model_nor_library(sandbox: Sandbox) -> None:
    connector = LocalConnector(Device("local"))
    agent = Agent("local", connector, deploy(connector, None))
    model = prepare.resolve(agent_device(), agent, "fake:crash", None, ignore)
    assert model == DeviceModel(ModelRef("fake:crash", ""), Traits(True, True), 0)
