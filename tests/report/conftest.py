"""One browser, and pages that several tests look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from stbench import charts
from stbench.agent import wire
from stbench.charts import gallery
from stbench.doctor.findings import Finding
from stbench.report.reading import read_given
from stbench.report.report import Given, report_html
from tests.report.browser import ARGUMENTS, chromium
from tests.report.hostile import ATTACKS, full_record, hostile_records
from tests.tables.factory import record, table_4b


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS), timeout=180_000)
        yield made
        made.close()


@contextmanager
def some_charts() -> Iterator[None]:
    """Lines and bars, as SVG and as PNG: drawing every kind takes most of the time, and tests/charts does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "KINDS", tuple(map(gallery.kind, ("speed", "memory", "energy"))))
        yield


@pytest.fixture(scope="session")
def given() -> Given:
    limited = [full_record(replicate=i, ffn=True, head=True, minute=i) for i in range(2)]
    failed = record("qwen3-0.6b", replicate=9, status="out-of-memory", detail="killed")
    records = [*table_4b(6), *limited, failed]
    return Given(
        "desk", records, ["desk/records.jsonl:9: not JSON"], {"local": [Finding("g", "wrong", "slow", "x")]}
    )


@pytest.fixture(scope="session")
def page_path(given: Given, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with tables, charts, a device, failures and a difference."""
    faster = [
        dataclasses.replace(one, campaign="c2", started_at=one.started_at.replace("T03", "T09"))
        for one in table_4b(6, spread=0.02)
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    with some_charts():
        path.write_text(report_html(given, Given("faster", faster)).html, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def hostile_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From a file, as they would come; called by one of the attacks, and with another as a problem."""
    directory = tmp_path_factory.mktemp("hostile")
    (directory / "records.jsonl").write_text("".join(f"{wire.dumps(one)}\n" for one in hostile_records()))
    read = read_given([directory])
    assert len(read.records) == len(ATTACKS), read.problems
    given = dataclasses.replace(read, name=ATTACKS[1], problems=[ATTACKS[0]])
    path = directory / "report.html"
    with some_charts():
        path.write_text(report_html(given).html, encoding="utf-8")
    return path
