"""The text and its tokenizer, without the package that the text comes from."""

from __future__ import annotations

from pathlib import Path

from stbench.text.tokenizer import TextTokenizer
from tests.tinythinker import corpus, vocabulary

TEXT = """Holy Bible, Authorized (King James) Version.
Ge1:1 In the beginning God created the heaven and the earth.
Ge1:2 And the earth was without form, and void.
Ge2:1 Thus the heavens and the earth were finished.
1Sm1:1 Now there was a certain man.
"""


def test_books_lose_their_numbers() -> None:
    assert corpus.books(TEXT) == {
        "Ge": "In the beginning God created the heaven and the earth."
        " And the earth was without form, and void.\n"
        "Thus the heavens and the earth were finished.\n",
        "1Sm": "Now there was a certain man.\n",
    }


def test_tokenizer_means_the_same_to_stbench(tmp_path: Path) -> None:
    text = corpus.HELD_OUT_FILE.read_text(encoding="utf-8")
    made = vocabulary.learn([text], 400)
    made.save(str(tmp_path / "tokenizer.json"))
    keys = vocabulary.gguf_keys(tmp_path / "tokenizer.json")
    assert len(keys["tokenizer.ggml.tokens"]) == 400
    ours = TextTokenizer(keys)
    for sample in (text, "Über 42%,\n\n  'tis odd", corpus.END_OF_TEXT):
        assert ours.encode(sample) == made.encode(sample).ids
    assert ours.encode(corpus.END_OF_TEXT) == [0]
    assert ours.decode(ours.encode(text)) == text
