"""Tables and charts inside a page, between markers, made again from stored records at will.

    <!-- grid: begin results/desk results/pi table=4b charts=speed folder=pictures records=0123456789ab -->
    ...
    <!-- grid: end -->

The begin marker says what the block is made from: RESULTS, relative to the page, options, and a digest of the
records, so that every edited number shows, be it one that no median rests on. Everything outside the blocks
stays byte for byte. Markers stand alone on their lines; those in fenced code are text. Charts are files in
the folder, which say themselves what they were made from (:mod:`stbench.tables.stamps`).
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stbench.atomic import write_atomically
from stbench.errors import InputError, UsageError, unreadable
from stbench.tables import stamps
from stbench.wording import clean

_MARKER = re.compile(r" {0,3}<!--[ \t]*grid:[ \t]*(begin|end)\b(.*?)-->[ \t]*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
OPTIONS = ("table", "engine", "ratio-to", "charts", "folder")
DIGEST = stamps.RECORDS

# Of a diff that is shown.
_DIFF_LINES = 24


@dataclass(frozen=True)
class Source:
    """What a block is made from. ``results`` are as written in the marker. ``options`` are pairs such as
    ``("table", "4b")``, in the order written; ``digest`` is of the records, "" until the block is made."""

    results: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    digest: str = field(default="", compare=False)

    def marker(self) -> str:
        """The begin marker. Raises :class:`UsageError` for a path that no comment can hold."""
        words = [*map(shlex.quote, self.results)]
        words += [f"{name}={shlex.quote(value)}" for name, value in self.options]
        words += [f"{DIGEST}={self.digest}"] if self.digest else []
        text = " ".join(words)
        if "--" in text or "\n" in text or text.endswith(">"):
            raise UsageError(
                f"{text}: no marker can hold this: two dashes or a line break end or break an HTML comment",
                hint="give the results directory another name",
            )
        return f"<!-- grid: begin {text} -->" if text else "<!-- grid: begin -->"

    def get(self, name: str) -> list[str]:
        """The values of an option, in order."""
        return [value for key, value in self.options if key == name]

    @property
    def charts(self) -> list[str]:
        """The kinds of charts that it names."""
        return [word for value in self.get("charts") for word in value.split(",") if word]

    @property
    def tables_shown(self) -> bool:
        """Whether it has tables: who names charts and no table wants charts alone."""
        return not self.charts or bool(self.get("table"))


@dataclass(frozen=True)
class Block:
    """Lines ``first`` (the begin marker) to ``last`` (the end marker) of a page, counted from 0."""

    first: int
    last: int
    source: Source


@dataclass(frozen=True)
class Picture:
    """A file beside a page: its ``path`` relative to the page, what it is made from, and how."""

    path: str
    stamp: str
    draw: Callable[[], bytes]


@dataclass(frozen=True)
class Made:
    """Of a block: its Markdown, the digest of the records that it was made from, and its pictures."""

    text: str
    digest: str
    pictures: tuple[Picture, ...] = ()


Maker = Callable[[Source], Made]


@dataclass(frozen=True)
class Page:
    """A page's lines with their line ends. ``path`` is for messages."""

    path: Path
    lines: tuple[str, ...]
    blocks: tuple[Block, ...]

    def beside(self, name: str) -> Path:
        """What ``name`` in one of its markers means; through links, a page's neighbours are the file's."""
        return Path(os.path.relpath(self.path.resolve().parent / name))


@dataclass(frozen=True)
class Updated:
    """What a page should be. ``pictures`` are those of all its blocks."""

    page: Page
    text: str
    pictures: tuple[Picture, ...]

    def stale(self) -> list[str]:
        """What would change: the first lines of a unified diff, and a sentence per stale picture; none where
        nothing would."""
        lines = difference(self.page, self.text)
        return lines + [
            why for each in self.pictures if (why := stamps.stale(self.page.beside(each.path), each.stamp))
        ]

    def write(self) -> list[Path]:
        """Draws all pictures and writes what is not there yet, pictures before the page that shows them;
        returns the paths. A picture that cannot be drawn or written raises, and leaves the page as it was."""
        written = []
        for each in self.pictures:
            path, data = self.page.beside(each.path), stamps.stamped(each.draw(), each.stamp)
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                written.append(write_atomically(path, data))
        if difference(self.page, self.text):
            write_atomically(self.page.path.resolve(), self.text.encode())
            written.append(self.page.path)
        return written


