"""devices.yaml: everything that is wrong at once, with its line; and never a traceback, whatever the
bytes."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stbench.devices import devices_schema
from stbench.devices.inventory import Device, load_inventory, parse_inventory
from stbench.errors import InputError, InventoryError
from tests.host.conftest import ROOT, Sandbox


def problems(text: str) -> list[str]:
    with pytest.raises(InventoryError) as caught:
        parse_inventory(text.encode(), "devices.yaml")
    return caught.value.problems


def one(text: str) -> Device:
    (device,) = parse_inventory(text.encode(), "devices.yaml").devices
    return device


WRONG = """\
devices:
  rpi5:
    port: 22a
    prot: 3
    threads: [0]
    cpus: 3-1
    enabled: maybe
    connector: telnet
  other:
    extends: rpi
    work_dir: here
    timeout: -1
    models: {a: relative.gguf}
    tags: board
    port: 70000
  'two words': {}
extra: 1
"""


def test_all_errors_at_once_with_their_lines() -> None:
    assert problems(WRONG) == [
        'devices.yaml:3: devices.rpi5.port: expected an integer, got "22a"',
        "devices.yaml:4: devices.rpi5.prot: unknown key; did you mean port?",
        "devices.yaml:5: devices.rpi5.threads: expected a thread count, a list of them, all or auto, got [0]",
        "devices.yaml:6: devices.rpi5.cpus: expected CPU numbers from 0 to 4095, such as "
        '[4, 5, 6, 7] or "4-7", got "3-1"',
        'devices.yaml:7: devices.rpi5.enabled: expected true or false, got "maybe"',
        'devices.yaml:8: devices.rpi5.connector: expected local or ssh, got "telnet"',
        'devices.yaml:10: devices.other.extends: unknown device "rpi"; did you mean rpi5?',
        "devices.yaml:11: devices.other.work_dir: expected an absolute path, or one that begins with ~/, "
        'got "here"',
        "devices.yaml:12: devices.other.timeout: expected more than 0, got -1",
        "devices.yaml:13: devices.other.models.a: expected an absolute path, or one that begins with ~/, "
        'got "relative.gguf"',
        'devices.yaml:14: devices.other.tags: expected a list, got "board"',
        "devices.yaml:15: devices.other.port: expected at most 65535, got 70000",
        'devices.yaml:16: devices."two words": a device name has letters, digits, dots, dashes and '
        "underscores only",
        "devices.yaml:17: extra: unknown key; known: devices, engines",
    ]


def test_problems_between_keys_and_devices_come_with_all_others() -> None:
    text = """\
devices:
  typo: {prot: 3}
  on-typo: {extends: typo, connector: ssh, enabled: false}
  no-host: {connector: ssh}
  a: {extends: b}
  b: {extends: a}
  lost: {extends: nowhere, connector: ssh}
