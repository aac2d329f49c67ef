"""What a person types, and the header's numbers; small helpers for passing values to C."""

import ctypes
from typing import Any, Dict, Sequence, Type

from . import _abi
from ._load import NativeError

ISA_AUTO = _abi.ISA_AUTO

# What a person types: the header's number.
TYPES = {
    "f32": _abi.TYPE_F32,
    "f16": _abi.TYPE_F16,
    "bf16": _abi.TYPE_BF16,
    "q4_0": _abi.TYPE_Q4_0,
    "q4_1": _abi.TYPE_Q4_1,
    "q8_0": _abi.TYPE_Q8_0,
    "q4_k": _abi.TYPE_Q4_K,
    "q6_k": _abi.TYPE_Q6_K,
}
# What kernels exist for: also tiles of 16 interleaved rows, which no file holds.
KERNEL_TYPES = dict(TYPES)
KERNEL_TYPES.update((name + "_x16", TYPES[name] + 32) for name in ("q4_0", "q4_1", "q8_0", "q4_k"))
KERNELS = {
    "gemv": _abi.KERNEL_GEMV,
    "gather_gemv": _abi.KERNEL_GATHER_GEMV,
    "gemm": _abi.KERNEL_GEMM,
    "axpy_rows": _abi.KERNEL_AXPY_ROWS,
    "quantise": _abi.KERNEL_QUANTISE,
    "up_down": _abi.KERNEL_UP_DOWN,
}
LOAD_MODES = {"mmap": _abi.LOAD_MMAP, "read": _abi.LOAD_READ, "repack": _abi.LOAD_REPACK}
LOGITS_MODES = {"none": _abi.LOGITS_NONE, "last": _abi.LOGITS_LAST, "all": _abi.LOGITS_ALL}
SPARSE_FFN = {"off": 0, "on": 1, "auto": _abi.SPARSE_FFN_AUTO}
SPLITS = {"measured": _abi.SPLIT_MEASURED, "equal": _abi.SPLIT_EQUAL}
SKIPPED = {"excluded": _abi.SKIPPED_EXCLUDED, "zero": _abi.SKIPPED_ZERO}
POLICIES = {
    "auto": _abi.CACHE_AUTO,
    "lru": _abi.CACHE_LRU,
    "lfu": _abi.CACHE_LFU,
    "reuse": _abi.CACHE_REUSE,
}
IO_KINDS = {"auto": _abi.IO_AUTO, "pread": _abi.IO_PREAD, "io_uring": _abi.IO_URING}
DIRECT_MODES = {"auto": _abi.DIRECT_AUTO, "on": _abi.DIRECT_ON, "off": _abi.DIRECT_OFF}
PREFETCH_MODES = {
    "auto": _abi.PREFETCH_AUTO,
    "exact": _abi.PREFETCH_EXACT,
    "next-layer": _abi.PREFETCH_NEXT_LAYER,
    "next-2": _abi.PREFETCH_NEXT_2_LAYERS,
    "next-4": _abi.PREFETCH_NEXT_4_LAYERS,
}
VERIFY_MODES = {"first": _abi.VERIFY_FIRST, "every": _abi.VERIFY_EVERY, "never": _abi.VERIFY_NEVER}

# The header's number: what a record says.
DOWN_LAYOUTS = {
    _abi.DOWN_NONE: "none",
    _abi.DOWN_STANDARD: "standard",
    _abi.DOWN_TRANSPOSED: "transposed",
    _abi.DOWN_REQUANTISED: "requantised",
}
BUNDLE_KINDS = {_abi.BUNDLE_EXPERTS: "experts", _abi.BUNDLE_LAYERS: "layers"}
SPARSITIES = {_abi.SPARSE_OFF: "off", _abi.SPARSE_GATE_UP: "gate-up", _abi.SPARSE_FULL: "full"}


def sized(kind: Type[Any], **values: Any) -> Any:
    return kind(struct_size=ctypes.sizeof(kind), **values)


def number(names: Dict[str, int], name: str, what: str) -> int:
    if name not in names:
        raise NativeError(
            _abi.ERR_ARGUMENT, '%s: expected one of %s, got "%s"' % (what, ", ".join(sorted(names)), name)
        )
    return names[name]


def uint32s(values: Sequence[int]) -> Any:
    return (ctypes.c_uint32 * len(values))(*values)
