"""A bundle that a stranger mails says nothing about the stranger."""

from __future__ import annotations

import dataclasses
import io
import shutil
import zipfile
from pathlib import Path

import pytest

from stbench.agent import capture as agent_capture
from stbench.agent.tree import Tree
from stbench.agent.wirecapture import Capture
from stbench.devices.inventory import Device
from stbench.doctor import captures, examination
from stbench.doctor.anonymous import anonymous
from stbench.doctor.captures import Meta
from stbench.doctor.examination import Examined
from tests.agent.conftest import TREES

# What must not be in a bundle, in any spelling of case.
HOST, USER, PERSON = "alices-kitchen-pi", "alicew", "Alice Wonderland"
SHORT = "bo"
SERIAL, MAC, BARE_MAC = "10000000deadbeef", "2c:cf:67:aa:bb:cc", "2ccf67aabbdd"
IPV4, IPV6, LINK_LOCAL = "10.11.12.13", "2001:db8:85a3::8a2e:370:7334", "fe80::2ecf:67ff:feaa:bbcc"
UUID, PARTUUID, MACHINE = (
    "0f1d2c3b-4a59-4687-9d0e-1f2a3b4c5d6e",
    "6c586e13-02",
    "3d1219c7c4c5404aaa1f6d2a48adfda4",
)
MAIL, SERVER, SSID = "duchess@cheshire.test", "nas.wonder.example", "WonderNet"
PLANTED = (
    *(HOST, USER, PERSON, SERIAL, MAC, BARE_MAC, IPV4, IPV6, LINK_LOCAL, UUID, PARTUUID, MACHINE, MAIL),
    *(SERVER, SSID, f"/home/{SHORT}", "hatter", "gateway-of-alice", "rabbit", "hushhush", "tea-party"),
)


