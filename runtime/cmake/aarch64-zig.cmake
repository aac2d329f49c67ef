# One build for every aarch64 board: baseline ARMv8.0, with kernels for later instruction sets chosen at run time.
# glibc 2.28 is Debian 10's and Ubuntu 18.10's.
set(SBR_ZIG_ARCH aarch64)
set(SBR_ZIG_TARGET aarch64-linux-gnu.2.28)
include(${CMAKE_CURRENT_LIST_DIR}/zig.cmake)
