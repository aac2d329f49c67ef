"""What has to be known before planning: each device's facts, the deployed library, the models of the sweep.

Nothing is measured and no model is made here; a user's own file is hashed once (the digest is kept on the
device).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stbench.agent import describe as agent_describe
from stbench.agent import model_file, sbr, wire
from stbench.agent.wire import ModelRef, SynthSpec
from stbench.builds.build import Library, library_for
from stbench.builds.programs import TargetProgram, at_home, programs_of
from stbench.campaigns.agentclient import Agent, OnBytes
from stbench.campaigns.deploy import deploy
from stbench.campaigns.disk import RESERVE_BYTES
from stbench.campaigns.remote_run import Patience
from stbench.campaigns.stopping import Stop
from stbench.campaigns.traces import Trace
from stbench.connectors import connector_for
from stbench.connectors.base import Connector
from stbench.devices import board
from stbench.devices.inventory import Device
from stbench.errors import BuildError, BusyError, DeviceError, ModelError, NoSpace, StbenchError
from stbench.models import bundles, catalogue, header, hub, local_files
from stbench.models.catalogue import Sizes
from stbench.sweeps.plan import DeviceModel, Target
from stbench.sweeps.sweep import Sweep, Traits, is_fake

# Goes up when the writer of synthetic models gives other bytes for the same specification, so that files of
# an older stbench in the cache are not taken for new ones.
SYNTH_FORMAT = 1

# Connections that are made at the same time. Each is a thread that mostly waits.
MAX_AT_ONCE = 32

# What can be wrong with one device while the others go on.
OnUnreachable = Callable[[str, StbenchError], None]
_ITS_OWN_FAULT = (DeviceError, BusyError, NoSpace)


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
    on_unreachable: OnUnreachable | None = None,
    wait_s: float = 0.0,
    caches: bool = False,
    trace: Trace | None = None,
) -> Iterator[list[Prepared]]:
    """Connects to all devices, for as long as the block lasts: boards at the same time, local devices one
    after the other. ``library`` is this machine's or the user's (other machines get their own), None when
    only fake engines run; without ``lease`` nothing may be measured. Jobs wait up to ``wait_s`` for a board
    that is busy. ``caches``: bundles are looked for, too; ``trace``: jobs may replay it.

    Devices that cannot be reached, are busy or full are told to ``on_unreachable`` as soon as that is known
    and left out; without it, and when none is left, the error is raised. Raises
    :class:`stbench.errors.DeviceError`, :class:`ModelError`, :class:`BuildError`, and what
    :func:`stbench.builds.programs.programs_of` raises."""
    given = {label_name(name): name for name in models}
    programs = {device.name: programs_of(device, engines, given) for device in devices}
    stop = Stop()
    said = _careful(on_bytes, stop, named=len(devices) > 1)
    connectors: dict[str, Connector] = {}

    def prepare_one(device: Device) -> Prepared:
        connectors[device.name] = connector = connector_for(device)
        agent = connected(device, connector, library, lease=lease, wait_s=wait_s)
        target = _target(device, agent, models, programs[device.name], library, said(device.name))
        if caches:
            found = {name: _with_bundles(agent, model) for name, model in target.models.items()}
            target = replace(target, models=found)
        return Prepared(agent, replace(target, trace=trace))

    try:
        ready = _in_turns(devices, prepare_one, stop, connectors, on_unreachable)
        _given_is_used(library, ready)
        yield ready
    finally:
        for connector in connectors.values():
            connector.close()


def connected(
    device: Device,
    connector: Connector,
    library: Library | None,
    *,
    lease: bool,
    library_needed: bool = True,
    wait_s: float = 0.0,
) -> Agent:
    """Connects and deploys the agent and, where ``library`` is given, the runtime that this device can load:
    none, if none was built for it and it is not ``library_needed``. ``wait_s``: see :func:`prepared`.

    Raises :class:`DeviceError`, :class:`BusyError`, :class:`NoSpace`, :class:`BuildError`."""
    connector.connect(lease=lease)
    try:
        found = board.ask(connector, device.name)
        if library is not None:
            try:
                library = library_for(found.machine, library, libc=found.libc, device=device.name)
            except BuildError:
                if library_needed:
                    raise
                library = None
        patience = Patience(device.reconnect_s, device.silence_s, wait_s, device.power)
        return Agent(device.name, connector, deploy(connector, library, found), patience)
    except BaseException:
        connector.close()
        raise


def _in_turns(
    devices: Sequence[Device],
    work: Callable[[Device], Prepared],
    stop: Stop,
    connectors: Mapping[str, Connector],
    on_unreachable: OnUnreachable | None,
) -> list[Prepared]:
    """Boards each in a thread of its own, local devices together in one; results in the devices' order."""
    local = [device for device in devices if device.connector == "local"]
    groups = [[device] for device in devices if device.connector != "local"] + [local] * bool(local)

    def take(group: Sequence[Device]) -> list[tuple[str, Prepared | StbenchError]]:
        found: list[tuple[str, Prepared | StbenchError]] = []
        for device in group:
            if stop.asked:
                break
            try:
                found.append((device.name, work(device)))
            except _ITS_OWN_FAULT as error:
                if device.name in connectors:
                    connectors[device.name].close()
                found.append((device.name, error))
        return found

    ready: dict[str, Prepared] = {}
    failed: list[StbenchError] = []
    with ThreadPoolExecutor(min(len(groups), MAX_AT_ONCE), "prepare") as pool:
        futures = [pool.submit(take, group) for group in groups]
        try:
            for future in as_completed(futures):
                for name, outcome in future.result():
                    if isinstance(outcome, Prepared):
                        ready[name] = outcome
                    elif on_unreachable is None:
                        raise outcome
                    else:
                        on_unreachable(name, outcome)
                        failed.append(outcome)
        except BaseException:
            # Ctrl-C, or an error that ends it for all: what still runs stops at its next sign of progress,
            # or when its link is closed under it.
            stop.ask()
            pool.shutdown(wait=False, cancel_futures=True)
            for connector in list(connectors.values()):
                if connector.remote:
                    connector.close()
            raise
    if failed and not ready:
        raise failed[0]
    return [ready[device.name] for device in devices if device.name in ready]


