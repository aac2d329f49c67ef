"""Text <-> token ids, from the vocabulary and merges that a GGUF file carries (byte-level BPE).

``tokenizers`` does the merging; what the file means is decided here. Kinds of tokenizer that are not known
are refused by name rather than approximated.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from stbench.errors import InputError

# tokenizer.ggml.token_type
_CONTROL, _USER_DEFINED = 3, 4

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _bytes_of(split: str | None) -> Any:
    """GPT-2's own word pattern, or another one, and then bytes as characters."""
    if split is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2() -> Any:
    return _bytes_of(None)


def _single_digits() -> Any:
    digits = pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated")
    return pre_tokenizers.Sequence([digits, _bytes_of(None)])


def _qwen2() -> Any:
    return _bytes_of(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}")


def _llama3() -> Any:
    return _bytes_of(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}")


@dataclass(frozen=True)
class _Kind:
    """How one ``tokenizer.ggml.pre`` splits text, and its defaults for keys that a file may lack.

    ``whole_words``: a word that is in the vocabulary is taken as it is, whatever the merges say.
    """

    split: Callable[[], Any]
    whole_words: bool = False
    adds_bos: bool = False


_KINDS = {
    "gpt-2": _Kind(_gpt2),
    "smollm": _Kind(_single_digits),
    "starcoder": _Kind(_single_digits),
    "qwen2": _Kind(_qwen2),
    "llama-bpe": _Kind(_llama3, whole_words=True, adds_bos=True),
    "llama3": _Kind(_llama3, whole_words=True, adds_bos=True),
}


class TextTokenizer:
    """The tokenizer of one GGUF file, from its metadata. Raises :class:`InputError` for other kinds."""

    def __init__(self, keys: Mapping[str, Any]) -> None:
        kind = _kind(keys)
        self._tokens = _required(keys, "tokens")
        types = _list(keys, "token_type") or [1] * len(self._tokens)
        merges = []
        for merge in _required(keys, "merges"):
            left, _, right = merge.partition(" ")
            merges.append((left, right))
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        try:
            bpe = models.BPE(vocab=self._ids, merges=merges, ignore_merges=kind.whole_words)
        except Exception as error:
            # The package's errors have no class of their own.
            raise InputError(f"the file's vocabulary and merges do not fit together: {error}") from error
        self._encoders = {}
        spelled = {True: (_CONTROL, _USER_DEFINED), False: (_USER_DEFINED,)}
        for special, wanted in spelled.items():
            encoder = Tokenizer(bpe)
            encoder.pre_tokenizer = kind.split()
            encoder.decoder = decoders.ByteLevel()
            added = [t for t, token_type in zip(self._tokens, types, strict=False) if token_type in wanted]
            encoder.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in added])
            self._encoders[special] = encoder
        self._control = {i for i, token_type in enumerate(types) if token_type == _CONTROL}
        self._bytes = {character: byte for byte, character in _byte_characters()}
        self.template: str = str(keys.get("tokenizer.chat_template", ""))
        self.bos = _id(keys, "bos_token_id")
        adds_bos = keys.get("tokenizer.ggml.add_bos_token", kind.adds_bos)
        self.prefix = [self.bos] if adds_bos and self.bos is not None else []
        ends = [_id(keys, name) for name in ("eos_token_id", "eot_token_id")]
        ends += [self._ids.get(text) for text in ("<|im_end|>", "<|endoftext|>", "<|eot_id|>")]
        self.ends = frozenset(i for i in ends if i is not None)

    def __len__(self) -> int:
        return len(self._tokens)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids, nothing added in front (see :attr:`prefix`).

        ``special``: control tokens that are spelled out in ``text`` become their ids.
        """
        ids: list[int] = self._encoders[special].encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for control tokens and ids beyond the vocabulary."""
        if token in self._control or not 0 <= token < len(self._tokens):
            return b""
        text = self._tokens[token]
        if all(character in self._bytes for character in text):
            return bytes(self._bytes[character] for character in text)
        return text.encode()  # user-defined tokens are stored as they are

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def stream(self, tokens: Iterator[int]) -> Iterator[str]:
        """Text piece by piece as tokens come: a character that spans tokens appears when it is whole."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            if piece := decoder.decode(self.token_bytes(token)):
                yield piece
        if piece := decoder.decode(b"", final=True):
            yield piece

    def chat(self, message: str, *, system: str = "") -> str:
        """A user message in ChatML, open for the answer. Raises :class:`InputError` for other formats."""
        if "<|im_start|>" not in self._ids or (self.template and "<|im_start|>" not in self.template):
            raise InputError(
                "the file's chat format is not ChatML (<|im_start|> ... <|im_end|>), the only one supported",
                hint="leave --chat out and write the prompt in the model's own format",
            )
        turns = [("system", system)] if system else []
        turns.append(("user", message))
        text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
        return text + "<|im_start|>assistant\n"


def _kind(keys: Mapping[str, Any]) -> _Kind:
    model, pre = keys.get("tokenizer.ggml.model"), keys.get("tokenizer.ggml.pre")
    if model is None:
        raise InputError("the file carries no tokenizer (no key tokenizer.ggml.model)")
    if model != "gpt2":
        raise InputError(f'tokenizer "{model}" is not supported (supported: gpt2, which is byte-level BPE)')
    if pre not in _KINDS:
        raise InputError(f'pre-tokenizer "{pre}" is not supported (supported: {", ".join(sorted(_KINDS))})')
    return _KINDS[pre]


def _list(keys: Mapping[str, Any], name: str) -> list[Any]:
    value = keys.get(f"tokenizer.ggml.{name}", [])
    return value if isinstance(value, list) else []


def _required(keys: Mapping[str, Any], name: str) -> list[str]:
    value = _list(keys, name)
    if not value or not all(isinstance(item, str) for item in value):
        raise InputError(f"the file carries no usable tokenizer.ggml.{name}")
    return value


def _id(keys: Mapping[str, Any], name: str) -> int | None:
    value = keys.get(f"tokenizer.ggml.{name}")
    return value if isinstance(value, int) else None


def _byte_characters() -> Iterator[tuple[int, str]]:
    """GPT-2's spelling of bytes: printable Latin-1 is itself, the other 68 follow from U+0100 on."""
    shifted = 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF:
            yield byte, chr(byte)
        else:
            yield byte, chr(shifted)
            shifted += 1
