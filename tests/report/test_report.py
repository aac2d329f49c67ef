"""The page's parts without a browser: what it says, what it leaves out and says so, how it is written."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from stbench import charts, cli
from stbench.agent import wire
from stbench.charts import gallery
from stbench.report import budget, report
from stbench.report.markup import Markup, data_block, element
from stbench.report.report import Given, report_html
from stbench.report.thinning import thinned
from stbench.report.verdict import BAD, CAUTION, GOOD
from tests.charts.material import full
from tests.report.hostile import full_record
from tests.tables.factory import record, table_4b


@pytest.fixture(autouse=True)
def _without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time; the browser's tests see them."""
    monkeypatch.setattr(charts, "KINDS", ())


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def said(html_report: report.Report, part: str) -> dict[str, str]:
    sentences = dict(html_report.verdict.parts)[part]
    return {sentence.text: sentence.kind for sentence in sentences}


def one(sentences: dict[str, str], word: str) -> str:
    """The kind of the one sentence with ``word`` in it."""
    (kind,) = [kind for text, kind in sentences.items() if word in text]
    return kind


def test_verdict_of_good_runs() -> None:
    real = [dataclasses.replace(r, model=dataclasses.replace(r.model, synthetic=None)) for r in table_4b(6)]
    made = report_html(Given("desk", real))
    trusted = said(made, "What can be trusted")
    assert one(trusted, "36 runs computed the reference's output") == GOOD
    assert one(trusted, "have an interval") == GOOD
    assert one(trusted, "No run throttled") == GOOD
    assert one(trusted, "real files") == GOOD
    assert one(trusted, "was not measured") == CAUTION  # no bandwidth beside the runs


def test_verdict_of_bad_runs() -> None:
    limit = full_record(replicate=3).limit
    assert limit is not None
    records = [
        *table_4b(2),
        record("qwen3-0.6b", replicate=7, verdict="wrong", status="wrong-output"),
        record("qwen3-1.7b", replicate=8, status="out-of-memory", detail="killed"),
        record("qwen3-1.7b", replicate=9, status="cancelled"),
        record("qwen3-1.7b", replicate=5, throttled="yes"),
        dataclasses.replace(full_record(replicate=6), limit=dataclasses.replace(limit, verdict="exceeded")),
    ]
    made = report_html(Given("desk", records, ["desk/records.jsonl:3: not JSON"]))
    trusted, missing = said(made, "What can be trusted"), said(made, "What is missing")
    assert one(trusted, "1 run computed wrong output") == BAD
    assert one(trusted, "memory limit exceeded") == BAD
    assert one(trusted, "throttled in 1 run") == BAD
    assert one(trusted, "fewer than 6 undisturbed replicates") == CAUTION
    assert one(missing, "records.jsonl:3: not JSON") == BAD
    assert one(missing, "out-of-memory") == BAD
    assert one(missing, "1 run cancelled") == CAUTION
    assert one(missing, "not run: SmallThinker 4B") == CAUTION
    assert len(data_of(made.html)["records"]) == len(records) - 1


def test_nothing_measured() -> None:
    made = report_html(Given("desk", []))
    assert one(said(made, "What was measured"), "Nothing") == BAD


def test_same_records_same_bytes() -> None:
    records = [*table_4b(2), full_record(minute=9)]
    assert report_html(Given("desk", records)).html == report_html(Given("desk", records[::-1])).html


def test_cells_name_their_records_by_campaign() -> None:
    """The same ids in two campaigns: each cell leads to its own."""
    twice = [dataclasses.replace(r, campaign="c2", id=r.id) for r in table_4b(2)]
    html = report_html(Given("both", [*table_4b(2), *twice])).html
    data = data_of(html)
    for spans in re.findall(r'href="#r=([0-9,-]+)"', html):
        numbers = [int(part) for part in re.split("[,-]", spans)]
        assert len({data["records"][i][2] for i in numbers}) == 1


def many(n: int) -> tuple[list[wire.RunRecord], list[Any]]:
    base = full_record()
    samples = base.samples
    assert samples is not None
    noise = [
        dataclasses.replace(samples, decode_ns=[10**7 + (i * j) % 997 for j in range(64)]) for i in range(n)
    ]
    records = [dataclasses.replace(base, id=f"r{i}", replicate=i, samples=noise[i]) for i in range(n)]
    frame = charts.results_of(records[:1]).frame
    return records, [frame.iloc[0]] * n


