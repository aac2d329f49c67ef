"""Prints one of README's two commands, so that CI and the tests run what the reader runs.

``python .ci/readme_command.py sweep`` or ``test``: the first line of the fenced block that follows the
marker ``<!-- command: NAME -->``.
"""

import re
import sys
from pathlib import Path


def command(name: str) -> str:
    """The command of that name. Raises SystemExit when README has none."""
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- command: {re.escape(name)} -->\n+```\w*\n(.+?)\n```", readme, re.DOTALL)
    if found is None:
        raise SystemExit(f"README.md has no command marked {name!r}")
    return found.group(1).replace("\\\n", " ")


if __name__ == "__main__":
    print(command(sys.argv[1]))
