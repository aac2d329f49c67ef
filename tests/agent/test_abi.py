"""_abi.py against sbr.h: a C99 program made from the ctypes classes, and the library's exported symbols."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from stbench.agent.sbr import _abi, _abi_timeline, _abi_tools
from tests.agent.conftest import ROOT
from tests.conftest import require

HEADER = ROOT / "runtime" / "include" / "sbr" / "sbr.h"
# In the order of _abi.FUNCTIONS.
HEADERS = (HEADER, HEADER.with_name("tools.h"))

STRUCTS = {
    "sbr_error": _abi.Error,
    "sbr_isa_info": _abi.IsaInfo,
    "sbr_model_options": _abi.ModelOptions,
    "sbr_model_info": _abi.ModelInfo,
    "sbr_session_options": _abi.SessionOptions,
    "sbr_session_info": _abi.SessionInfo,
    "sbr_interval": _abi.Interval,
    "sbr_capture": _abi.Capture,
    "sbr_counters": _abi.Counters,
    "sbr_layer_counters": _abi.LayerCounters,
    "sbr_bundle_info": _abi_tools.BundleInfo,
    "sbr_cache_counters": _abi.CacheCounters,
    "sbr_simulate_clock": _abi_tools.SimulateClock,
    "sbr_simulate_options": _abi_tools.SimulateOptions,
    "sbr_simulate_result": _abi_tools.SimulateResult,
    "sbr_synth_spec": _abi_tools.SynthSpec,
    "sbr_probe_options": _abi_tools.ProbeOptions,
    "sbr_probe_result": _abi_tools.ProbeResult,
    "sbr_kernel_bench_options": _abi_tools.KernelBenchOptions,
    "sbr_timeline_event": _abi_timeline.TimelineEvent,
    "sbr_timeline_info": _abi_timeline.TimelineInfo,
}
CONSTANT = re.compile(
    r"^(ABI_VERSION|OK|(ERR|ISA|TYPE|DOWN|LOAD|GATHER|BUNDLE|SKIPPED|SPARSE|SPLIT|CACHE|IO|DIRECT|PREFETCH|VERIFY|LOGITS"
    r"|KERNEL|TIMELINE)_[A-Z0-9_]+)$"
)


def constants() -> dict[str, int]:
    known = {**vars(_abi), **vars(_abi_timeline)}
    return {name: value for name, value in known.items() if CONSTANT.match(name)}


def header_text() -> str:
    text = "".join(header.read_text() for header in HEADERS)
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def c_kind(declaration: str) -> str:
    """ "int32_t* ids" -> "pointer", "uint32_t layer" -> "uint32_t"."""
    if "*" in declaration or declaration.split()[0] == "sbr_progress":
        return "pointer"
    word = declaration.replace("const ", "").split()[0]
    return {"sbr_status": "int32_t"}.get(word, word)


def ctypes_kind(kind: object) -> str:
    plain = {
        None: "void",
        ctypes.c_uint32: "uint32_t",
        ctypes.c_int32: "int32_t",
        ctypes.c_uint64: "uint64_t",
        ctypes.c_float: "float",
    }
    return plain.get(kind, "pointer")  # type: ignore[call-overload, no-any-return]


def test_structs_and_constants_against_the_compiler(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    require(compiler is not None, "no C compiler")
    lines = ["#include <stddef.h>", "#include <stdio.h>", "#include <sbr/sbr.h>", "int main(void) {"]
    expected = []
    for name, kind in STRUCTS.items():
        lines.append(f'  printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(kind)}")
        for field in kind._fields_:
            member, where = field[0], getattr(kind, field[0])
            value = f"(({name}*)0)->{member}"
            lines.append(
                f'  printf("{name}.{member} %zu %zu\\n", offsetof({name}, {member}), sizeof({value}));'
            )
            expected.append(f"{name}.{member} {where.offset} {where.size}")
    for name, number in constants().items():
        lines.append(f'  printf("SBR_{name} %d\\n", (int)SBR_{name});')
        expected.append(f"SBR_{name} {number}")
    lines.append("  return 0;\n}")
    source, program = tmp_path / "probe.c", tmp_path / "probe"
    source.write_text("\n".join(lines))
    assert compiler is not None
    subprocess.run(
        [
            *(compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"),
            *("-I", str(HEADER.parents[1]), str(source), "-o", str(program)),
        ],
        check=True,
    )
    found = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
    assert found == expected


@pytest.mark.parametrize("name", STRUCTS)
def test_padding_has_a_name(name: str) -> None:
    """What no member names could hold anything, and could not become an option later: ``reserved`` stands
    there, which has to be 0."""
    kind, at = STRUCTS[name], 0
    for member in (field[0] for field in kind._fields_):
        where = getattr(kind, member)
        assert where.offset == at, f"{where.offset - at} bytes before {name}.{member}"
        at = where.offset + where.size
    assert at == ctypes.sizeof(kind), f"{ctypes.sizeof(kind) - at} bytes at the end of {name}"


def test_every_member_of_every_struct_is_mirrored_in_order() -> None:
    found = {}
    for body, name in re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", header_text(), flags=re.DOTALL):
        found[name] = re.findall(r"(\w+)(?:\[\d+\])?;", body)
    assert found == {name: [field[0] for field in kind._fields_] for name, kind in STRUCTS.items()}


def test_every_constant_is_mirrored() -> None:
    names = re.findall(r"\b(SBR_[A-Z0-9_]+) = -?\d+", header_text())
    assert len(names) > 30
    assert sorted([*names, "SBR_ABI_VERSION"]) == sorted(f"SBR_{name}" for name in constants())


def test_functions_have_the_headers_arguments_in_order() -> None:
    found = []
    for result, name, arguments in re.findall(
        r"SBR_API\s+([\w\s*]+?)\s*\b(sbr_\w+)\(([^)]*)\);", header_text()
    ):
        parts = [part.strip() for part in arguments.split(",")]
        kinds = [] if parts == ["void"] else [c_kind(part) for part in parts]
        found.append((name, c_kind(result), kinds))
    bound = [
        (name, ctypes_kind(result), [ctypes_kind(argument) for argument in arguments])
        for name, result, arguments in _abi.FUNCTIONS
    ]
    assert len(found) > 20
    assert found == bound


def test_the_library_exports_exactly_what_is_bound(library_path: Path) -> None:
    tool = shutil.which("nm")
    require(tool is not None, "no nm (binutils)")
    assert tool is not None
    text = subprocess.run(
        [tool, "-D", "--defined-only", str(library_path)], capture_output=True, text=True, check=True
    ).stdout
    exported = {line.split()[-1].split("@")[0] for line in text.splitlines() if line.split()[-2] == "T"}
    assert exported == {name for name, _, _ in _abi.FUNCTIONS}
