"""A board whose clock is wrong, and jumps: what its Python and the runtime below it are told by the kernel.

No kernel lets one namespace have another CLOCK_REALTIME, so it is the C library's answer that is moved, by a
preloaded library that adds what a file says. The clocks that run since boot are left alone, as a board that
sets its clock leaves them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import require

_SOURCE = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long moved(void) {
    const char* path = getenv("STBENCH_TEST_CLOCK");
    FILE* file = path ? fopen(path, "r") : NULL;
    long seconds = 0;
    if (file) {
        if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
        fclose(file);
    }
    return seconds;
}
int clock_gettime(clockid_t clock, struct timespec* now) {
    long failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += moved();
    return (int)failed;
}
int gettimeofday(struct timeval* now, void* zone) {
    (void)zone;
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
time_t time(time_t* now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""


class SkewedClock:
    """``python``: an interpreter, for devices.yaml, that lives by this clock; ``set(seconds)`` moves it."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc")
        require(compiler, "no C compiler here (apt install gcc)")
        directory.mkdir(parents=True)
        source, library = directory / "clock.c", directory / "clock.so"
        source.write_text(_SOURCE)
        command = [str(compiler), "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
        subprocess.run(command, check=True)
        self._file = directory / "seconds"
        self.set(0)
        self.python = directory / "python"
        self.python.write_text(
            f"#!/bin/sh\nexport LD_PRELOAD={library} STBENCH_TEST_CLOCK={self._file}\n"
            f'exec {sys.executable} "$@"\n'
        )
        self.python.chmod(0o755)

    def set(self, seconds: int) -> None:
        """From now on the board's clock is so far ahead, or behind where it is negative."""
        part = self._file.with_suffix(".new")
        part.write_text(f"{seconds}\n")
        part.replace(self._file)
