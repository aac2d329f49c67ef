"""Keeps a virtual machine's two CPUs where their memory is fast, while something else is measured there.

    python -m tests.benchmarks.hold_places [--seconds 900] [--cpus 0,1] [--near-ns 150]

A hypervisor places a CPU anew whenever it wakes, so that two CPUs that share a link to memory at one moment
have one each at the next (docs/decode-speed.md). Kept from sleeping, they stay where they are for 10 to 100
seconds. So two threads hand a cache line to and fro whenever nothing else wants the CPUs, and sleep for a
moment where it comes back so soon that both must be on one chiplet.

They run in a cgroup whose ``cpu.idle`` is 1 (root; Linux 5.16): a busy loop beside one of them keeps 99.6 %
of its CPU. A sweep counts their time as that of other processes and marks its runs as disturbed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")
# Where the controller of CPU time is mounted: alone (version 1), or with the others.
_MOUNTS = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu,cpuacct"), Path("/sys/fs/cgroup"))


def build(directory: Path) -> Path:
    """The program, made by the machine's C++ compiler. Raises :class:`subprocess.CalledProcessError`."""
    program = directory / "hold_places"
    subprocess.run(["c++", "-std=c++17", "-O2", "-pthread", SOURCE, "-o", program], check=True)
    return program


@contextlib.contextmanager
def idle_group() -> Iterator[Path]:
    """A cgroup that is only given time that nobody else wants. Raises :class:`SystemExit`."""
    group = _made()
    try:
        yield group
    finally:
        # The kernel takes a moment to see that it is empty.
        time.sleep(0.1)
        group.rmdir()


def _made() -> Path:
    for mount in _MOUNTS:
        group = mount / f"hold-places-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / "cpu.idle").write_text("1")
        except OSError:
            group.rmdir()
            continue
        return group
    raise SystemExit("no cgroup with cpu.idle can be made here: be root, on Linux 5.16 or newer")


def main() -> None:
    """Holds the CPUs until the time is over, or Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=900)
    parser.add_argument("--cpus", default="0,1")
    parser.add_argument("--near-ns", type=int, default=150, help="a round trip on one chiplet takes less")
    args = parser.parse_args()
    first, second = args.cpus.split(",")
    with tempfile.TemporaryDirectory() as directory, idle_group() as group:
        command = [str(build(Path(directory))), str(args.seconds), first, second, str(args.near_ns)]
        running = subprocess.Popen(
            ["sh", "-c", 'echo $$ >"$0" && exec "$@"', group / "cgroup.procs", *command]
        )
        try:
            running.wait()
        except KeyboardInterrupt:
            running.kill()
            running.wait()


if __name__ == "__main__":
    main()
