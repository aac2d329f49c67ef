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
}
LOAD_MODES = {"mmap": _abi.LOAD_MMAP, "read": _abi.LOAD_READ, "repack": _abi.LOAD_REPACK}
LOGITS_MODES = {"none": _abi.LOGITS_NONE, "last": _abi.LOGITS_LAST, "all": _abi.LOGITS_ALL}
SPARSE_FFN = {"off": 0, "on": 1, "auto": _abi.SPARSE_FFN_AUTO}
SPLITS = {"measured": _abi.SPLIT_MEASURED, "equal": _abi.SPLIT_EQUAL}
SKIPPED = {"excluded": _abi.SKIPPED_EXCLUDED, "zero": _abi.SKIPPED_ZERO}

# The header's number: what a record says.
DOWN_LAYOUTS = {
    _abi.DOWN_NONE: "none",
    _abi.DOWN_STANDARD: "standard",
    _abi.DOWN_TRANSPOSED: "transposed",
    _abi.DOWN_REQUANTISED: "requantised",
}
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
