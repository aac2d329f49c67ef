"""The committed reports: of the committed records, and readable on a laptop's screen."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest
from playwright.sync_api import Browser

from stbench import cli
from stbench.tables import stamps
from tests.report.browser import opened, sideways

ROOT = Path(__file__).resolve().parents[2]
REPORTS = sorted((ROOT / "reports").glob("*/report.html"))


def test_there_are_some() -> None:
    assert REPORTS


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_report_is_of_its_records(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stamp, _ = stamps.read(path.read_bytes())
    said = dict(word.split("=", 1) for word in stamp.split())
    results = [str(ROOT / "results" / unquote(name)) for name in said["results"].split(",")]
    code = cli.main(["report", *results, "--check", "--out", str(path)])
    assert code == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_published_tables_fit_a_laptop(browser: Browser, path: Path) -> None:
    """With two engines beside seven published devices."""
    with opened(browser, path, width=1280) as found:
        page = found.page
        for key in ("4b", "21b"):
            table = page.locator(f"#grid-{key} > .scroll")
            assert table.locator("thead th.group").count() == 2
            assert table.evaluate("node => node.scrollWidth - node.clientWidth") == 0, key
            # Every number whole, on one line.
            broken = "nodes => nodes.filter((n) => n.getClientRects().length !== 1).map((n) => n.textContent)"
            assert table.locator("td strong, td small").evaluate_all(broken) == []
        assert sideways(page) == 0
        assert found.complaints == []
        assert found.requests == []
