"""tinythinker's tokenizer: byte-level BPE learned from the text, as GGUF's ``gpt2`` model with the word
pattern ``gpt-2``, which llama.cpp and stbench both know."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.tinythinker.corpus import END_OF_TEXT

# tokenizer.ggml.token_type
_NORMAL, _CONTROL = 1, 3


def learn(texts: Iterable[str], size: int) -> Tokenizer:
    """``size`` tokens: the end of a text (0), 256 bytes, and merges of them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def gguf_keys(tokenizer_file: Path) -> dict[str, Any]:
    """The ``tokenizer.ggml`` keys of a tokenizer saved by ``tokenizers``."""
    model = json.loads(tokenizer_file.read_text(encoding="utf-8"))["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    end = tokens.index(END_OF_TEXT)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [_CONTROL if i == end else _NORMAL for i in range(len(tokens))],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": end,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.add_bos_token": False,
    }
