"""One kernel of one instruction set, called again and again: what benchmarks are made of."""

import ctypes
from typing import Any

from . import _abi_tools
from ._files import ProbeResult
from ._load import Library
from ._names import KERNEL_TYPES, KERNELS, number, sized


class KernelBench:
    """Weights and inputs for one kernel, ready to be called; a context manager.

    ``kernel`` is one of KERNELS, ``isa`` and ``weight_type`` are names ("q4_0_x16": q4_0 in tiles of 16
    interleaved rows, for "gemv" and "gemm" of a multiple of 16 rows); ``keep`` is the share of rows that
    "gather_gemv", "axpy_rows" and "up_down" (of pairs) use, in 1/1000, and ``n_tokens`` the batch of "gemm".
    Raises NativeError (unknown names, an instruction set that is not available here, a type without that
    kernel, too large).
    """

    def __init__(
        self,
        library: Library,
        kernel: str,
        isa: str,
        weight_type: str,
        n_rows: int,
        n_cols: int,
        n_tokens: int = 1,
        keep: int = 300,
    ) -> None:
        self.library = library
        options = sized(
            _abi_tools.KernelBenchOptions,
            isa=library.isa_number(isa),
            kernel=number(KERNELS, kernel, "kernel"),
            weight_type=number(KERNEL_TYPES, weight_type, "weight_type"),
            n_rows=n_rows,
            n_cols=n_cols,
            n_tokens=n_tokens,
            keep=keep,
        )
        self._handle = ctypes.c_void_p()
        library.call("sbr_kernel_bench_create", ctypes.byref(options), ctypes.byref(self._handle))

    def run(self, calls: int = 1) -> ProbeResult:
        """Calls the kernel on this thread: weight bytes read, multiply-adds done and nanoseconds, in sum."""
        result = sized(_abi_tools.ProbeResult)
        self.library.call("sbr_kernel_bench_run", self._handle, calls, ctypes.byref(result))
        return ProbeResult(result.n_threads, result.bytes, result.ns, result.operations)

    def close(self) -> None:
        """Frees the weights; further calls do nothing."""
        if self._handle:
            self.library.sbr_kernel_bench_free(self._handle)
            self._handle = ctypes.c_void_p()

    def __enter__(self) -> "KernelBench":
        return self

    def __exit__(self, *_exc: Any) -> None:
        self.close()
