"""What an output says it was made from, and that nothing else passes for it."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from stbench.tables import stamps

SVG = b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>\n"
HTML = b"<!DOCTYPE html>\n<html></html>\n"
WORDS = "chart=speed theme=dark records=0123456789ab"


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (2, 3)).save(out, "png")
    return out.getvalue()


@pytest.mark.parametrize("data", [SVG, HTML, SVG.rstrip(), png()])
def test_a_stamp_is_read_back_and_holds_for_these_bytes_alone(data: bytes, tmp_path: Path) -> None:
    made = stamps.stamped(data, WORDS)
    assert stamps.read(made) == (WORDS, True)
    assert stamps.read(data) == ("", False)
    path = tmp_path / "x"
    path.write_bytes(made)
    assert stamps.stale(path, WORDS) == ""
    assert "made from chart=speed" in stamps.stale(path, WORDS.replace("ab", "ac"))
    # In front of its last byte but one before the stamp.
    edited = made.replace(b"svg", b"sv9").replace(b"html", b"htm1").replace(b"\x00\x03", b"\x00\x04", 1)
    assert edited != made
    path.write_bytes(edited)
    assert "changed by hand" in stamps.stale(path, WORDS)
    path.write_bytes(data)
    assert "does not say" in stamps.stale(path, WORDS)
    path.unlink()
    assert "No such file" in stamps.stale(path, WORDS)


def test_pictures_stay_pictures() -> None:
    assert ET.fromstring(stamps.stamped(SVG, WORDS)).tag.endswith("svg")
    with Image.open(io.BytesIO(stamps.stamped(png(), WORDS))) as image:
        image.load()
        assert image.size == (2, 3)
        assert image.info["stbench"].startswith(WORDS)


def test_words_are_safe_in_a_comment_and_differ_for_different_values() -> None:
    values = ("--><script>", "a b", "a%20b", "---", "\u202e\n", "x content=0123")
    made = {stamps.words("0123", chart="speed", filter=value) for value in values}
    assert len(made) == len(values)
    for words in made:
        assert ET.fromstring(stamps.stamped(SVG, words)) is not None
        assert stamps.read(stamps.stamped(SVG, words)) == (words, True)
    assert stamps.words("0123", filter="", ratio_to="pi=rk3588") == "ratio-to=pi=rk3588 records=0123"


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_file_has_no_stamp(cut: int) -> None:
    for data in (SVG, png()):
        assert stamps.read(stamps.stamped(data, WORDS)[:-cut]) != (WORDS, True)


def test_digests_are_of_contents_in_any_order(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    one.write_bytes(b"a\r\nb\n")
    two.write_bytes(b"c\n")
    other.write_bytes(b"a\nb\n")
    assert stamps.digest([one, two]) == stamps.digest([two, other]) == stamps.digest([two, one, one])
    assert stamps.digest([one]) != stamps.digest([two])
    assert stamps.digest([one, two]) != stamps.digest([one])
