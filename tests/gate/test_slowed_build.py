"""A build that decodes at half the speed, through the commands that a user types."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from tests.conftest import require
from tests.host.conftest import ROOT, Sandbox, sandbox

__all__ = ["sandbox"]

# The runtime's own, but each token takes twice as long: compiled in a second, where a runtime with a slowed
# kernel (tests/benchmarks/test_gates.py) takes minutes.
SLOWED = r"""
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <time.h>
#include "sbr/sbr.h"

static uint64_t now_ns(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

__attribute__((visibility("default"))) sbr_status sbr_decode(
    sbr_session* session, const int32_t* tokens, uint32_t n_tokens, sbr_interval* times,
    const sbr_capture* capture, sbr_error* error) {
  sbr_status (*real)(sbr_session*, const int32_t*, uint32_t, sbr_interval*, const sbr_capture*, sbr_error*);
  *(void**)&real = dlsym(dlopen(REAL, RTLD_NOW), "sbr_decode");
  uint64_t begin = now_ns();
  sbr_status status = real(session, tokens, n_tokens, times, capture, error);
  uint64_t end = now_ns() + (now_ns() - begin);
  while (now_ns() < end) {}
  for (uint32_t i = 0; times != 0 && i < n_tokens; ++i)
    times[i].end_ns += times[i].end_ns - times[i].begin_ns;
  return status;
}

/* By which a file is known to be the runtime. */
__attribute__((visibility("default"))) uint32_t sbr_abi_version(void) {
  uint32_t (*real)(void);
  *(void**)&real = dlsym(dlopen(REAL, RTLD_NOW), "sbr_abi_version");
  return real();
}
"""


def slowed(library: Path, folder: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    require(compiler is not None, "no C compiler on PATH: apt install g++")
    assert compiler is not None
    folder.mkdir()
    shutil.copy(library, folder / "libsbr.so")
    (folder / "slowed.c").write_text(SLOWED)
    made = folder / "slowed.so"
    include = f"-I{ROOT / 'runtime' / 'include'}"
    real = f'-DREAL="{folder / "libsbr.so"}"'
    command = [compiler, "-O1", "-shared", "-fPIC", include, real, "-o", str(made), str(folder / "slowed.c")]
    command += ["-Wl,--no-as-needed", str(folder / "libsbr.so"), f"-Wl,-rpath,{folder}", "-ldl"]
    subprocess.run(command, check=True)
    return made


def test_a_slowed_build_is_confirmed_by_turns(sandbox: Sandbox, library_path: Path, tmp_path: Path) -> None:
    """Whatever else runs on this machine: disturbed runs are allowed, and either build runs by turns."""
    # A copy: what is known of a model's file is kept beside it.
    model = shutil.copy(ROOT / "tests" / "data" / "tinythinker.gguf", tmp_path)
    # Of fewer tokens a run is so short that it meets another process for its whole length or not at all.
    axes = ["--models", str(model), "-n", "1024", "-t", "1", "--bracket-ms", "0", "--max-reruns", "0"]
    axes += ["-r", "6", "--library", str(library_path)]
    code, _, err = sandbox.run("sweep", *axes, "--campaign", "main")
    assert code == 0, err
    words = ["baseline", "set", "base.json", "results/main", "--allow-disturbed", "--library"]
    code, _, err = sandbox.run(*words, str(library_path))
    assert code == 0, err
    words = ["check", "--baseline", "base.json", "--metric", "decode_tps", "-r", "1", "--max-reruns", "0"]
    words += ["--json", "--library", str(slowed(library_path, tmp_path / "slowed"))]
    code, out, err = sandbox.run(*words)
    assert code == 1, out + err
    (found,) = json.loads(out)["findings"]
    assert found["verdict"] == "regressed"
    assert found["comparison"]["paired"]
    assert found["comparison"]["ratio"] < 0.8
