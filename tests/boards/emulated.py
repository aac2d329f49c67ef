"""A board that is not there: a real arm64 kernel, a real sshd and Python, under qemu on loopback.

    python -m tests.boards.emulated [--cpu cortex-a72] [--append mem=512M]

boots one and says how to log in, until Ctrl-C. Its speed says nothing about any board.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.boards.image_files import BUSYBOX, SYSTEMD, USER, Variant
from tests.boards.make_image import Image, ImageError, Steps, image_in, make_image, recipe
from tests.boards.sshd import free_port

QEMU = "qemu-system-aarch64"
# What an emulated core has beside plain NEON: nothing, dotprod, dotprod and i8mm. Real pointer
# authentication would be most of what `max` computes.
CPUS = {"cortex-a72": "cortex-a72", "cortex-a76": "cortex-a76", "max": "max,pauth-impdef=on"}
MEMORY_MIB = 1024
BOOT_S = 300.0


@dataclass
class EmulatedBoard:
    """A running one. ``known_host``: its line of a known_hosts file."""

    image: Image
    cpu: str
    port: int
    folder: Path
    process: subprocess.Popen[bytes]
    boot_s: float = 0.0
    user: str = USER
    host: str = field(default="127.0.0.1", init=False)

    @property
    def known_host(self) -> str:
        return f"[{self.host}]:{self.port} {self.image.host_key}"

    @property
    def fingerprint(self) -> str:
        """Of its host key, as ssh-keygen shows it."""
        digest = hashlib.sha256(base64.b64decode(self.image.host_key.split()[1])).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def ssh_command(self) -> list[str]:
        """OpenSSH's client for it, apart from the user's own configuration and keys."""
        known = self.folder / "known_hosts"
        known.write_text(self.known_host + "\n")
        options = [f"UserKnownHostsFile={known}", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes"]
        options += ["BatchMode=yes", "ConnectTimeout=20"]
        chosen = [part for option in options for part in ("-o", option)]
        key = ["-F", "none", "-i", str(self.image.key), "-p", str(self.port)]
        return ["ssh", *key, *chosen, f"{self.user}@{self.host}"]

    def ssh(self, command: str, timeout_s: float = 60.0) -> str:
        """Runs a command there; returns what it printed."""
        line = [*self.ssh_command, command]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=timeout_s)
        assert done.returncode == 0, (
            f"{command}: exit code {done.returncode}: {done.stderr}\n{self.console()}"
        )
        return done.stdout

    def console(self) -> str:
        """The end of what the kernel and init said."""
        path = self.folder / "console"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def power_cycle(self) -> None:
        """Power off and on, as a plug pulled and put back; returns when it lets us in again."""
        self.monitor("system_reset")
        self.wait()

    def plug(self, connected: bool) -> None:
        """Its network cable."""
        self.monitor("set_link", name="net0", up=connected)

    def monitor(self, command: str, **arguments: object) -> None:
        """One command of qemu's monitor protocol."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(20)
            link.connect(str(self.folder / "monitor"))
            with link.makefile("rw") as talk:
                talk.readline()  # its greeting
                for request in (
                    {"execute": "qmp_capabilities"},
                    {"execute": command, "arguments": arguments},
                ):
                    talk.write(json.dumps(request) + "\n")
                    talk.flush()
                    while not ("return" in (answer := json.loads(talk.readline())) or "error" in answer):
                        pass  # an event
                    assert "error" not in answer, answer

    def wait(self) -> None:
        """Until sshd answers. Raises :class:`ImageError` with the console's end when it does not in time."""
        deadline = time.monotonic() + BOOT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                said = (self.folder / "qemu.log").read_text(errors="replace")
                raise ImageError(f"{QEMU} ended with exit code {self.process.returncode}: {said}")
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 5) as link:
                link.settimeout(5)
                if link.recv(8).startswith(b"SSH-"):
                    return
            time.sleep(0.2)
        raise ImageError(f"no sshd within {BOOT_S:g} s; the console ends:\n{self.console()}")

    def stop(self) -> None:
        """Ends the machine; what it wrote is gone."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def kept_image(folder: Path, variant: Variant) -> tuple[Image, str]:
    """The image of today's recipe in a folder that outlives the tests, made where it is missing; and how
    long each step took. Older ones go. Raises :class:`ImageError`."""
    name = f"{variant.name}-{recipe()}"
    for old in folder.glob(f"{variant.name}-*"):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)
    steps = Steps({})
    if (folder / name).is_dir():
        return image_in(folder / name), "as made before"
    return make_image(folder / name, steps, variant), str(steps)


@contextlib.contextmanager
def boot(image: Image, cpu: str = "cortex-a76", *append: str, cores: int = 2) -> Iterator[EmulatedBoard]:
    """A board that runs as long as the context; ``append``: for the kernel's command line, such as
    ``mem=512M`` or ``cgroup_disable=memory``. Raises :class:`ImageError`."""
    if shutil.which(QEMU) is None:
        raise ImageError(f"no {QEMU}: apt install qemu-system-arm")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="board-") as scratch:
        folder = Path(scratch)
        port = free_port()
        command = [QEMU, "-M", "virt", "-cpu", CPUS[cpu], "-accel", "tcg,thread=multi", "-smp", str(cores)]
        command += ["-m", str(MEMORY_MIB), "-nodefaults", "-display", "none"]
        command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        command += ["-append", " ".join(["console=ttyAMA0 quiet panic=1 net.ifnames=0", *append])]
        command += ["-drive", f"file={image.disk},format=raw,if=none,id=disk,snapshot=on,cache=unsafe"]
        command += ["-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci"]
        # restrict: the board reaches nothing, only its sshd is reached.
        command += ["-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"]
        command += ["-device", "virtio-net-pci,netdev=net,id=net0,romfile="]
        command += ["-serial", f"file:{folder / 'console'}"]
        command += ["-qmp", f"unix:{folder / 'monitor'},server=on,wait=off"]
        # The board goes with the process that started it, however that ends.
        dying = ["setpriv", "--pdeathsig", "KILL", *command]
        with (folder / "qemu.log").open("wb") as log:
            here = {**os.environ, "TMPDIR": scratch}
            process = subprocess.Popen(dying, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=here)
        board = EmulatedBoard(image, cpu, port, folder, process)
        try:
            board.wait()
            board.boot_s = round(time.monotonic() - begin, 1)
            yield board
        finally:
            board.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description="Boots an emulated arm64 board until Ctrl-C.")
    parser.add_argument("--cpu", choices=list(CPUS), default="cortex-a76")
    parser.add_argument("--append", nargs="*", default=[], help="for the kernel's command line: mem=512M")
    parser.add_argument("--systemd", action="store_true", help="boot systemd rather than a shell script")
    arguments = parser.parse_args()
    # A shell's background jobs ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    steps = Steps({})
    try:
        with tempfile.TemporaryDirectory(prefix="image-") as folder:
            image = make_image(Path(folder) / "image", steps, SYSTEMD if arguments.systemd else BUSYBOX)
            with boot(image, arguments.cpu, *arguments.append) as board:
                print(f"{steps}, boot {board.boot_s:g} s\n\n{' '.join(board.ssh_command)}\n")
                where = f"{board.user}@{board.host}:{board.port} --name emulated --key {image.key}"
                print(f"stbench devices add {where} --yes-this-fingerprint {board.fingerprint}", flush=True)
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except ImageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
