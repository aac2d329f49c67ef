"""What the packages' scripts, an installer and a first boot would have written: users, sshd, an init.

Two variants: ``BUSYBOX`` boots in six seconds and delegates a part of the cgroup hierarchy by hand;
``SYSTEMD`` boots systemd with logind, where ``systemd-run --user`` does the same properly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

USER = "board"
KERNEL_PACKAGE = "linux-image-cloud-arm64"
_PACKAGES = (
    *("bash", "busybox-static", "coreutils", "dash", "findutils", "grep", "procps", "util-linux"),
    *("libpython3-stdlib", "libstdc++6", "openssh-server", "openssh-sftp-server", "passwd"),
    *("python3-minimal", KERNEL_PACKAGE),
)
# What an emulated boot can do without: there is no screen, nothing is plugged in, and it is no first boot.
_MASKED = (
    *("getty.target", "systemd-firstboot.service", "systemd-hwdb-update.service", "ldconfig.service"),
    *("systemd-journal-catalog-update.service", "systemd-udevd.service", "systemd-udev-trigger.service"),
    *("systemd-udevd-control.socket", "systemd-udevd-kernel.socket", "systemd-update-done.service"),
)


@dataclass(frozen=True)
class Variant:
    """Packages and, as paths below the root, texts, scripts and symbolic links."""

    name: str
    packages: tuple[str, ...]
    files: Mapping[str, str]
    scripts: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)


_COMMON = {
    "etc/passwd": f"root:x:0:0:root:/root:/bin/bash\nsshd:x:100:65534::/run/sshd:/bin/false\n"
    f"messagebus:x:101:101::/:/bin/false\n{USER}:x:1000:1000::/home/{USER}:/bin/bash\n"
    "nobody:x:65534:65534::/:/bin/false\n",
    "etc/group": f"root:x:0:\nadm:x:4:\ntty:x:5:\nmessagebus:x:101:\n{USER}:x:1000:\nnogroup:x:65534:\n",
    # Not "!": without PAM, sshd takes that for a locked account.
    "etc/shadow": "".join(f"{name}:*:19000::::::\n" for name in ("root", "sshd", "messagebus", USER)),
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/hostname": "emulated\n",
}
_SSHD = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
PrintMotd no
MaxStartups 100
MaxSessions 100
Subsystem sftp /usr/lib/openssh/sftp-server
"""
_NETWORK = """\
$b ip link set lo up
$b ip link set eth0 up
$b ip addr add 10.0.2.15/24 dev eth0
$b ip route add default via 10.0.2.2
"""
_HOME = f"""\
$b mkdir -p /home/{USER}/.ssh
$b cp /etc/ssh/authorized_keys /home/{USER}/.ssh/authorized_keys
$b chown -R {USER}:{USER} /home/{USER}
$b chmod 700 /home/{USER} /home/{USER}/.ssh
$b mkdir -p -m 700 /root/.ssh
$b cp /etc/ssh/authorized_keys /root/.ssh/authorized_keys
"""
# Orphans are busybox init's children: a board that never reaps would show jobs that ended as alive.
_RC = f"""#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mkdir -p /dev/pts /dev/shm /run
$b mount -t devpts devpts /dev/pts
$b mount -t tmpfs -o mode=1777 shm /dev/shm
$b mount -t tmpfs run /run
$b mkdir -p /run/sshd
$b chmod 1777 /tmp
$b hostname emulated
# The user's part of the hierarchy, as systemd delegates it to user@1000.service: a process of his may move
# below it, and its controllers are on.
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
g=/sys/fs/cgroup/{USER}
$b mkdir -p $g/login
for c in $($b cat $g/../cgroup.controllers); do echo "+$c" > $g/../cgroup.subtree_control; done
for c in $($b cat $g/cgroup.controllers); do echo "+$c" > $g/cgroup.subtree_control; done
$b chown {USER}:{USER} $g $g/login $g/cgroup.procs $g/cgroup.threads $g/cgroup.subtree_control \\
  $g/login/cgroup.procs $g/login/cgroup.threads
{_HOME}{_NETWORK}"""
_START_SSHD = f"""#!/bin/busybox sh
echo $$ > /sys/fs/cgroup/{USER}/login/cgroup.procs
exec /usr/sbin/sshd -D -e
"""

BUSYBOX = Variant(
    "busybox",
    _PACKAGES,
    files={
        **_COMMON,
        "etc/ssh/sshd_config": _SSHD + "UsePAM no\n",
        "etc/inittab": "::sysinit:/etc/rc\n::respawn:/etc/start-sshd\n::ctrlaltdel:/bin/busybox reboot\n",
    },
    scripts={"etc/rc": _RC, "etc/start-sshd": _START_SSHD},
    links={"sbin/init": "../bin/busybox", "bin/sh": "dash"},
)

_PREPARE_UNIT = """\
[Unit]
DefaultDependencies=no
Before=sysinit.target ssh.service
[Service]
Type=oneshot
ExecStart=/etc/prepare
"""
_WANTS = "etc/systemd/system/multi-user.target.wants"

SYSTEMD = Variant(
    "systemd",
    (*_PACKAGES, "dbus", "libpam-modules", "libpam-runtime", "libpam-systemd", "systemd", "systemd-sysv"),
    files={
        **_COMMON,
        "etc/ssh/sshd_config": _SSHD + "UsePAM yes\n",
        "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
        "etc/pam.d/common-auth": "auth required pam_unix.so\n",
        "etc/pam.d/common-account": "account required pam_unix.so\n",
        "etc/pam.d/common-password": "password required pam_unix.so\n",
        "etc/pam.d/common-session": "session required pam_unix.so\nsession required pam_systemd.so\n",
        "etc/pam.d/common-session-noninteractive": "session required pam_unix.so\n",
        "etc/systemd/system/prepare.service": _PREPARE_UNIT,
        "usr/lib/tmpfiles.d/tmp.conf": "d /tmp 1777 root root\nd /run/sshd 0755 root root\n",
    },
    scripts={"etc/prepare": f"#!/bin/busybox sh\nb=/bin/busybox\n{_HOME}{_NETWORK}"},
    links={
        **{f"etc/systemd/system/{unit}": "/dev/null" for unit in _MASKED},
        f"{_WANTS}/ssh.service": "/lib/systemd/system/ssh.service",
        f"{_WANTS}/prepare.service": "/etc/systemd/system/prepare.service",
        "etc/systemd/system/default.target": "/lib/systemd/system/multi-user.target",
        "bin/sh": "dash",
    },
)
