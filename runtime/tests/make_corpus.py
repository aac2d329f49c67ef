"""Writes the seed corpus of fuzz_gguf: valid headers of every kind, and each check's smallest offender.

    python runtime/tests/make_corpus.py runtime/tests/corpus

Standard library only. The files are committed; run this again after adding a case.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = dict(zip((U8, I8, U16, I16, U32, I32, F32, BOOL, U64, I64, F64), "BbHhIifBQqd", strict=True))
TYPE_F32, TYPE_Q4_0 = 0, 2


def string(text: bytes) -> bytes:
    """A length and that many bytes."""
    return struct.pack("<Q", len(text)) + text


def value(kind: int, content: object) -> bytes:
    """A metadata value without its type; arrays are (item type, items)."""
    if kind == STRING:
        assert isinstance(content, bytes)
        return string(content)
    if kind == ARRAY:
        assert isinstance(content, tuple)
        item, items = content
        return struct.pack("<IQ", item, len(items)) + b"".join(value(item, i) for i in items)
    return struct.pack("<" + FORMATS[kind], content)


def entry(key: bytes, kind: int, content: object) -> bytes:
    """A key with its value."""
    return string(key) + struct.pack("<I", kind) + value(kind, content)


def tensor(name: bytes, shape: list[int], kind: int, offset: int) -> bytes:
    """A tensor's description; ``shape`` has the contiguous dimension first."""
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(
    entries: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: int = 0,
    version: int = 3,
    n_entries: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    """A file of these parts and ``data`` zeros; the counts may lie."""
    out = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(entries) if n_entries is None else n_entries,
    )
    out += b"".join(entries) + b"".join(tensors)
    return out + bytes(-len(out) % 32 + data) if tensors else out


def model() -> bytes:
    """The header of a tiny model as synthetic files have it."""
    keys = {
        "block_count": (U32, 2),
        "embedding_length": (U32, 64),
        "attention.head_count": (U32, 4),
        "attention.layer_norm_rms_epsilon": (F32, 1e-6),
        "rope.freq_base": (F32, 1.5e6),
        "expert_gating_func": (U32, 2),
    }
    entries = [entry(b"general.architecture", STRING, b"smallthinker"), entry(b"general.alignment", U32, 32)]
    entries += [entry(b"smallthinker." + k.encode(), kind, v) for k, (kind, v) in keys.items()]
    entries += [
        entry(b"stbench.synthetic.zero_share", ARRAY, (U32, [970, 650])),
        entry(
            b"tokenizer.ggml.tokens", ARRAY, (STRING, [b"\xc4\x80", b"a", b"<filler-2>", b"<|endoftext|>"])
        ),
        entry(b"tokenizer.ggml.token_type", ARRAY, (I32, [1, 1, 1, 3])),
        entry(b"tokenizer.ggml.add_bos_token", BOOL, 0),
    ]
    shapes = {
        b"token_embd.weight": ([64, 4], TYPE_Q4_0, 144),
        b"blk.0.ffn_norm.weight": ([64], TYPE_F32, 256),
        b"blk.0.ffn_gate_exps.weight": ([64, 32, 2], TYPE_Q4_0, 2304),
    }
    tensors, offset = [], 0
    for name, (shape, kind, size) in shapes.items():
        tensors.append(tensor(name, shape, kind, offset))
        offset += size + -size % 32
    return header(entries, tensors, data=offset)


