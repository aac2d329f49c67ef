"""An entry is appended as text: nothing else of devices.yaml changes, or the file stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stbench.devices import devices_file
from stbench.devices.inventory import Device, load_inventory, parse_inventory
from stbench.errors import InputError, InventoryError, UsageError
from tests.host.conftest import ROOT, Sandbox

KEYS: dict[str, str | int] = {
    "connector": "ssh",
    "host": "10.0.0.7",
    "port": 8022,
    "user": "pi",
    "threads": "all",
}
EXPECTED = Device("new", connector="ssh", host="10.0.0.7", port=8022, user="pi", models={})

ENTRY = """\
  # a comment
  new:
    connector: ssh
    host: 10.0.0.7
    port: 8022
    user: pi
    threads: all
"""

# (before, after the entry): the file is these two, and the entry between them.
FILES = [
    ("devices:\n  local: {}\n", ""),
    ("# first\ndevices:\n  local: # why\n    threads: [1,   2]\n", "\n# of the engines\nengines: {}\n"),
    ("engines: {}\ndevices:\n  local:\n", ""),
    (
        "devices:\n  a:\n    tags:\n    - x\n    - y\n  # b:\n  #   host: z\n",
        "\n\n# about engines\nengines: {}\n",
    ),
    ("devices:\n  a: {tags: [x,\n    y]}\n", "engines: {}\n"),
    ("devices:\n  a:\n    power: >-\n      one\n      two\n", ""),
    ("---\ndevices:\n  local: {}\n", "...\n"),
    ("\ufeffdevices:\n  local: {}\n", ""),
]


@pytest.mark.parametrize(("before", "after"), FILES)
def test_the_entry_is_all_that_changes(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "devices.yaml"
    path.write_text(before + after)
    assert devices_file.append(path, "new", "a comment", KEYS) == EXPECTED
    # A blank line before it, where the file has some between its devices.
    assert path.read_text() in (before + ENTRY + after, f"{before}\n{ENTRY}{after}")
    assert load_inventory(path).devices[-1] == EXPECTED
    assert [file.name for file in tmp_path.iterdir()] == ["devices.yaml"]


def test_deeper_files_windows_files_and_files_without_a_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "devices.yaml"
    path.write_bytes(b"devices:\r\n    local:\r\n        threads: 1")
    devices_file.append(path, "new", "", {"connector": "ssh", "host": "h"})
    before = b"devices:\r\n    local:\r\n        threads: 1\r\n"
    assert path.read_bytes() == before + b"    new:\r\n        connector: ssh\r\n        host: h\r\n"


def test_the_shipped_file_takes_one(tmp_path: Path) -> None:
    path = tmp_path / "devices.yaml"
    shipped = (ROOT / "devices.yaml").read_text()
    path.write_text(shipped)
    devices_file.append(path, "new", "a comment", KEYS)
    assert path.read_text() == shipped + "\n" + ENTRY


def test_two_are_appended_one_after_the_other_and_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("devices:\n  local: {}\n")
    path = tmp_path / "devices.yaml"
    path.symlink_to("real.yaml")
    for name in ("one", "two"):
        devices_file.append(path, name, "", {"connector": "ssh", "host": name})
    assert path.is_symlink()
    assert [device.name for device in load_inventory(path).devices] == ["local", "one", "two"]


@pytest.mark.parametrize(
    "text",
    [
        "devices: {local: {}}\n",
        "{devices: {local: {}}}\n",
        "devices:\n  local: &x {}\n  new: *x\n",
    ],
)
def test_a_file_that_has_no_room_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "devices.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="cannot be appended") as caught:
        devices_file.append(path, "new", "", KEYS)
    assert "  new:\n    connector: ssh\n" in caught.value.hint
    assert path.read_text() == text


@pytest.mark.parametrize("name", ["local", "many-[1:3]"])
def test_an_entry_that_is_not_one_new_device_is_not_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "devices.yaml"
    path.write_text("devices:\n  local: {}\n")
    with pytest.raises(InputError, match="cannot be appended"):
        devices_file.append(path, name, "", {"connector": "local"})
    assert path.read_text() == "devices:\n  local: {}\n"


def test_a_file_that_is_wrong_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "devices.yaml"
    path.write_text("devices:\n  local: {prot: 1}\n")
    with pytest.raises(InventoryError, match="prot: unknown key"):
        devices_file.append(path, "new", "", KEYS)
    assert path.read_text() == "devices:\n  local: {prot: 1}\n"


def test_a_file_that_changes_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "devices.yaml"
    path.write_text("devices:\n  local: {}\n")
    with_entry = devices_file._with_entry

    def meanwhile(*arguments: object) -> bytes | None:
        path.write_text("devices:\n  mine: {}\n")
        return with_entry(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(devices_file, "_with_entry", meanwhile)
    with pytest.raises(InputError, match="changed meanwhile"):
        devices_file.append(path, "new", "", KEYS)
    assert path.read_text() == "devices:\n  mine: {}\n"


@settings(deadline=None)
@given(st.text(max_size=40), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True))
def test_whatever_a_board_calls_itself_stays_a_comment(comment: str, name: str) -> None:
    text = "\n".join(["devices:", *devices_file.entry_text(name, comment, KEYS, 2), ""])
    (device,) = parse_inventory(text.encode(), "d").devices
    assert (device.name, device.host) == (name, "10.0.0.7")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("pi@", "is no board's address"),
        ("pi@host:0", "is no board's address"),
        ("pi@host:70000", "is no board's address"),
        ("a b", "is no board's address"),
        ("-host", "cannot be a device's name"),
        ("pi;rm@host", "is no board's address"),
    ],
)
def test_targets_that_are_none(sandbox: Sandbox, target: str, said: str) -> None:
    code, _, err = sandbox.run("devices", "add", "--", target)
    assert (code, said in err) == (2, True), err


def test_a_password_is_neither_taken_nor_shown(sandbox: Sandbox) -> None:
    code, _, err = sandbox.run("devices", "add", "pi:hunter2@host")
    assert (code, "a password is asked for" in err, "hunter2" in err) == (2, True, False)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("pi@rpi5.local", ("rpi5", "rpi5.local", 22, "pi")),
        ("rpi5:8022", ("rpi5", "rpi5", 8022, "")),
        ("pi@192.168.1.40", ("192-168-1-40", "192.168.1.40", 22, "pi")),
        ("pi@[fe80::1%eth0]:8022", ("fe80-1-eth0", "fe80::1%eth0", 8022, "pi")),
    ],
)
def test_targets(target: str, expected: tuple[str, str, int, str]) -> None:
    device = _device(target)
    assert (device.name, device.host, device.port, device.user) == expected
    assert device.connector == "ssh"


def test_keys_are_named_by_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "id").write_text("")
    assert _device("h", "--key", str(tmp_path / "id")).key == "~/id"
    assert _device("h", "--key", "~/id").key == "~/id"
    with pytest.raises(UsageError, match="no such file"):
        _device("h", "--key", "gone")


def _device(target: str, *options: str) -> Device:
    from stbench.cli import build_parser
    from stbench.commands import _devices_add

    return _devices_add._device(build_parser("devices").parse_args(["devices", "add", target, *options]))


def test_options_may_stand_before_the_sub_command(sandbox: Sandbox) -> None:
    sandbox.write("lab.yaml", "devices:\n  mine: {}\n")
    for argv in (
        ("--devices", "lab.yaml", "list"),
        ("list", "--devices", "lab.yaml"),
        ("--devices", "lab.yaml"),
    ):
        code, out, _ = sandbox.run("devices", *argv, "--no-probe")
        assert (code, out) == (0, "mine: enabled, local, threads all\n"), argv
    code, out, _ = sandbox.run("devices", "--json", "--no-probe", "list")
    assert (code, out[0]) == (0, "[")
