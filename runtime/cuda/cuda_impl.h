/* What the parts of the cuda device share: its structs, its error wrapper, its list of operators.
 *
 * Stays inside runtime/cuda. The same sources make two modules: libtessera_cuda.so for GPUs, and
 * libtessera_cuda_emulated.so, built by g++ with TSR_EMULATED over the fakes in tests/emulation. */
#ifndef TSR_RUNTIME_CUDA_IMPL_H
#define TSR_RUNTIME_CUDA_IMPL_H

#include "runtime/device_impl.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tsr_cuda_block tsr_cuda_block; /* device.c: what it has allocated */

typedef struct tsr_cuda_device {
    tsr_device base;                  /* first: a tsr_device of this backend is a tsr_cuda_device */
    int index;                        /* of the GPU in this process */
    int architecture;                 /* 80, 90, 100, ...: compute capability without the dot */
    int multiprocessors;              /* how many blocks run at once, at least */
    struct tsr_cuda_gemms *gemms;     /* gemm_cublaslt.c: handle and chosen algorithms */
    struct tsr_cuda_grouped *grouped; /* grouped.c */
    struct tsr_cuda_attention *attention; /* attention_cudnn.c: handle and plans */
    tsr_cuda_block *blocks;
    size_t live_bytes;       /* of GPU memory in blocks */
    cudaStream_t own_stream; /* for what no caller's stream is given */
    void *workspace;         /* scratch of the operators, used by one stream after the other */
    size_t workspace_bytes;
    cudaStream_t workspace_stream; /* of the last operator that used it */
    cudaEvent_t workspace_event;
} tsr_cuda_device;

typedef struct tsr_cuda_stream {
    tsr_stream base;
    cudaStream_t handle;
} tsr_cuda_stream;

static inline cudaStream_t tsr_cuda_stream_of(tsr_stream *stream)
{
    return ((tsr_cuda_stream *)stream)->handle;
}

/** Turn a code of the CUDA runtime into a status; the one place where that is done. */
TSR_NODISCARD tsr_status tsr_cuda_check(cudaError_t code, const char *call, const char *file,
                                        int line);