def _careful(on_bytes: OnBytes, stop: Stop, *, named: bool) -> Callable[[str], OnBytes]:
    """``on_bytes`` for several threads: one at a time, with the device's name, and as the place where a
    thread notices that it should stop."""
    lock = threading.Lock()

    def of(device: str) -> OnBytes:
        def tell(stage: str, done: int, total: int) -> None:
            if stop.asked:
                # What Ctrl-C is in the main thread: the agent's client ends the command on the device.
                raise KeyboardInterrupt
            with lock:
                on_bytes(f"{device}: {stage}" if named else stage, done, total)

        return tell

    return of


def _given_is_used(library: Library | None, ready: Sequence[Prepared]) -> None:
    """A ``--library`` that no device can load was meant for something."""
    if library is None or not library.given:
        return
    if all(device.agent.deployment.library_sha256 != library.sha256 for device in ready):
        machine = library.needs.machine if library.needs is not None else ""
        raise BuildError(
            f"{library.path} is for {machine or 'an unknown machine'}, and none of these devices is",
            hint="leave --library away: each device gets the runtime that was built for it",
        )


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
    programs = {
        name: at_home(program, lambda path: _path_there(agent, path)) for name, program in programs.items()
    }
    deployed = agent.deployment
    return Target(device, agent.facts(), deployed.library, deployed.library_sha256, found, programs)


def _with_bundles(agent: Agent, model: DeviceModel) -> DeviceModel:
    """The model with the bundles that are there; of a file that is still to be made there are none."""
    if not model.ref.digest:
        return model
    there = {
        gathers
        for gathers in (0, bundles.GATHER_UP)
        if agent.connector.stat(bundle_path(agent, model.ref, gathers)) is not None
    }
    return replace(model, bundles=frozenset(there))


def bundle_path(agent: Agent, model: ModelRef, gathers: int) -> str:
    """Where a model's bundle lies on the agent's device; the model's digest must be known."""
    return bundles.path_of(agent.connector.models_dir, model.name, model.digest, gathers)


def label_name(name: str) -> str:
    """How a ``--models`` item is called in labels: a file by its name without ``.gguf``."""
    if is_fake(name) or not catalogue.is_path(name):
        return name
    return catalogue.stem(hub.file_name(name) if hub.is_reference(name) else name)


def label_names(sweep: Sweep) -> tuple[list[str], Sweep]:
    """The models as given, and the sweep with the names that labels have."""
    names = list(dict.fromkeys(sweep.models))
    return names, replace(sweep, models=tuple(label_name(name) for name in names))


def resolve(
    device: Device, agent: Agent, name: str, library: Library | None, on_bytes: OnBytes
) -> DeviceModel:
    """A model on a device: mapped by devices.yaml to a path there or to a file of a hub, a path of this
    machine, or an entry of the catalogue. Hub files are fetched here, now; a board gets its copy of a file
    of this machine when it is made.

    Raises :class:`ModelError`."""
    if is_fake(name):
        return DeviceModel(ModelRef(name, ""), Traits(True, True), 0)
    mapped = (device.models or {}).get(name)
    given = mapped or name
    if mapped is None and not catalogue.is_path(name):
        return _synthetic(agent, catalogue.lookup(name))
    if hub.is_reference(given):
        path = hub.fetch(given, on_bytes)
    elif mapped is not None:
        return _there(device, agent, name, _path_there(agent, mapped), library, on_bytes)
    else:
        path = Path(name).expanduser().absolute()
    if not agent.connector.remote:
        return _there(device, agent, name, str(path), library, on_bytes)
    return _to_send(device, agent, name, path, library, on_bytes)


