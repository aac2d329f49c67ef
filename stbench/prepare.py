"""What has to be known before planning: each device's facts, the deployed library, the models of the sweep.

Nothing is measured and no model is made here; a user's own file is hashed once (the digest is kept on the
device).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stbench import catalogue, gemma3n
from stbench.agent import model_file, sbr, wire
from stbench.agent.wire import ModelRef, SynthSpec
from stbench.agentclient import Agent, OnBytes
from stbench.build import Library
from stbench.catalogue import Sizes
from stbench.connectors import connector_for
from stbench.connectors.base import Connector
from stbench.deploy import deploy
from stbench.disk import RESERVE_BYTES
from stbench.errors import ModelError, NoSpace
from stbench.inventory import Device
from stbench.plan import DeviceModel, Target
from stbench.programs import TargetProgram, programs_of
from stbench.sweep import Sweep, Traits, is_fake

# Goes up when the writer of synthetic models gives other bytes for the same specification, so that files of
# an older stbench in the cache are not taken for new ones.
SYNTH_FORMAT = 1

PREDICTOR = "lm_head_profiler.weight"


@dataclass(frozen=True)
class Prepared:
    """A device that is connected, deployed and known."""

    agent: Agent
    target: Target


@contextmanager
def prepared(
    devices: Sequence[Device],
    models: Sequence[str],
    library: Library | None,
    on_bytes: OnBytes,
    *,
    engines: Sequence[str] = (),
    lease: bool = True,
) -> Iterator[list[Prepared]]:
    """Connects to all devices, for as long as the block lasts. ``library`` may be None when only fake engines
    run; without ``lease`` nothing may be measured.

    Raises :class:`stbench.errors.DeviceError`, :class:`ModelError`, and what
    :func:`stbench.programs.programs_of` raises."""
    given = {label_name(name): name for name in models}
    programs = [programs_of(device, engines, given) for device in devices]
    agents: list[Agent] = []
    try:
        for device in devices:
            agents.append(_connected(device, connector_for(device), library, lease))
        yield [
            Prepared(agent, _target(device, agent, models, own, library, on_bytes))
            for device, agent, own in zip(devices, agents, programs, strict=True)
        ]
    finally:
        for agent in agents:
            agent.connector.close()


def _connected(device: Device, connector: Connector, library: Library | None, lease: bool) -> Agent:
    connector.connect(lease=lease)
    try:
        return Agent(device.name, connector, deploy(connector, library))
    except BaseException:
        connector.close()
        raise


def _target(
    device: Device,
    agent: Agent,
    models: Sequence[str],
    programs: Mapping[str, TargetProgram],
    library: Library | None,
    on_bytes: OnBytes,
) -> Target:
    found: dict[str, DeviceModel] = {}
    for name in models:
        model = resolve(device, agent, name, library, on_bytes)
        if model.ref.name in found:
            raise ModelError(
                f"two models would be called {model.ref.name!r} in labels",
                hint="rename one of the files, or name it in devices.yaml (models: {name: path})",
            )
        found[model.ref.name] = model
    for name in {name: None for program in programs.values() for name in program.models.values()}:
        if name not in found:
            found[name] = resolve(device, agent, name, library, on_bytes)
    deployed = agent.deployment
    return Target(device, agent.facts(), deployed.library, deployed.library_sha256, found, programs)


def label_name(name: str) -> str:
    """How a ``--models`` item is called in labels: a file by its name without ``.gguf``."""
    return name if is_fake(name) or not catalogue.is_path(name) else catalogue.stem(name)


def label_names(sweep: Sweep) -> tuple[list[str], Sweep]:
    """The models as given, and the sweep with the names that labels have."""
    names = list(dict.fromkeys(sweep.models))
    return names, replace(sweep, models=tuple(label_name(name) for name in names))


def resolve(
    device: Device, agent: Agent, name: str, library: Library | None, on_bytes: OnBytes
) -> DeviceModel:
    """A model on a device: mapped by devices.yaml, a path, or an entry of the catalogue.

    Raises :class:`ModelError`."""
    if is_fake(name):
        return DeviceModel(ModelRef(name, ""), Traits(True, True), 0)
    mapped = (device.models or {}).get(name)
    if mapped is None and not catalogue.is_path(name):
        return _synthetic(agent, catalogue.lookup(name))
    path = str(Path(mapped or name).expanduser().absolute())
    stat = agent.connector.stat(path)
    if stat is None:
        where = f" (devices.yaml: {device.name}.models.{name})" if mapped else ""
        raise ModelError(f"{path}: no such file on {device.name}{where}", hint="`stbench models` lists names")
    digest = known_digest(agent, path) or agent.digest(path, on_bytes).sha256
    traits, sizes = describe(library, path) if library is not None else (Traits(None, None), None)
    return DeviceModel(ModelRef(label_name(name), path, digest), traits, stat.bytes, False, sizes)


def _synthetic(agent: Agent, entry: catalogue.Entry) -> DeviceModel:
    spec = entry.spec
    path = f"{agent.connector.models_dir}/{file_name(entry.name, spec)}"
    digest = known_digest(agent, path)
    ref = ModelRef(entry.name, path, digest or "", spec, entry.profile)
    traits = Traits(relu=spec.architecture == "smallthinker", predictor=spec.predictor_rank > 0)
    sizes = entry.sizes
    return DeviceModel(ref, traits, sizes.weight_bytes, digest is None, sizes)


def file_name(name: str, spec: SynthSpec) -> str:
    """A synthetic model's file: its name and a hash of what makes its bytes."""
    text = json.dumps({"format": SYNTH_FORMAT, **wire.to_json(spec)}, sort_keys=True)
    return f"{name.replace(':', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.gguf"


