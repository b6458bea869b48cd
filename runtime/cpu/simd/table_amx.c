/* cpu:amx is cpu:avx512bf16 but for attention of bf16 and for products. */
#include "runtime/cpu/cpu_impl.h"
#include "runtime/cpu/simd/simd.h"

static tsr_status forward(tsr_device *device, const tsr_attention_args *args, tsr_stream *stream)
{
    return args->dtype == TSR_BF16
               ? tsr_amx_attention_forward(device, args, stream)
               : tsr_avx512bf16_table()->attention_forward(device, args, stream);
}

static tsr_status backward(tsr_device *device, const tsr_attention_args *args, tsr_stream *stream)
{
    return args->dtype == TSR_BF16
               ? tsr_amx_attention_backward(device, args, stream)
               : tsr_avx512bf16_table()->attention_backward(device, args, stream);
}

const tsr_device_ops *tsr_amx_table(void)
{
    static tsr_device_ops table;

    table = *tsr_avx512bf16_table();
    table.attention_forward = forward;
    table.attention_backward = backward;
    table.attention_reserve = tsr_amx_attention_reserve;
    return &table;
}