def read_page(path: Path) -> Page:
    """The page with its blocks. Raises :class:`InputError` for a file that cannot be read, is no UTF-8, or
    whose markers are missing, unpaired, nested, or twice the same."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is no UTF-8: not a page that can be updated") from None
    except OSError as error:
        raise unreadable(path, error) from error
    # str.splitlines would also split at U+2028 and other characters inside a line.
    lines = tuple(re.findall(r"[^\n]*\n|[^\n]+", text))
    return Page(path, lines, _blocks(path, lines))


def with_results(page: Page, results: Sequence[Path]) -> Page:
    """The page with its blocks made from ``results``, written relative to it. Raises :class:`UsageError`
    where blocks are made from different results: one set cannot replace both."""
    kinds = {block.source.results for block in page.blocks if block.source.results}
    if len(kinds) > 1:
        where = ", ".join(f"line {block.first + 1}" for block in page.blocks)
        raise UsageError(
            f"{page.path}: its blocks ({where}) are made from different results, and RESULTS names one set",
            hint="without RESULTS each block is made from what its marker says; edit markers to change that",
        )
    base = page.path.resolve().parent
    written = tuple(Path(os.path.relpath(path.resolve(), base)).as_posix() for path in results)
    made = tuple(replace(block, source=replace(block.source, results=written)) for block in page.blocks)
    return replace(page, blocks=made)


def updated(page: Page, make: Maker) -> Updated:
    """The page with every block made again. Raises :class:`InputError` for a block that does not say what it
    is made from, for two that draw the same file, and what ``make`` raises."""
    out: list[str] = []
    pictures: dict[str, Picture] = {}
    done = 0
    for block in page.blocks:
        if not block.source.results:
            raise InputError(
                f"{page.path}:{block.first + 1}: the marker does not say what its table is made from",
                hint=f"stbench grid RESULTS... --update {page.path} writes it into the marker",
            )
        end = "\r\n" if page.lines[block.first].endswith("\r\n") else "\n"
        made = make(block.source)
        for picture in made.pictures:
            if picture.path in pictures:
                raise InputError(
                    f"{page.path}:{block.first + 1}: {picture.path} is drawn by a block above it already",
                    hint="give the block another folder=",
                )
            pictures[picture.path] = picture
        marker = replace(block.source, digest=made.digest).marker()
        out += page.lines[done : block.first]
        out += [line + end for line in (marker, *made.text.strip("\n").split("\n"))]
        done = block.last
    return Updated(page, "".join([*out, *page.lines[done:]]), tuple(pictures.values()))


def difference(page: Page, made: str) -> list[str]:
    """What would change, as the first lines of a unified diff; none where nothing would."""
    text = "".join(page.lines)
    if text == made:
        return []
    old, new = (side.replace("\r\n", "\n").split("\n") for side in (text, made))
    lines = list(difflib.unified_diff(old, new, str(page.path), "from the records", n=0, lineterm=""))
    shown = [_short(line) for line in lines[:_DIFF_LINES]]
    if len(lines) > len(shown):
        shown.append(f"... and {len(lines) - len(shown)} lines more")
    return shown or ["only line ends differ"]


def _short(line: str) -> str:
    return line[:1] + clean(line[1:], 240)


def _blocks(path: Path, lines: Sequence[str]) -> tuple[Block, ...]:
    found: list[Block] = []
    begun: tuple[int, Source] | None = None
    fence = ""
    for i, line in enumerate(lines):
        if begun is None:
            fence = _fence_after(fence, line)
            if fence:
                continue
        marker = _MARKER.fullmatch(line.rstrip("\r\n"))
        if marker is None:
            continue
        if marker[1] == "begin":
            if begun is not None:
                raise InputError(
                    f"{path}:{i + 1}: a block begins inside the one that began in line {begun[0] + 1}",
                    hint="<!-- grid: end --> closes a block",
                )
            source = _source(f"{path}:{i + 1}", marker[2])
            if (same := next((block for block in found if block.source == source), None)) is not None:
                raise InputError(
                    f"{path}:{i + 1}: this block is made from the same as that of line {same.first + 1}",
                    hint="table=4b, table=21b or engine=NAME in the marker makes a block of its own",
                )
            begun = (i, source)
        elif begun is None:
            raise InputError(f"{path}:{i + 1}: a block ends here that never began")
        else:
            found.append(Block(begun[0], i, begun[1]))
            begun = None
    if begun is not None:
        raise InputError(
            f"{path}:{begun[0] + 1}: the block that begins here has no end", hint="<!-- grid: end -->"
        )
    if not found:
        raise InputError(
            f"{path}: there is no place for a table",
            hint="put the lines <!-- grid: begin --> and <!-- grid: end --> where it shall stand",
        )
    return tuple(found)


def _fence_after(fence: str, line: str) -> str:
    """The fence that is open behind ``line``, "" for none."""
    match = _FENCE.match(line)
    if match is None:
        return fence
    if not fence:
        return match[1]
    closes = match[1].startswith(fence) and not line[match.end() :].strip()
    return "" if closes else fence


def _source(where: str, text: str) -> Source:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{where}: {text.strip()}: {str(error).lower()}") from None
    results, options, found = [], [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in OPTIONS:
            options.append((name, value))
        elif equals and name == DIGEST:
            found = value
        elif equals and name.isidentifier():
            raise InputError(f"{where}: unknown option {name}; known: {', '.join(OPTIONS)}")
        else:
            results.append(word)
    source = Source(tuple(results), tuple(options), found)
    if source.charts and len(source.get("folder")) != 1:
        raise InputError(
            f"{where}: charts= needs one folder=, relative to the page, where the pictures lie",
            hint=f"charts={','.join(source.charts)} folder=charts",
        )
    return source
