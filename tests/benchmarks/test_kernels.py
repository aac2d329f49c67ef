"""Every kernel that matters, on one thread, per instruction set: GB/s of weights and GOP/s (a multiply-add is
two).

Rows are as wide as SmallThinker-4B's. In full the weights are 256 MB, more than most caches, and a kernel is
bound by memory or by itself; briefly they are 1 MB.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stbench.agent import sbr
from stbench.builds.build import find_library
from stbench.errors import BuildError
from tests.benchmarks.conftest import Measure

pytestmark = pytest.mark.quiet

COLUMNS = 1536
BYTES_PER_ROW = {"q4_0": 864, "q8_0": 1632, "q4_1": 960, "q4_k": 864, "q6_k": 1260, "f16": 3072}
KERNELS = [
    *((kernel, kind) for kind in ("q4_0", "q8_0") for kernel in ("gemv", "gather_gemv", "gemm", "axpy_rows")),
    *((kernel, kind) for kind in ("q4_1", "q4_k", "q6_k", "f16") for kernel in ("gemv", "gemm")),
    *((kernel, f"{kind}_x16") for kind in ("q4_0", "q4_1", "q8_0", "q4_k") for kernel in ("gemv", "gemm")),
    ("quantise", "q4_0"),
    ("up_down", "q4_0"),
]
# The instruction sets for which one pass over a neuron's rows of up and down is faster than two.
ONE_PASS = ("avx512vnni", "amx")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per instruction set that this CPU has, and per kernel of it."""
    if "isa" not in metafunc.fixturenames:
        return
    try:
        library = sbr.load(str(find_library(metafunc.config.getoption("--library")).path))
        names = [isa.name for isa in library.isas() if isa.supported]
    except (BuildError, sbr.LoadError):
        names = ["auto"]
    kernels = [
        (isa, *kernel) for isa in names for kernel in KERNELS if kernel[0] != "up_down" or isa in ONE_PASS
    ]
    metafunc.parametrize(("isa", "kernel", "kind"), kernels, ids=str)


def test_kernel(
    library: sbr.Library,
    measure: Measure,
    speed: Callable[..., None],
    full: bool,
    isa: str,
    kernel: str,
    kind: str,
) -> None:
    rows = (256 << 20 if full else 1 << 20) // BYTES_PER_ROW[kind.replace("_x16", "")]
    if kernel == "gemm":
        rows = min(rows, 3000)  # bound by arithmetic: more rows only take longer
    rows -= rows % 16  # whole tiles of interleaved rows
    with sbr.KernelBench(library, kernel, isa, kind, rows, COLUMNS, n_tokens=64) as bench:
        calls = 1000 if kernel == "quantise" else 1
        once = bench.run()
        assert once.bytes > 0
        assert once.operations >= COLUMNS
        ns = measure(lambda: bench.run(calls))
    speed(gb_s=once.bytes * calls / ns, gop_s=2 * once.operations * calls / ns)


def test_unknown_names_are_refused(library: sbr.Library) -> None:
    with pytest.raises(sbr.NativeError, match="kernel: expected one of"):
        sbr.KernelBench(library, "gemmm", "scalar", "q4_0", 8, 32)
    with pytest.raises(sbr.NativeError, match="n_cols is 33"):
        sbr.KernelBench(library, "gemv", "scalar", "q4_0", 8, 33)
    with pytest.raises(sbr.NativeError, match="no kernel"):
        sbr.KernelBench(library, "axpy_rows", "scalar", "q4_k", 8, 256)
    with pytest.raises(sbr.NativeError, match="no kernel"):
        sbr.KernelBench(library, "gather_gemv", "scalar", "q4_0_x16", 16, 32)
    with pytest.raises(sbr.NativeError, match="no kernel"):
        sbr.KernelBench(library, "up_down", "scalar", "q4_0", 8, 32)
    with pytest.raises(sbr.NativeError, match="n_rows is 24, expected a multiple of 16"):
        sbr.KernelBench(library, "gemv", "scalar", "q4_0_x16", 24, 32)
    with pytest.raises(sbr.NativeError, match="4 GiB"):
        sbr.KernelBench(library, "gemv", "scalar", "q4_0", 1 << 24, 1 << 16)
    with (
        sbr.KernelBench(library, "gemv", "scalar", "q4_0", 8, 32) as bench,
        pytest.raises(sbr.NativeError, match="calls is 0"),
    ):
        bench.run(0)


def test_bytes_and_operations_are_those_of_the_shape(library: sbr.Library) -> None:
    with sbr.KernelBench(library, "gemm", "scalar", "q4_0", 100, 64, n_tokens=5) as bench:
        result = bench.run(3)
    assert (result.bytes, result.operations) == (3 * 100 * 36, 3 * 100 * 64 * 5)
    with sbr.KernelBench(library, "gemv", "scalar", "q8_0_x16", 48, 64) as bench:
        result = bench.run()
    assert (result.bytes, result.operations) == (48 * 68, 48 * 64)
    with sbr.KernelBench(library, "gather_gemv", "scalar", "q8_0", 1000, 64, keep=300) as bench:
        assert bench.run().bytes == pytest.approx(0.3 * 1000 * 68, rel=0.05)