def _path_there(agent: Agent, written: str) -> str:
    found = agent.deployment.board
    return found.path(written) if found is not None else str(Path(written).expanduser())


def _there(
    device: Device, agent: Agent, name: str, path: str, library: Library | None, on_bytes: OnBytes
) -> DeviceModel:
    """A file on the device, hashed there once."""
    stat = agent.connector.stat(path)
    if stat is None:
        where = f" (devices.yaml: {device.name}.models.{name})" if name in (device.models or {}) else ""
        raise ModelError(f"{path}: no such file on {device.name}{where}", hint="`stbench models` lists names")
    digest = known_digest(agent, path) or agent.digest(path, on_bytes).sha256
    traits, sizes = Traits(None, None), None
    if agent.connector.remote and agent.deployment.library:
        traits, sizes = header.facts_of(agent.header(path))
    elif library is not None:
        traits, sizes = describe(library, path)
    return DeviceModel(ModelRef(label_name(name), path, digest), traits, stat.bytes, False, sizes)


def _to_send(
    device: Device, agent: Agent, name: str, source: Path, library: Library | None, on_bytes: OnBytes
) -> DeviceModel:
    """A file of this machine for a board, under the name of its digest there."""
    if not source.is_file():
        raise ModelError(
            f"{source}: no such file on this machine, from where {device.name} would get it",
            hint=f"a file that lies on {device.name} is named in devices.yaml (models: {{name: path there}})",
        )
    digest = local_files.digest_of(source, lambda done, total: on_bytes("hash", done, total))
    path = f"{agent.connector.models_dir}/{catalogue.stem(source.name)}-{digest[:16]}.gguf"
    there = known_digest(agent, path) == digest
    traits, sizes = describe(library, str(source)) if library is not None else (Traits(None, None), None)
    ref = ModelRef(label_name(name), path, digest)
    return DeviceModel(ref, traits, source.stat().st_size, not there, sizes, str(source))


def _synthetic(agent: Agent, entry: catalogue.Entry) -> DeviceModel:
    spec = entry.spec
    path = f"{agent.connector.models_dir}/{file_name(entry.name, spec)}"
    digest = known_digest(agent, path)
    ref = ModelRef(entry.name, path, digest or "", spec, entry.profile)
    traits = Traits(spec.architecture == "smallthinker", spec.predictor_rank > 0, spec.n_expert > 0)
    sizes = entry.sizes
    return DeviceModel(ref, traits, sizes.weight_bytes, digest is None, sizes)


def file_name(name: str, spec: SynthSpec) -> str:
    """A synthetic model's file: its name and a hash of what makes its bytes."""
    text = json.dumps({"format": SYNTH_FORMAT, **wire.to_json(spec)}, sort_keys=True)
    return f"{name.replace(':', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.gguf"


def make(agent: Agent, model: DeviceModel, on_bytes: OnBytes) -> DeviceModel:
    """Makes a synthetic model on the device or sends a file of this machine there, or takes it as it is when
    that was done since. Raises :class:`NoSpace` before anything is written, :class:`ModelError`,
    :class:`DeviceError`."""
    path = model.ref.path
    digest = known_digest(agent, path)
    if model.source:
        if digest != model.ref.digest:
            _send(agent, model, on_bytes)
        return replace(model, to_make=False)
    spec = model.ref.synthetic
    assert spec is not None
    if digest is None:
        free_space_for(agent, model.ref.name, path, model.file_bytes)
        digest = agent.make(path, spec, on_bytes).sha256
    return replace(model, ref=replace(model.ref, digest=digest), to_make=False)


def _send(agent: Agent, model: DeviceModel, on_bytes: OnBytes) -> None:
    path, digest = model.ref.path, model.ref.digest
    title = f"send {Path(model.source).name} ({model.file_bytes / 1e9:.2g} GB)"
    agent.connector.put(Path(model.source), path, digest, lambda done, total: on_bytes(title, done, total))
    # The connector compared the digest on the device: nobody has to read the file again for it.
    agent.note_digest(path, digest)


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
        found = agent_describe.header(sbr.load(str(library.path)), path)
    except (sbr.NativeError, sbr.LoadError) as error:
        raise ModelError(str(error), hint="`stbench inspect` shows what is in a GGUF file") from error
    return header.facts_of(found)
