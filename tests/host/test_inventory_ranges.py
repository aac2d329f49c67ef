"""One entry for many boards; and no secret in devices.yaml, not even in a message about it."""

from __future__ import annotations

import pytest

from stbench.devices.device_entry import CheckEntry
from stbench.devices.inventory import parse_inventory
from tests.host.test_inventory import problems


def test_a_range_makes_one_device_each() -> None:
    text = """
    devices:
      pi: {enabled: false, connector: ssh, user: pi}
      rpi5-[08:11]: {extends: pi, host: "rpi5-[08:11].local", power: "relay [08:11] cycle", tags: [x]}
      slow-[08:11]: {extends: "rpi5-[08:11]", threads: 1}
      n[9:10]: {extends: pi, ssh_config: "b[9:10]"}
    """
    devices = parse_inventory(text.encode(), "d").devices[1:]
    rpi5, slow, short = devices[:4], devices[4:8], devices[8:]
    assert [device.name for device in rpi5] == ["rpi5-08", "rpi5-09", "rpi5-10", "rpi5-11"]
    assert [device.host for device in rpi5] == [f"{device.name}.local" for device in rpi5]
    assert [device.power for device in rpi5] == [f"relay {n} cycle" for n in ("08", "09", "10", "11")]
    assert {(device.user, device.tags) for device in rpi5} == {("pi", ("x",))}
    assert [(device.name, device.host) for device in slow[::3]] == [
        ("slow-08", "rpi5-08.local"),
        ("slow-11", "rpi5-11.local"),
    ]
    assert [(device.name, device.ssh_config) for device in short] == [("n9", "b9"), ("n10", "b10")]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("b[3:1]: {}", '2: devices."b[3:1]": the range [3:1] ends before it begins'),
        ("b[1:2]-[1:2]: {}", '2: devices."b[1:2]-[1:2]": has more than one range'),
        (
            "b[1:1001]: {}",
            '2: devices."b[1:1001]": the range [1:1001] makes 1001 devices; at most 1000 are possible',
        ),
        ("b[1:1000]: {}\n  c: {}", "3: devices.c: with this one the file has more than 1000 devices"),
        ("b[1:3]: {}\n  b2: {}", '3: devices.b2: the device b2 is in devices."b[1:3]", too'),
        ("b: {host: 'h[1:3]'}", "2: devices.b.host: has a range, and the device's name has none"),
        (
            "b[1:3]:\n    host: h[1:4]",
            '3: devices."b[1:3]".host: has another range than the device\'s name',
        ),
        ("b[1:3]:\n    prot: 4", '3: devices."b[1:3]".prot: unknown key; did you mean port?'),
        (
            "b[1:3]: {connector: ssh, host: h}",
            '2: devices."b[1:3]": these devices have one host; put the range into host (or ssh_config), too',
        ),
        ("b[1:3]: {connector: ssh}", '2: devices."b[1:3]": a device with connector: ssh needs the key host'),
        ("b[1:3]:\n    extends: b[1:3]", '3: devices."b[1:3]".extends: goes in a circle: b[1:3] -> b[1:3]'),
        ("'b [1:3]': {}", '2: devices."b [1:3]": a device name has letters'),
        ("c:\n    extends: d-[1:3]", '3: devices.c.extends: unknown device "d-[1:3]"; known: c'),
    ],
)
def test_what_is_wrong_with_a_range_is_said_once(entries: str, said: str) -> None:
    found = problems(f"devices:\n  {entries}\n")
    assert len([problem for problem in found if f"devices.yaml:{said}" in problem]) == 1, found


def test_a_device_may_extend_one_of_a_range() -> None:
    text = "devices:\n  b[1:3]: {connector: ssh, host: 'h[1:3]'}\n  mine: {extends: b2, port: 7}\n"
    mine = parse_inventory(text.encode(), "d").devices[-1]
    assert (mine.name, mine.host, mine.port) == ("mine", "h2", 7)


# ---- secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        "password: hunter2",
        "Passphrase: hunter2",
        "key_passphrase: hunter2",
        "ssh-pass: hunter2",
        "token: hunter2",
        "api_key: hunter2",
        "secrets: {a: hunter2}\n    secret: [hunter2]",
        "timeouts: {password: hunter2}",
        "user: pi:hunter2@host",
        "host: pi:hunter2@host",
        "proxy_jump: pi:hunter2@host:22",
        'key: "-----BEGIN OPENSSH PRIVATE KEY-----\\nhunter2"',
        "engines: {mine: {command: [x, '{model}'], prefill: {json: a}, environment: {HF_TOKEN: hunter2}}}",
    ],
)
def test_secrets_are_refused_and_not_shown(entry: str) -> None:
    found = problems(f"devices:\n  board:\n    {entry}\n")
    assert sum("secrets do not belong in this file" in problem for problem in found) == 1, found
    assert "hunter2" not in "\n".join(found)
    assert found[0].startswith("devices.yaml:3: devices.board.")


def test_metrics_of_check_are_no_secrets() -> None:
    keys = ", ".join(f"{key}: 3" for key in CheckEntry.model_fields)
    text = f"devices:\n  board:\n    connector: local\n    check: {{{keys}}}\n"
    (board,) = parse_inventory(text.encode(), "d").devices
    assert board.check is not None


def test_harmless_names_are_no_secrets() -> None:
    text = """
    devices:
      token-ring: {models: {password: /m.gguf}, key: /home/me/.ssh/id, tags: [secret]}
    engines:
      mine:
        command: [x, "{model}", "{n_gen}"]
        decode: {json: tokens}
        environment: {TOKENIZERS_PARALLELISM: "0", MAX_TOKENS: 3, PASSES: 2}
    """
    assert parse_inventory(text.encode(), "d").devices[0].models == {"password": "/m.gguf"}