def make(agent: Agent, model: DeviceModel, on_bytes: OnBytes) -> DeviceModel:
    """Makes a synthetic model, or takes it as it is when it was made since. Raises :class:`NoSpace` before
    anything is written, :class:`ModelError`."""
    spec = model.ref.synthetic
    assert spec is not None
    path = model.ref.path
    digest = known_digest(agent, path)
    if digest is None:
        free_space_for(agent, model.ref.name, path, model.file_bytes)
        digest = agent.make(path, spec, on_bytes).sha256
    return replace(model, ref=replace(model.ref, digest=digest), to_make=False)


def free_space_for(agent: Agent, name: str, path: str, file_bytes: int) -> None:
    """Raises :class:`NoSpace` when a file that does not exist yet would not fit."""
    free = agent.connector.free_bytes(path)
    if agent.connector.stat(path) is None and free < file_bytes + RESERVE_BYTES:
        raise NoSpace(
            f"{agent.name}: {name} needs {file_bytes / 1e9:.1f} GB; "
            f"{free / 1e9:.1f} GB are free beside {path}",
            hint="make room, or set XDG_CACHE_HOME (local) or work_dir to a larger disk",
        )


def known_digest(agent: Agent, path: str) -> str | None:
    """The digest that the agent noted beside a file when it hashed it, if the file still has that size and
    time."""
    stat = agent.connector.stat(path)
    noted = agent.connector.read(model_file.sidecar_path(path))
    if stat is None or noted is None:
        return None
    try:
        data: Any = json.loads(noted)
        fits = (data["size"], data["mtime_ns"]) == (stat.bytes, stat.mtime_ns)
        return str(data["sha256"]) if fits else None
    except (ValueError, KeyError, TypeError):
        return None


# ---- a user's own file ------------------------------------------------------------------------------------


def describe(library: Library, path: str) -> tuple[Traits, Sizes]:
    """Reads a GGUF's header here. Raises :class:`ModelError` for a file that is none."""
    try:
        found = sbr.describe(sbr.load(str(library.path)), path, 1)
    except (sbr.NativeError, sbr.LoadError) as error:
        raise ModelError(str(error), hint="`stbench inspect` shows what is in a GGUF file") from error
    keys = {item["key"]: item.get("value") for item in found["metadata"]}
    architecture = str(keys.get("general.architecture", ""))
    relu = architecture == "smallthinker"
    names = [str(tensor["name"]) for tensor in found["tensors"]]
    predictor = any(name.endswith(PREDICTOR) for name in names)
    experts = _number(keys, f"{architecture}.expert_count", 1)
    used = _number(keys, f"{architecture}.expert_used_count", experts)
    params = active = size = 0
    tied = "output.weight" not in names
    for tensor in found["tensors"]:
        count = _product(tensor["shape"])
        share = used / experts if "_exps." in tensor["name"] and experts else 1.0
        if tensor["name"].endswith(PREDICTOR):
            share = 0.0
        if (tensor["name"] == "token_embd.weight" and not tied) or tensor["name"] == gemma3n.TABLE:
            share = tensor["shape"][0] / count if count else 0.0
        params += count
        active += int(count * share)
        size += int(tensor["bytes"])
    return Traits(relu, predictor), Sizes(max(params, 1), active, size)


def _number(keys: dict[str, Any], key: str, default: int) -> int:
    value = keys.get(key)
    return value if isinstance(value, int) and value > 0 else default


def _product(shape: Sequence[int]) -> int:
    count = 1
    for n in shape:
        count *= int(n)
    return count
