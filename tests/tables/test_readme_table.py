"""README's tables are what their committed campaigns give today, and an edited record shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stbench import cli
from stbench.tables import pages

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


def test_readme_shows_the_committed_campaigns(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["grid", "--check", str(README)])
    assert code == 0, capsys.readouterr().out


def test_a_number_edited_in_a_committed_record_makes_the_page_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in {name for block in pages.read_page(README).blocks for name in block.source.results}:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("routing"))
    page = tmp_path / "README.md"
    page.write_bytes(README.read_bytes())
    assert cli.main(["grid", "--check", str(page)]) == 0
    capsys.readouterr()
    records = tmp_path / "results" / "epyc-2core-quick" / "records.jsonl"
    lines = records.read_text(encoding="utf-8").splitlines(keepends=True)
    # Also of a replicate that no median rests on.
    first = json.loads(lines[0])
    first["samples"]["decode_ns"][0] += 1
    records.write_text("".join([json.dumps(first) + "\n", *lines[1:]]), encoding="utf-8")
    assert cli.main(["grid", "--check", str(page)]) == 1
    assert "records=" in capsys.readouterr().out
    assert page.read_bytes() == README.read_bytes()
