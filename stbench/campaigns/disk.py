"""Room for models and their bundles: what a plan needs at once, and one model on disk at a time.

A table of large models does not fit on a small disk, nor two of them in memory. With ``one_model_at_a_time``
all replicates of a model's file run together: the campaign makes the file before them, and deletes it after
them when it made it itself. What it made is noted beside the records before the file exists, so that a
campaign that was killed and resumed still knows which files are its own. Files that were there are never
deleted.

What this costs: a model's standard-layout twin is a file of its own, so engines that load the twin are not
measured in the same minute as ours on the transposed file. Where pairs matter, give the twin to both
(``--models smallthinker-21b:standard --engines sbr,llama-bench``).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stbench.agent import model_file
from stbench.agent.wire import JobSpec
from stbench.errors import NoSpace, StoreError
from stbench.records.store import write_json

if TYPE_CHECKING:
    from stbench.connectors.base import Connector

# What is left free on a device after its models are made.
RESERVE_BYTES = 256 << 20

MADE = "made.json"


def grouped(jobs: Iterable[JobSpec]) -> list[list[JobSpec]]:
    """Jobs by device and model file, groups in the order of their first job, jobs in theirs."""
    groups: dict[tuple[str, str], list[JobSpec]] = {}
    for job in jobs:
        groups.setdefault((job.device, job.model.name), []).append(job)
    return list(groups.values())


def peak_bytes(sizes: Sequence[int], one_at_a_time: bool) -> int:
    """What models of these sizes, bytes each, take at most at one time."""
    return max(sizes, default=0) if one_at_a_time else sum(sizes)


def check_room(
    peaks: Mapping[str, int],
    free: Mapping[str, int | None],
    one_at_a_time: bool,
    what: str = "the models take",
) -> None:
    """Raises :class:`NoSpace` for the first device whose models and bundles (``peaks``: bytes that are still
    to be written) do not fit into what is free there; what is not known fits."""
    for device, peak in peaks.items():
        room = free.get(device)
        if peak and room is not None and room < peak + RESERVE_BYTES:
            raise NoSpace(
                f"{device}: {what} {peak / 1e9:.1f} GB at once; {room / 1e9:.1f} GB are free",
                hint="make room, set XDG_CACHE_HOME (local) or work_dir to a larger disk, or leave models out"
                if one_at_a_time
                else "--one-model-at-a-time needs room for the largest only; or make room, or set "
                "XDG_CACHE_HOME (local) or work_dir to a larger disk",
            )


def room_sentence(device: str, peak: int, free: int | None, one_at_a_time: bool) -> str:
    """The peak and what there is, for people."""
    how = " (one model at a time, deleted after its jobs)" if one_at_a_time else ""
    there = "unknown" if free is None else f"{free / 1e9:.2f} GB"
    return f"{device}: peak disk {peak / 1e9:.2f} GB beyond what is there{how}; free: {there}"


class MadeFiles:
    """The models and bundles that a campaign made itself and has to delete, kept in its directory. Several
    threads may use it: one lock holds for the list and its file, not while a device deletes.

    Raises :class:`StoreError` when the list cannot be read."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / MADE
        self._lock = threading.Lock()
        self._files: list[tuple[str, str]] = []
        if self._path.exists():
            try:
                self._files = [
                    (str(device), str(path)) for device, path in json.loads(self._path.read_text())
                ]
            except (ValueError, TypeError) as error:
                raise StoreError(
                    f"{self._path}: no list of [device, path]",
                    hint="delete it; model files that this campaign made then stay on the device",
                ) from error

    def note(self, device: str, path: str) -> None:
        """A file is about to be made."""
        with self._lock:
            if (device, path) not in self._files:
                self._files.append((device, path))
                self._keep()

    def delete(self, device: str, path: str, connector: Connector) -> bool:
        """Deletes a file and what lies beside it, if it is one of these. Returns whether it was."""
        with self._lock:
            if (device, path) not in self._files:
                return False
        remove_model(connector, path)
        with self._lock:
            self._files.remove((device, path))
            self._keep()
        return True

    def _keep(self) -> None:
        write_json(self._path, self._files)


def remove_model(connector: Connector, path: str) -> None:
    """Deletes a synthetic model, or a bundle, with its digest and its lock."""
    for name in (path, model_file.sidecar_path(path), f"{path}.lock"):
        connector.remove(name)
