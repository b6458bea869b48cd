/* Dense products by cuBLASLt.
 *
 * cuBLASLt counts in columns, we in rows: a row-major [rows, columns] matrix with stride ld is its
 * column-major [columns, rows] one. So c = op(a) op(b) is computed as c^T = op(b)^T op(a)^T: our b
 * is cuBLASLt's A, our a its B, m and n change places, and a transpose stays a transpose. */
#include "runtime/cuda/gemm_cublaslt.h"

tsr_status tsr_cublas_check(cublasStatus_t code, const char *call, const char *file, int line)
{
    if (code == CUBLAS_STATUS_SUCCESS) {
        return TSR_OK;
    }
    const tsr_status st = code == CUBLAS_STATUS_ALLOC_FAILED    ? TSR_ERR_NOMEM
                          : code == CUBLAS_STATUS_NOT_SUPPORTED ? TSR_ERR_UNSUPPORTED
                                                                : TSR_ERR_DEVICE;

    return tsr_fail(st, file, line, "cuBLASLt: %s: %s", call, cublasLtGetStatusString(code));
}

tsr_status tsr_cuda_gemm_open(tsr_cuda_device *device)
{
    void *block;

    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *device->gemms, &block));
    device->gemms = block;
    TSR_CUBLAS_TRY(cublasLtCreate(&device->gemms->handle));
    return tsr_cuda_workspace_reserve(&device->base, TSR_GEMM_WORKSPACE_BYTES);
}

/* Accepts a plan of which only a part was made. */
static void destroy_plan(tsr_gemm_plan *plan)
{
    if (plan == NULL) {
        return;
    }
    cublasLtMatrixLayout_t const layouts[3] = {plan->a, plan->b, plan->c};

    for (int i = 0; i < 3; ++i) {
        if (layouts[i] != NULL) {
            (void)cublasLtMatrixLayoutDestroy(layouts[i]);
        }
    }
    if (plan->product != NULL) {
        (void)cublasLtMatmulDescDestroy(plan->product);
    }
    tsr_mem_free(plan);
}

void tsr_cuda_gemm_close(tsr_cuda_device *device)
{
    tsr_cuda_gemms *const gemms = device->gemms;

    if (gemms == NULL) {
        return;
    }
    for (size_t i = 0; i < sizeof gemms->buckets / sizeof *gemms->buckets; ++i) {
        while (gemms->buckets[i] != NULL) {
            tsr_gemm_plan *const plan = gemms->buckets[i];

            gemms->buckets[i] = plan->next;
            destroy_plan(plan);
        }
    }
    if (gemms->handle != NULL) {
        (void)cublasLtDestroy(gemms->handle);
    }
    tsr_mem_free(gemms);
    device->gemms = NULL;
}

/* ---- making a plan
 * ---------------------------------------------------------------------------- */

/* The layout of a stored row-major [rows, columns] matrix. */
static tsr_status make_layout(cublasLtMatrixLayout_t *out, cudaDataType_t type, int64_t rows,
                              int64_t columns, int64_t stride)
{
    TSR_CUBLAS_TRY(
        cublasLtMatrixLayoutCreate(out, type, (uint64_t)columns, (uint64_t)rows, stride));
    return TSR_OK;
}

