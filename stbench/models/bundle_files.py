"""Bundles of this machine: made, reused or verified outside of a campaign (``stbench models bundle``)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from stbench import native
from stbench.agent import bundle_file, sbr
from stbench.builds.build import Library
from stbench.campaigns.agentclient import Agent, OnBytes
from stbench.campaigns.deploy import deploy
from stbench.connectors.local import LocalConnector
from stbench.devices.inventory import Device
from stbench.errors import InputError
from stbench.models import bundles
from stbench.sweeps import prepare


@dataclass(frozen=True)
class Outcome:
    """``what`` was done with the bundle at ``path``: made, reused, verified; ``bytes_per_s`` is of that, None
    when nothing but its header was read."""

    path: str
    what: str
    bytes: int
    seconds: float
    layout: str
    bytes_per_s: float | None


def make_or_verify(
    name: str,
    library: Library,
    *,
    sparse_ffn: bool | None,
    output: Path | None,
    verify: bool,
    on_bytes: OnBytes,
) -> Outcome:
    """The bundle of a GGUF file or of a synthetic model, which is made when it is not there.

    ``sparse_ffn`` None: made for one where the model's ReLU lets rows be skipped. ``output``: a file, or an
    existing directory (default: where models are kept). Raises :class:`InputError` for a bundle that is
    missing, damaged or of another model when it is to be verified, :class:`stbench.errors.ModelError` and
    :class:`stbench.errors.NoSpace` when one cannot be made."""
    device = Device("local")
    # A connector only for its directories and processes: making a file measures nothing and needs no lease.
    connector = LocalConnector(device)
    agent = Agent("local", connector, deploy(connector, library))
    model = prepare.resolve(device, agent, name, library, on_bytes)
    if model.to_make and verify:
        raise InputError(
            f"{model.ref.path}: this model is not made, so that there is no bundle of it",
            hint=f"stbench models bundle {name}",
        )
    if model.to_make:
        model = prepare.make(agent, model, on_bytes)
    sparse = bool(model.traits.relu) if sparse_ffn is None else sparse_ffn
    gathers = bundles.GATHER_UP if sparse else 0
    folder = str(output) if output is not None and output.is_dir() else connector.models_dir
    path = bundles.path_of(folder, model.ref.name, model.ref.digest, gathers)
    if output is not None and not output.is_dir():
        path = str(output)
    loaded = native.open_library(library.path)
    begin = time.monotonic()
    if verify:
        _verify(loaded, model.ref.path, model.ref.digest, gathers, path, on_bytes)
        what, was_read = "verified", True
    else:
        made = agent.bundle(model.ref, gathers, path, on_bytes)
        what, was_read = (
            ("was there" if made.already_there else made.detail or "made"),
            not made.already_there,
        )
    seconds = time.monotonic() - begin
    with native.native_errors():
        found = sbr.bundle_describe(loaded, path)
    rate = found.file_bytes / seconds if was_read else None
    return Outcome(path, what, found.file_bytes, seconds, found.layout, rate)


def _verify(
    library: sbr.Library, model: str, digest: str, gathers: int, path: str, on_bytes: OnBytes
) -> None:
    again = "without --verify it is made again"
    with native.native_errors():
        wanted = sbr.bundle_plan(library, model, gathers)._replace(model_digest=digest)
    try:
        unfit = bundle_file.why_not(library, path, wanted)
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
    if unfit is None:
        raise InputError(f"{path}: there is no such bundle", hint="without --verify it is made")
    if unfit:
        raise InputError(unfit, hint=again)

    def progress(done: int, total: int) -> None:
        on_bytes("verify", done, total)

    try:
        sbr.bundle_verify(library, path, progress)
    except sbr.NativeError as error:
        raise InputError(str(error), hint=again) from error
