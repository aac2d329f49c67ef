"""Tables and charts of committed pages are what their committed campaigns give; an edited record shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stbench import cli
from stbench.tables import pages

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "reports").glob("*/README.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_page_shows_the_committed_campaigns(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["grid", "--check", str(page)])
    assert code == 0, capsys.readouterr().out


def test_readme_has_two_charts_and_both_tables() -> None:
    blocks = [block.source for block in pages.read_page(README).blocks]
    assert len({name for source in blocks for name in source.charts}) >= 2
    assert {name for source in blocks for name in source.get("table")} == {"4b", "21b"}


def test_a_number_edited_in_a_committed_record_makes_the_page_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_bytes(README.read_bytes())
    for source in [block.source for block in pages.read_page(README).blocks]:
        for name in [*source.results, *source.get("folder")]:
            skipped = shutil.ignore_patterns("routing")
            shutil.copytree(ROOT / name, tmp_path / name, ignore=skipped, dirs_exist_ok=True)
    records = tmp_path / "results" / "epyc-2core-quick" / "records.jsonl"
    lines = records.read_text(encoding="utf-8").splitlines(keepends=True)
    # Also of a replicate that no median rests on.
    first = json.loads(lines[0])
    first["samples"]["decode_ns"][0] += 1
    records.write_text("".join([json.dumps(first) + "\n", *lines[1:]]), encoding="utf-8")
    assert cli.main(["grid", "--check", str(page)]) == 1
    said = capsys.readouterr().out
    assert "records=" in said
    assert "speed.svg: made from chart=speed theme=light records=" in said
    assert page.read_bytes() == README.read_bytes()
