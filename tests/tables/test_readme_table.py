"""README's table is what its committed campaign gives today."""

from __future__ import annotations

from pathlib import Path

import pytest

from stbench import cli

ROOT = Path(__file__).resolve().parents[2]
CAMPAIGN = ROOT / "results" / "epyc-2core-quick"


def test_readme_shows_the_committed_campaign(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["grid", str(CAMPAIGN), "--format", "md"]) == 0
    printed = capsys.readouterr().out.strip()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split("<!-- grid: begin -->")[1].split("<!-- grid: end -->")[0].strip()
    assert shown == printed
