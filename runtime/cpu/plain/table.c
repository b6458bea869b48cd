#include "runtime/cpu/cpu_impl.h"
#include "runtime/cpu/plain/plain.h"

const tsr_device_ops *tsr_plain_table(void)
{
    static const tsr_device_ops table = {
        .close = tsr_cpu_close,
        .alloc = tsr_cpu_alloc,
        .free = tsr_cpu_free,
        .alloc_staging = tsr_cpu_alloc,
        .free_staging = tsr_cpu_free,
        .stream_create = tsr_cpu_stream_create,
        .stream_destroy = tsr_cpu_stream_destroy,
        .stream_wait = tsr_cpu_stream_wait,
        .event_create = tsr_cpu_event_create,
        .event_destroy = tsr_cpu_event_destroy,
        .event_record = tsr_cpu_event_record,
        .stream_wait_event = tsr_cpu_stream_wait_event,
        .event_wait = tsr_cpu_event_wait,
        .copy = tsr_cpu_copy,
        .zero = tsr_cpu_zero,
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
        .sort_by_expert = tsr_cpu_sort_by_expert,
        .gather_f32 = tsr_cpu_gather_f32,
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
