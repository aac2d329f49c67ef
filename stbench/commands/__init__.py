"""The commands of ``stbench``: one module each, with ``register(subparsers)`` and ``run(args) -> int``.

Modules parse, call the library and render; logic lives in the library modules. Their heavy imports belong
into ``run``, so that ``--help`` stays quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from stbench.console import complain
from stbench.errors import EXIT_USAGE
from stbench.wording import nearest

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

# Group -> command -> its line in `stbench --help`, with which its own help begins. The module of a command is
# stbench/commands/<name>.py, with _ for -.
GROUPS = {
    "measure": {
        "sweep": "measure models on devices and print the table",
        "plan": "print what a sweep would do, its disk and its time, and do nothing",
        "reproduce": "run one published cell under its stated conditions and judge",
        "profile": "run one case with the timeline on and say where a token's time goes",
        "find-limit": "bisect the smallest memory limit at which a model runs, or reaches a speed",
        "roofline": "measure the limits that speeds are held against: memory, gather, storage",
        "noise": "measure what a device shows without any cause: its noise floor",
    },
    "show results": {
        "grid": "print stored results in the shape of the published tables",
        "chart": "draw stored results: speed, memory, threads, latency, ...",
        "report": "write one HTML file: verdict, tables, charts, devices and every record behind a number",
        "export": "write stored results in another program's format",
        "import": "store another program's output as records, marked as imported",
    },
    "judge a change": {
        "compare": "compare two sets of results, or two engines of one, and judge",
        "check": "hold this build against a baseline; fails when a change for the worse is confirmed",
        "baseline": "make, show or update the file that `stbench check` holds builds against",
        "history": "list each case's speed over many campaigns, with the points where it changed",
    },
    "devices and builds": {
        "devices": "list, add, trust, examine and clean devices",
        "build": "compile the native runtime for a board",
        "peer": "build llama.cpp, the outside referee",
    },
    "models": {
        "models": "list the models that can be measured, make one, or make or verify its bundle",
        "inspect": "show what is in a GGUF file",
        "routing": "make, import and show traces of which experts a model uses",
        "simulate": "say what a cache of any size and policy would have hit, and how fast that would decode",
        "generate": "write text with a model",
        "perplexity": "measure the perplexity of a model on a text",
        "quality": "compare the outputs of the sparse switches with the dense ones",
    },
}
COMMANDS = {name: line for group in GROUPS.values() for name, line in group.items()}

DEVICES = Path("devices.yaml")

# What a value should have been, for types whose own names say nothing to a user.
_EXPECTED: dict[Any, str] = {int: "a whole number", float: "a number"}


class AddUp(argparse.Action):
    """Of an option whose value is a list as typed: given again, it adds to what it had. ``separator`` is what
    stands between the list's items."""

    def __init__(self, *args: Any, separator: str = ",", **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._separator = separator

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """See :class:`argparse.Action`."""
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, f"{before}{self._separator}{values}" if before else values)


class Help(argparse.RawDescriptionHelpFormatter):
    """Help whose first line stays one line: `[options]` stands for those that may be left out."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        """See :class:`argparse.HelpFormatter`."""
        actions = list(actions)
        needed = [action for action in actions if action.required or not action.option_strings]
        if usage is None and len(needed) < len(actions):
            text = " ".join(self._format_usage(None, needed, [], "").split())
            usage = text.replace(self._prog, f"{self._prog} [options]", 1).replace("%", "%%")
        super().add_usage(usage, actions, groups, prefix)


class Parser(argparse.ArgumentParser):
    """Wrong usage is a sentence and the next thing to try, as every other failure is; exit code 2."""

    def error(self, message: str) -> NoReturn:
        """See :class:`argparse.ArgumentParser`."""
        complain(message.removeprefix("argument "), f"{self.prog} --help", who=self.prog)
        sys.exit(EXIT_USAGE)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Nothing may be left over: the parser that met it knows what it could have been."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(self._left_over(rest))
        return found, rest

    def _left_over(self, words: list[str]) -> str:
        option = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if option is None:
            return f'"{words[0]}" is one argument too many'
        known = [text for action in self._actions for text in action.option_strings]
        return f"unknown option {option}{_nearest(option, known)}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(None, f'unknown command "{value}"{_nearest(str(value), choices)}')
        expected = " or ".join([", ".join(choices[:-1])] * (len(choices) > 1) + choices[-1:])
        raise argparse.ArgumentError(action, f'expected {expected}, got "{value}"')

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            expected = _EXPECTED.get(action.type)
            if expected is None:
                raise
            raise argparse.ArgumentError(action, f'expected {expected}, got "{arg_string}"') from None


def _nearest(word: str, known: list[str]) -> str:
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""


def add_command(
    subparsers: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    example: str,
    help: str = "",
) -> argparse.ArgumentParser:
    """Adds a sub-command with the shared options ``--json`` and ``--quiet`` and an example in its help.

    ``run`` gets the parsed arguments and returns the exit code; ``help`` is what it does, of a command in
    COMMANDS the line there.
    """
    help = help or COMMANDS[name]
    parser = subparsers.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog="In parentheses: defaults.\n\nexample:\n  " + example.strip().replace("\n", "\n  "),
        formatter_class=Help,
    )
    parser.add_argument("--json", action="store_true", help="print JSON on stdout instead of a table")
    parser.add_argument("--quiet", action="store_true", help="no progress and no logs on stderr")
    parser.set_defaults(run=run)
    return parser


def add_devices(parser: argparse.ArgumentParser) -> None:
    """``--devices``: the file."""
    parser.add_argument(
        "--devices", type=Path, default=DEVICES, metavar="FILE", help=f"the devices file ({DEVICES})"
    )


def add_library(parser: argparse.ArgumentParser) -> None:
    """``--library``."""
    parser.add_argument(
        "--library", type=Path, metavar="PATH", help="a libsbr.so other than the installed one"
    )