def test_a_thousand_records_fit_whole() -> None:
    records, rows = many(1000)
    fitted = budget.fit(records, rows, (), 1_300_000)
    size = len(
        json.dumps([fitted.pool, fitted.rows, fitted.details], ensure_ascii=False, separators=(",", ":"))
    )
    assert size <= 1_300_000
    assert all(fitted.details)
    assert any("looks" in sentence for sentence in fitted.sentences)


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs behind the tables come first; the page keeps to its size."""
    records, rows = many(300)
    fitted = budget.fit(records, rows, {0, 1}, 100_000)
    kept = [i for i, detail in enumerate(fitted.details) if detail]
    assert {0, 1, 299} <= set(kept)
    assert 2 not in kept
    assert f"{len(kept)} of 300 runs" in fitted.sentences[0]

    monkeypatch.setattr(report, "PAGE_BYTES", 100_000)
    made = report_html(
        Given("desk", [*table_4b(6), *(full_record(replicate=i, minute=i) for i in range(50))])
    )
    assert 80_000 < len(made.html.encode()) <= 100_000
    assert "have their details here" in made.html


def test_long_tables_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_ROWS", 2)
    monkeypatch.setattr(report, "MOST_NOTES", 1)
    made = report_html(Given("desk", [record("mine", n_prompt=i, replicate=i) for i in range(3)]))
    assert any("shows 2 rows; 1 more" in sentence for sentence in made.limits)


def test_thinning_keeps_the_outlier() -> None:
    values = [10.0] * 500
    values[123] = 99.5
    low, high = thinned(values, 64)
    assert len(low) == len(high) == 32
    assert max(high) == 99.5
    assert min(low) == 10
    assert thinned([1.0, float("nan"), 2.5], 64) == ([1, 2.5], [])


def test_markup() -> None:
    assert element("p", "a<b\x00\u202e", Markup("<i>c</i>"), title='"x"') == (
        '<p title="&quot;x&quot;">a&lt;b<i>c</i></p>'
    )
    assert data_block("d", {"a": "</script ><!--"}).count("<") == 2
    with pytest.raises(ValueError, match="JSON"):
        data_block("d", float("nan"))


def write(directory: Path, records: list[wire.RunRecord]) -> str:
    directory.mkdir(parents=True)
    (directory / "records.jsonl").write_text("".join(wire.dumps(one) + "\n" for one in records))
    return str(directory)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = (
        write(tmp_path / "before", table_4b(6)),
        write(tmp_path / "after", table_4b(6, campaign="c2")),
    )
    found = [{"name": "governor", "severity": "wrong", "text": "is powersave", "mend": "cpupower", "x": 1}]
    (tmp_path / "before" / "doctor.json").write_text(
        json.dumps([{"device": "local", "problem": "", "findings": found}])
    )
    out = tmp_path / "new" / "page.html"
    assert cli.main(["report", before, "--against", after, "--out", str(out), "--json", "--quiet"]) == 0
    printed = json.loads(capsys.readouterr().out)
    html = out.read_text("utf-8")
    assert printed["bytes"] == len(html.encode()) == out.stat().st_size
    assert str(tmp_path) not in html
    assert "is powersave" in html
    assert 'id="difference"' in html
    assert "unchanged" in html
    assert len(data_of(html)["records"]) == 72


def test_a_chart_that_raises_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(request: charts.Request) -> list[charts.Drawn]:
        raise ValueError("no <ink>")

    kinds = (
        dataclasses.replace(gallery.kind("speed"), draw=broken),
        *map(gallery.kind, ("threads", "energy")),
    )
    monkeypatch.setattr(charts, "KINDS", kinds)
    records = [full(tps=30.0 * t, threads=t) for t in (1, 2)]
    out = tmp_path / "page.html"
    assert cli.main(["report", write(tmp_path / "a", records), "--out", str(out), "--json"]) == 70
    printed = capsys.readouterr()
    sentence = "The chart speed could not be drawn: ValueError: no <ink>"
    assert json.loads(printed.out)["failed"][0].startswith(sentence)
    assert sentence in printed.err
    html = out.read_text("utf-8")
    # At the top, and where it would stand; the others are there.
    assert html.count("The chart speed could not be drawn: ValueError: no &lt;ink&gt;") == 2
    assert 'id="chart-threads"' in html
    assert "Not drawn: energy (needs runs on a device with an energy sensor" in html


def test_charts_get_the_room_that_few_records_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "KINDS", (gallery.kind("threads"),))
    monkeypatch.setattr(report, "CHART_BYTES", 10)
    records = [full(tps=30.0 * t, threads=t) for t in (1, 2)]
    html = report_html(Given("desk", records)).html
    assert 'id="chart-threads"' in html
    assert "Left out to keep" not in html
    monkeypatch.setattr(report, "PAGE_BYTES", len(html.encode()) - 1000)
    html = report_html(Given("desk", records)).html
    assert 'id="chart-threads"' not in html
    assert "Left out to keep this file small (`stbench chart` draws them): Decode speed by threads." in html


def test_check_tells_whether_a_report_is_of_its_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = write(tmp_path / "one", table_4b(1)), write(tmp_path / "two", table_4b(1, campaign="c2"))
    out = tmp_path / "page.html"

    def check(*results: str) -> tuple[int, str]:
        capsys.readouterr()
        return cli.main(["report", *results, "--out", str(out), "--check"]), capsys.readouterr().out

    assert check(one)[0] == 1
    assert not out.exists()
    assert cli.main(["report", one, two, "--out", str(out)]) == 0
    assert check(one, two) == (0, "")
    assert check(two, one) == (0, "")
    assert "results=one,two" in check(one)[1]
    assert check(one, two, "--against", one)[0] == 1
    assert check(one, two, "--ratio-to", "local=rk3588")[0] == 1
    written = out.read_bytes()
    out.write_bytes(written.replace(b"71.00", b"91.00", 1))
    assert "changed by hand" in check(one, two)[1]
    out.write_bytes(written)
    (tmp_path / "one" / "doctor.json").write_text('[{"device": "local", "problem": "", "findings": []}]')
    assert check(one, two)[0] == 1
    (tmp_path / "one" / "doctor.json").unlink()
    assert check(one, two) == (0, "")
    records = tmp_path / "two" / "records.jsonl"
    records.write_text(records.read_text() + "\n")
    assert "made from results=one,two records=" in check(one, two)[1]


def test_difference_that_is_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", table_4b(2)), write(tmp_path / "b", table_4b(2, threads=1))
    out = tmp_path / "page.html"
    assert cli.main(["report", a, "--against", b, "--out", str(out), "--quiet"]) == 0
    assert "decode_tps:" in out.read_text("utf-8")


def test_broken_findings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = write(tmp_path / "a", table_4b(1))
    (tmp_path / "a" / "doctor.json").write_text('[{"device": "local"}]')
    assert cli.main(["report", results, "--out", str(tmp_path / "page.html")]) == 2
    assert "doctor.json" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