/* Descriptors of the product and its operands. f32 is multiplied in f32, never in TF32. */
static tsr_status describe(tsr_gemm_plan *plan)
{
    const tsr_gemm_shape *const s = &plan->shape;
    const bool trans_a = (s->flags & TSR_GEMM_TRANS_A) != 0;
    const bool trans_b = (s->flags & TSR_GEMM_TRANS_B) != 0;
    const cudaDataType_t type = s->flags & TSR_GEMM_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    const cudaDataType_t c_type = s->flags & TSR_GEMM_C_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    const cublasOperation_t op_a = trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t op_b = trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;

    TSR_CUBLAS_TRY(cublasLtMatmulDescCreate(&plan->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    TSR_CUBLAS_TRY(cublasLtMatmulDescSetAttribute(plan->product, CUBLASLT_MATMUL_DESC_TRANSA, &op_b,
                                                  sizeof op_b));
    TSR_CUBLAS_TRY(cublasLtMatmulDescSetAttribute(plan->product, CUBLASLT_MATMUL_DESC_TRANSB, &op_a,
                                                  sizeof op_a));
    TSR_TRY(make_layout(&plan->a, type, trans_a ? s->k : s->m, trans_a ? s->m : s->k, s->lda));
    TSR_TRY(make_layout(&plan->b, type, trans_b ? s->n : s->k, trans_b ? s->k : s->n, s->ldb));
    return make_layout(&plan->c, c_type, s->m, s->n, s->ldc);
}

static tsr_status set_preferences(cublasLtMatmulPreference_t preference, const tsr_gemm_shape *s)
{
    /* k is never split: all candidates add along it in one order, so that the choice by time does
     * not show in the bits and a run can be repeated and resumed exactly. */
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE;
    const uint64_t workspace = TSR_GEMM_WORKSPACE_BYTES;
    const bool is_aligned = (s->flags & TSR_GEMM_ALIGNED) != 0;
    const uint32_t ab = is_aligned ? TSR_GEMM_ALIGNMENT : s->flags & TSR_GEMM_BF16 ? 2 : 4;
    const uint32_t c = is_aligned ? TSR_GEMM_ALIGNMENT : s->flags & TSR_GEMM_C_BF16 ? 2 : 4;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t bytes;
    } settings[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &ab, sizeof ab},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &ab, sizeof ab},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c, sizeof c},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c, sizeof c},
    };

    for (size_t i = 0; i < sizeof settings / sizeof *settings; ++i) {
        TSR_CUBLAS_TRY(cublasLtMatmulPreferenceSetAttribute(preference, settings[i].name,
                                                            settings[i].value, settings[i].bytes));
    }
    return TSR_OK;
}

static tsr_status find_candidates(tsr_cuda_gemms *gemms, const tsr_gemm_plan *plan,
                                  cublasLtMatmulHeuristicResult_t *candidates, int *count_out)
{
    const tsr_gemm_shape *const s = &plan->shape;
    cublasLtMatmulPreference_t preference = NULL;
    tsr_status st;

    *count_out = 0;
    TSR_CUBLAS_TRY(cublasLtMatmulPreferenceCreate(&preference));
    TSR_TRY_GOTO(set_preferences(preference, s), done);
    const cublasStatus_t code = cublasLtMatmulAlgoGetHeuristic(
        gemms->handle, plan->product, plan->b, plan->a, plan->c, plan->c, preference,
        TSR_GEMM_CANDIDATES, candidates, count_out);
    if (code != CUBLAS_STATUS_NOT_SUPPORTED) { /* which has a better message below */
        TSR_CUBLAS_TRY_GOTO(code, done);
    }
    if (*count_out == 0) {
        st = TSR_FAIL(TSR_ERR_UNSUPPORTED,
                      "cuBLASLt has no algorithm for m %lld, n %lld, k %lld, strides %lld %lld "
                      "%lld, flags 0x%llx",
                      (long long)s->m, (long long)s->n, (long long)s->k, (long long)s->lda,
                      (long long)s->ldb, (long long)s->ldc, (unsigned long long)s->flags);
    }
done:
    (void)cublasLtMatmulPreferenceDestroy(preference);
    return st;
}

/* Only products of aligned pointers, which all our large ones are, are worth the timing. */
static tsr_status make_plan(tsr_cuda_device *device, const tsr_gemm_shape *shape,
                            tsr_gemm_plan **out)
{
    cublasLtMatmulHeuristicResult_t candidates[TSR_GEMM_CANDIDATES] = {0};
    void *block;
    int count = 0;
    tsr_status st;

    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof **out, &block));
    tsr_gemm_plan *const plan = block;
    plan->shape = *shape;
    TSR_TRY_GOTO(describe(plan), err_destroy);
    TSR_TRY_GOTO(find_candidates(device->gemms, plan, candidates, &count), err_destroy);
    plan->algorithm = candidates[0].algo;
    plan->workspace_bytes = candidates[0].workspaceSize;
    if (count > 1 && (shape->flags & TSR_GEMM_ALIGNED) != 0) {
        TSR_TRY_GOTO(tsr_gemm_tune(device, plan, candidates, count), err_destroy);
    }
    *out = plan;
    return TSR_OK;
err_destroy:
    destroy_plan(plan);
    return st;
}

