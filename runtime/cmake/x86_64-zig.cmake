# One build for every x86-64 Linux with glibc 2.17 (CentOS 7) or later.
set(SBR_ZIG_ARCH x86_64)
set(SBR_ZIG_TARGET x86_64-linux-gnu.2.17)
include(${CMAKE_CURRENT_LIST_DIR}/zig.cmake)
