#include "runtime/cpu/cpu_impl.h"
#include "runtime/cpu/simd/simd.h"

const tsr_device_ops *TSR_SIMD(table)(void)
{
    static const tsr_device_ops table = {
        TSR_CPU_HOST_OPS,
        .gemm = tsr_cpu_gemm,
        .gemm_reserve = tsr_cpu_gemm_reserve,
        .grouped_gemm = tsr_cpu_grouped_gemm,
        .grouped_gemm_reserve = tsr_cpu_grouped_gemm_reserve,
        .rmsnorm_forward = TSR_SIMD(rmsnorm_forward),
        .rmsnorm_backward_input = TSR_SIMD(rmsnorm_backward_input),
        .rmsnorm_backward_weight = TSR_SIMD(rmsnorm_backward_weight),
        .rope = TSR_SIMD(rope),
        .swiglu_forward = TSR_SIMD(swiglu_forward),
        .swiglu_backward = TSR_SIMD(swiglu_backward),
        .attention_forward = TSR_SIMD(attention_forward),
        .attention_backward = TSR_SIMD(attention_backward),
        .attention_reserve = TSR_SIMD(attention_reserve),
        .route_forward = TSR_SIMD(route_forward),
        .route_backward = TSR_SIMD(route_backward),
        .permute = TSR_SIMD(permute),
        .unpermute = TSR_SIMD(unpermute),
        .embedding_forward = TSR_SIMD(embedding_forward),
        .embedding_backward = TSR_SIMD(embedding_backward),
        .cross_entropy = TSR_SIMD(cross_entropy),
        .convert = TSR_SIMD(convert),
        .add_f32 = TSR_SIMD(add_f32),
        .sum = TSR_SIMD(sum),
        .sum_squares = TSR_SIMD(sum_squares),
        .adamw = TSR_SIMD(adamw),
    };

    return &table;
}
