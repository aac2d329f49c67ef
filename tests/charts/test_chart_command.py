"""``stbench chart`` as typed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from stbench import charts, cli
from stbench.agent import wire
from stbench.charts import gallery
from stbench.tables import stamps
from tests.charts.material import everything, full


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "desk"
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("".join(wire.dumps(record) + "\n" for record in everything(n=1)))
    return folder


def test_one_kind_is_written_in_both_formats_and_themes(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["chart", "threads", str(results), "--out", "here", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    names = ["threads.svg", "threads.png", "threads-dark.svg", "threads-dark.png"]
    assert [row["path"] for row in said] == [f"here/{name}" for name in names]
    assert all("tokens/s" in row["alt"] for row in said)
    assert sorted(path.name for path in Path("here").iterdir()) == sorted(names)
    digest = stamps.digest([results / "records.jsonl"])
    for name in names:
        theme = "dark" if "dark" in name else "light"
        assert stamps.stale(Path("here", name), stamps.words(digest, chart="threads", theme=theme)) == ""


def test_all_lists_what_is_not_there(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "*/t1/*"
    command = ["chart", "all", str(results), "--filter", name, "--format", "svg", "--theme", "light"]
    assert cli.main(command) == 0
    said = capsys.readouterr().err
    assert Path("charts/energy.svg").exists()
    assert not Path("charts/history.svg").exists()
    assert "not drawn: history: needs at least two campaigns" in said


def test_a_kind_that_raises_takes_no_other_with_it(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: charts.Request) -> list[charts.Drawn]:
        raise ZeroDivisionError

    kinds = (dataclasses.replace(gallery.kind("memory"), draw=broken), gallery.kind("threads"))
    monkeypatch.setattr(charts, "KINDS", kinds)
    assert cli.main(["chart", "all", str(results), "--format", "svg", "--theme", "light"]) == 70
    said = capsys.readouterr().err
    assert "The chart memory could not be drawn: ZeroDivisionError" in said
    assert "please report it" in said
    assert [path.name for path in Path("charts").iterdir()] == ["threads.svg"]


def test_nothing_to_draw_names_the_sweep_and_is_a_usage_error(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "records.jsonl").write_text(wire.dumps(full("qwen3-0.6b")) + "\n")
    assert cli.main(["chart", "memory", str(results)]) == 2
    said = capsys.readouterr().err
    assert "runs under a memory limit" in said
    assert "try: stbench sweep --models smallthinker-4b" in said
    assert not Path("charts").exists()


def test_list_says_which_kinds_results_have(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "records.jsonl").write_text(wire.dumps(full("qwen3-0.6b")) + "\n")
    assert cli.main(["chart", "--list", str(results), "--json"]) == 0
    rows = {row["kind"]: row["drawable"] for row in json.loads(capsys.readouterr().out)}
    assert rows["latency"]
    assert not rows["memory"]
    assert cli.main(["chart", "--list"]) == 0
    assert "needs runs under a memory limit: stbench sweep" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["chart"], "no kind was given"),
        (["chart", "pie", "x"], "pie is no kind of chart"),
        (["chart", "speed"], "no results were named"),
        (["chart", "speed", "x", "--format", "gif"], "'gif' is none of svg, png"),
        (["chart", "speed", "nowhere"], "no such file"),
        (["chart", "speed", "x", "--ratio-to", "a=b"], "expected DEVICE=PUBLISHED"),
    ],
)
def test_bad_words(
    argv: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    assert said in capsys.readouterr().err
