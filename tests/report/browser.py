"""Headless Chromium for pages on this disk, which may load nothing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, Route

from tests.conftest import require

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str:
    """Debian's Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    require(found, "no Chromium: apt install chromium")
    assert found is not None
    return found


@dataclass
class Opened:
    """A page, and everything that went wrong or out of it since it was opened."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, path: Path, width: int = 1280, **context: Any) -> Iterator[Opened]:
    """The page at ``path``. Whatever it asks for beside itself is counted, and refused."""
    made: BrowserContext = browser.new_context(viewport={"width": width, "height": 800}, **context)
    try:
        page = made.new_page()
        page.set_default_timeout(120_000)
        found = Opened(page)
        page.on("console", lambda message: found.complaints.append(message.text))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (found.complaints.append(dialog.message), dialog.dismiss()))

        def refuse(route: Route) -> None:
            if route.request.url.partition("#")[0] == path.as_uri():
                route.continue_()
            else:
                found.requests.append(route.request.url[:200])
                route.abort()

        made.route("**/*", refuse)
        page.goto(path.as_uri())
        yield found
    finally:
        made.close()


def violations(page: Page, part: str, scheme: str) -> list[str]:
    """What axe-core has to say of a part of the page; on dark screens only of what differs there."""
    script = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    page.evaluate(script)
    rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}
    options = {"resultTypes": ["violations"], **rules}
    found = page.evaluate("([part, options]) => axe.run(part, options)", [part, options])
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"][:3]
    ]


def sideways(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def until(page: Page, expression: str, arg: Any = None) -> None:
    """Waits for a JavaScript expression to hold. ``Page.wait_for_function`` evaluates it in the page, whose
    policy forbids that as soon as it has to wait."""
    deadline = time.monotonic() + 120
    while not page.evaluate(expression, arg):
        assert time.monotonic() < deadline, f"not in two minutes: {expression}"
        page.wait_for_timeout(20)
