/* The choice among cuBLASLt's candidates for one product, by timing. */
#include "runtime/cuda/gemm_cublaslt.h"

enum { ROUNDS = 3 };

/* Timings vary by about this much; a candidate that gains less does not displace an earlier one. */
static const float least_gain = 0.02f;

typedef struct scratch {
    tsr_stream *stream;
    cudaEvent_t start, stop;
    void *block;
    size_t a_bytes, b_bytes; /* where b and c begin: after a, after b */
} scratch;

static size_t matrix_bytes(int64_t rows, int64_t stride, bool is_bf16)
{
    const size_t bytes = (size_t)rows * (size_t)stride * (is_bf16 ? 2 : 4);

    return (bytes + 255) / 256 * 256;
}

static void free_scratch(tsr_cuda_device *device, scratch *s)
{
    if (s->start != NULL) {
        (void)cudaEventDestroy(s->start);
    }
    if (s->stop != NULL) {
        (void)cudaEventDestroy(s->stop);
    }
    tsr_stream_destroy(&s->stream);
    tsr_device_free(&device->base, s->block);
    *s = (scratch){0};
}

static tsr_status take_scratch(tsr_cuda_device *device, const tsr_gemm_shape *shape, scratch *s)
{
    const bool is_bf16 = (shape->flags & TSR_GEMM_BF16) != 0;
    const int64_t a_rows = shape->flags & TSR_GEMM_TRANS_A ? shape->k : shape->m;
    const int64_t b_rows = shape->flags & TSR_GEMM_TRANS_B ? shape->n : shape->k;

    s->a_bytes = matrix_bytes(a_rows, shape->lda, is_bf16);
    s->b_bytes = matrix_bytes(b_rows, shape->ldb, is_bf16);
    const size_t c_bytes =
        matrix_bytes(shape->m, shape->ldc, (shape->flags & TSR_GEMM_C_BF16) != 0);
    const size_t bytes = s->a_bytes + s->b_bytes + c_bytes;

    TSR_TRY(tsr_device_alloc(&device->base, TSR_MEM_WORKSPACE, bytes, &s->block));
    TSR_TRY(tsr_stream_create(&device->base, &s->stream));
    TSR_CUDA_TRY(cudaEventCreate(&s->start));
    TSR_CUDA_TRY(cudaEventCreate(&s->stop));
    /* 0x3c3c is 0.0115 in bf16, 0x3c3c3c3c in f32: zeros would draw less power and flatter. */
    TSR_CUDA_TRY(cudaMemsetAsync(s->block, 0x3c, bytes, tsr_cuda_stream_of(s->stream)));
    return TSR_OK;
}

/* Milliseconds of ROUNDS runs after one that warms up. */
static tsr_status time_plan(tsr_cuda_device *device, const tsr_gemm_plan *plan, const scratch *s,
                            float *ms_out)
{
    char *const a = s->block, *const b = a + s->a_bytes, *const c = b + s->b_bytes;
    const cudaStream_t stream = tsr_cuda_stream_of(s->stream);

    for (int round = 0; round <= ROUNDS; ++round) {
        TSR_TRY(tsr_gemm_run(device, plan, a, b, c, s->stream));
        if (round == 0) {
            TSR_CUDA_TRY(cudaEventRecord(s->start, stream));
        }
    }
    TSR_CUDA_TRY(cudaEventRecord(s->stop, stream));
    TSR_CUDA_TRY(cudaEventSynchronize(s->stop));
    TSR_CUDA_TRY(cudaEventElapsedTime(ms_out, s->start, s->stop));
    return TSR_OK;
}

static tsr_status choose(tsr_cuda_device *device, tsr_gemm_plan *plan,
                         const cublasLtMatmulHeuristicResult_t *candidates, int count,
                         const scratch *s)
{
    float best_ms = 0.0f;
    int best = -1;

    for (int i = 0; i < count; ++i) {
        float ms = 0.0f;

        if (candidates[i].state != CUBLAS_STATUS_SUCCESS) {
            continue;
        }
        plan->algorithm = candidates[i].algo;
        plan->workspace_bytes = candidates[i].workspaceSize;
        TSR_TRY(time_plan(device, plan, s, &ms));
        if (best < 0 || ms < best_ms * (1.0f - least_gain)) {
            best = i;
            best_ms = ms;
        }
    }
    TSR_CHECK(best >= 0, TSR_ERR_UNSUPPORTED, "cuBLASLt: none of its %d algorithms is usable",
              count);
    plan->algorithm = candidates[best].algo;
    plan->workspace_bytes = candidates[best].workspaceSize;
    return TSR_OK;
}

tsr_status tsr_gemm_tune(tsr_cuda_device *device, tsr_gemm_plan *plan,
                         const cublasLtMatmulHeuristicResult_t *candidates, int count)
{
    scratch s = {0};
    tsr_status st = take_scratch(device, &plan->shape, &s);

    if (st == TSR_OK) {
        st = choose(device, plan, candidates, count, &s);
    } else if (st == TSR_ERR_NOMEM) {
        st = TSR_OK;
    }
    free_scratch(device, &s);
    return st;
}
