"""A second reader of bundles, written from docs/bundles.md alone: slow, and as simple as it can be."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
# Of the types that are interleaved: bytes of a block, and 16-bit words before its quants.
BLOCKS = {2: (18, 1), 3: (20, 2), 8: (34, 1), 12: (144, 2)}
K = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def checksum(data: bytes) -> int:
    """Of any bytes; the lanes of all blocks at once would be wrong, so that it is one block after another."""

    def mix(state: int, word: int) -> int:
        x = state ^ word
        return ((x << 29 | x >> 35) & MASK) * K & MASK

    lanes = [(i + 1) * K & MASK for i in range(8)]
    padded = data + bytes(-len(data) % 64)
    for block in struct.iter_unpack("<8Q", padded):
        lanes = [mix(lane, word) for lane, word in zip(lanes, block, strict=True)]
    state = len(data)
    for lane in lanes:
        state = mix(state, lane)
    state ^= state >> 32
    state = state * K & MASK
    return state ^ state >> 29


@dataclass(frozen=True)
class Part:
    role: str
    type: int
    cols: int
    rows: int
    offset: int


@dataclass(frozen=True)
class Contents:
    """``parts[layer]``, ``units[layer][expert]``; ``header`` has the numbers by their names."""

    header: dict[str, int]
    shape: tuple[int, ...]
    architecture: str
    layout: str
    digest: str
    parts: list[list[Part]]
    units: list[list[bytes]]


def text(field: bytes) -> str:
    content, _, zeros = field.partition(b"\0")
    assert not zeros.strip(b"\0")
    return content.decode()


def read(data: bytes) -> Contents:
    """Everything that a bundle holds, all checksums compared."""
    assert data[:8] == b"SBRUNITS"
    names = (
        *("version", "header_bytes", "file_bytes", "unit_bytes", "kind", "gathers", "tiles", "n_layer"),
        *("units_per_layer", "parts_per_layer"),
    )
    head: dict[str, int] = dict(zip(names, struct.unpack_from("<IIQQIIIIII", data, 8), strict=True))
    end, unit_bytes = head["header_bytes"], head["unit_bytes"]
    n_units = head["n_layer"] * head["units_per_layer"]
    assert (head["version"], head["tiles"], end % 4096, unit_bytes % 4096) == (1, 1, 0, 0)
    assert len(data) == head["file_bytes"] == end + n_units * unit_bytes
    assert struct.unpack_from("<Q", data, end - 8) == (checksum(data[: end - 8]),)
    at = 320
    parts: list[list[Part]] = []
    for _ in range(head["n_layer"]):
        parts.append([])
        for _ in range(head["parts_per_layer"]):
            role, kind, cols, rows, offset = struct.unpack_from("<IIQQQ", data, at)
            parts[-1].append(Part(ROLES[role], kind, cols, rows, offset))
            at += 32
    sums = struct.unpack_from(f"<{n_units}Q", data, at)
    assert not any(data[at + 8 * n_units : end - 8])
    flat = [data[end + i * unit_bytes : end + (i + 1) * unit_bytes] for i in range(n_units)]
    assert [checksum(unit) for unit in flat] == list(sums)
    each = head["units_per_layer"]
    return Contents(
        head,
        struct.unpack_from("<9I", data, 56),
        text(data[96:128]),
        text(data[128:224]),
        text(data[224:296]),
        parts,
        [flat[i : i + each] for i in range(0, n_units, each)],
    )


def rows_of(unit: bytes, part: Part, row_bytes: int) -> bytes:
    """A part's rows as the model's file has them."""
    data: NDArray[Any] = np.frombuffer(unit, np.uint8, part.rows * row_bytes, part.offset)
    if part.type < 32:
        return data.tobytes()
    block_bytes, words = BLOCKS[part.type - 32]
    tiles = data.reshape(part.rows // 16, row_bytes // block_bytes, 16 * block_bytes)
    heads = tiles[:, :, : words * 32].reshape(*tiles.shape[:2], words, 16, 2)
    quants = tiles[:, :, words * 32 :].reshape(*tiles.shape[:2], -1, 16, 4)
    # To [tile, row, block, word, byte].
    lines = [part.transpose(0, 3, 1, 2, 4) for part in (heads, quants)]
    blocks = [line.reshape(*line.shape[:3], -1) for line in lines]
    return np.concatenate(blocks, axis=3).tobytes()
