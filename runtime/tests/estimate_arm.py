"""Estimates the NEON kernels' speed per core with llvm-mca: a Markdown table on standard output.

    python runtime/tests/estimate_arm.py BUILD_OF_AARCH64 [--llvm-suffix=-19]

Takes the compiled object files of an aarch64 build (preset aarch64-zig), finds in each matrix-vector kernel,
of rows one after another and of interleaved rows, the smallest loop that holds its dot products, and lets
llvm-mca schedule it for each board's core: an estimate for data in the first-level cache, without branches.
Needs llvm-objdump and llvm-mca.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

# Board, core, its model in llvm-mca, GHz, nominal memory bandwidth of the board in GB/s, its kernels.
# llvm-mca 19 takes a Cortex-A76 for an A57 and an X2 for a Neoverse N2, which has half the vector units:
# the server cores that are built like them (X2: like its predecessor) stand in.
BOARDS = [
    ("Raspberry Pi 3", "cortex-a53", "cortex-a53", 1.2, 3.6, "neon"),
    ("Raspberry Pi 4", "cortex-a72", "cortex-a72", 1.8, 12.8, "neon"),
    ("RK3566", "cortex-a55", "cortex-a55", 1.8, 12.8, "neon_dotprod"),
    ("RK3588, small", "cortex-a55", "cortex-a55", 1.8, 34.1, "neon_dotprod"),
    ("RK3588, big", "cortex-a76", "neoverse-n1", 2.4, 34.1, "neon_dotprod"),
    ("Raspberry Pi 5", "cortex-a76", "neoverse-n1", 2.4, 17.1, "neon_dotprod"),
    ("phone of 2022", "cortex-x2", "neoverse-v1", 3.0, 51.2, "neon_dotprod"),
]
BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
# How many of these one block of 32 weights takes, whatever the scheduling around them.
DOTS_PER_BLOCK = {"neon": (r"sm(ull|lal)2?\t", 4), "neon_dotprod": (r"sdot\t", 2)}
# Parts of the mangled names of the matrix-vector kernels for a type.
ROWS, INTERLEAVED = "rows_times_vectorINS0_4{}E", "tiles_times_vectorINS0_8Tile{}E"


def disassemble(objdump: str, file: Path) -> dict[str, list[tuple[int, str]]]:
    """Function name -> (address, instruction) in order."""
    text = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", str(file)], check=True, capture_output=True, text=True
    ).stdout
    functions: dict[str, list[tuple[int, str]]] = {}
    current: list[tuple[int, str]] = []
    for line in text.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            current = functions.setdefault(head[1], [])
        elif code := re.match(r"\s*([0-9a-f]+):\s+(\S.*)$", line):
            current.append((int(code[1], 16), code[2]))
    return functions


def dot_loop(code: list[tuple[int, str]], dot: str, at_least: int) -> list[str]:
    """The instructions of the smallest loop with so many dot products."""
    loops = []
    for at, text in code:
        branch = re.match(r"(?:b\.\w+|b|cbn?z|tbn?z)\s.*?0x([0-9a-f]+)", text)
        if branch and int(branch[1], 16) < at:
            body = [t for a, t in code if int(branch[1], 16) <= a <= at]
            if sum(bool(re.match(dot, t)) for t in body) >= at_least:
                loops.append(body)
    if not loops:
        raise SystemExit(f"no loop with {dot} among {len(code)} instructions: was the build optimised?")
    return min(loops, key=len)


def cycles(mca: str, model: str, body: list[str]) -> float:
    """Cycles per iteration when iterations follow each other."""
    branch = r"(?:b|b\.\w+|cbn?z|tbn?z|bl)\s"
    straight = [re.split(r"\s*(?://|<)", t)[0] for t in body if not re.match(branch, t)]
    command = [mca, "-mtriple=aarch64", f"-mcpu={model}", "-mattr=+dotprod", "-iterations=200"]
    done = subprocess.run(command, input="\n".join(straight), check=True, capture_output=True, text=True)
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert found, done.stdout
    return int(found[1]) / 200


def main() -> None:
    """Prints the table that docs/kernels.md shows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", type=Path, help="build folder of the aarch64-zig preset")
    parser.add_argument("--llvm-suffix", default="-19", help="of llvm-mca and llvm-objdump (default: -19)")
    arguments = parser.parse_args()
    objdump, mca = "llvm-objdump" + arguments.llvm_suffix, "llvm-mca" + arguments.llvm_suffix
    print(
        "| board | core | kernels | type | instructions/block | cycles/block | GB/s per core | of board's |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for board, core, model, ghz, bandwidth, kernels in BOARDS:
        objects = arguments.build / "CMakeFiles/sbr_objects.dir/src/kernels" / f"{kernels}.cpp.o"
        functions = disassemble(objdump, objects)
        dot, per_block = DOTS_PER_BLOCK[kernels]
        for type_name, block_bytes in BLOCK_BYTES.items():
            columns = []
            for function in (ROWS, INTERLEAVED):
                code = next(c for f, c in functions.items() if function.format(type_name) in f)
                body = dot_loop(code, dot, 4 * per_block)  # of 4 rows and 16
                blocks = sum(bool(re.match(dot, t)) for t in body) / per_block
                each = cycles(mca, model, body) / blocks
                speed = block_bytes / each * ghz
                share = f"{100 * speed / bandwidth:.0f}"
                columns.append((f"{len(body) / blocks:.1f}", f"{each:.1f}", f"{speed:.1f}", share))
            cells = " | ".join(f"{rows} → {interleaved}" for rows, interleaved in zip(*columns, strict=True))
            row = f"{board}, {ghz} GHz | {core} | {kernels.replace('_', '-')} | {type_name.lower()} | {cells}"
            print(f"| {row} % of {bandwidth} |")


if __name__ == "__main__":
    main()
