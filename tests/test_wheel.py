"""The wheel holds what the package reads, which an editable install, as in every other test, never shows."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.test_readme import fresh_copy

# Read by the code at run time, and no Python: a build tool that packs modules alone forgets them.
DATA = {
    "stbench/data/bars.csv",
    "stbench/data/published_speed.csv",
    "stbench/report/page.css",
    "stbench/report/page.js",
}


@pytest.mark.beside(seconds=20)
def test_a_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    """Built without the native library, which is compiled in every install."""
    checkout = fresh_copy(tmp_path / "stbench")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--config-settings=wheel.cmake=false"]
    done = subprocess.run(
        [*command, "-w", str(tmp_path / "wheels"), str(checkout)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = (tmp_path / "wheels").glob("stbench-*.whl")
    files = {
        str(path.relative_to(checkout)): path.read_bytes()
        for path in (checkout / "stbench").rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    references = {name for name in files if name.startswith("stbench/data/references/")}
    assert files.keys() >= DATA
    assert len(references) > 10
    with zipfile.ZipFile(wheel) as opened:
        packed = set(opened.namelist())
        assert sorted(files.keys() - packed) == []
        assert [name for name, content in files.items() if opened.read(name) != content] == []
        (entry_points,) = (name for name in packed if name.endswith(".dist-info/entry_points.txt"))
        found = configparser.ConfigParser()
        found.read_string(opened.read(entry_points).decode())
    assert found["console_scripts"]["stbench"] == "stbench.cli:main"
    assert found["pytest11"]["stbench"] == "stbench.pytest_plugin"
    strays = {name for name in packed - files.keys() if ".dist-info/" not in name}
    assert strays == set()