@pytest.fixture
def planted(tmp_path: Path) -> Capture:
    """A Pi whose files are full of its owner."""
    root = Path(shutil.copytree(TREES / "pi5", tmp_path / "pi"))
    for path, text in {
        "proc/sys/kernel/hostname": f"{HOST}\n",
        "proc/cmdline": f"console=ttyAMA10 smsc95xx.macaddr={MAC.upper()} ip={IPV4}::{IPV4} root=UUID={UUID} "
        f"{USER} androidboot.serialno={SERIAL} ssid={SSID} my.key=hushhush nfsroot={SERVER}:/srv "
        "cgroup_disable=memory\n",
        "boot/firmware/cmdline.txt": f"root=PARTUUID={PARTUUID} quiet\n",
        "boot/armbianEnv.txt": f"rootdev=PARTUUID={PARTUUID}\nextraargs=net.mac={BARE_MAC}\n",
        "proc/cpuinfo": (root / "proc/cpuinfo").read_text()
        + f"\nSerial\t\t: {SERIAL}\nModel\t\t: Raspberry Pi 5\n",
        "proc/swaps": f"Filename Type Size Used Priority\n/home/{SHORT}/{USER}.swap file 1024 512 -2\n",
        "proc/self/mountinfo": (root / "proc/self/mountinfo").read_text()
        + f"50 25 0:50 / /home/{USER} rw - nfs4 {SERVER}:/{USER} rw,addr={IPV4},clientaddr={IPV6}\n"
        + f"51 25 8:1 / /media/{USER}/{SSID} rw - ext4 /dev/sda1 rw\n"
        "52 25 0:51 / /srv/tea-party rw - cifs //filer/tea-party rw\n",
        "proc/self/cgroup": f"0::/user.slice/user-1000.slice/{USER}@{HOST}.service\n",
        "proc/self/smaps": f"7f00-7f01 r-xp 0 b3:02 1 /home/{USER}/python\nKernelPageSize:       16 kB\n",
        "proc/sys/kernel/random/boot_id": f"{UUID}\n",
        "boot/extlinux/extlinux.conf": f"# {MAIL}, {PERSON}\nappend serial={SERIAL} {LINK_LOCAL} [{IPV6}]\n",
        f"sys/class/thermal/thermal_zone9-{USER}/temp": "1000\n",
        "etc/os-release": (root / "etc/os-release").read_text()
        + f'BUILD_ID="{MACHINE}"\nHOME_URL="http://{IPV4}/"\n',
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return dataclasses.replace(
        agent_capture.capture(Tree(root)),
        denied=[f"home/{USER}/x", f"sys/class/net/{MAC}"],
        cut=[f"sys/{HOST}"],
        commands={"vcgencmd measure_temp": f"temp=50.0'C {HOST} {MAC}\n"},
        busiest={f"{USER}-backup": 0.5, "chromium": 0.2},
        busy_cpus=0.7,
        work_dir=f"/home/{USER}/.cache/stbench",
        problem=f"/home/{USER}: Permission denied on {HOST}",
        private=[HOST, USER, PERSON, SERIAL, MAC, MACHINE, SHORT],
    )


def bytes_of(bundle: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return "\n".join(
            [*archive.namelist(), *(archive.read(name).decode("utf-8") for name in archive.namelist())]
        ).lower()


def bundled(capture: Capture) -> bytes:
    device = Device(
        "hatter",
        connector="ssh",
        host=SERVER,
        user=USER,
        proxy_jump="rabbit@gateway-of-alice:22",
        tags=("hatter",),
    )
    return examination.bundle([Examined("hatter", [], Meta(capture, 1.0), device)])


def test_planted_names_and_numbers_are_gone(planted: Capture) -> None:
    text = bytes_of(bundled(planted))
    for secret in PLANTED:
        assert secret.lower() not in text, secret


def test_addresses_and_serials_go_even_where_nobody_listed_them(planted: Capture) -> None:
    text = bytes_of(bundled(dataclasses.replace(planted, private=[])))
    for secret in (
        SERIAL,
        MAC,
        BARE_MAC,
        IPV4,
        IPV6,
        LINK_LOCAL,
        UUID,
        PARTUUID,
        MACHINE,
        MAIL,
        f"/home/{SHORT}",
    ):
        assert secret.lower() not in text, secret


def test_no_bundle_has_the_list_of_what_is_private(planted: Capture) -> None:
    text = bytes_of(captures.bundle({"x": (Meta(dataclasses.replace(planted, private=["Jabberwock"])), "")}))
    assert "jabberwock" not in text


def test_what_the_doctor_reads_is_still_there(planted: Capture, tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    path.write_bytes(bundled(planted))
    ((label, meta),) = captures.read(path).items()
    assert label == "board-1"
    files = meta.capture.files
    assert files["proc/device-tree/model"].startswith("Raspberry Pi 5 Model B")
    assert files["sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"] == "ondemand\n"
    assert "cgroup_disable=memory" in files["proc/cmdline"]
    before = examination.diagnose_meta("board-1", Meta(planted, 1.0))
    after = examination.diagnose_meta("board-1", meta)
    assert [finding.name for finding in before] == [finding.name for finding in after]
    assert {"governor", "swap", "memory-controller", "slow-storage", "load", "work-dir"} <= {
        f.name for f in after
    }


def test_equal_things_stay_equal(planted: Capture) -> None:
    found, replacer = anonymous(planted)
    name = replacer.text(USER)
    assert name.startswith("name-")
    assert found.work_dir == f"/home/{name}/.cache/stbench"
    assert f"{name}-backup" in found.busiest
    assert replacer.text(f"{MAC} {IPV4}") == replacer.text(f"{MAC.upper()} {IPV4}")


@pytest.mark.parametrize("tree", ["pi5", "rk3588", "android", "x86-vm"])
def test_numbers_that_are_no_address_stay(tree: str) -> None:
    """Frequencies, versions, device numbers and CPU lists are what a capture is for."""
    (meta,) = captures.read(TREES / tree).values()
    found, _ = anonymous(meta.capture)
    changed = {path for path, text in meta.capture.files.items() if found.files.get(path) != text}
    assert changed <= {
        *(
            "proc/cpuinfo",
            "proc/cmdline",
            "boot/firmware/cmdline.txt",
            "boot/extlinux/extlinux.conf",
            "proc/self/mountinfo",
        ),
        *("proc/sys/kernel/hostname", "proc/sys/kernel/random/boot_id", "proc/self/status"),
    }
    before, after = (one.files["proc/cpuinfo"].splitlines() for one in (meta.capture, found))
    assert [line for line in before if "Serial" not in line] == [
        line for line in after if "Serial" not in line
    ]
    assert not [line for line in after if "Serial" in line and "serial-" not in line]


def test_a_host_called_after_its_board_spoils_nothing() -> None:
    (meta,) = captures.read(TREES / "rk3588").values()
    capture = dataclasses.replace(meta.capture, private=["rock-5b", "rock", "pi", "a"])
    found, _ = anonymous(capture)
    assert found.files["proc/device-tree/model"] == meta.capture.files["proc/device-tree/model"]