"""
    assert problems(text) == [
        "devices.yaml:2: devices.typo.prot: unknown key; did you mean port?",
        "devices.yaml:4: devices.no-host: a device with connector: ssh needs the key host or ssh_config",
        "devices.yaml:5: devices.a.extends: goes in a circle: a -> b -> a",
        "devices.yaml:6: devices.b.extends: goes in a circle: b -> a -> b",
        'devices.yaml:7: devices.lost.extends: unknown device "nowhere"; known: '
        "typo, on-typo, no-host, a, b, lost",
    ], "what rests on a device that cannot be read is not judged"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "devices.yaml:1: the file is empty"),
        ("# only a comment\n", "devices.yaml:1: the file is empty"),
        ("null", "devices.yaml:1: expected a mapping with the key devices, got null"),
        ("- a", 'devices.yaml:1: expected a mapping with the key devices, got ["a"]'),
        (
            "devices: {}",
            "devices.yaml:1: devices: expected a mapping of device names, with at least one device",
        ),
        (
            "devices:\n  a:\n   b: [",
            "devices.yaml:3: not valid YAML: expected the node content, but found '<stream end>'",
        ),
        ("devices: {a: {port: 1}, a: {}}", "devices.yaml:1: devices.a: given twice (first in line 1)"),
        (
            "devices:\n  a:\n    port: 1\n    user: x\n    port: 2\n",
            "devices.yaml:5: devices.a.port: given twice (first in line 3)",
        ),
        ("devices: {1: {}}", "devices.yaml:1: devices.1: a key must be a string (quote it)"),
        (
            "devices: {a: {extends: b}, b: {extends: a}}",
            "devices.yaml:1: devices.a.extends: goes in a circle: a -> b -> a",
        ),
        (
            "devices: {a: {timeout: 5, timeouts: {run: 6}}}",
            "devices.yaml:1: devices.a: expected timeout or timeouts.run, which are the same, and not both",
        ),
        (
            "devices:\n a:\n  timeouts:\n   conect: 5",
            "devices.yaml:4: devices.a.timeouts.conect: unknown key; did you mean connect?",
        ),
        ("devices: {a: {timeouts: {silence: 0}}}", "devices.a.timeouts.silence: expected more than 0, got 0"),
        (
            "devices: {a: {host: 'two words'}}",
            'devices.yaml:1: devices.a.host: expected a host name or address, got "two words"',
        ),
        ("devices: {a: {cpus: '7-4,1'}}", "devices.a.cpus: expected CPU numbers from 0 to 4095, such as"),
        ("devices: {a: {cpus: '9000'}}", "devices.a.cpus: expected CPU numbers from 0 to 4095, such as"),
        ("devices: {a: {cpus: '0-4096'}}", "devices.a.cpus: expected CPU numbers from 0 to 4095, such as"),
        (
            "devices: {a: {user: 'a b'}}",
            'devices.yaml:1: devices.a.user: expected a user name, got "a b"',
        ),
        (
            "devices: {a: {proxy_jump: 'me@gate way'}}",
            "devices.yaml:1: devices.a.proxy_jump: expected hosts to go through in their order, such as "
            'me@gateway:22,inner, got "me@gate way"',
        ),
        (
            "devices: {a: {memory_limit: swap}}",
            "devices.a.memory_limit: expected auto, cgroup-v2, cgroup-v1, boot, ballast or none, got",
        ),
        (
            "devices: {a: {key: id_ed25519}}",
            "devices.yaml:1: devices.a.key: expected an absolute path, or one that begins with ~/",
        ),
        (
            'devices: {a: {power: "one\\ntwo"}}',
            "devices.yaml:1: devices.a.power: expected a command as one line of text",
        ),
        (
            "devices: {local: {extends: loca}}",
            'devices.yaml:1: devices.local.extends: unknown device "loca"; did you mean local?',
        ),
        (
            "devices: {a: !!python/object/apply:os.system [x]}",
            "devices.yaml:1: not valid YAML: unknown tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("a: &a [x]\nb: [*c]", "found undefined alias"),
        ("\ndevices: {a: {host: !!timestamp x}}", 'devices.yaml:2: not valid YAML: "x" is no timestamp'),
        ("\ndevices: {a: {host: !!bool maybe}}", 'devices.yaml:2: not valid YAML: "maybe" is no bool'),
        ("\ndevices: {a: {host: !!int ''}}", 'devices.yaml:2: not valid YAML: "" is no int'),
        ("\ndevices: {a: {host: !!float ''}}", "devices.yaml:2: not valid YAML: "),
    ],
)
def test_one_sentence_each(text: str, said: str) -> None:
    assert any(said in problem for problem in problems(text)), problems(text)


def test_an_alias_bomb_is_refused() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    assert "more than 100000 values" in problems("\n".join(levels))[0]


def test_deep_nesting_is_refused() -> None:
    assert problems("[" * 5000) == ["devices.yaml:1: nested too deeply"]


def test_control_characters_do_not_reach_the_terminal() -> None:
    (said,) = problems('devices: {a: {host: "\\e[31m"}}')
    assert "\x1b" not in said
    assert "\\u001b" in said


def test_defaults_and_values() -> None:
    assert one("devices: {a: }") == Device(name="a", models={})
    device = one(
        "devices: {a: {threads: all, cpus: '4-7,1', timeout: 5, tags: [x], models: {m: /x.gguf}, python: /p}}"
    )
    assert device.threads is None
    assert device.cpus == (4, 5, 6, 7, 1)
    assert (device.timeout_s, device.tags, device.models) == (5.0, ("x",), {"m": "/x.gguf"})
    assert one("devices: {a: {threads: 4}}").threads == (4,)


def test_extends_takes_what_is_not_given_but_not_enabled() -> None:
    text = """
    devices:
      base: {enabled: false, connector: ssh, host: h, port: 2222, threads: [4]}
      mine: {extends: base, connector: local, threads: [2]}
    """
    base, mine = parse_inventory(text.encode(), "d").devices
    assert not base.enabled
    assert (mine.enabled, mine.connector, mine.port, mine.threads) == (True, "local", 2222, (2,))


def test_what_a_board_over_ssh_can_say() -> None:
    text = """
    devices:
      template:
        enabled: false
        connector: ssh
        user: pi
        key: ~/.ssh/boards
        proxy_jump: me@gateway:2222, inner
        timeouts: {connect: 5, run: 60}
        memory_limit: cgroup-v2
      board:
        extends: template
        ssh_config: desk
        timeouts: {silence: 7, reconnect: 0}
        cool_down: 30
        power: usb-switch cycle 3
      six: {extends: template, host: "[fe80::1]", timeout: 9}
    """
    _, board, six = parse_inventory(text.encode(), "d").devices
    assert board == Device(
        name="board",
        connector="ssh",
        user="pi",
        models={},
        timeout_s=60.0,
        ssh_config="desk",
        key="~/.ssh/boards",
        proxy_jump="me@gateway:2222,inner",
        connect_s=5.0,
        silence_s=7.0,
        reconnect_s=0.0,
        cool_down_s=30.0,
        power="usb-switch cycle 3",
        memory_limit="cgroup-v2",
    ), "each time-out is inherited by itself, and a template over ssh needs no host"
    assert (six.host, six.timeout_s, six.connect_s) == ("fe80::1", 9.0, 5.0)


def test_the_defaults_are_those_of_the_class() -> None:
    assert one("devices: {a: {connector: ssh, host: h}}") == Device("a", connector="ssh", host="h", models={})


# ---- the file that ships -----------------------------------------------------------------------------


def test_the_shipped_file_lists_the_published_boards() -> None:
    from stbench.tables.published import published_tables

    inventory = load_inventory(ROOT / "devices.yaml")
    assert [device.name for device in inventory.enabled()] == ["local"]
    names = {device.name for device in inventory.devices}
    published = {device.key for table in published_tables() for device in table.devices}
    assert published <= names
    four = {device.name for device in inventory.devices if device.threads == (4,)}
    assert four == {"i9-14900", "snapdragon-8-elite"}


def test_the_schema_for_editors_is_up_to_date_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert devices_schema.main([str(ROOT / "docs"), "--check"]) == 0, capsys.readouterr().out
    first = (ROOT / "devices.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=docs/devices.schema.json"


def test_a_stale_schema_is_found_and_mended(tmp_path: Path) -> None:
    (tmp_path / devices_schema.NAME).write_text("{}")
    assert devices_schema.main([str(tmp_path), "--check"]) == 1
    assert devices_schema.main([str(tmp_path)]) == 0
    assert devices_schema.main([str(tmp_path), "--check"]) == 0


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ((ROOT / "devices.yaml").read_text(), True),
        ("devices: {local: }", True),
        ("devices: {'a[1:3]': {threads: auto, cpus: 4-7, timeouts: {run: 3}, host: 'b[1:3]'}}", True),
        ("devices: {a: {cpus: [1, 2], threads: 3}}\nengines: {llama-bench: {args: [-fa, 1]}}", True),
        ("devices: {a: {engines: {x: {command: [x, '{model}'], prefill: {json: a}}}}}", True),
        ("devices: {}", False),
        ("devices: {a: {prot: 3}}", False),
        ("devices: {a: {threads: some}}", False),
        ("devices: {a: {password: x}}", False),
        ("devices: {a: {memory_limit: swap}}", False),
        ("devices: {a: {key: id_rsa}}", False),
        ("engines: {}", False),
    ],
)
def test_the_schema_and_the_reader_agree(text: str, fits: bool) -> None:
    try:
        parse_inventory(text.encode(), "d")
        read = True
    except InventoryError:
        read = False
    schema = devices_schema.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    valid = jsonschema.Draft202012Validator(schema).is_valid(yaml.safe_load(text))
    assert (read, valid) == (fits, fits)


def test_a_missing_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.yaml: No such file"):
        load_inventory(tmp_path / "nothing.yaml")


def test_the_program_says_it_and_returns_two(sandbox: Sandbox) -> None:
    sandbox.write("devices.yaml", WRONG)
    code, out, err = sandbox.run("plan")
    assert (code, out) == (2, "")
    assert 'devices.yaml:3: devices.rpi5.port: expected an integer, got "22a"' in err
    assert "devices.yaml:17: extra" in err
    assert "Traceback" not in err


# ---- whatever the bytes ------------------------------------------------------------------------------

_KEYS = st.sampled_from(
    ["devices", "local", "a[1:3]", "port", "host", "cpus", "extends", "token", "models", "timeouts", "<<"]
)
_SCALARS = st.sampled_from(
    [
        "1",
        "22a",
        "-1",
        "yes",
        "~",
        "2020-01-01",
        "1:30",
        ".inf",
        "0x1F",
        "'x'",
        '"\\e[0m"',
        "'h[1:3]'",
        "ssh",
        "*a",
        "&a 1",
        "!!int x",
        *(
            "!!binary x",
            "!!timestamp 9999-99-99",
            *("!!timestamp x", "!!bool maybe", "!!int ''", "!!float ''"),
            "? x",
            "9" * 5000,
            "=",
            "all",
            "4-7",
            "local",
            "[",
            "{",
            "- -",
        ),
    ]
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"),
        st.lists(st.tuples(_KEYS, inner), max_size=4).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=12,
)


def parses_or_says_why(data: bytes) -> None:
    try:
        parse_inventory(data, "devices.yaml")
        return
    except InventoryError as error:
        found = error
    assert found.exit_code == 2
    assert found.problems
    for problem in found.problems:
        assert problem.startswith("devices.yaml:")
        assert problem.isprintable()


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes(data: bytes) -> None:
    parses_or_says_why(data)


@given(st.text(max_size=60), _TREES)
@settings(max_examples=500, deadline=None)
def test_yaml_like_text(prefix: str, tree: str) -> None:
    parses_or_says_why(tree.encode())
    parses_or_says_why(f"devices: {tree}".encode())
    parses_or_says_why(f"devices: {{a: {tree}}}".encode())
    parses_or_says_why(f"devices:\n  a:\n    user: {prefix}".encode("utf-8", "surrogatepass"))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_the_shipped_file_with_bytes_changed(data: st.DataObject) -> None:
    shipped = bytearray((ROOT / "devices.yaml").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(shipped) - 1))
        shipped[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    parses_or_says_why(bytes(shipped))