/* ---- finding and running it
 * ------------------------------------------------------------------- */

static tsr_gemm_shape shape_of(const tsr_gemm_args *args, bool is_aligned)
{
    return (tsr_gemm_shape){.m = args->m,
                            .n = args->n,
                            .k = args->k,
                            .lda = args->lda,
                            .ldb = args->ldb,
                            .ldc = args->ldc,
                            .flags = (args->trans_a ? TSR_GEMM_TRANS_A : 0) |
                                     (args->trans_b ? TSR_GEMM_TRANS_B : 0) |
                                     (args->accumulate ? TSR_GEMM_ACCUMULATE : 0) |
                                     (args->dtype == TSR_BF16 ? TSR_GEMM_BF16 : 0) |
                                     (args->c_dtype == TSR_BF16 ? TSR_GEMM_C_BF16 : 0) |
                                     (is_aligned ? TSR_GEMM_ALIGNED : 0)};
}

static size_t bucket_of(const tsr_gemm_shape *shape, size_t buckets)
{
    const int64_t words[] = {shape->m,   shape->n,   shape->k,    shape->lda,
                             shape->ldb, shape->ldc, shape->flags};
    uint64_t hash = 0;

    for (size_t i = 0; i < sizeof words / sizeof *words; ++i) {
        hash = (hash ^ (uint64_t)words[i]) * 0x9e3779b97f4a7c15u; /* 2^64 / golden ratio */
        hash ^= hash >> 32;
    }
    return (size_t)hash % buckets;
}

static tsr_status find_plan(tsr_cuda_device *device, const tsr_gemm_shape *shape,
                            const tsr_gemm_plan **out)
{
    tsr_cuda_gemms *const gemms = device->gemms;
    tsr_gemm_plan **const bucket =
        &gemms->buckets[bucket_of(shape, sizeof gemms->buckets / sizeof *gemms->buckets)];
    tsr_gemm_plan *plan = *bucket;

    while (plan != NULL && memcmp(&plan->shape, shape, sizeof *shape) != 0) {
        plan = plan->next;
    }
    if (plan == NULL) {
        TSR_TRY(make_plan(device, shape, &plan));
        plan->next = *bucket;
        *bucket = plan;
    }
    *out = plan;
    return TSR_OK;
}

tsr_status tsr_gemm_run(tsr_cuda_device *device, const tsr_gemm_plan *plan, const void *a,
                        const void *b, void *c, tsr_stream *stream)
{
    const float one = 1.0f, beta = plan->shape.flags & TSR_GEMM_ACCUMULATE ? 1.0f : 0.0f;
    void *workspace = NULL;

    if (plan->workspace_bytes > 0) {
        TSR_TRY(tsr_cuda_workspace(&device->base, plan->workspace_bytes, stream, &workspace));
    }
    TSR_CUBLAS_TRY(cublasLtMatmul(device->gemms->handle, plan->product, &one, b, plan->b, a,
                                  plan->a, &beta, c, plan->c, c, plan->c, &plan->algorithm,
                                  workspace, plan->workspace_bytes, tsr_cuda_stream_of(stream)));
    return TSR_OK;
}

tsr_status tsr_cuda_gemm(tsr_device *device, const tsr_gemm_args *args, tsr_stream *stream)
{
    tsr_cuda_device *const cuda = (tsr_cuda_device *)device;
    const uintptr_t bits = (uintptr_t)args->a | (uintptr_t)args->b | (uintptr_t)args->c;
    const tsr_gemm_shape shape = shape_of(args, bits % TSR_GEMM_ALIGNMENT == 0);
    const tsr_gemm_plan *plan;

    TSR_TRY(find_plan(cuda, &shape, &plan));
    return tsr_gemm_run(cuda, plan, args->a, args->b, args->c, stream);
}

tsr_status tsr_cuda_gemm_reserve(tsr_device *device, const tsr_gemm_args *args)
{
    for (int is_aligned = 0; is_aligned < 2; ++is_aligned) {
        const tsr_gemm_shape shape = shape_of(args, is_aligned != 0);
        const tsr_gemm_plan *plan;

        TSR_TRY(find_plan((tsr_cuda_device *)device, &shape, &plan));
    }
    return TSR_OK;
}
