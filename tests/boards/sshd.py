"""Real sshds as boards: own host key, hostname, home and PATH, over loopback or a cable of their own.

As root every board has its own UTS, PID and mount namespaces, so that it can reboot, and with ``cable`` its
own network namespace behind a veth pair, whose packets can be dropped. Otherwise it is an sshd on a loopback
port. All of it is gone with the board, or with the test process.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.conftest import require

ROOT = os.geteuid() == 0
_SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_NUMBERS = itertools.count()


def tool(name: str) -> str:
    """The absolute path of a program that the test cannot do without."""
    path = shutil.which(name, path=_SBIN)
    require(path, f"no {name} here (openssh-server, openssh-client, iproute2, nftables, util-linux)")
    assert path is not None
    return path


def make_key(path: Path) -> str:
    """Makes an ed25519 key without passphrase; returns the public one as ``ssh-ed25519 AAAA...``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in (path, path.with_name(f"{path.name}.pub")):
        old.unlink(missing_ok=True)
    subprocess.run([tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    return path.with_name(f"{path.name}.pub").read_text().strip()


def wait_for_socket(path: Path) -> None:
    """Until somebody listens there: the file is there a moment before."""

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
            link.connect(str(path))
            return True
        return False

    wait_until(listens, f"nobody listens at {path}")


def free_port() -> int:
    """A port of loopback. Not of those that the kernel gives to whoever asks for any, so that it is still
    free when its server begins to listen, again after a pause, too."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Fails when ``condition`` does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.01)


class Board:
    """A board that runs.

    - ``host``, ``port``, ``user``: where it listens; ``key``: the private key that it lets in;
      ``home``, ``work_dir``: its own, as paths of this machine too.
    - ``device_yaml(name, **keys)``: an entry of devices.yaml; ``device_keys()``: the same as a dictionary.
    - ``known_hosts_line()``: what pins its host key; ``new_host_key()``: it is another board from now on.
    - ``processes()``: pid (of this machine) and command line of whatever runs on it, sshd itself left out.
    - ``run(argv)``: a program on the board without SSH; as root in its namespaces.
    - ``stop_sshd()``, ``start_sshd()``: no logins, and connections end; commands on the board go on.
    - ``reboot()``: as root: all of its processes are killed, its boot id is new, sshd is back.
    - with ``cable`` (root): ``cut()``, ``mend()``: packets vanish; ``reset()``: connections get RST until
      ``mend()``; ``lose(percent)``: random loss both ways; ``slow(bytes_per_s)``: towards the board.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        public_keys: Sequence[str],
        *,
        cable: bool = False,
        path: str = "",
        config: str = "",
    ) -> None:
        self.name = name
        self.directory = directory
        self.home = directory / "home"
        self.work_dir = directory / "work"
        self.key: Path | None = None
        self.user = getpass.getuser() if not ROOT else "root"
        self.host = "127.0.0.1"
        self.port = 0
        self.cable = cable
        self._path = path or f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        self._config = config
        self._mark = uuid.uuid4().hex
        self._init: subprocess.Popen[bytes] | None = None
        self._init_pid = 0
        self._sshd: subprocess.Popen[bytes] | None = None
        self._veth = ""
        require(not cable or ROOT, "network namespaces need root")
        self.home.mkdir(parents=True)
        (directory / "authorized_keys").write_text("".join(f"{key}\n" for key in public_keys))
        self.public_host_key = make_key(directory / "host_key")
        try:
            self._boot()
        except BaseException:
            self.close()
            raise

    # ---- what the controller is told -------------------------------------------------------------------

    def device_keys(self, **keys: object) -> dict[str, object]:
        """Keys of devices.yaml; ``keys`` come last and win."""
        found: dict[str, object] = {
            "enabled": True,
            "connector": "ssh",
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "work_dir": str(self.work_dir),
        }
        if self.key is not None:
            found["key"] = str(self.key)
        return {**found, **keys}

    def device_yaml(self, name: str = "", **keys: object) -> str:
        """``  NAME: {...}``, a line below ``devices:``."""
        return f"  {name or self.name}: {json.dumps(self.device_keys(**keys))}\n"

    def known_hosts_line(self) -> str:
        """What pins this board's host key."""
        where = self.host if self.port == 22 else f"[{self.host}]:{self.port}"
        return f"{where} {self.public_host_key}\n"

    def new_host_key(self) -> None:
        """As if another board had its address."""
        self.stop_sshd()
        self.public_host_key = make_key(self.directory / "host_key")
        self.start_sshd()

    # ---- on the board -----------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """What runs on the board; zombies do not."""
        found = {}
        namespace = _link(f"/proc/{self._init_pid}/ns/pid") if self._init_pid else ""
        for pid in _pids():
            with contextlib.suppress(OSError):
                # Whoever clears its environment is still in the namespace, where there is one.
                ours = (
                    f"STBENCH_TEST_BOARD={self._mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
                )
                inside = bool(namespace) and _link(f"/proc/{pid}/ns/pid") == namespace
                if not ours and not (inside and pid != self._init_pid):
                    continue
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and not name.startswith("sshd"):
                    line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                    found[pid] = line.decode("utf-8", "replace").strip() or name
        return found

    def run(self, argv: Sequence[str | Path]) -> str:
        """Runs a program on the board, without SSH, and returns its stdout; fails with its stderr."""
        done = subprocess.run([*self._enter(), *map(str, argv)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def start_sshd(self) -> None:
        """Listens again, at the same address and port."""
        kept = self.port
        for _ in range(20):
            self.port = kept or (22 if self.cable else free_port())
            self._write_config()
            log = (self.directory / "sshd.log").open("ab")
            argv = [*self._enter(), tool("sshd"), "-D", "-e", "-f", str(self.directory / "sshd_config")]
            self._sshd = subprocess.Popen(
                [*_dying_with_us(), *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            log.close()
            if self._listens():
                return
            # Somebody else took the port in between.
            self._sshd.wait()
        raise AssertionError((self.directory / "sshd.log").read_text())

    def stop_sshd(self) -> None:
        """The listener and its sessions are killed; their sockets send FIN, as when sshd crashes."""
        if self._sshd is None:
            return
        roots = {self._sshd.pid, self._init_pid}
        # Until none is left: a listener that is killed forks, and listens, until it is its turn to end.
        wait_until(lambda: not _kill_sshds(roots), "sshd ends")
        with contextlib.suppress(ProcessLookupError):
            self._sshd.kill()
        self._sshd.wait()
        self._sshd = None

    def reboot(self) -> None:
        """Everything on the board ends at once; its boot id is another one afterwards."""
        require(ROOT, "rebooting a board needs namespaces, which need root")
        self._power_off()
        self._boot()

    def close(self) -> None:
        """Takes the board away."""
        self.stop_sshd()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._power_off()

    # ---- the cable ----------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Packets vanish both ways, silently."""
        self._nft("drop", "drop")

    def reset(self) -> None:
        """Whatever arrives is answered with RST."""
        self._nft("reject with tcp reset", "tcp flags & rst == 0 drop")

    def lose(self, percent: float) -> None:
        """Packets vanish at random, that many of hundred each way."""
        rule = f"numgen random mod 1000 < {round(10 * percent)} drop"
        self._nft(rule, rule)

    def slow(self, bytes_per_s: int) -> None:
        """Limits what goes to the board."""
        rate = ["rate", f"{8 * bytes_per_s}bit", "burst", "32kb", "latency", "400ms"]
        subprocess.run([tool("tc"), "qdisc", "replace", "dev", self._veth, "root", "tbf", *rate], check=True)

    def mend(self) -> None:
        """The cable as it was."""
        self.run([tool("nft"), "flush ruleset"])
        subprocess.run(
            [tool("tc"), "qdisc", "del", "dev", self._veth, "root"], check=False, capture_output=True
        )

    def _nft(self, arriving: str, leaving: str) -> None:
        assert self.cable, "this board has no cable"
        rules = f"""flush ruleset
table ip link {{
  chain arriving {{ type filter hook input priority 0; iif != lo tcp dport 22 {arriving}; }}
  chain leaving {{ type filter hook output priority 0; oif != lo tcp sport 22 {leaving}; }}
}}"""
        self.run([tool("nft"), rules])

    # ---- how it is made ------------------------------------------------------------

    def _boot(self) -> None:
        if ROOT:
            # Debian's sshd asks for it; the service makes it at boot.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
            (self.directory / "boot_id").write_text(f"{uuid.uuid4()}\n")
            # An ignored SIGCHLD reaps whoever is orphaned on the board.
            script = (
                'hostname "$1" && mount --bind "$2" /proc/sys/kernel/random/boot_id && echo up && '
                "trap '' CHLD && exec sleep infinity"
            )
            namespaces = ["--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
            shell = ["sh", "-c", script, "sh", self.name, str(self.directory / "boot_id")]
            if self.cable:
                namespaces.append("--net")
            self._init = subprocess.Popen(
                [*_dying_with_us(), tool("unshare"), *namespaces, *shell],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            assert self._init.stdout is not None
            assert self._init.stdout.readline() == b"up\n", "no namespaces"
            (self._init_pid,) = _children(self._init.pid)
            if self.cable:
                self._lay_cable()
        self.start_sshd()

    def _lay_cable(self) -> None:
        self._veth = f"sb{os.getpid() % 10**7}n{next(_NUMBERS) % 1000}"
        routes = subprocess.run([tool("ip"), "route"], check=True, capture_output=True, text=True).stdout
        if self.host == "127.0.0.1":
            # The range is for benchmarks of networks; a /30 of it per board.
            nets = (
                f"198.{random.choice((18, 19))}.{random.randrange(256)}.{4 * random.randrange(64)}"
                for _ in range(99)
            )
            net = next(net for net in nets if net not in routes)
            self.host = f"{net.rpartition('.')[0]}.{int(net.rpartition('.')[2]) + 2}"
        here = f"{self.host.rpartition('.')[0]}.{int(self.host.rpartition('.')[2]) - 1}/30"
        ip = tool("ip")
        peer = ["type", "veth", "peer", "name", "eth0", "netns", str(self._init_pid)]
        subprocess.run([ip, "link", "add", self._veth, *peer], check=True)
        subprocess.run([ip, "addr", "add", here, "dev", self._veth], check=True)
        subprocess.run([ip, "link", "set", self._veth, "up"], check=True)
        self.run([ip, "addr", "add", f"{self.host}/30", "dev", "eth0"])
        self.run([ip, "link", "set", "eth0", "up"])
        self.run([ip, "link", "set", "lo", "up"])

    def _power_off(self) -> None:
        if self._init is not None:
            if self._init_pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._init_pid, signal.SIGKILL)
            self._init.kill()
            self._init.wait()
            assert self._init.stdout is not None
            self._init.stdout.close()
            # The namespace takes its end of the cable along, a little later.
            if self._veth:
                ip = [tool("ip"), "link", "del", self._veth]
                subprocess.run(ip, check=False, capture_output=True)
            self._init, self._init_pid = None, 0
        if self._sshd is not None:
            self._sshd.kill()
            self._sshd.wait()
            self._sshd = None

    def _enter(self) -> list[str]:
        if not self._init_pid:
            return []
        # By type: --all would also need a user namespace that is not our own.
        kinds = ["--mount", "--uts", "--pid", *(["--net"] if self.cable else [])]
        return [tool("nsenter"), "--target", str(self._init_pid), *kinds, "--"]

    def _write_config(self) -> None:
        environment = {
            "HOME": self.home,
            "PATH": self._path,
            "STBENCH_TEST_BOARD": self._mark,
            # These boards share /run/lock and /tmp; a board has a lease of its own.
            "STBENCH_LEASE": self.directory / "stbench.lease",
        }
        pairs = " ".join(f'"{key}={value}"' for key, value in environment.items())
        text = f"""\
{self._config}
ListenAddress {self.host}:{self.port}
HostKey {self.directory / "host_key"}
AuthorizedKeysFile {self.directory / "authorized_keys"}
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv {pairs}
Subsystem sftp internal-sftp
MaxStartups 200
MaxSessions 100
LogLevel VERBOSE
"""
        (self.directory / "sshd_config").write_text(text)

    def _listens(self) -> bool:
        assert self._sshd is not None
        deadline = time.monotonic() + 20
        while self._sshd.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1) as link:
                link.settimeout(2)
                if link.recv(4) == b"SSH-":
                    return True
            time.sleep(0.01)
        self._sshd.kill()
        return False


def _dying_with_us() -> list[str]:
    return [tool("setpriv"), "--pdeathsig", "KILL"]


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _kill_sshds(roots: set[int]) -> list[int]:
    """Kills the sshds of these processes; returns those that had not ended yet."""
    found = []
    for pid in _descendants(roots):
        with contextlib.suppress(OSError):
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
            if name.startswith("sshd") and rest.split()[0] not in "XZ":
                os.kill(pid, signal.SIGKILL)
                found.append(pid)
    return found


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _descendants(roots: set[int]) -> list[int]:
    parents = {}
    for pid in _pids():
        with contextlib.suppress(OSError):
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    found = set(roots) - {0}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)
