# The tiers that this processor's architecture has, and the flags that all native code is compiled with.
#
# Promise: the modules and the checks of `tests/native` are compiled alike. `ALL_TIERS` lists the tiers;
# `fathom_flags(target tier)` gives a target its tier's flags, include path and namespace.
option(FATHOM_SANITIZE "Build with address and undefined-behaviour sanitizers" OFF)

set(NATIVE "${CMAKE_CURRENT_LIST_DIR}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(FLAGS_portable "-march=x86-64")
  set(FLAGS_avx2 "-march=x86-64-v3")
  set(FLAGS_avx512 "-march=x86-64-v4;-mavx512vnni;-mprefer-vector-width=512")
  set(FLAGS_avx512_bf16 "${FLAGS_avx512};-mavx512bf16")
  set(ALL_TIERS portable avx2 avx512 avx512_bf16)
else()
  set(FLAGS_portable "")
  set(ALL_TIERS portable)
endif()

function(fathom_flags target tier)
  target_include_directories(${target} PRIVATE "${NATIVE}")
  target_compile_definitions(${target} PRIVATE FATHOM_TIER=tier_${tier})
  # No contraction by the compiler: where a product and a sum are one operation, the code says fma.
  target_compile_options(${target} PRIVATE
    -O3 -fno-math-errno -fno-trapping-math -ffp-contract=off -fvisibility=hidden
    -Wall -Wextra -Wno-maybe-uninitialized -Wno-psabi -Werror=return-type ${FLAGS_${tier}})
  target_link_libraries(${target} PRIVATE OpenMP::OpenMP_CXX)
  if(FATHOM_SANITIZE)
    target_compile_options(${target} PRIVATE
      -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
    target_link_options(${target} PRIVATE -fsanitize=address,undefined)
  endif()
endfunction()
