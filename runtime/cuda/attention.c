/* Attention: cuDNN where it has a plan, else the plain kernels. */
#include "runtime/cuda/attention_cudnn.h"

static bool may_use_cudnn(const tsr_cuda_device *device, const tsr_attention_args *args)
{
    return device->attention->use == TSR_ATTENTION_USE_BEST && tsr_cudnn_attention_takes(args);
}

tsr_status tsr_cuda_attention_forward(tsr_device *device, const tsr_attention_args *args,
                                      tsr_stream *stream)
{
    tsr_cuda_device *const cuda = (tsr_cuda_device *)device;
    bool is_done = false;

    if (may_use_cudnn(cuda, args)) {
        TSR_TRY(tsr_cudnn_attention_run(cuda, args, false, stream, &is_done));
    }
    return is_done ? TSR_OK : tsr_cuda_attention_plain_forward(device, args, stream);
}

tsr_status tsr_cuda_attention_backward(tsr_device *device, const tsr_attention_args *args,
                                       tsr_stream *stream)
{
    tsr_cuda_device *const cuda = (tsr_cuda_device *)device;
    bool is_done = false;

    if (may_use_cudnn(cuda, args)) {
        TSR_TRY(tsr_cudnn_attention_run(cuda, args, true, stream, &is_done));
    }
    return is_done ? TSR_OK : tsr_cuda_attention_plain_backward(device, args, stream);
}

tsr_status tsr_cuda_attention_reserve(tsr_device *device, const tsr_attention_args *args)
{
    tsr_cuda_device *const cuda = (tsr_cuda_device *)device;
    const size_t rows = (size_t)args->batch * (size_t)args->heads * (size_t)args->q_len;

    if (args->q_len != args->kv_len) {
        return TSR_OK; /* the plain forward pass needs nothing */
    }
    /* The plain backward pass's row sums. */
    TSR_TRY(tsr_cuda_workspace_reserve(device, rows * sizeof(float)));
    if (!may_use_cudnn(cuda, args) || rows == 0) {
        return TSR_OK;
    }
    TSR_TRY(tsr_cudnn_attention_prepare(cuda, args, false));
    return tsr_cudnn_attention_prepare(cuda, args, true);
}
