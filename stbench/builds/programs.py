"""Engines that are programs, settled for a device: which binary, which build of it, which file of a model."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from stbench.agent import external
from stbench.agent.programs import build_digest
from stbench.agent.wire import Program, Settings, Workload
from stbench.devices.engine_entries import BUILT_LLAMA_BENCH, EngineEntry
from stbench.devices.engine_names import LLAMA_BENCH, is_program, unknown_engines
from stbench.devices.inventory import Device
from stbench.errors import BuildError, InventoryError, SweepError
from stbench.models import catalogue
from stbench.models.catalogue import STANDARD_SUFFIX
from stbench.sweeps.sweep import Case, Traits

# llama.cpp computes a prompt in parts of so many tokens unless it is told otherwise, and ours is not told.
LLAMA_BENCH_BATCH = 512


@dataclass(frozen=True)
class TargetProgram:
    """A program on a device. ``build`` is the digest of its files there, "" when nobody could read them.
    ``models`` maps a sweep's model to the one whose file the program runs; ``sparse`` is what it always
    skips."""

    program: Program
    build: str
    timeout_s: float
    models: Mapping[str, str]
    sparse: tuple[str, ...] = ()


def check_engines(engines: Sequence[str], devices: Sequence[Device]) -> None:
    """Raises :class:`SweepError` naming the known engines when no device has one of ``engines``."""
    problems = unknown_engines(engines, [device.engines for device in devices])
    if problems:
        raise SweepError(
            problems, hint="devices.yaml describes other programs under engines: (docs/engines.md)"
        )


def programs_of(
    device: Device, engines: Sequence[str], models: Mapping[str, str]
) -> dict[str, TargetProgram]:
    """The programs among ``engines`` that a device has, for ``models``: the name in labels -> what was given.

    Raises :class:`BuildError` when llama-bench is wanted and not built, :class:`InventoryError` when a
    program is not where devices.yaml says."""
    found: dict[str, TargetProgram] = {}
    for name in filter(is_program, engines):
        entry = device.engines.get(name)
        # What was built here runs here only; a board has the programs that devices.yaml names for it.
        here = device.connector == "local"
        if entry is None and (name != LLAMA_BENCH or not here):
            continue
        entry = _settled(device, name, entry or BUILT_LLAMA_BENCH) if here else _there(device, name, entry)
        files = {
            label: label if catalogue.is_path(given) else _file_of(device, entry, given)
            for label, given in models.items()
        }
        timeout = entry.timeout_s if entry.timeout_s is not None else device.timeout_s
        build = build_digest(entry.program, entry.program.command[0]) if here else ""
        found[name] = TargetProgram(entry.program, build, timeout, files, entry.sparse)
    return found


def _settled(device: Device, name: str, entry: EngineEntry) -> EngineEntry:
    """The entry with the full path of its program."""
    first, *rest = entry.program.command
    if name == LLAMA_BENCH and not first:
        path = _built_llama_bench(device)
    else:
        wanted = os.path.expanduser(first)
        there = shutil.which(wanted, path=entry.program.environment.get("PATH"))
        if there is None:
            key = "path" if name == LLAMA_BENCH else "command"
            raise InventoryError(
                [f"devices.yaml: engines.{name}.{key}: no program {wanted!r} on {device.name}"],
                hint="correct it, or leave path away to use the one of `stbench peer build`"
                if name == LLAMA_BENCH
                else "give its absolute path, or set PATH under environment:",
            )
        path = os.path.abspath(there)
    return replace(entry, program=replace(entry.program, command=[path, *rest]))


def _there(device: Device, name: str, entry: EngineEntry | None) -> EngineEntry:
    """A board's program, by its path there, absolute or from the home directory there (:func:`at_home`); only
    the board knows whether it is there."""
    assert entry is not None
    if not entry.program.command[0].startswith(("/", "~/")):
        key = "path" if name == LLAMA_BENCH else "command"
        raise InventoryError(
            [f"devices.yaml: engines.{name}.{key}: {device.name} needs the program's absolute path there"],
            hint="such as /opt/bin/program, or ~/program for one in the home directory there",
        )
    return entry


def at_home(found: TargetProgram, path_there: Callable[[str], str]) -> TargetProgram:
    """The program with the full path of its command. ``path_there``: what a path is on its device, where
    ``~/`` is another directory than here."""
    first, *rest = found.program.command
    return replace(found, program=replace(found.program, command=[path_there(first), *rest]))


def _built_llama_bench(device: Device) -> str:
    from stbench.builds.peer import built_peer

    peer = built_peer()
    if peer is None:
        raise BuildError(
            f"{device.name}: the engine llama-bench needs llama.cpp, which has not been built on this "
            "machine",
            hint="`stbench peer build` (minutes, once), or name a binary in devices.yaml: "
            "engines: {llama-bench: {path: /path/to/llama-bench}}",
        )
    return str(peer.bench)


def _file_of(device: Device, entry: EngineEntry, model: str) -> str:
    """The model whose file a program runs: the twin with the same weights in the standard layout where there
    is one. A user's own file is what it is, unless devices.yaml maps NAME:standard, too."""
    twin = model + STANDARD_SUFFIX
    mapped = device.models or {}
    if entry.model_layout != "standard":
        return model
    if twin in mapped:
        return twin
    return twin if model not in mapped and twin in catalogue.names() else model


def settings_for(program: TargetProgram, file: Traits, asked: Settings, workload: Workload) -> Settings:
    """What is asked of a program: in place of our runtime's switches what it always skips of such a
    ``file``, and for llama-bench the context and the batch that it takes by itself."""
    asked = replace(
        asked,
        isa="auto",
        sparse_ffn="ffn" in program.sparse and file.relu is not False,
        sparse_ffn_auto=False,
        sparse_lm_head="lm_head" in program.sparse and file.predictor is not False,
        lm_head_threshold=0.0,
        requantise_down=False,
    )
    if program.program.kind != LLAMA_BENCH:
        return asked
    n_ctx = workload.n_depth + workload.n_prompt + workload.n_gen
    return replace(asked, n_ctx=n_ctx, n_batch=_batch(program.program.command))


def _batch(command: Sequence[str]) -> int:
    """The ``-ub`` of the user's own arguments, or llama.cpp's."""
    for flag, value in itertools.pairwise(command):
        if flag in ("-ub", "--ubatch-size") and value.isdigit():
            return int(value)
    return LLAMA_BENCH_BATCH


def left_out(case: Case, device: Device, programs: Mapping[str, TargetProgram], cases: Sequence[Case]) -> str:
    """Why a device does not run a program's case; "" when it does, or when the engine is no program."""
    if not is_program(case.engine):
        return ""
    found = programs.get(case.engine)
    if found is None:
        return f"{device.name}: {case.engine} left out: devices.yaml does not describe it for this device"
    where = f"{device.name}: {case.model}/{case.workload} left out for {case.engine}"
    same = (
        other.model
        for other in cases
        if other.engine == case.engine
        and other.model != case.model
        and found.models[other.model] == found.models[case.model]
    )
    if found.models[case.model] == case.model and (original := next(same, None)):
        return f"{where}: it runs this file as {original}"
    if found.program.kind == LLAMA_BENCH:
        return ""
    if case.n_depth and "n_depth" not in external.placeholders(found.program.command):
        return f"{where}: its command has no {{n_depth}}"
    reading = found.program.decode if case.n_gen else found.program.prefill
    if reading is None:
        return f"{where}: devices.yaml has no {'decode' if case.n_gen else 'prefill'}: for it"
    return ""
