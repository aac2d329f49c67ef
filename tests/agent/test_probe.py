"""Facts and sensors, from captured /proc and /sys trees."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import shutil
from pathlib import Path

import pytest

from stbench.agent import monitor, probe, wire
from stbench.agent.tree import Tree, cpu_list
from stbench.agent.wire import DeviceFacts
from tests.agent.conftest import TREES


class CapturedTree(Tree):
    """A tree whose file DENIED lists patterns of paths that its device refuses to read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        denied = root / "DENIED"
        self._patterns = denied.read_text().split() if denied.exists() else []

    def _refuse(self, path: str) -> None:
        parts = path.rstrip("/").split("/")
        for n in range(1, len(parts) + 1):
            if any(fnmatch.fnmatch("/".join(parts[:n]), pattern) for pattern in self._patterns):
                raise PermissionError(13, "Permission denied", path)

    def raw(self, path: str) -> bytes:
        self._refuse(path)
        return super().raw(path)

    def listing(self, path: str) -> list[str]:
        self._refuse(path)
        return super().listing(path)


def facts(name: str, work_path: str = "/") -> DeviceFacts:
    found = probe.probe(CapturedTree(TREES / name), work_path=work_path)
    assert wire.loads(DeviceFacts, wire.dumps(found)) == found
    return found


def test_a_virtual_machine_without_sensors() -> None:
    found = facts("x86-vm")
    assert (found.machine, found.cpu_model, found.n_cpus) == ("x86_64", "AMD EPYC", 2)
    assert found.allowed_cpus == [0, 1]
    assert [cluster.cpus for cluster in found.clusters] == [[0, 1]]
    assert "avx512_vnni" in found.features
    assert found.caches == {"L1d": 32 << 10, "L1i": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}
    assert found.memory_bytes == 24684096 * 1024
    assert found.virtualisation == "hypervisor"
    assert (found.storage, found.read_ahead_kb) == ("ext4 on /dev/vda", 8192)
    assert "CPU frequencies: absent" in found.notes
    assert "temperatures: absent" in found.notes


def test_a_raspberry_pi_5() -> None:
    found = facts("pi5")
    assert found.board == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.page_bytes == 16384
    assert found.cpu_model == "Cortex-A76"
    assert (found.clusters[0].max_khz, found.clusters[0].governor) == (2400000, "ondemand")
    assert "asimddp" in found.features
    assert (found.storage, found.read_ahead_kb) == ("ext4 on /dev/mmcblk0p2 (SD64G)", 128)
    assert found.virtualisation is None
    assert found.notes == ["instruction sets: unknown without the native library"]


def test_an_rk3588_with_three_clusters() -> None:
    found = facts("rk3588")
    assert [(c.cpus, c.model, c.max_khz) for c in found.clusters] == [
        ([0, 1, 2, 3], "Cortex-A55", 1800000),
        ([4, 5], "Cortex-A76", 2256000),
        ([6, 7], "Cortex-A76", 2304000),
    ]
    assert found.cpu_model == "4x Cortex-A55 + 4x Cortex-A76"
    assert found.machine == "aarch64"
    assert found.kernel.startswith("5.10")
    assert found.storage == "ext4 on /dev/root (Samsung SSD 980 500GB)"
    assert found.read_ahead_kb == 128
    assert "cache sizes: absent" in found.notes


def test_storage_is_that_of_the_models_place() -> None:
    assert facts("rk3588", "/data/models").storage == "btrfs on /dev/nvme0n1p3 (Samsung SSD 980 500GB)"
    assert facts("rk3588", "/database").storage == "ext4 on /dev/root (Samsung SSD 980 500GB)"


def test_an_android_phone_that_refuses_most() -> None:
    found = facts("android", "/data/data/com.termux/files/home")
    assert found.cpu_model == "4x Cortex-A510 + 2x Cortex-A715 + 1x Cortex-A710 + 1x Cortex-X3"
    assert [cluster.cpus for cluster in found.clusters] == [[0, 1, 2, 3], [4, 5], [6], [7]]
    assert found.os == "Android"
    assert found.boot_id is None
    assert found.storage == "f2fs on /dev/block/dm-48"
    for note in ("CPU frequencies", "cache sizes", "temperatures", "read-ahead", "boot id"):
        assert f"{note}: denied" in found.notes


def test_an_empty_tree_gives_facts_and_notes(tmp_path: Path) -> None:
    found = probe.probe(Tree(tmp_path))
    assert found.n_cpus == 0
    assert "memory size: absent" in found.notes
    assert "storage: absent" in found.notes
    assert monitor.snapshot(Tree(tmp_path)).khz == []


def test_garbage_in_files_is_no_crash(tmp_path: Path) -> None:
    shutil.copytree(TREES / "rk3588", tmp_path / "t")
    for path in (tmp_path / "t").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff\x00garbage: 1 2 x\n - : -1,5-2\n")
    tree = Tree(tmp_path / "t")
    wire.dumps(probe.probe(tree))
    snapshot = monitor.snapshot(tree)
    wire.dumps(monitor.telemetry(snapshot, snapshot))


