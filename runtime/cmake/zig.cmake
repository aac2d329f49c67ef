# Cross-compiling with zig from the package registry (pip install ziglang): one compiler for every target, with its own
# libc headers, downloading nothing. Included by <arch>-zig.cmake, which sets SBR_ZIG_ARCH and SBR_ZIG_TARGET.
#
#   cmake -S runtime -B build/aarch64 -GNinja -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-zig.cmake -DSBR_ZIG_PYTHON=python3
#
# SBR_ZIG_PYTHON is a Python that has ziglang (found on PATH by default).

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${SBR_ZIG_ARCH})
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES SBR_ZIG_PYTHON)
set(SBR_COMPILER_IS_ZIG ON)  # CMake itself takes it for clang

if(NOT SBR_ZIG_PYTHON)
  find_program(SBR_ZIG_PYTHON NAMES python3 python REQUIRED)
endif()
execute_process(COMMAND ${SBR_ZIG_PYTHON} -m ziglang version OUTPUT_QUIET ERROR_QUIET RESULT_VARIABLE _sbr_zig_missing)
if(_sbr_zig_missing)
  message(FATAL_ERROR "${SBR_ZIG_PYTHON} has no ziglang: `${SBR_ZIG_PYTHON} -m pip install ziglang`, or set "
                      "-DSBR_ZIG_PYTHON to a Python that has it.")
endif()

set(CMAKE_C_COMPILER ${SBR_ZIG_PYTHON} -m ziglang cc -target ${SBR_ZIG_TARGET})
set(CMAKE_CXX_COMPILER ${SBR_ZIG_PYTHON} -m ziglang c++ -target ${SBR_ZIG_TARGET})
# CMake wants single programs for these.
set(_sbr_wrappers ${CMAKE_BINARY_DIR}/zig-wrappers)
foreach(_tool ar ranlib)
  file(WRITE ${_sbr_wrappers}/${_tool}.in "#!/bin/sh\nexec '${SBR_ZIG_PYTHON}' -m ziglang ${_tool} \"$@\"\n")
  file(COPY_FILE ${_sbr_wrappers}/${_tool}.in ${_sbr_wrappers}/${_tool} ONLY_IF_DIFFERENT)
  file(CHMOD ${_sbr_wrappers}/${_tool} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
endforeach()
set(CMAKE_AR ${_sbr_wrappers}/ar CACHE FILEPATH "" FORCE)
set(CMAKE_RANLIB ${_sbr_wrappers}/ranlib CACHE FILEPATH "" FORCE)
set(CMAKE_C_COMPILER_AR ${CMAKE_AR} CACHE FILEPATH "" FORCE)
set(CMAKE_C_COMPILER_RANLIB ${CMAKE_RANLIB} CACHE FILEPATH "" FORCE)
set(CMAKE_CXX_COMPILER_AR ${CMAKE_AR} CACHE FILEPATH "" FORCE)
set(CMAKE_CXX_COMPILER_RANLIB ${CMAKE_RANLIB} CACHE FILEPATH "" FORCE)

# Without symbols: libc++ alone is 8 MB of them.
set(CMAKE_SHARED_LINKER_FLAGS_RELEASE_INIT -s)
set(CMAKE_EXE_LINKER_FLAGS_RELEASE_INIT -s)

set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
