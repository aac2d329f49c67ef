"""What a board may send is text in the page, whatever it says; in Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.report.browser import opened, sideways, until
from tests.report.hostile import ATTACKS


@pytest.mark.parametrize("width", [1280, 360])
def test_no_script_runs_and_layout_holds(browser: Browser, hostile_path: Path, width: int) -> None:
    with opened(browser, hostile_path, width=width) as found:
        page = found.page
        assert sideways(page) == 0
        for i in range(len(ATTACKS)):
            page.evaluate(f"location.hash = '#r={i}'")
            until(
                page,
                "(i) => document.querySelectorAll('#dialog-body > details').length === 1 && "
                "document.querySelector('#dialog-body dd') !== null && location.hash === '#r=' + i",
                arg=i,
            )
            assert sideways(page) == 0
            over = "node => node.scrollWidth - node.clientWidth"
            assert page.locator("#dialog-body").evaluate(over) == 0
        page.keyboard.press("Escape")
        page.fill("#filter", "<script>")
        until(page, "document.getElementById('filtered').textContent !== ''")
        assert page.evaluate("window.attacked") is None
        assert page.evaluate("document.scripts.length") == 2
        assert page.locator("iframe, object, embed, [onerror], [onload], form").count() == 0
        assert page.locator("img").count() == page.locator("#charts figure img").count()
        assert found.complaints == []
        assert found.requests == []


def test_attacks_are_shown_as_text(browser: Browser, hostile_path: Path) -> None:
    """Not dropped: who reads the page sees what the board sent."""
    with opened(browser, hostile_path) as found:
        page = found.page
        data = "JSON.parse(document.getElementById('data').textContent)"
        # Replicate 0 is the one with the first attack.
        page.evaluate(f"location.hash = '#r=' + {data}.records.findIndex((row) => row[1] === 0)")
        page.wait_for_selector("dialog[open]")
        assert ATTACKS[0] in page.inner_text("#dialog-body")
        text = page.evaluate("document.body.textContent")
        for forbidden in ("\x00", "\x1b", "\u202e", "\u2066"):
            assert forbidden not in text


def test_the_file_stays_small(hostile_path: Path) -> None:
    """Megabyte strings are cut in every place."""
    assert hostile_path.stat().st_size < 2_000_000
    assert "W" * 5000 not in hostile_path.read_text("utf-8")
