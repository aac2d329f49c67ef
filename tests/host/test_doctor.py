"""Captured trees: each planted fault is named, and a healthy machine has none."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stbench.doctor import captures, doctor_memory, doctor_speed
from stbench.doctor.captures import CapturedTree, Meta
from stbench.doctor.doctor import diagnose
from stbench.doctor.findings import FAILS, NOTE, SEVERITIES, WRONG, Finding, Patient
from stbench.errors import InputError
from tests.agent.conftest import TREES
from tests.agent.heating import Board
from tests.host.conftest import Sandbox

CPU = "sys/devices/system/cpu/"

# What a person mended; "*" stands for CPU numbers.
HEALTHY: dict[str, dict[str, str]] = {
    "pi5": {
        CPU + "cpu*/cpufreq/scaling_governor": "performance",
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids",
        "proc/self/mountinfo": "25 1 259:2 / / rw,noatime - ext4 /dev/nvme0n1p2 rw",
        "sys/dev/block/259:2/uevent": "DEVNAME=nvme0n1p2",
        "sys/class/block/nvme0n1/queue/read_ahead_kb": "128",
        "sys/class/block/nvme0n1/queue/rotational": "0",
    },
    "rk3588": {
        CPU + "cpu*/cpufreq/scaling_governor": "performance",
        "sys/class/devfreq/dmc/governor": "performance",
        "proc/loadavg": "0.05 0.06 0.07 1/300 4000",
    },
    "heating-rk3588": {"proc/loadavg": "0.05 0.06 0.07 1/300 4000"},
}

Plant = tuple[str, Mapping[str, str | None], dict[str, Any], str, str]


def _patient(tree: str, changes: Mapping[str, str | None] = {}, **meta: Any) -> Patient:
    (found,) = captures.read(TREES / tree).values()
    files = dict(found.capture.files)
    for path, text in {**HEALTHY.get(tree, {}), **changes}.items():
        paths = [path.replace("*", str(n)) for n in range(64)] if "*" in path else [path]
        for one in paths:
            if text is None:
                files.pop(one, None)
            elif "*" not in path or one in files:
                files[one] = text + "\n"
    outside = {key: meta.pop(key) for key in ("clock_off_s", "memory_limit") if key in meta}
    capture = dataclasses.replace(found.capture, files=files, **meta)
    outside = {"clock_off_s": found.clock_off_s, "memory_limit": found.memory_limit, **outside}
    return Patient(capture, name="board", **outside)


def names(patient: Patient) -> list[str]:
    return [finding.name for finding in diagnose(patient)]


@pytest.mark.parametrize("tree", HEALTHY)
def test_a_healthy_machine_has_no_finding(tree: str) -> None:
    assert diagnose(_patient(tree)) == []


SWAPS = "Filename Type Size Used Priority\n{} partition 8105440 20480 5"
ROOT = "26 1 259:2 / / {} - {} {} {}"
PLANTED: list[Plant] = [
    ("pi5", {CPU + "cpu2/cpufreq/scaling_governor": "ondemand"}, {}, "governor", "CPUs 2 have"),
    (
        "rk3588",
        {CPU + "cpu4/cpufreq/scaling_max_freq": "1200000"},
        {},
        "frequency-cap",
        "CPU 4 1200 of 2256 MHz",
    ),
    ("rk3588", {CPU + "online": "0-3,6-7"}, {}, "cpus-offline", "CPUs 4-5 are"),
    ("rk3588", {"sys/class/devfreq/dmc/governor": "dmc_ondemand"}, {}, "dram-governor", "dmc_ondemand"),
    (
        "pi5",
        {"sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "10001"},
        {},
        "undervoltage",
        "it has too low a supply",
    ),
    (
        "pi5",
        {"sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": None},
        {"commands": {"vcgencmd get_throttled": "throttled=0x10000\n"}},
        "undervoltage",
        "had since it started",
    ),
    ("pi5", {"sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1"}, {}, "undervoltage", "has too low"),
    (
        "pi5",
        {"sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "80000"},
        {},
        "throttled",
        "was throttled since it started",
    ),
    (
        "rk3588",
        {
            "sys/class/thermal/cooling_device1/cur_state": "3",
            CPU + "cpu4/cpufreq/scaling_max_freq": "1200000",
        },
        {},
        "throttled",
        "thermal-cpufreq-1 in state 3",
    ),
    (
        "x86-vm",
        {CPU + "cpu1/thermal_throttle/core_throttle_count": "12"},
        {},
        "throttle-counters",
        "12 times",
    ),
    ("rk3588", {"sys/class/thermal/thermal_zone1/temp": "88000"}, {}, "hot", "88 °C"),
    (
        "rk3588",
        {
            "sys/class/thermal/thermal_zone1/temp": "71000",
            "sys/class/thermal/thermal_zone1/trip_point_0_type": "passive",
            "sys/class/thermal/thermal_zone1/trip_point_0_temp": "75000",
        },
        {},
        "hot",
        "throttles at 75 °C",
    ),
    ("rk3588", {"proc/loadavg": "2.11 1.0 0.5 3/300 4000"}, {}, "load", "load average is 2.11"),
    ("pi5", {}, {"busy_cpus": 0.9, "busiest": {"chromium": 0.8}}, "load", "0.9 of its CPUs: chromium 80%"),
    ("rk3588", {"proc/swaps": SWAPS.format("/dev/zram0")}, {}, "zram", "20 MiB are swapped"),
    ("pi5", {"proc/swaps": SWAPS.format("/var/swap")}, {}, "swap", "20 MiB are swapped to /var/swap"),
    (
        "android",
        {"proc/meminfo": "MemTotal: 8000000 kB\nSwapTotal: 4194300 kB\nSwapFree: 3145724 kB"},
        {},
        "swap",
        "1024 MiB",
    ),
    (
        "pi5",
        {"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids"},
        {},
        "memory-controller",
        "switched off",
    ),
    (
        "rk3588",
        {"sys/fs/cgroup/cgroup.controllers": "cpu", "proc/cgroups": "#subsys_name\ncpu\t0\t70\t1"},
        {},
        "memory-controller",
        "not in its kernel",
    ),
    (
        "pi5",
        {
            "proc/self/mountinfo": "25 1 179:2 / / rw - ext4 /dev/mmcblk0p2 rw",
            "sys/class/block/mmcblk0/device/type": "SD",
        },
        {},
        "slow-storage",
        "an SD card (SD64G)",
    ),
    (
        "rk3588",
        {
            "proc/self/mountinfo": ROOT.format("rw", "ext4", "/dev/sda1", "rw"),
            "sys/dev/block/259:2/uevent": "DEVNAME=sda1",
            "sys/class/block/sda/queue/rotational": "1",
        },
        {},
        "slow-storage",
        "a disk that turns",
    ),
    (
        "rk3588",
        {"proc/self/mountinfo": ROOT.format("rw", "nfs4", "nas:/boards", "rw")},
        {},
        "slow-storage",
        "a network file system (nfs4)",
    ),
    (
        "rk3588",
        {"proc/self/mountinfo": ROOT.format("rw", "tmpfs", "tmpfs", "rw")},
        {},
        "storage-in-memory",
        "tmpfs on /",
    ),
    ("rk3588", {"sys/class/block/nvme0n1/queue/read_ahead_kb": "16"}, {}, "read-ahead", "load slower"),
    ("rk3588", {"sys/class/block/nvme0n1/queue/read_ahead_kb": "8192"}, {}, "read-ahead", "load faster"),
    (
        "rk3588",
        {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd08"},
        {},
        "no-dotprod",
        "1.3 to 1.6 times the cycles",
    ),
    ("x86-vm", {"proc/cpuinfo": "processor\t: 0\nflags\t: fpu sse2"}, {}, "no-avx2", "no AVX2"),
    ("rk3588", {}, {"clock_off_s": -86400.0 * 365}, "clock", "365 days behind"),
    ("rk3588", {}, {"clock_off_s": 7.0}, "clock", "7 s ahead"),
    ("rk3588", {}, {"free_bytes": 30 << 20}, "disk-full", "31 MB are free"),
    ("rk3588", {}, {"free_bytes": 500 << 20}, "disk-full", "few models fit"),
    ("rk3588", {}, {"problem": "/data: Permission denied"}, "work-dir", "/data: Permission denied"),
    (
        "rk3588",
        {"proc/self/mountinfo": ROOT.format("ro", "ext4", "/dev/root", "ro")},
        {},
        "work-dir",
        "mounted read-only",
    ),
    (
        "rk3588",
        {"proc/self/mountinfo": ROOT.format("rw,noexec", "ext4", "/dev/root", "rw")},
        {},
        "noexec",
        "cannot be loaded",
    ),
    ("rk3588", {}, {"python": "3.7.16"}, "python", "its Python is 3.7"),
    ("android", {}, {}, "unseen", "governors, temperatures, other load"),
]


@pytest.mark.parametrize(
    ("tree", "changes", "meta", "name", "said"), PLANTED, ids=[f"{plant[0]}-{plant[3]}" for plant in PLANTED]
)
def test_each_planted_fault_is_named(
    tree: str, changes: Mapping[str, str | None], meta: dict[str, Any], name: str, said: str
) -> None:
    found = diagnose(_patient(tree, changes, **meta))
    (finding,) = (finding for finding in found if finding.name == name)
    assert said in finding.text
    assert finding.mend
    assert finding.severity in SEVERITIES
    if tree in HEALTHY:
        assert [finding.name for finding in found] == [name], "and nothing else"


def test_every_check_has_its_plant() -> None:
    """A check of which no plant is found could be taken out unnoticed."""
    for module in (doctor_speed, doctor_memory):
        for check in module.CHECKS:
            assert any(
                any(finding.name == name for finding in check(_patient(tree, changes, **meta)))
                for tree, changes, meta, name, _ in PLANTED
            ), check.__name__


def test_the_worst_comes_first() -> None:
    changes = {CPU + "cpu*/cpufreq/scaling_governor": "ondemand"}
    changes["sys/class/block/nvme0n1/queue/read_ahead_kb"] = "8192"
    found = diagnose(_patient("rk3588", changes, python="3.6.1"))
    assert [finding.severity for finding in found] == [FAILS, WRONG, NOTE]


def test_a_board_that_heats_up(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.write("proc/loadavg", "0.05 0.06 0.07 1/300 4000")
    seen = []
    for _ in range(10):
        (meta,) = captures.read(board.root).values()
        seen.append(tuple(finding.name for finding in diagnose(Patient(meta.capture))))
        board.sleep(30)
    assert seen[0] == ()
    assert ("throttled", "hot") in seen, "while it is throttled its lowered limit is no finding of its own"
    assert seen[-1] == (), "and it cools down again"


@pytest.mark.parametrize(
    ("files", "mend"),
    [
        ({}, "sed -i '1s/$/ cgroup_enable=memory/' /boot/firmware/cmdline.txt"),
        ({"boot/firmware/cmdline.txt": None, "boot/cmdline.txt": "x"}, "/boot/cmdline.txt && sudo reboot"),
        ({"boot/firmware/cmdline.txt": None, "boot/armbianEnv.txt": "x"}, "tee -a /boot/armbianEnv.txt"),
        (
            {"boot/firmware/cmdline.txt": None, "boot/extlinux/extlinux.conf": "x"},
            "/boot/extlinux/extlinux.conf",
        ),
        ({"boot/firmware/cmdline.txt": None}, "add cgroup_enable=memory to the kernel's command line"),
    ],
)
def test_how_the_controller_is_switched_on_depends_on_the_boot_loader(
    files: dict[str, str | None], mend: str
) -> None:
    off = {"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids"}
    (finding,) = diagnose(_patient("pi5", {**off, **files}))
    assert mend in finding.mend
    assert diagnose(_patient("pi5", off, memory_limit="ballast")) == [], "no need of it"


def test_what_a_device_names_is_safe_to_print_and_to_paste() -> None:
    swaps = SWAPS.format("/x;rm$IFS-rf$IFS~\x1b[31m")
    (finding,) = diagnose(_patient("rk3588", {"proc/swaps": swaps}))
    assert finding.mend == "sudo swapoff '/x;rm$IFS-rf$IFS~?[31m'"
    assert finding.text.isprintable()


def test_garbage_is_no_crash() -> None:
    (meta,) = captures.read(TREES / "rk3588").values()
    for junk in ("", "\xff\0garbage: 1 2 x\n - : -1,5-2\n", "9" * 5000, " - \n" * 50, "-5"):
        capture = dataclasses.replace(meta.capture, files=dict.fromkeys(meta.capture.files, junk))
        assert all(isinstance(finding, Finding) for finding in diagnose(Patient(capture)))


# ---- captures as files -------------------------------------------------------------------------------


def test_denied_paths_are_refused_as_the_device_did() -> None:
    tree = CapturedTree({"a/b": "1\n", "a/c": "2"}, ["a/c", "x/y", "z/*/q"])
    assert tree.text("a/b") == "1"
    assert tree.names("a") == ["b", "c"]
    assert tree.text("a/c") is None
    assert tree.names("x/y") == []
    assert tree.text("z/1/q") is None
    assert tree.denied == ["a/c", "x/y", "z/1/q"]
    assert tree.text("a") is None
    assert tree.names("a/b") == []


def test_the_program_reads_a_tree(sandbox: Sandbox) -> None:
    code, out, _ = sandbox.run("devices", "doctor", "--tree", str(TREES / "pi5"))
    assert code == 0
    assert out.startswith("pi5: 3 findings\n  wrong  governor: CPUs 0-3 have the governor ondemand")
    assert (
        "         echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor\n" in out
    )
    code, out, _ = sandbox.run("devices", "doctor", "--json", "--tree", str(TREES / "pi5"))
    (found,) = json.loads(out)
    assert found["device"] == "pi5"
    assert {"name", "severity", "text", "mend"} == set(found["findings"][0])
    code, _, err = sandbox.run("devices", "doctor", "--tree", str(TREES), "pi5")
    assert code == 2
    assert "--tree examines what was captured" in err


def test_a_run_that_would_fail_is_exit_code_three(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "t/proc").mkdir(parents=True)
    (tmp_path / "t/capture.json").write_text('{"capture": {"python": "3.6.9"}}')
    code, out, _ = sandbox.run("devices", "doctor", "--tree", str(tmp_path / "t"))
    assert code == 3
    assert "fails  python: its Python is 3.6" in out


def test_a_work_dir_of_this_machine_that_cannot_be_made(sandbox: Sandbox) -> None:
    sandbox.write("devices.yaml", "devices:\n  local: {work_dir: /proc/x}\n")
    code, out, _ = sandbox.run("devices", "doctor")
    assert (code, "fails  work-dir: /proc/x: " in out) == (3, True)


def _zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no captured machine"),
        ({"a/b": b"1"}, "no captured machine"),
        ({"b/capture.json": b"{"}, "not JSON"),
        ({"b/capture.json": b'{"capture": {"python": 3}}'}, "expected text|expected a string|python"),
        ({f"b/proc/{n}": b"0" * (1 << 20) for n in range(70)}, "more than 20000 files or 64 MiB"),
    ],
)
def test_bundles_that_are_none(tmp_path: Path, files: Mapping[str, bytes], said: str) -> None:
    with pytest.raises(InputError, match=said):
        captures.read(_zip(tmp_path / "b.zip", files))


def test_a_hostile_bundle_writes_nothing(tmp_path: Path) -> None:
    path = _zip(
        tmp_path / "b.zip", {"b/../../proc/evil": b"x", "b\x1b[31m/proc/loadavg": b"9.0 1 1", "/proc/x": b""}
    )
    assert all(label.isprintable() for label in captures.read(path))
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["b.zip"]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_bundles_are_refused(tmp_path: Path, method: int) -> None:
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("b/proc/loadavg", random.Random(1).randbytes(400))
    whole = path.read_bytes()
    refused = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            captures.read(path)
        except InputError as error:
            refused += bool(re.search(r"cannot be read: .", str(error)))
    assert refused > 400


def test_a_damaged_bundle_that_ends_early_is_refused(tmp_path: Path) -> None:
    """A stored file that promises more than the bundle holds. Python's version decides how that is said."""
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("b/proc/loadavg", b"x" * 40)
    data = path.read_bytes()
    sizes = struct.pack("<LL", 40, 40)
    path.write_bytes(data.replace(sizes, struct.pack("<LL", 4000, 4000)))
    with pytest.raises(InputError, match=r"cannot be read: ."):
        captures.read(path)


def test_names_that_no_machine_has_are_left_out() -> None:
    """Each beginning of a name is a folder: of these, gigabytes."""
    endless, deep = "/".join("x" * 2**19), "proc/" + "d/" * 100 + "f"
    tree = CapturedTree({"proc/" + endless: "1", deep: "1", "proc/loadavg": "2"}, iter([endless, "proc/no"]))
    assert tree.names("proc") == ["loadavg", "no"]
    assert (tree.text("proc/loadavg"), tree.text(deep), tree.text("proc/no")) == ("2", None, None)


def test_no_such_file(tmp_path: Path) -> None:
    for name, data in (("gone", None), ("text", b"no zip")):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            captures.read(tmp_path / name)


def test_a_bundle_reads_as_what_was_written(tmp_path: Path) -> None:
    (meta,) = captures.read(TREES / "android").values()
    path = tmp_path / "b.zip"
    path.write_bytes(captures.bundle({"one": (meta, "text\n"), "two": (Meta(meta.capture, 3.0), "")}))
    found = captures.read(path)
    assert found["one"] == meta
    assert (found["two"].capture, found["two"].clock_off_s) == (meta.capture, 3.0)
