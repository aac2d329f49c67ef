"""Charts that a page names: drawn beside it, shown between its markers, stale ones found."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from stbench import charts, cli
from stbench.agent import wire
from stbench.agent.wire import RunRecord
from stbench.tables import stamps
from tests.charts.material import full
from tests.tables.test_pages import block, page

NAMES = ["threads-dark.svg", "threads.svg"]


def campaign(speed: float = 30.0) -> list[RunRecord]:
    return [full(tps=speed * t, threads=t, ffn=True, head=True) for t in (1, 2)]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    store(tmp_path, campaign())
    return tmp_path


def store(desk: Path, records: list[RunRecord]) -> None:
    (desk / "c1").mkdir(exist_ok=True)
    (desk / "c1" / "records.jsonl").write_text("".join(wire.dumps(record) + "\n" for record in records))


def check(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    return cli.main(["grid", "--check", str(path)]), capsys.readouterr().out


def test_a_page_s_charts_are_drawn_shown_and_found_stale(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = page(desk / "p.md", "before\n\n" + block("c1 table=4b charts=threads folder=a/pictures"))
    assert cli.main(["grid", "--update", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    folder = desk / "a" / "pictures"
    assert sorted(file.name for file in folder.iterdir()) == NAMES
    assert '<source media="(prefers-color-scheme: dark)" srcset="a/pictures/threads-dark.svg">' in text
    assert (found := re.search(r'<img alt="([^"]+)" src="a/pictures/threads.svg">', text))
    assert "tokens/s" in found[1]
    assert text.index("<picture>") < text.index("### SmallThinker 4B")
    light, dark = folder / "threads.svg", folder / "threads-dark.svg"
    first = light.read_bytes()
    assert ET.fromstring(first).tag.endswith("svg")
    assert light.read_bytes() != dark.read_bytes()

    assert check(path, capsys) == (0, "")
    dark.unlink()
    code, said = check(path, capsys)
    assert code == 1
    assert "threads-dark.svg: No such file" in said
    light.write_bytes(first.replace(b"</svg>", b"<g/></svg>"))
    assert "threads.svg: changed by hand" in check(path, capsys)[1]
    # Only what is stale is written, and the same records give the same bytes.
    before = path.stat().st_mtime_ns
    assert cli.main(["grid", "--update", str(path)]) == 0
    assert path.stat().st_mtime_ns == before
    assert light.read_bytes() == first
    assert check(path, capsys) == (0, "")
    # Another version of matplotlib writes other bytes, which are no reason to fail.
    stamp, _ = stamps.read(first)
    light.write_bytes(stamps.stamped(b"<svg>of another version</svg>", stamp))
    assert check(path, capsys) == (0, "")

    # One nanosecond of one token shows in no text of the page, and yet.
    records = campaign()
    assert records[0].samples is not None
    records[0].samples.decode_ns[0] += 1
    store(desk, records)
    code, said = check(path, capsys)
    assert code == 1
    assert "threads.svg: made from chart=threads theme=light records=" in said
    monkeypatch.chdir("/")
    assert cli.main(["grid", "--update", str(path)]) == 0
    assert check(path, capsys) == (0, "")


def test_charts_alone_and_kinds_without_records(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = page(desk / "p.md", block("c1 charts=energy,threads folder=."))
    assert cli.main(["grid", "--update", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert "Not drawn: energy (needs runs on a device with an energy sensor" in text
    assert "###" not in text
    assert sorted(file.name for file in desk.glob("*.svg")) == NAMES
    assert check(path, capsys) == (0, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (block("c1 charts=pie folder=a"), "charts=pie in a marker: the kinds are speed, memory"),
        (block("c1 charts=threads"), "p.md:1: charts= needs one folder="),
        (block("c1 charts=threads folder=a folder=b"), "p.md:1: charts= needs one folder="),
        (
            block("c1 charts=threads folder=a") + block("c1 charts=threads,energy folder=a"),
            "p.md:3: a/threads.svg is drawn by a block above it already",
        ),
    ],
)
def test_markers_that_cannot_be_meant(
    desk: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = page(desk / "p.md", text)
    assert cli.main(["grid", "--update", str(path)]) == 2
    assert said in capsys.readouterr().err
    assert path.read_bytes() == text.encode()
    assert not list(desk.glob("**/*.svg"))


def test_a_chart_that_cannot_be_drawn_leaves_the_page(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = page(desk / "p.md", block("c1 charts=threads folder=."))

    def broken(figure: object) -> bytes:
        raise ValueError("no ink")

    monkeypatch.setattr(charts, "svg_bytes", broken)
    assert cli.main(["grid", "--update", str(path)]) == 70
    assert "no ink" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == block("c1 charts=threads folder=.")


def test_names_in_alt_texts_are_text(desk: Path) -> None:
    store(desk, [full(tps=30.0 * t, threads=t, device='"><script>x</script>') for t in (1, 2)])
    path = page(desk / "p.md", block("c1 charts=threads folder=."))
    assert cli.main(["grid", "--update", str(path)]) == 0
    assert "<script>" not in path.read_text(encoding="utf-8")