#define TSR_CUDA_TRY(call) TSR_TRY(tsr_cuda_check((call), #call, __FILE__, __LINE__))
#define TSR_CUDA_TRY_GOTO(call, label)                                                             \
    TSR_TRY_GOTO(tsr_cuda_check((call), #call, __FILE__, __LINE__), label)

/**
 * Scratch device memory for one operator on this stream, 256-byte aligned, contents undefined.
 *
 * Async:  valid for what is queued on stream before the next call that asks for the workspace;
 *         a change of stream is ordered here by an event, so that users never overlap.
 * Errors: TSR_ERR_NOMEM. Grows (and waits for the device) only for more bytes than ever before;
 *         tsr_cuda_workspace_reserve() ahead of the first step avoids that.
 */
TSR_NODISCARD tsr_status tsr_cuda_workspace(tsr_device *device, size_t bytes, tsr_stream *stream,
                                            void **out);
TSR_NODISCARD tsr_status tsr_cuda_workspace_reserve(tsr_device *device, size_t bytes);

/** The module's one entry: the GPU of this index (0 if emulated). Contract as tsr_device_open(). */
__attribute__((visibility("default"))) TSR_NODISCARD tsr_status
tsr_cuda_device_open(int index, int threads, tsr_device **out);

/* State of the parts that use libraries, made when the device is opened. close accepts a device
 * whose part was never opened. */
TSR_NODISCARD tsr_status tsr_cuda_gemm_open(tsr_cuda_device *);
void tsr_cuda_gemm_close(tsr_cuda_device *);
TSR_NODISCARD tsr_status tsr_cuda_grouped_open(tsr_cuda_device *);
void tsr_cuda_grouped_close(tsr_cuda_device *);
TSR_NODISCARD tsr_status tsr_cuda_attention_open(tsr_cuda_device *);
void tsr_cuda_attention_close(tsr_cuda_device *);

/* The operators, each in the file that its comment names; contracts in runtime/ops.h. */

/* gemm_cublaslt.c */
tsr_status tsr_cuda_gemm(tsr_device *, const tsr_gemm_args *, tsr_stream *);
tsr_status tsr_cuda_gemm_reserve(tsr_device *, const tsr_gemm_args *);
/* grouped*.{c,cu} */
tsr_status tsr_cuda_grouped_gemm(tsr_device *, const tsr_grouped_gemm_args *, tsr_stream *);
tsr_status tsr_cuda_grouped_gemm_reserve(tsr_device *, const tsr_grouped_gemm_args *);
/* attention_cudnn.c, or the plain kernels where cuDNN has no plan */
tsr_status tsr_cuda_attention_forward(tsr_device *, const tsr_attention_args *, tsr_stream *);
tsr_status tsr_cuda_attention_backward(tsr_device *, const tsr_attention_args *, tsr_stream *);
tsr_status tsr_cuda_attention_reserve(tsr_device *, const tsr_attention_args *);
/* attention_plain.cu */
tsr_status tsr_cuda_attention_plain_forward(tsr_device *, const tsr_attention_args *, tsr_stream *);
tsr_status tsr_cuda_attention_plain_backward(tsr_device *, const tsr_attention_args *,
                                             tsr_stream *);
/* kernels/ */
tsr_status tsr_cuda_rmsnorm_forward(tsr_device *, const tsr_rmsnorm_args *, tsr_stream *);
tsr_status tsr_cuda_rmsnorm_backward_input(tsr_device *, const tsr_rmsnorm_args *, tsr_stream *);
tsr_status tsr_cuda_rmsnorm_backward_weight(tsr_device *, const tsr_rmsnorm_args *, tsr_stream *);
tsr_status tsr_cuda_rope(tsr_device *, const tsr_rope_args *, tsr_stream *);
tsr_status tsr_cuda_swiglu_forward(tsr_device *, const tsr_swiglu_args *, tsr_stream *);
tsr_status tsr_cuda_swiglu_backward(tsr_device *, const tsr_swiglu_args *, tsr_stream *);
tsr_status tsr_cuda_route_forward(tsr_device *, const tsr_route_args *, tsr_stream *);
tsr_status tsr_cuda_route_backward(tsr_device *, const tsr_route_args *, tsr_stream *);
tsr_status tsr_cuda_sort_by_expert(tsr_device *, const tsr_sort_args *, tsr_stream *);
tsr_status tsr_cuda_permute(tsr_device *, const tsr_permute_args *, tsr_stream *);
tsr_status tsr_cuda_unpermute(tsr_device *, const tsr_unpermute_args *, tsr_stream *);
tsr_status tsr_cuda_gather_f32(tsr_device *, const float *rows, const int32_t *row_of,
                               int64_t count, float *out, tsr_stream *);
tsr_status tsr_cuda_embedding_forward(tsr_device *, const tsr_embedding_args *, tsr_stream *);
tsr_status tsr_cuda_embedding_backward(tsr_device *, const tsr_embedding_args *, tsr_stream *);
tsr_status tsr_cuda_cross_entropy(tsr_device *, const tsr_cross_entropy_args *, tsr_stream *);
tsr_status tsr_cuda_convert(tsr_device *, const void *from, tsr_dtype from_dtype, void *to,
                            tsr_dtype to_dtype, int64_t count, tsr_stream *);
tsr_status tsr_cuda_add_f32(tsr_device *, const float *x, float *y, int64_t count, tsr_stream *);
tsr_status tsr_cuda_sum(tsr_device *, const float *x, int64_t count, double *out, tsr_stream *);
tsr_status tsr_cuda_sum_squares(tsr_device *, const float *x, int64_t count, double *out,
                                tsr_stream *);
tsr_status tsr_cuda_adamw(tsr_device *, const tsr_adamw_args *, tsr_stream *);

#ifdef __cplusplus
}
#endif

#endif
