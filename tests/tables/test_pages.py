"""Tables inside pages: made again between markers, byte for byte elsewhere, stale ones found."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from stbench import cli
from stbench.errors import InputError, UsageError
from stbench.tables import pages
from stbench.tables.pages import Source
from tests.tables.factory import record, table_4b
from tests.tables.test_reporting import stored

BEGIN, END = "<!-- grid: begin {} -->", "<!-- grid: end -->"


def page(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def block(words: str = "c1 table=4b") -> str:
    return f"{BEGIN.format(words)}\n{END}\n"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    stored(tmp_path / "c1", table_4b(n=2))
    return tmp_path


def test_a_page_is_updated_and_checked_by_itself(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = page(desk / "README.md", f"# Mine\n\n{block()}\nafter\n")
    assert cli.main(["grid", "--check", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "+### SmallThinker 4B" in shown
    assert "lines more" in shown
    assert len(shown.splitlines()) < 30
    assert cli.main(["grid", "--update", str(path)]) == 0
    made = path.read_text(encoding="utf-8")
    assert made.startswith("# Mine\n\n<!-- grid: begin c1 table=4b records=")
    assert made.endswith(f"\n{END}\n\nafter\n")
    assert "| SmallThinker 4B+sparse ffn +sparse lm_head | 2.24 |" in made
    # Paths are the page's, not the caller's.
    monkeypatch.chdir("/")
    assert cli.main(["grid", "--check", str(path)]) == 0
    before = path.stat().st_mtime_ns
    assert cli.main(["grid", "--update", str(path)]) == 0
    assert path.stat().st_mtime_ns == before, "an up to date page is not written"


def test_results_of_the_command_line_go_into_the_marker(desk: Path) -> None:
    path = page(desk / "docs.md", "<!-- grid: begin -->\n<!-- grid: end -->")
    assert cli.main(["grid", "--check", str(path)]) == 2
    assert cli.main(["grid", str(desk / "c1"), "--update", str(path)]) == 0
    assert path.read_text(encoding="utf-8").startswith("<!-- grid: begin c1 records=")
    stored(desk / "c2", table_4b(n=2, device="pi", campaign="c2"))
    assert cli.main(["grid", str(desk / "c1"), str(desk / "c2"), "--update", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!-- grid: begin c1 c2 records=")
    assert "pi<br>tokens/s" in text


@pytest.mark.parametrize(
    ("end", "last"), [("\n", ""), ("\n", "\n"), ("\r\n", "tail without a line end"), ("\r\n", "")]
)
def test_everything_else_stays_byte_for_byte(desk: Path, end: str, last: str) -> None:
    head = "\ufeffcaf\u00e9 \u2028 \x0c tabs\t \r\nmixed\nlines  \n\n"
    path = page(desk / "p.md", f"{head}{BEGIN.format('c1')}{end}old{end}{END}{end if last else ''}{last}")
    os.chmod(path, 0o640)
    assert cli.main(["grid", "--update", str(path)]) == 0
    data = path.read_bytes()
    assert data.startswith(head.encode())
    assert data.endswith(f"{END}{end if last else ''}{last}".encode())
    body = data[len(head.encode()) : data.index(END.encode())]
    assert body.count(b"\n") > 20
    assert body.count(b"\r\n") == (body.count(b"\n") if end == "\r\n" else 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert cli.main(["grid", "--check", str(path)]) == 0


def test_several_blocks_each_by_its_marker(desk: Path) -> None:
    stored(desk / "c2", [record("smallthinker-21b", ffn=True, campaign="c2")])
    path = page(desk / "p.md", block("c1 table=4b") + "between\n" + block("c1 c2 table=21b engine=sbr"))
    assert cli.main(["grid", "--update", str(path)]) == 0
    first, second = path.read_text(encoding="utf-8").split("between\n")
    assert "SmallThinker 4B:" in first
    assert "SmallThinker 21B:" not in first
    assert "SmallThinker 21B:" in second
    assert "SmallThinker 4B:" not in second
    # One set of results cannot be meant for both.
    assert cli.main(["grid", str(desk / "c1"), "--update", str(path)]) == 2


def test_markers_in_fenced_code_are_text(desk: Path) -> None:
    fenced = f"````md\n{block()}```\n{block()}````\n"
    path = page(desk / "p.md", fenced + block())
    assert len(pages.read_page(path).blocks) == 1
    assert cli.main(["grid", "--update", str(path)]) == 0
    assert path.read_text(encoding="utf-8").startswith(fenced)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing\n", "there is no place for a table"),
        (f"{BEGIN.format('c1')}\n", ":1: the block that begins here has no end"),
        (f"{END}\n", ":1: a block ends here that never began"),
        (f"{BEGIN.format('c1')}\n{BEGIN.format('c2')}\n{END}\n", ":2: a block begins inside"),
        (block() + block(), ":3: this block is made from the same as that of line 1"),
        (block("c1 tabel=4b"), ":1: unknown option tabel"),
        (block("c1 'open"), "no closing quotation"),
        (block("c1 table=5b"), "--table 5b: these results have the tables 4b"),
        (block("nowhere"), "nowhere: no such file"),
        (block("c1 ratio-to=local:moon"), "expected DEVICE=PUBLISHED"),
    ],
)
def test_broken_pages_are_refused_and_left_alone(
    desk: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = page(desk / "p.md", text)
    assert cli.main(["grid", "--update", str(path)]) == 2
    assert said in capsys.readouterr().err
    assert path.read_bytes() == text.encode()


def test_files_that_are_no_pages(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "p.md").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="byte 0 is no UTF-8"):
        pages.read_page(desk / "p.md")
    assert cli.main(["grid", "--check", str(desk / "none.md")]) == 2
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--format", "md"], ["--engine", "sbr"], ["--json"], ["--table", "4b"]])
def test_options_that_the_marker_decides_are_refused(desk: Path, option: list[str]) -> None:
    path = page(desk / "p.md", block())
    assert cli.main(["grid", *option, "--update", str(path)]) == 2


def test_a_write_that_fails_leaves_the_page(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = page(desk / "p.md", block())

    def full(handle: int, mode: str) -> None:
        os.close(handle)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    assert cli.main(["grid", "--update", str(path)]) == 2
    assert path.read_text(encoding="utf-8") == block()
    assert [name for name in os.listdir(desk) if name.startswith(".p.md")] == []


def test_a_link_to_a_page_stays_a_link(desk: Path) -> None:
    path = page(desk / "p.md", block())
    (desk / "link.md").symlink_to(path)
    assert cli.main(["grid", "--update", str(desk / "link.md")]) == 0
    assert (desk / "link.md").is_symlink()
    assert cli.main(["grid", "--check", str(path)]) == 0


def test_names_that_no_comment_can_hold() -> None:
    with pytest.raises(UsageError, match="no marker can hold this"):
        Source(("results/a-->b",)).marker()
    quoted = Source(("results/my desk",), (("table", "4b"),))
    assert pages._source("p.md:1", quoted.marker()[17:-3]) == quoted
