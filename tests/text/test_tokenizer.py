from __future__ import annotations

from typing import Any

import pytest

from stbench.errors import InputError
from stbench.text.tokenizer import TextTokenizer

# Bytes as GPT-2 spells them: "Ġ" is a space, "Ã" and "©" the two bytes of "é".
TOKENS = ["h", "i", "Ġ", "hi", "Ġhi", "Ã", "©", "<|im_start|>", "<|im_end|>", "<user>", "1", "2", "Ċ"]
KEYS: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 1, 1, 3, 3, 4, 1, 1, 1],
    "tokenizer.ggml.merges": ["h i", "Ġ hi"],
    "tokenizer.ggml.bos_token_id": 7,
    "tokenizer.ggml.eos_token_id": 8,
}


def test_merges_digits_and_special_tokens() -> None:
    tokenizer = TextTokenizer(KEYS)
    assert tokenizer.encode("hi hi") == [3, 4]
    assert tokenizer.encode("12") == [10, 11]
    assert tokenizer.encode("<|im_start|>hi<|im_end|>") == [7, 3, 8]
    assert 7 not in tokenizer.encode("<|im_start|>hi", special=False)
    assert tokenizer.encode("hi<user>hi", special=False) == [3, 9, 3]  # user-defined: always


def test_control_tokens_have_no_text() -> None:
    tokenizer = TextTokenizer(KEYS)
    assert tokenizer.decode([7, 3, 4, 8]) == "hi hi"
    assert tokenizer.decode([9]) == "<user>"
    assert tokenizer.decode([99, -1]) == ""


def test_a_character_is_streamed_when_it_is_whole() -> None:
    tokenizer = TextTokenizer(KEYS)
    assert list(tokenizer.stream(iter([3, 5, 6, 4]))) == ["hi", "é", " hi"]
    assert list(tokenizer.stream(iter([3, 5]))) == ["hi", "\ufffd"]


def test_chat_is_chatml() -> None:
    tokenizer = TextTokenizer(KEYS)
    assert tokenizer.chat("hi") == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.chat("hi", system="1").startswith("<|im_start|>system\n1<|im_end|>\n<|im_start|>user")
    other = TextTokenizer({**KEYS, "tokenizer.chat_template": "[INST] {{ message }} [/INST]"})
    with pytest.raises(InputError, match="ChatML"):
        other.chat("hi")


def test_begin_of_text_is_added_where_the_file_says_so() -> None:
    assert TextTokenizer(KEYS).prefix == []
    assert TextTokenizer({**KEYS, "tokenizer.ggml.add_bos_token": True}).prefix == [7]
    llama = {**KEYS, "tokenizer.ggml.pre": "llama-bpe"}
    assert TextTokenizer(llama).prefix == [7]
    assert TextTokenizer({**llama, "tokenizer.ggml.add_bos_token": False}).prefix == []
    assert TextTokenizer(KEYS).ends == {8}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer.ggml.model": "llama"}, 'tokenizer "llama" is not supported'),
        ({"tokenizer.ggml.pre": "tekken"}, 'pre-tokenizer "tekken" is not supported .supported: gpt-2'),
        ({"tokenizer.ggml.model": None}, "no tokenizer"),
        ({"tokenizer.ggml.tokens": []}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": ["h zz"]}, "do not fit together"),
    ],
)
def test_unknown_kinds_are_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TextTokenizer({**KEYS, **change})
