/* The readable twin of every operator: the simplest loops, sums in f64, one thread, no tricks.
 *
 * This is the oracle of the tests and the specification of the kernels in simd/. Signatures are
 * those of the device table; arguments have been checked by runtime/ops.c. */
#ifndef TSR_RUNTIME_CPU_PLAIN_H
#define TSR_RUNTIME_CPU_PLAIN_H

#include "runtime/device_impl.h"

/* Element `at` of an array of either type. */
static inline float tsr_plain_get(tsr_dtype dtype, const void *base, int64_t at)
{
    return dtype == TSR_F32 ? ((const float *)base)[at]
                            : tsr_bf16_to_f32(((const tsr_bf16 *)base)[at]);
}

static inline void tsr_plain_set(tsr_dtype dtype, void *base, int64_t at, float value)
{
    if (dtype == TSR_F32) {
        ((float *)base)[at] = value;
    } else {
        ((tsr_bf16 *)base)[at] = tsr_f32_to_bf16(value);
    }
}

tsr_status tsr_plain_gemm(tsr_device *, const tsr_gemm_args *, tsr_stream *);
tsr_status tsr_plain_grouped_gemm(tsr_device *, const tsr_grouped_gemm_args *, tsr_stream *);
tsr_status tsr_plain_rmsnorm_forward(tsr_device *, const tsr_rmsnorm_args *, tsr_stream *);
tsr_status tsr_plain_rmsnorm_backward_input(tsr_device *, const tsr_rmsnorm_args *, tsr_stream *);
tsr_status tsr_plain_rmsnorm_backward_weight(tsr_device *, const tsr_rmsnorm_args *, tsr_stream *);
tsr_status tsr_plain_rope(tsr_device *, const tsr_rope_args *, tsr_stream *);
tsr_status tsr_plain_swiglu_forward(tsr_device *, const tsr_swiglu_args *, tsr_stream *);
tsr_status tsr_plain_swiglu_backward(tsr_device *, const tsr_swiglu_args *, tsr_stream *);
tsr_status tsr_plain_attention_forward(tsr_device *, const tsr_attention_args *, tsr_stream *);
tsr_status tsr_plain_attention_backward(tsr_device *, const tsr_attention_args *, tsr_stream *);
tsr_status tsr_plain_route_forward(tsr_device *, const tsr_route_args *, tsr_stream *);
tsr_status tsr_plain_route_backward(tsr_device *, const tsr_route_args *, tsr_stream *);
tsr_status tsr_plain_permute(tsr_device *, const tsr_permute_args *, tsr_stream *);
tsr_status tsr_plain_unpermute(tsr_device *, const tsr_unpermute_args *, tsr_stream *);
tsr_status tsr_plain_embedding_forward(tsr_device *, const tsr_embedding_args *, tsr_stream *);
tsr_status tsr_plain_embedding_backward(tsr_device *, const tsr_embedding_args *, tsr_stream *);
tsr_status tsr_plain_cross_entropy(tsr_device *, const tsr_cross_entropy_args *, tsr_stream *);
tsr_status tsr_plain_convert(tsr_device *, const void *from, tsr_dtype from_dtype, void *to,
                             tsr_dtype to_dtype, int64_t count, tsr_stream *);
tsr_status tsr_plain_add_f32(tsr_device *, const float *x, float *y, int64_t count, tsr_stream *);
tsr_status tsr_plain_sum(tsr_device *, const float *x, int64_t count, double *out, tsr_stream *);
tsr_status tsr_plain_sum_squares(tsr_device *, const float *x, int64_t count, double *out,
                                 tsr_stream *);
tsr_status tsr_plain_adamw(tsr_device *, const tsr_adamw_args *, tsr_stream *);

#endif