def whole(architecture: bytes) -> bytes:
    """A header with everything that a model of one layer needs to be bound."""
    experts = architecture == b"smallthinker"
    keys = {
        "block_count": (U32, 1),
        "context_length": (U32, 64),
        "embedding_length": (U32, 32),
        "feed_forward_length": (U32, 32),
        "attention.head_count": (U32, 2),
        "attention.head_count_kv": (U32, 1),
        "attention.key_length": (U32, 32),
        "attention.layer_norm_rms_epsilon": (F32, 1e-6),
        "attention.sliding_window": (U32, 4096 if experts else 0),
        "expert_count": (U32, 4 if experts else 0),
        "expert_used_count": (U32, 2 if experts else 0),
    }
    entries = [entry(b"general.architecture", STRING, architecture)]
    entries += [entry(architecture + b"." + k.encode(), kind, v) for k, (kind, v) in keys.items()]
    matrices = {b"token_embd": [32, 4], b"blk.0.attn_q": [32, 64], b"blk.0.attn_k": [32, 32]}
    matrices |= {b"blk.0.attn_v": [32, 32], b"blk.0.attn_output": [64, 32]}
    if experts:
        matrices |= {b"blk.0.ffn_%s_exps" % name: [32, 32, 4] for name in (b"gate", b"up", b"down")}
        matrices[b"lm_head_profiler"] = [32 * (32 + 4)]
    else:
        matrices |= {b"blk.0.ffn_%s" % name: [32, 32] for name in (b"gate", b"up", b"down")}
    norms = {b"output_norm": [32], b"blk.0.attn_norm": [32], b"blk.0.ffn_norm": [32]}
    if experts:
        norms[b"blk.0.ffn_gate_inp"] = [32, 4]
    if architecture == b"qwen3":
        norms |= {b"blk.0.attn_q_norm": [32], b"blk.0.attn_k_norm": [32]}
    tensors, offset = [], 0
    for name, shape in {**matrices, **norms}.items():
        kind, block_bytes = (TYPE_Q4_0, 18) if name in matrices else (TYPE_F32, 128)
        tensors.append(tensor(name + b".weight", shape, kind, offset))
        size = math.prod(shape) // 32 * block_bytes
        offset += size + -size % 32
    return header(entries, tensors)


def cases() -> dict[str, bytes]:
    """Names and contents of all seeds."""
    nested: object = (U8, [1, 2])
    for _ in range(6):
        nested = (ARRAY, [nested])
    one = [tensor(b"t", [8], TYPE_F32, 0)]
    every_scalar = [entry(b"k%d" % kind, kind, 1) for kind in FORMATS]
    some = model()
    return {
        "model": some,
        "model-v2": some[:4] + struct.pack("<I", 2) + some[8:],
        "model-cut": some[: len(some) // 2],
        "whole-smallthinker": whole(b"smallthinker"),
        "whole-qwen3": whole(b"qwen3"),
        "whole-llama": whole(b"llama"),
        "scalars": header(every_scalar),
        "arrays": header(
            [entry(b"a", ARRAY, (k, [0, 1])) for k in [U8]] + [entry(b"b", ARRAY, (STRING, []))]
        ),
        "nested": header([entry(b"a", ARRAY, (ARRAY, [(U8, [1]), (STRING, [b"x"])]))]),
        "nested-deep": header([entry(b"a", ARRAY, nested)]),
        "not-utf8": header(
            [entry(b"a", STRING, b"\xff\x00\xc3"), entry(b"\xf0\x9f", STRING, b"\xed\xa0\x80")]
        ),
        "nan": header([entry(b"a", F32, float("nan")), entry(b"b", F64, float("-inf"))]),
        "alignment-64": header([entry(b"general.alignment", U32, 64)], one, data=96),
        "alignment-0": header([entry(b"general.alignment", U32, 0)], one, data=32),
        "unknown-type": header([], [tensor(b"t", [7], 99, 0)]),
        "unpadded": header([], [tensor(b"t", [7], 99, 0)])[:61],
        "four-dims": header([], [tensor(b"t", [32, 2, 1, 3], TYPE_Q4_0, 0)], data=128),
        "dims-overflow": header([], [tensor(b"t", [1 << 63, 4], TYPE_F32, 0)], data=32),
        "dims-zero": header([], [tensor(b"t", [0], TYPE_F32, 0)], data=32),
        "block": header([], [tensor(b"t", [31], TYPE_Q4_0, 0)], data=32),
        "offset": header([], [tensor(b"t", [8], TYPE_F32, 1 << 63)], data=32),
        "overlap": header([], [tensor(b"a", [8], TYPE_F32, 0), tensor(b"b", [8], TYPE_F32, 0)], data=64),
        "twice": header([], one * 2, data=64),
        "key-twice": header([entry(b"a", U8, 1)] * 2),
        "count-tensors": header([], [], n_tensors=1 << 60),
        "count-entries": header([], [], n_entries=1 << 60),
        "count-items": header([string(b"a") + struct.pack("<IIQ", ARRAY, STRING, 1 << 61)]),
        "length": header([struct.pack("<Q", (1 << 64) - 1) + b"a"]),
        "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "v1": header(version=1),
        "empty": header(),
    }


def main() -> None:
    """Writes every case into the directory that the command line names."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in cases().items():
        (directory / f"{name}.gguf-header").write_bytes(content)


if __name__ == "__main__":
    main()
