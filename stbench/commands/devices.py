"""``stbench devices``: the devices of devices.yaml, listed, added, trusted, examined, cleaned."""

from __future__ import annotations

import argparse

from stbench.commands import (
    Subparsers,
    _devices_add,
    _devices_clean,
    _devices_doctor,
    _devices_list,
    _devices_trust,
    add_command,
)

EXAMPLE = """
stbench devices
stbench devices --devices lab.yaml --json
stbench devices add pi@raspberry-pi-5.local
stbench devices doctor
"""


def register(subparsers: Subparsers) -> None:
    """Adds ``stbench devices`` and its sub-commands; without one of them it lists."""
    parser = add_command(subparsers, "devices", _devices_list.run, example=EXAMPLE)
    _devices_list.add_options(parser)
    inner = parser.add_subparsers(dest="devices_command", metavar="COMMAND", required=False)
    for command in (_devices_list, _devices_add, _devices_trust, _devices_doctor, _devices_clean):
        command.register(inner)
    _take_options_before_too(parser, inner)


def _take_options_before_too(parser: argparse.ArgumentParser, inner: Subparsers) -> None:
    """Options that a sub-command shares with ``stbench devices`` may stand before its name: there, its own
    default must not take the place of what was given."""
    shared = {action.dest for action in parser._actions}
    for command in inner.choices.values():
        for action in command._actions:
            if action.dest in shared and action.option_strings and action.dest != "help":
                action.default = argparse.SUPPRESS
