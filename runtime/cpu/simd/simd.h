/* Vector kernels of the cpu device. Each file of this folder is compiled once per instruction set
 * (generic, avx2, avx512, avx512bf16; attention for amx too) with TSR_ISA set to its name, but for
 * the kernels of own_gemm.h; TSR_SIMD(f) is tsr_<isa>_f.
 *
 * Kernels are written with GCC vector types and plain loops, not with intrinsics of one machine,
 * except inside `#if`-ed headers of their own. They have the signature of the device table and get
 * arguments that runtime/ops.c has checked. Threads: OpenMP, device->threads of them; results do
 * not depend on how many. */
#ifndef TSR_RUNTIME_CPU_SIMD_H
#define TSR_RUNTIME_CPU_SIMD_H

#include "runtime/device_impl.h"

#define TSR_SIMD_PASTE(isa, name)  tsr_##isa##_##name
#define TSR_SIMD_EXPAND(isa, name) TSR_SIMD_PASTE(isa, name)
#define TSR_SIMD(name)             TSR_SIMD_EXPAND(TSR_ISA, name)

/* The kernels below exist for this instruction set; table.c puts them into the device's table. */
tsr_status TSR_SIMD(rmsnorm_forward)(tsr_device *, const tsr_rmsnorm_args *, tsr_stream *);
tsr_status TSR_SIMD(rmsnorm_backward_input)(tsr_device *, const tsr_rmsnorm_args *, tsr_stream *);
tsr_status TSR_SIMD(rmsnorm_backward_weight)(tsr_device *, const tsr_rmsnorm_args *, tsr_stream *);
tsr_status TSR_SIMD(rope)(tsr_device *, const tsr_rope_args *, tsr_stream *);
tsr_status TSR_SIMD(swiglu_forward)(tsr_device *, const tsr_swiglu_args *, tsr_stream *);
tsr_status TSR_SIMD(swiglu_backward)(tsr_device *, const tsr_swiglu_args *, tsr_stream *);
tsr_status TSR_SIMD(attention_forward)(tsr_device *, const tsr_attention_args *, tsr_stream *);
tsr_status TSR_SIMD(attention_backward)(tsr_device *, const tsr_attention_args *, tsr_stream *);
tsr_status TSR_SIMD(attention_reserve)(tsr_device *, const tsr_attention_args *);
tsr_status TSR_SIMD(route_forward)(tsr_device *, const tsr_route_args *, tsr_stream *);
tsr_status TSR_SIMD(route_backward)(tsr_device *, const tsr_route_args *, tsr_stream *);
tsr_status TSR_SIMD(permute)(tsr_device *, const tsr_permute_args *, tsr_stream *);
tsr_status TSR_SIMD(unpermute)(tsr_device *, const tsr_unpermute_args *, tsr_stream *);
tsr_status TSR_SIMD(embedding_forward)(tsr_device *, const tsr_embedding_args *, tsr_stream *);
tsr_status TSR_SIMD(embedding_backward)(tsr_device *, const tsr_embedding_args *, tsr_stream *);
tsr_status TSR_SIMD(cross_entropy)(tsr_device *, const tsr_cross_entropy_args *, tsr_stream *);
tsr_status TSR_SIMD(convert)(tsr_device *, const void *from, tsr_dtype from_dtype, void *to,
                             tsr_dtype to_dtype, int64_t count, tsr_stream *);
tsr_status TSR_SIMD(add_f32)(tsr_device *, const float *x, float *y, int64_t count, tsr_stream *);
tsr_status TSR_SIMD(sum)(tsr_device *, const float *x, int64_t count, double *out, tsr_stream *);
tsr_status TSR_SIMD(sum_squares)(tsr_device *, const float *x, int64_t count, double *out,
                                 tsr_stream *);
tsr_status TSR_SIMD(adamw)(tsr_device *, const tsr_adamw_args *, tsr_stream *);

/** The whole table of this instruction set. */
const tsr_device_ops *TSR_SIMD(table)(void);

#endif
