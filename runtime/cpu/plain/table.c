#include "runtime/cpu/cpu_impl.h"
#include "runtime/cpu/plain/plain.h"

const tsr_device_ops *tsr_plain_table(void)
{
    static const tsr_device_ops table = {
        TSR_CPU_HOST_OPS,
        .rmsnorm_forward = tsr_plain_rmsnorm_forward,
        .rmsnorm_backward_input = tsr_plain_rmsnorm_backward_input,
        .rmsnorm_backward_weight = tsr_plain_rmsnorm_backward_weight,
        .rope = tsr_plain_rope,
        .swiglu_forward = tsr_plain_swiglu_forward,
        .swiglu_backward = tsr_plain_swiglu_backward,
        .attention_forward = tsr_plain_attention_forward,
        .attention_backward = tsr_plain_attention_backward,
        .route_forward = tsr_plain_route_forward,
        .route_backward = tsr_plain_route_backward,
        .permute = tsr_plain_permute,
        .unpermute = tsr_plain_unpermute,
        .gemm = tsr_plain_gemm,
        .grouped_gemm = tsr_plain_grouped_gemm,
        .embedding_forward = tsr_plain_embedding_forward,
        .embedding_backward = tsr_plain_embedding_backward,
        .cross_entropy = tsr_plain_cross_entropy,
        .convert = tsr_plain_convert,
        .add_f32 = tsr_plain_add_f32,
        .sum = tsr_plain_sum,
        .sum_squares = tsr_plain_sum_squares,
        .adamw = tsr_plain_adamw,
    };

    return &table;
}
