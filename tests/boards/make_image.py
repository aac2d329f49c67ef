"""Builds a Debian arm64 board image in some 20 seconds: kernel, initrd, root file system, keys.

    python -m tests.boards.make_image FOLDER

Packages are unpacked without running their scripts, so that nothing of arm64 runs while building; what the
scripts would have written is in image_files.py. Packages come from where this machine's own apt gets them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.boards import image_files
from tests.boards.image_files import BUSYBOX, USER, Variant

# What nobody on a board without a screen reads; two thirds of the bytes.
UNUSED = ("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/perl*", "usr/lib/*/perl*", "dev")
UNUSED_OF_KERNEL = ("usr/lib/linux-image-*", "lib/udev/hwdb.d", "usr/lib/udev/hwdb.d")
# What the disk and the network of qemu's `virt` machine need; their own needs are read from the modules.
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng")
DISK_BYTES = 2 << 30

INITRD_INIT = """#!/busybox sh
/busybox mount -t devtmpfs dev /dev
for m in {modules}; do /busybox insmod /$m; done
n=0
while [ ! -b /dev/vda ] && [ $n -lt 100 ]; do n=$((n + 1)); /busybox usleep 100000; done
/busybox mount -t ext4 -o rw,noatime /dev/vda /root
/busybox mount --move /dev /root/dev
exec /busybox switch_root /root /sbin/init
"""


@dataclass(frozen=True)
class Image:
    """What qemu needs to boot it and ssh to get in. ``host_key``: its line without the host's name."""

    kernel: Path
    initrd: Path
    disk: Path
    key: Path
    host_key: str


class ImageError(Exception):
    """A tool is missing, or a step failed; the message holds what it said."""


@dataclass
class Steps:
    """Says how long each step took."""

    seconds: dict[str, float]

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begin, 1)

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:g} s" for name, seconds in self.seconds.items())


