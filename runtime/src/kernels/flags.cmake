# Target flags of the kernel files: one file per instruction set, each with its own; everything else is compiled for
# the baseline CPU. include() this from the directory that defines the target (source properties are per directory).
# A file whose architecture is not the target's compiles to nothing.
#
# The spellings are those that gcc, clang and zig all accept: zig rejects every -march=.

set(_sbr_kernels ${CMAKE_CURRENT_LIST_DIR})
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
  set(_sbr_avx2 -mavx2 -mfma -mf16c)
  set(_sbr_avx512vnni ${_sbr_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni)
  set_property(SOURCE ${_sbr_kernels}/avx2.cpp APPEND PROPERTY COMPILE_OPTIONS ${_sbr_avx2})
  set_property(SOURCE ${_sbr_kernels}/avxvnni.cpp APPEND PROPERTY COMPILE_OPTIONS ${_sbr_avx2} -mavxvnni)
  set_property(SOURCE ${_sbr_kernels}/avx512vnni.cpp APPEND PROPERTY COMPILE_OPTIONS ${_sbr_avx512vnni})
  set_property(SOURCE ${_sbr_kernels}/amx.cpp APPEND PROPERTY COMPILE_OPTIONS ${_sbr_avx512vnni} -mamx-tile -mamx-int8)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # gcc 12 warns of its own AVX-512 header, some 900 times (gcc bug 105593).
    set_property(SOURCE ${_sbr_kernels}/avx512vnni.cpp ${_sbr_kernels}/amx.cpp APPEND PROPERTY COMPILE_OPTIONS
                 -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  # -mcpu=generic+... is clang's and zig's spelling and gcc's too, except that gcc wants the architecture by -march.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(_sbr_dotprod -march=armv8.2-a+dotprod)
    set(_sbr_i8mm -march=armv8.2-a+dotprod+i8mm)
  else()
    set(_sbr_dotprod -mcpu=generic+v8_2a+dotprod)
    set(_sbr_i8mm -mcpu=generic+v8_2a+dotprod+i8mm)
  endif()
  set_property(SOURCE ${_sbr_kernels}/neon_dotprod.cpp APPEND PROPERTY COMPILE_OPTIONS ${_sbr_dotprod})
  set_property(SOURCE ${_sbr_kernels}/neon_i8mm.cpp APPEND PROPERTY COMPILE_OPTIONS ${_sbr_i8mm})
endif()

if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # gcc 12 folds instances of one template for two weight types although they differ (identical code folding; gone with
  # either this or -fno-tree-vectorize): interleaved q4_0 products with several tokens were 0. clang is not affected.
  set(_sbr_no_folding -fno-ipa-icf)
endif()

# Kernels are hot whatever the build type optimises for (-O2 in RelWithDebInfo leaves the reference's loops scalar).
# With sanitizers gcc takes 55 s for avx2.cpp at -O3, 8 s at -O1.
set(_sbr_level $<$<NOT:$<CONFIG:Debug>>:-O3>)
if(SBR_SANITIZE)
  set(_sbr_level -O1)
endif()
foreach(_file scalar avx2 avxvnni avx512vnni amx neon neon_dotprod neon_i8mm)
  set_property(SOURCE ${_sbr_kernels}/${_file}.cpp APPEND PROPERTY COMPILE_OPTIONS
               ${_sbr_level} ${_sbr_no_folding})
endforeach()
