# The front ends and the cpu device. Paths are relative to runtime/.
target_sources(tsr_runtime PRIVATE
  device.c
  ops_gemm.c
  ops_layers.c
  ops_profile.c
  ops_route.c
  ops_vectors.c
  cpu/cpu_device.c
  cpu/gemm.c
  cpu/gemm_cache.c
  cpu/gemm_grouped.c
  cpu/plain/attention.c
  cpu/plain/cross_entropy.c
  cpu/plain/embedding.c
  cpu/plain/gemm.c
  cpu/plain/norm.c
  cpu/plain/permute.c
  cpu/plain/rope.c
  cpu/plain/route.c
  cpu/plain/swiglu.c
  cpu/sort.c
  cpu/plain/table.c
  cpu/plain/vectors.c)

include(CheckCCompilerFlag)

# Vector kernels: each file is compiled once per instruction set, with TSR_ISA set to its name;
# for amx only those of TSR_AMX_SOURCES, the others are avx512bf16's.
set(TSR_SIMD_SOURCES
  cpu/simd/adamw.c
  cpu/simd/cross_entropy.c
  cpu/simd/embedding.c
  cpu/simd/attention.c
  cpu/simd/attention_backward.c
  cpu/simd/norm.c
  cpu/simd/permute.c
  cpu/simd/rope.c
  cpu/simd/route.c
  cpu/simd/swiglu.c
  cpu/simd/table.c
  cpu/simd/vectors.c)

set(TSR_AMX_SOURCES
  cpu/simd/attention.c
  cpu/simd/attention_backward.c
  cpu/simd/amx_gemm.c
  cpu/simd/table_amx.c)

set(TSR_SIMD_FLAGS -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast)

function(tsr_add_simd isa sources)
  add_library(tsr_simd_${isa} OBJECT ${sources})
  target_link_libraries(tsr_simd_${isa} PRIVATE tsr_flags OpenMP::OpenMP_C)
  target_compile_definitions(tsr_simd_${isa} PRIVATE TSR_ISA=${isa})
  target_compile_options(tsr_simd_${isa} PRIVATE ${TSR_SIMD_FLAGS} ${ARGN})
  target_sources(tsr_runtime PRIVATE $<TARGET_OBJECTS:tsr_simd_${isa}>)
endfunction()

tsr_add_simd(generic "${TSR_SIMD_SOURCES}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  tsr_add_simd(avx2 "${TSR_SIMD_SOURCES}" -mavx2 -mfma)
  set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mprefer-vector-width=512)
  tsr_add_simd(avx512 "${TSR_SIMD_SOURCES}" ${avx512})
  tsr_add_simd(avx512bf16 "${TSR_SIMD_SOURCES}" ${avx512} -mavx512bf16)
  check_c_compiler_flag(-mamx-bf16 TSR_COMPILER_HAS_AMX)
  if(NOT TSR_COMPILER_HAS_AMX)
    message(FATAL_ERROR "the C compiler must know -mamx-bf16: GCC >= 11 or clang >= 11")
  endif()
  tsr_add_simd(amx "${TSR_AMX_SOURCES}" ${avx512} -mavx512bf16 -mamx-tile -mamx-bf16)
  target_sources(tsr_simd_avx512 PRIVATE cpu/simd/gemm_f32.c) # serves avx512bf16 too
endif()