def recipe() -> str:
    """Changes with anything that an image is made from."""
    sources = [Path(__file__), Path(image_files.__file__)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def image_in(folder: Path) -> Image:
    """The image that was made in a folder."""
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    return Image(folder / "kernel", folder / "initrd", folder / "disk", folder / "key", host_key)


def make_image(folder: Path, steps: Steps, variant: Variant = BUSYBOX) -> Image:
    """Makes an image in a folder, which appears when it is complete. Raises :class:`ImageError`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as scratch:
        made, root = Path(scratch) / "image", Path(scratch) / "root"
        made.mkdir()
        root.mkdir()
        with steps.step("packages"):
            _packages(variant, Path(scratch) / "root.tar")
        with steps.step("unpack"):
            _unpack(Path(scratch) / "root.tar", root)
        with steps.step("bytecode"):
            _compile(root)
        with steps.step("disk"):
            _keys(made)
            _configure(variant, root, made)
            (made / "initrd").write_bytes(_initrd(root))
            shutil.move(next((root / "boot").glob("vmlinuz-*")), made / "kernel")
            _disk(root, made / "disk")
        with contextlib.suppress(OSError):  # somebody else made the same one meanwhile
            made.rename(folder)
    return image_in(folder)


def apt_sources() -> tuple[str, list[str]]:
    """Where this machine's apt gets Debian's packages from, and its settings for getting them."""
    fields = "$(SITE)|$(RELEASE)|$(COMPONENT)"
    codename = re.search(r"(?m)^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())
    suites = [f"{codename[1]}{suffix}" for suffix in ("", "-updates", "-security")] if codename else []
    sources = set()
    # Without release info: with it, nothing is known before the first apt-get update.
    known = ["indextargets", "--no-release-info", "--format", fields, "Identifier: Packages"]
    for line in _run("apt-get", *known).splitlines():
        site, release, component = line.split("|")
        # Other publishers' suites have other names.
        if release in suites and component == "main":
            sources.add(f"deb {site} {release} main")
    if not sources:
        raise ImageError("this machine's apt gets no packages of Debian, which the image is made of")
    transport = re.compile(r"Acquire::(http|https|Check-Valid-Until|Check-Date)\b.* \"[^\"]+\";")
    options = [line for line in _run("apt-config", "dump").splitlines() if transport.fullmatch(line)]
    # The plain suite first: it names the image's.
    return "\n".join(sorted(sources, key=lambda line: line.split()[2])) + "\n", options


def _run(*command: str, stdin: str = "") -> str:
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=300)
    except FileNotFoundError as error:
        raise ImageError(f"no {command[0]}: apt install mmdebstrap e2fsprogs openssh-client") from error
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"{command[0]} did not end in 300 s") from error
    if done.returncode != 0:
        raise ImageError(f"{' '.join(command[:3])}: exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def _packages(variant: Variant, archive: Path) -> None:
    sources, options = apt_sources()
    suite = sources.split()[2]
    chosen = [f"--aptopt={line}" for line in options]
    fixed = ["--quiet", "--arch=arm64", "--variant=extract", f"--include={','.join(variant.packages)}"]
    _run("mmdebstrap", *fixed, *chosen, suite, str(archive), "-", stdin=sources)


def _unpack(archive: Path, root: Path) -> None:
    excluded = [f"--exclude=./{pattern}" for pattern in (*UNUSED, *UNUSED_OF_KERNEL)]
    _run("tar", "-xf", str(archive), "-C", str(root), "--no-same-owner", *excluded)
    archive.unlink()


def _compile(root: Path) -> None:
    """Python's standard library to byte code, as the package's script would: an emulated core takes seconds
    for it at each start. Only a Python of the same version can; without one the board is slower, no more."""
    (library,) = (root / "usr/lib").glob("python3.*")
    python = f"/usr/bin/{library.name}"
    for name in ("test", "idlelib", "lib2to3", "ensurepip", "pydoc_data"):
        shutil.rmtree(library / name, ignore_errors=True)
    if Path(python).exists():
        options = ["-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
        _run(python, "-m", "compileall", *options, str(library))


def _keys(made: Path) -> None:
    for name in ("key", "host_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"emulated {name}", "-f", str(made / name))


def _configure(variant: Variant, root: Path, made: Path) -> None:
    for name, text in {**variant.files, **variant.scripts}.items():
        path = _fresh(root, name)
        path.write_text(text)
        path.chmod(0o755 if name in variant.scripts else 0o644)
    for name, target in variant.links.items():
        _fresh(root, name).symlink_to(target)
    for name in ("dev", "proc", "sys", "run", "tmp", "root", f"home/{USER}"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc/shadow").chmod(0o600)
    shutil.copy(made / "key.pub", root / "etc/ssh/authorized_keys")
    shutil.copy(made / "host_key.pub", root / "etc/ssh/ssh_host_ed25519_key.pub")
    shutil.copy(made / "host_key", root / "etc/ssh/ssh_host_ed25519_key")


def _fresh(root: Path, name: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path


def _initrd(root: Path) -> bytes:
    """busybox, the modules that reach the disk, and three lines that go on there."""
    modules = dict(_module_files(root))
    ordered: list[str] = []
    for name in MODULES:
        _with_needs(name, modules, ordered)
    script = INITRD_INIT.format(modules=" ".join(f"{name}.ko" for name in ordered))
    files: dict[str, tuple[int, bytes]] = {"dev": (0o40755, b""), "root": (0o40755, b"")}
    files["busybox"] = (0o100755, (root / "bin/busybox").read_bytes())
    files["init"] = (0o100755, script.encode())
    for name in ordered:
        files[f"{name}.ko"] = (0o100644, modules[name])
    shutil.rmtree(next(root.glob("lib/modules")), ignore_errors=True)
    return _cpio(files)


def _module_files(root: Path) -> Iterator[tuple[str, bytes]]:
    wanted = re.compile(r"(virtio|failover|net_failover|rng)[a-z_0-9-]*\.ko(\.xz)?")
    for path in root.glob("lib/modules/*/kernel/**/*.ko*"):
        if wanted.fullmatch(path.name):
            data = path.read_bytes()
            name = path.name.split(".")[0].replace("-", "_")
            yield name, lzma.decompress(data) if path.suffix == ".xz" else data


def _with_needs(name: str, modules: dict[str, bytes], ordered: list[str]) -> None:
    """Appends a module behind those that it names in its ``depends=``; what has no file is built in."""
    if name in ordered or name not in modules:
        return
    needs = re.search(rb"\0depends=([a-z0-9_,-]*)\0", modules[name])
    for need in (needs[1].decode() if needs else "").split(","):
        _with_needs(need.replace("-", "_"), modules, ordered)
    ordered.append(name)


def _cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """The kernel's initramfs format ("newc"): each header is 13 numbers of 8 hexadecimal digits."""
    out = io.BytesIO()
    for inode, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        numbers = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        out.write(b"070701" + "".join(f"{number:08x}" for number in numbers).encode())
        out.write(name.encode() + b"\0")
        out.write(b"\0" * (-out.tell() % 4))
        out.write(data)
        out.write(b"\0" * (-out.tell() % 4))
    return out.getvalue()


def _disk(root: Path, disk: Path) -> None:
    """An ext4 file system of the tree; a hole where nothing lies. With a journal, as boards have it: without
    one, a power cut now and then left a name whose file could not be read (EIO). In a user namespace of its
    own, our files are root's: nobody has to be root to build the image."""
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    alone = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    _run(*alone, "mke2fs", "-q", "-t", "ext4", "-J", "size=16", "-d", str(root), str(disk))


def main() -> int:
    steps = Steps({})
    try:
        image = make_image(Path(sys.argv[1]), steps)
    except ImageError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{image.disk.parent}: {steps}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
