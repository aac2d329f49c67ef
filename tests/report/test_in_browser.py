"""The page as people use it: opened from disk, filtered, sorted, clicked, read aloud, on phones, on paper."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.report.browser import opened, sideways, until, violations


def column(page: Page, index: int) -> list[str]:
    script = "([t, i]) => [...t.tBodies[0].rows].map((row) => row.cells[i].textContent)"
    return list(page.evaluate(f"({script})([document.querySelector('#grid-4b table'), {index}])"))


def test_stands_alone(browser: Browser, page_path: Path) -> None:
    """Nothing is asked for, nothing complains, and the pictures show."""
    with opened(browser, page_path) as found:
        widths = found.page.evaluate(
            "Promise.all([...document.images].map((i) => i.decode().then(() => i.naturalWidth)))"
        )
        assert widths
        assert min(widths) > 100
        found.page.locator("td[data-role=speed] a").first.click()
        found.page.wait_for_selector("dialog[open] svg")
        assert found.requests == []
        assert found.complaints == []


def test_policy_forbids_everything_remote(browser: Browser, page_path: Path) -> None:
    """Also for a script that somehow ran."""
    with opened(browser, page_path) as found:
        said = found.page.evaluate(
            "fetch('http://127.0.0.1:9/').then(() => 'sent', (e) => 'refused') "
            ".then((a) => { const s = document.createElement('script'); s.textContent = 'attacked = 1';"
            "document.body.append(s); return a + ' ' + (window.attacked === undefined); })"
        )
        assert said == "refused true"
        assert found.requests == []
        assert any("Content Security Policy" in text for text in found.complaints)


def test_filter(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path) as found:
        page = found.page
        before = page.locator("section.grid tbody tr:visible").count()
        page.fill("#filter", "qwen3 0.6")
        until(page, "document.getElementById('filtered').textContent !== ''")
        shown = page.locator("#grid-4b > .scroll tbody tr:visible")
        assert shown.count() == 1
        assert "Qwen3 0.6B" in shown.first.inner_text()
        page.fill("#filter", "out-of-memory")
        until(page, "document.querySelectorAll('#all-records tbody tr').length === 1")
        assert "0 of" in page.inner_text("#filtered")
        page.fill("#filter", "")
        until(page, "document.querySelectorAll('#all-records tbody tr').length > 20")
        assert page.locator("section.grid tbody tr:visible").count() == before


def test_sort_by_keyboard(browser: Browser, page_path: Path) -> None:
    """Ascending, descending, and back to the order of the published table."""
    with opened(browser, page_path) as found:
        page = found.page
        header = page.locator("#grid-4b thead th[data-column='published:rk3588']")
        index = header.evaluate("node => node.cellIndex")
        published = column(page, index)
        header.locator("button").focus()
        for state, reverse in (("ascending", False), ("descending", True)):
            page.keyboard.press("Enter")
            assert header.get_attribute("aria-sort") == state
            texts = column(page, index)
            known = [float(text) for text in texts if text and text != "-"]
            assert known == sorted(known, reverse=reverse)
            assert texts[: len(known)] == [text for text in texts if text and text != "-"]
        page.keyboard.press("Enter")
        assert header.get_attribute("aria-sort") == "none"
        assert column(page, index) == published


def test_sort_records(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path) as found:
        header = found.page.locator("#all-records thead th").nth(5)
        header.locator("button").click()
        header.locator("button").click()
        texts = found.page.locator("#all-records tbody td:nth-child(6)").all_inner_texts()
        speeds = [float(text) for text in texts if text]
        assert header.get_attribute("aria-sort") == "descending"
        assert len(speeds) > 20
        assert speeds == sorted(speeds, reverse=True)
        assert texts[len(speeds) :] == [""] * (len(texts) - len(speeds))


def test_a_cell_leads_to_its_records(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path) as found:
        page = found.page
        cell = page.locator("#grid-limited td[data-role=speed] a").first
        cell.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open]")
        assert page.locator("#dialog-body > details").count() == 2
        text = page.inner_text("#dialog-body")
        for part in (
            "requested",
            "effective",
            "Proof of the memory limit",
            "cgroup-v2",
            "Check of the output",
        ):
            assert part in text
        assert (
            page.locator("#dialog-body .plot svg").count() == 5
        )  # decode, frequency, temperature, memory, power
        assert "1000 ms" in text
        page.keyboard.press("Escape")
        # Its event comes a moment after it is closed.
        until(page, "!document.getElementById('dialog').open && !location.hash.startsWith('#r=')")
        page.evaluate("location.hash = '#r=0,2-3,99999'")
        until(page, "document.querySelectorAll('#dialog-body > details').length === 3")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe(browser: Browser, page_path: Path, scheme: str) -> None:
    with opened(browser, page_path, color_scheme=scheme) as found:
        assert violations(found.page, "main", scheme) == []
        found.page.evaluate("location.hash = '#r=36'")
        found.page.wait_for_selector("dialog[open] svg")
        assert violations(found.page, "#dialog", scheme) == []


def test_dark_pages_have_dark_pictures(browser: Browser, page_path: Path) -> None:
    sources = []
    for scheme in ("light", "dark"):
        with opened(browser, page_path, color_scheme=scheme) as found:
            sources.append(found.page.evaluate("document.images[0].currentSrc"))
            found.page.emulate_media(media="print")
            until(found.page, "document.images[0].currentSrc === document.images[0].src")
    assert sources[0] != sources[1]


def test_phone(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path, width=360) as found:
        assert sideways(found.page) == 0
        found.page.evaluate("location.hash = '#r=36'")
        found.page.wait_for_selector("dialog[open] svg")
        assert sideways(found.page) == 0
        body = found.page.locator("#dialog-body")
        assert body.evaluate("node => node.scrollWidth - node.clientWidth") == 0


def test_paper(browser: Browser, page_path: Path) -> None:
    with opened(browser, page_path) as found:
        found.page.emulate_media(media="print")
        for hidden in ("nav", "#all-records", "details.proof"):
            assert not found.page.locator(hidden).first.is_visible()
        assert found.page.locator("#records .print-only").is_visible()
        assert found.page.locator("#grid-4b table").first.is_visible()
        assert found.page.pdf().startswith(b"%PDF")


def test_without_javascript(browser: Browser, page_path: Path) -> None:
    """Verdict, tables and charts are there; what is not says so."""
    with opened(browser, page_path, java_script_enabled=False) as found:
        assert found.page.locator("#verdict li").count() > 5
        assert "71.0" in found.page.inner_text("#grid-4b")
        assert "need JavaScript" in found.page.inner_text("#records")
