"""A GGUF writer for tinythinker: keys, tensors in order, Q4_0; little-endian, version 3.

Shapes are numpy's: the last axis is contiguous and is GGUF's first.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ALIGNMENT = 32
BLOCK = 32

_TENSOR_TYPES = {"f32": 0, "f16": 1, "q4_0": 2}

# Numbers of the format for the kinds of value that are written here.
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


def quantise_q4_0(values: Floats) -> NDArray[np.uint8]:
    """[..., columns] -> [..., columns / 32 * 18 bytes]: per 32 weights a half ``d`` and 32 nibbles, weight =
    d * (nibble - 8). The weight of largest magnitude becomes exactly -8 d, whichever its sign."""
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, BLOCK)
    extreme = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)]
    d = extreme / np.float32(-8)
    inverse = np.divide(1, d, out=np.zeros_like(d), where=d != 0)
    nibbles = np.clip(np.floor(blocks * inverse[:, None] + np.float32(8.5)), 0, 15).astype(np.uint8)
    # The first half of a block is in the low nibbles.
    packed = nibbles[:, :16] | (nibbles[:, 16:] << 4)
    halves = d.astype("<f2").view(np.uint8).reshape(-1, 2)
    return np.concatenate([halves, packed], axis=1).reshape(*values.shape[:-1], -1)


@dataclass
class GgufFile:
    """Keys and tensors to be written. Numbers are 32 bits wide: unsigned as keys of their own, signed in
    arrays."""

    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, tuple[str, Floats]] = field(default_factory=dict)

    def add(self, name: str, values: Floats, kind: str) -> None:
        """A tensor of type ``kind``: f32, f16 or q4_0."""
        if name in self.tensors:
            raise ValueError(f"tensor {name} is there already")
        if kind == "q4_0" and values.shape[-1] % BLOCK:
            raise ValueError(f"tensor {name}: q4_0 needs rows of whole blocks of {BLOCK}, got {values.shape}")
        self.tensors[name] = (kind, values)

    def write(self, path: Path) -> int:
        """Writes the file and returns its size in bytes."""
        header = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))]
        header += [_string(key) + _value(value) for key, value in self.keys.items()]
        parts = [_encode(values, kind) for kind, values in self.tensors.values()]
        offset = 0
        for (name, (kind, values)), data in zip(self.tensors.items(), parts, strict=True):
            shape = values.shape[::-1]
            header.append(_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            header.append(struct.pack("<IQ", _TENSOR_TYPES[kind], offset))
            offset += len(_padded(data))
        body = b"".join([_padded(b"".join(header)), *map(_padded, parts)])
        path.write_bytes(body)
        return len(body)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


def _encode(values: Floats, kind: str) -> bytes:
    if kind == "q4_0":
        return quantise_q4_0(values).tobytes()
    return values.astype("<f2" if kind == "f16" else "<f4").tobytes()


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, (list, tuple)):
        kind = _INT32 if _kind(value[0]) == _UINT32 else _kind(value[0])
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(_items(value, kind))
    kind = _kind(value)
    return struct.pack("<I", kind) + b"".join(_items([value], kind))


def _kind(value: Any) -> int:
    # bool before int: it is one.
    for python, kind in ((bool, _BOOL), (int, _UINT32), (float, _FLOAT32), (str, _STRING)):
        if isinstance(value, python):
            return kind
    raise TypeError(f"no GGUF key can hold {value!r}")


def _items(values: Sequence[Any], kind: int) -> list[bytes]:
    if kind == _STRING:
        return [_string(value) for value in values]
    return [
        struct.pack({_BOOL: "<?", _UINT32: "<I", _INT32: "<i", _FLOAT32: "<f"}[kind], value)
        for value in values
    ]