def test_this_machine() -> None:
    found = probe.probe(isas=["scalar"])
    assert found.page_bytes == os.sysconf("SC_PAGE_SIZE")
    assert found.n_cpus >= 1
    assert set(found.allowed_cpus) == os.sched_getaffinity(0)
    assert found.isas == ["scalar"]
    assert not [note for note in found.notes if note.startswith("instruction sets")]


def test_the_fingerprint_is_of_the_kind_of_machine() -> None:
    found = facts("pi5")
    same = dataclasses.replace(
        found,
        hostname="other",
        kernel="6.12",
        boot_id="x",
        python="3.8",
        memory_bytes=found.memory_bytes - (20 << 20),
        allowed_cpus=[0],
        storage=None,
    )
    assert probe.fingerprint(same) == found.fingerprint
    half = dataclasses.replace(found, memory_bytes=found.memory_bytes // 2)
    pages = dataclasses.replace(found, page_bytes=4096)
    prints = {found.fingerprint, probe.fingerprint(half), probe.fingerprint(pages)}
    prints |= {facts(name).fingerprint for name in ("x86-vm", "rk3588", "android")}
    assert len(prints) == 6


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,6", [0, 1, 2, 3, 6]), ("5", [5]), ("", []), ("x-2", []), ("0-", []), ("0-99999999999", [])],
)
def test_cpu_lists(text: str, cpus: list[int]) -> None:
    assert cpu_list(text) == cpus


# ---- sensors ---------------------------------------------------------------------------------------


@pytest.fixture
def pi(tmp_path: Path) -> Path:
    """A copy of the Pi's tree to change."""
    return Path(shutil.copytree(TREES / "pi5", tmp_path / "pi"))


def throttle_file(root: Path) -> Path:
    return root / "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"


def test_no_sensors_is_unknown() -> None:
    snapshot = monitor.snapshot(CapturedTree(TREES / "x86-vm"))
    telemetry = monitor.telemetry(snapshot, snapshot)
    assert telemetry.throttled == "unknown"
    assert telemetry.khz_before == []
    assert telemetry.load_average == 0.44
    phone = monitor.snapshot(CapturedTree(TREES / "android"))
    assert monitor.throttled(phone, phone) == "unknown"


def test_a_pi_tells(pi: Path) -> None:
    before = monitor.snapshot(Tree(pi))
    assert before.temperature_mc == {"cpu-thermal": 51900}
    assert before.khz == [2400000, 1500000, 1500000, 1500000]
    assert monitor.throttled(before, monitor.snapshot(Tree(pi))) == "no"
    throttle_file(pi).write_text("40000\n")
    assert monitor.throttled(before, monitor.snapshot(Tree(pi))) == "yes"
    old = monitor.snapshot(Tree(pi))
    assert monitor.throttled(old, old) == "no", "the flag was there before this run"
    throttle_file(pi).write_text("40004\n")
    assert monitor.throttled(old, monitor.snapshot(Tree(pi))) == "yes"


def test_vcgencmd_answers_where_sysfs_does_not(pi: Path) -> None:
    throttle_file(pi).unlink()
    assert monitor.snapshot(Tree(pi)).pi_flags is None
    assert monitor.snapshot(Tree(pi), lambda: "throttled=0x50000\n").pi_flags == 0x50000
    assert monitor.snapshot(Tree(pi), lambda: "error=1\n").pi_flags is None


def test_a_cooling_cpu_is_throttled(tmp_path: Path) -> None:
    root = Path(shutil.copytree(TREES / "rk3588", tmp_path / "rk"))
    before = monitor.snapshot(Tree(root))
    assert monitor.throttled(before, before) == "no"
    (root / "sys/class/thermal/cooling_device1/cur_state").write_text("2\n")
    assert monitor.throttled(before, monitor.snapshot(Tree(root))) == "yes"


def test_a_lowered_frequency_limit_is_throttled(pi: Path) -> None:
    before = monitor.snapshot(Tree(pi))
    (pi / "sys/devices/system/cpu/cpu2/cpufreq/scaling_max_freq").write_text("1800000\n")
    assert monitor.throttled(before, monitor.snapshot(Tree(pi))) == "yes"


def test_x86_throttle_counters(tmp_path: Path) -> None:
    root = Path(shutil.copytree(TREES / "x86-vm", tmp_path / "x86"))
    counter = root / "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count"
    counter.parent.mkdir()
    counter.write_text("12\n")
    before = monitor.snapshot(Tree(root))
    assert monitor.throttled(before, before) == "no"
    counter.write_text("13\n")
    assert monitor.throttled(before, monitor.snapshot(Tree(root))) == "yes"
