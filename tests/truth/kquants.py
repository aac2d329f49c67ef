"""Encoders for Q4_K and Q6_K, which the ``gguf`` package can only decode.

Plain ones: scales from each block's range, no search for the best. The tests never ask how good the encoding
is, only that everybody decodes the same bytes to the same weights; the decoder is the package's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KINDS = ("q4_k", "q6_k")

Bytes = NDArray[np.uint8]


def quantize(values: NDArray[np.float32], kind: str) -> Bytes:
    """[..., columns] -> [..., bytes]; columns are a multiple of 256."""
    blocks = values.reshape(-1, 256).astype(np.float64)
    encoded = _q4_k(blocks) if kind == "q4_k" else _q6_k(blocks)
    return encoded.reshape(*values.shape[:-1], -1)


def _half(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], Bytes]:
    """Rounded to half precision, and the bytes of that."""
    half = values.astype(np.float16)
    return half.astype(np.float64), half.view(np.uint8).reshape(len(values), 2)


def _divide(values: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(values, by, out=np.zeros_like(values), where=by != 0)


def _q4_k(blocks: NDArray[np.float64]) -> Bytes:
    """w = d * scale * q - dmin * minimum per 32 weights: q in 0..15, scale and minimum in 0..63."""
    n = len(blocks)
    sub = blocks.reshape(n, 8, 32)
    low = np.minimum(sub.min(axis=2), 0)
    span = (sub.max(axis=2) - low) / 15
    d, d_bytes = _half(span.max(axis=1) / 63)
    dmin, dmin_bytes = _half((-low).max(axis=1) / 63)
    scale = np.clip(np.rint(_divide(span, np.broadcast_to(d[:, None], span.shape))), 0, 63)
    minimum = np.clip(np.rint(_divide(-low, np.broadcast_to(dmin[:, None], low.shape))), 0, 63)
    step = np.broadcast_to((d[:, None] * scale)[:, :, None], sub.shape)
    q = np.clip(np.rint(_divide(sub + (dmin[:, None] * minimum)[:, :, None], step)), 0, 15).astype(np.uint8)

    # Twelve bytes hold eight 6-bit scales and minima: the first four whole, the upper two bits of their bytes
    # lent to the last four.
    s, m = scale.astype(np.uint8), minimum.astype(np.uint8)
    packed = np.concatenate(
        [
            s[:, :4] | (s[:, 4:] >> 4 << 6),
            m[:, :4] | (m[:, 4:] >> 4 << 6),
            (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4),
        ],
        axis=1,
    )
    # Sub-blocks 2i and 2i + 1 share 32 bytes: low and high nibbles.
    nibbles = (q[:, 0::2] | (q[:, 1::2] << 4)).reshape(n, 128)
    return np.concatenate([d_bytes, dmin_bytes, packed, nibbles], axis=1)


def _q6_k(blocks: NDArray[np.float64]) -> Bytes:
    """w = d * scale * q per 16 weights: q in -32..31, scale a signed byte."""
    n = len(blocks)
    sub = blocks.reshape(n, 16, 16)
    span = np.abs(sub).max(axis=2) / 31
    d, d_bytes = _half(span.max(axis=1) / 127)
    scale = np.clip(np.rint(_divide(span, np.broadcast_to(d[:, None], span.shape))), 0, 127)
    step = np.broadcast_to((d[:, None] * scale)[:, :, None], sub.shape)
    q = (np.clip(np.rint(_divide(sub, step)), -32, 31) + 32).astype(np.uint8)

    # Halves of 128, each four rows of 32: low nibbles of rows 0 and 2, 1 and 3 share bytes; the upper two
    # bits of all four rows share one.
    rows = q.reshape(n, 2, 4, 32)
    low = np.stack(
        [
            (rows[:, :, 0] & 15) | ((rows[:, :, 2] & 15) << 4),
            (rows[:, :, 1] & 15) | ((rows[:, :, 3] & 15) << 4),
        ],
        axis=2,
    )
    high = sum((rows[:, :, i] >> 4) << (2 * i) for i in range(4))
    return np.concatenate(
        [
            low.reshape(n, 128),
            np.asarray(high, dtype=np.uint8).reshape(n, 64),
            scale.astype(np.int8).view(np.uint8),
            d_bytes,
        ],
        axis=1,
    )
