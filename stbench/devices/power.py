"""``power:`` of devices.yaml: a command of this machine that power-cycles a board which stays away."""

from __future__ import annotations

import shlex
import subprocess

from stbench.errors import DeviceError
from stbench.yamlfile import printable

# A smart plug that is told to wait between off and on.
TIMEOUT_S = 60.0


def power_cycle(name: str, command: str) -> None:
    """Runs the command of a device. No shell: words as sh splits them. Raises :class:`DeviceError` where it
    cannot be started, fails, or does not end."""
    hint = f"devices.yaml: {name}.power"
    try:
        done = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{name}: its power command did not end in {TIMEOUT_S:g} s", hint=hint) from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise DeviceError(f"{name}: its power command cannot be run: {said}", hint=hint) from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        said = f": {printable(lines[-1])[:200]}" if lines else ""
        raise DeviceError(
            f"{name}: its power command ended with exit code {done.returncode}{said}", hint=hint
        )
