/* cuBLASLt on the emulated GPU: what runtime/cuda uses of it, for column-major matrices.
 *
 * Refuses what the library refuses: layouts that do not fit, types it does not multiply, pointers
 * less aligned than was promised, too little workspace, an algorithm found for another problem; and
 * at once, which the library does not, memory that is not the device's. Work is queued and runs
 * when the stream gets there. Of its three algorithms one keeps partial sums in the workspace, so
 * that two products that share it at once spoil each other. */
#include "tests/emulation/fake_cudart.h"

#include <cublasLt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LIVE = 0x5a17,
    PLAIN = 1, /* algorithms: one sum a result */
    SPLIT,     /* two halves of k, through the workspace */
    WIDE,      /* moves 16 bytes at a time */
    ALGORITHMS = 3
};

struct cublasLtContext {
    uint64_t live;
};

typedef struct layout {
    uint64_t live, rows, columns;
    int64_t stride;
    cudaDataType_t type;
} layout;

typedef struct product {
    uint64_t live;
    cublasOperation_t op_a, op_b;
} product;

typedef struct preference {
    uint64_t live, workspace_bytes;
    uint32_t alignment[4], reductions; /* of A, B, C, D */
} preference;

typedef struct algorithm {
    uint64_t kind, workspace_bytes, problem; /* problem: hash of what it was found for */
    uint32_t alignment[4];
} algorithm;

_Static_assert(sizeof(layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "fits");
_Static_assert(sizeof(product) <= sizeof(cublasLtMatmulDescOpaque_t), "fits");
_Static_assert(sizeof(preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "fits");
_Static_assert(sizeof(algorithm) <= sizeof(cublasLtMatmulAlgo_t), "fits");

/* Refusals say why: the library's codes alone would not. */
static cublasStatus_t refuse(cublasStatus_t code, const char *why)
{
    (void)fprintf(stderr, "fake cublasLt: %s\n", why);
    return code;
}

/* ---- handle and descriptors
 * ------------------------------------------------------------------- */

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "the library was not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "the functionality requested is not supported";
    default:
        return "the function failed to launch on the GPU";
    }
}

size_t cublasLtGetVersion(void)
{
    return CUBLAS_VERSION;
}

static cublasStatus_t create(void **out, size_t bytes)
{
    uint64_t *const object = calloc(1, bytes);

    if (object == NULL) {
        return CUBLAS_STATUS_ALLOC_FAILED;
    }
    object[0] = LIVE;
    *out = object;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t destroy(void *object)
{
    uint64_t *const live = object;

    if (live == NULL || *live != LIVE) {
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "destroyed what was not created");
    }
    *live = 0;
    free(live);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    return create((void **)handle, sizeof **handle);
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    return destroy(handle);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    const cublasStatus_t status = create((void **)out, sizeof **out);

    if (status == CUBLAS_STATUS_SUCCESS) {
        *(layout *)*out = (layout){LIVE, rows, cols, ld, type};
    }
    return status;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t object)
{
    return destroy(object);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) {
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "computes and scales in f32 only");
    }
    const cublasStatus_t status = create((void **)out, sizeof **out);

    if (status == CUBLAS_STATUS_SUCCESS) {
        *(product *)*out = (product){LIVE, CUBLAS_OP_N, CUBLAS_OP_N};
    }
    return status;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t object)
{
    return destroy(object);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t object,
                                              cublasLtMatmulDescAttributes_t name,
                                              const void *value, size_t bytes)
{
    product *const p = (product *)object;
    cublasOperation_t op;

    if (p == NULL || p->live != LIVE || value == NULL || bytes != sizeof op) {
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "attribute of a product: bad argument");
    }
    memcpy(&op, value, sizeof op);
    if (op != CUBLAS_OP_N && op != CUBLAS_OP_T) {
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "operation must be N or T");
    }
    if (name == CUBLASLT_MATMUL_DESC_TRANSA) {
        p->op_a = op;
    } else if (name == CUBLASLT_MATMUL_DESC_TRANSB) {
        p->op_b = op;
    } else {
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "attribute of a product: not known here");
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out)
{
    const cublasStatus_t status = create((void **)out, sizeof **out);

    if (status == CUBLAS_STATUS_SUCCESS) { /* the library's defaults: no workspace, 256 bytes */
        *(preference *)*out =
            (preference){LIVE, 0, {256, 256, 256, 256}, CUBLASLT_REDUCTION_SCHEME_MASK};
    }
    return status;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t object)
{
    return destroy(object);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t object,
                                                    cublasLtMatmulPreferenceAttributes_t name,
                                                    const void *value, size_t bytes)
{
    preference *const p = (preference *)object;
    const bool is_workspace = name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    void *to;

    if (p == NULL || p->live != LIVE || value == NULL || bytes != (is_workspace ? 8 : 4)) {
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "preference: bad argument");
    }
    switch (name) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        to = &p->workspace_bytes;
        break;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        to = &p->reductions;
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        to = &p->alignment[0];
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        to = &p->alignment[1];
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        to = &p->alignment[2];
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        to = &p->alignment[3];
        break;
    default:
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "preference: not known here");
    }
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- a problem
 * -------------------------------------------------------------------------------- */

/* D = alpha op(A) op(B) + beta C, with everything that a run needs. */
typedef struct problem {
    uint64_t m, n, k;
    layout a, b, c, d;
    cublasOperation_t op_a, op_b;
    const void *a_data, *b_data, *c_data;
    void *d_data;
    float *workspace; /* of SPLIT, else NULL */
    float alpha, beta;
} problem;

static size_t element_bytes(cudaDataType_t type)
{
    return type == CUDA_R_16BF ? 2 : 4;
}

static bool is_layout(const layout *l)
{
    return l != NULL && l->live == LIVE && l->rows > 0 && l->columns > 0 &&
           l->stride >= (int64_t)l->rows && (l->type == CUDA_R_16BF || l->type == CUDA_R_32F);
}

static cublasStatus_t describe(cublasLtMatmulDesc_t desc, const cublasLtMatrixLayout_t layouts[4],
                               problem *out)
{
    const product *const p = (const product *)desc;
    const layout *const a = (const layout *)layouts[0], *const b = (const layout *)layouts[1];
    const layout *const c = (const layout *)layouts[2], *const d = (const layout *)layouts[3];

    if (p == NULL || p->live != LIVE || !is_layout(a) || !is_layout(b) || !is_layout(c) ||
        !is_layout(d)) {
        return refuse(CUBLAS_STATUS_INVALID_VALUE,
                      "descriptor missing, or a layout empty or with rows beyond its stride");
    }
    *out = (problem){.m = p->op_a == CUBLAS_OP_N ? a->rows : a->columns,
                     .k = p->op_a == CUBLAS_OP_N ? a->columns : a->rows,
                     .n = p->op_b == CUBLAS_OP_N ? b->columns : b->rows,
                     .a = *a,
                     .b = *b,
                     .c = *c,
                     .d = *d,
                     .op_a = p->op_a,
                     .op_b = p->op_b};
    if (out->k != (p->op_b == CUBLAS_OP_N ? b->rows : b->columns) || c->rows != out->m ||
        c->columns != out->n || d->rows != out->m || d->columns != out->n) {
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "the layouts do not make a product");
    }
    if (a->type != b->type || c->type != d->type ||
        (a->type == CUDA_R_32F && c->type != CUDA_R_32F)) {
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "no product of these types");
    }
    return CUBLAS_STATUS_SUCCESS;
}

static uint64_t hash_of(const problem *p)
{
    const layout *const all[4] = {&p->a, &p->b, &p->c, &p->d};
    uint64_t hash = (uint64_t)p->op_a * 2 + (uint64_t)p->op_b;

    for (int i = 0; i < 4; ++i) {
        const uint64_t words[4] = {all[i]->rows, all[i]->columns, (uint64_t)all[i]->stride,
                                   (uint64_t)all[i]->type};

        for (int j = 0; j < 4; ++j) {
            hash = (hash ^ words[j]) * 0x100000001b3u;
        }
    }
    return hash;
}

/* Are the columns of the layout as aligned as its first element? */
static bool is_even(const layout *l, uint32_t alignment)
{
    return (uint64_t)l->stride * element_bytes(l->type) % alignment == 0;
}

/* ---- algorithms
 * ------------------------------------------------------------------------------- */

static bool can_run(const problem *p, const preference *pref, uint64_t kind, algorithm *out)
{
    const layout *const all[4] = {&p->a, &p->b, &p->c, &p->d};
    bool is_wide = true;

    *out = (algorithm){.kind = kind, .problem = hash_of(p)};
    for (int i = 0; i < 4; ++i) {
        is_wide = is_wide && pref->alignment[i] >= 16 && is_even(all[i], 16);
        out->alignment[i] = (uint32_t)(kind == WIDE ? 16 : element_bytes(all[i]->type));
    }
    if (kind == SPLIT) {
        out->workspace_bytes = 2 * p->m * p->n * sizeof(float);
        return out->workspace_bytes <= pref->workspace_bytes && p->k > 1 &&
               (pref->reductions & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) != 0;
    }
    return kind == PLAIN || is_wide;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t wishes, int requested,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int *returned)
{
    static const uint64_t order[ALGORITHMS] = {WIDE, SPLIT, PLAIN};
    const cublasLtMatrixLayout_t layouts[4] = {a, b, c, d};
    const preference *const pref = (const preference *)wishes;
    problem p;

    if (handle == NULL || handle->live != LIVE) {
        return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no handle");
    }
    if (pref == NULL || pref->live != LIVE || requested < 1) {
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "heuristic: bad argument");
    }
    const cublasStatus_t status = describe(desc, layouts, &p);
    if (status != CUBLAS_STATUS_SUCCESS) {
        return status;
    }
    *returned = 0;
    for (int i = 0; i < ALGORITHMS && *returned < requested; ++i) {
        algorithm found;

        if (can_run(&p, pref, order[i], &found)) {
            cublasLtMatmulHeuristicResult_t *const result = &results[(*returned)++];

            memset(result, 0, sizeof *result);
            memcpy(&result->algo, &found, sizeof found);
            result->workspaceSize = found.workspace_bytes;
            result->state = CUBLAS_STATUS_SUCCESS;
        }
    }
    return *returned > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

/* ---- running one
 * ------------------------------------------------------------------------------ */

static float load(const layout *l, const void *data, uint64_t row, uint64_t column)
{
    const uint64_t at = column * (uint64_t)l->stride + row;
    float value;

    if (l->type == CUDA_R_16BF) {
        const uint32_t bits = (uint32_t)((const uint16_t *)data)[at] << 16;
        memcpy(&value, &bits, sizeof value);
    } else {
        value = ((const float *)data)[at];
    }
    return value;
}

/* Round to nearest even; NaN stays NaN. */
static void store(const layout *l, void *data, uint64_t row, uint64_t column, float value)
{
    const uint64_t at = column * (uint64_t)l->stride + row;
    uint32_t bits;

    if (l->type == CUDA_R_32F) {
        ((float *)data)[at] = value;
        return;
    }
    memcpy(&bits, &value, sizeof bits);
    bits += value != value ? 0x400000u : 0x7fffu + (bits >> 16 & 1u);
    ((uint16_t *)data)[at] = (uint16_t)(bits >> 16);
}

/* sums[i] = row i of op(A), [k][m] in a, times column j of op(B), over part of k. */
static void multiply_column(const problem *p, const float *a, uint64_t j, uint64_t k_begin,
                            uint64_t k_end, float *sums)
{
    memset(sums, 0, p->m * sizeof *sums);
    for (uint64_t l = k_begin; l < k_end; ++l) {
        const float b =
            p->op_b == CUBLAS_OP_N ? load(&p->b, p->b_data, l, j) : load(&p->b, p->b_data, j, l);
        const float *const row = a + l * p->m;

        for (uint64_t i = 0; i < p->m; ++i) {
            sums[i] += row[i] * b;
        }
    }
}

static cudaError_t run(const void *arg)
{
    const problem *const p = arg;
    float *const a = malloc((p->k + 1) * p->m * sizeof *a);

    if (a == NULL) {
        return cudaErrorMemoryAllocation;
    }
    float *const sums = a + p->k * p->m;
    for (uint64_t l = 0; l < p->k; ++l) {
        for (uint64_t i = 0; i < p->m; ++i) {
            a[l * p->m + i] = p->op_a == CUBLAS_OP_N ? load(&p->a, p->a_data, i, l)
                                                     : load(&p->a, p->a_data, l, i);
        }
    }
    for (uint64_t half = 0; half < 2 && p->workspace != NULL; ++half) {
        for (uint64_t j = 0; j < p->n; ++j) {
            multiply_column(p, a, j, half * (p->k / 2), half == 0 ? p->k / 2 : p->k,
                            p->workspace + (half * p->n + j) * p->m);
        }
    }
    for (uint64_t j = 0; j < p->n; ++j) {
        if (p->workspace == NULL) {
            multiply_column(p, a, j, 0, p->k, sums);
        }
        for (uint64_t i = 0; i < p->m; ++i) {
            const float sum = p->workspace == NULL ? sums[i]
                                                   : p->workspace[j * p->m + i] +
                                                         p->workspace[(p->n + j) * p->m + i];
            const float old = p->beta == 0.0f ? 0.0f : p->beta * load(&p->c, p->c_data, i, j);

            store(&p->d, p->d_data, i, j, p->alpha * sum + old);
        }
    }
    free(a);
    return cudaSuccess;
}

static cublasStatus_t check_data(const problem *p, const algorithm *algo)
{
    const layout *const all[4] = {&p->a, &p->b, &p->c, &p->d};
    const void *const data[4] = {p->a_data, p->b_data, p->c_data, p->d_data};

    for (int i = 0; i < 4; ++i) {
        const uint64_t elements = (all[i]->columns - 1) * (uint64_t)all[i]->stride + all[i]->rows;

        if ((uintptr_t)data[i] % algo->alignment[i] != 0) {
            return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "a matrix is less aligned than promised");
        }
        if (!fake_is_device(data[i], elements * element_bytes(all[i]->type))) {
            return refuse(CUBLAS_STATUS_EXECUTION_FAILED, "a matrix is not in device memory");
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t check_workspace(const algorithm *algo, const void *workspace, size_t bytes)
{
    if (bytes < algo->workspace_bytes) {
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "the workspace is too small");
    }
    if (algo->workspace_bytes > 0 && (uintptr_t)workspace % 256 != 0) {
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "the workspace is not 256-byte aligned");
    }
    if (algo->workspace_bytes > 0 && !fake_is_device(workspace, bytes)) {
        return refuse(CUBLAS_STATUS_EXECUTION_FAILED, "the workspace is not in device memory");
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *A, cublasLtMatrixLayout_t Adesc, const void *B,
                              cublasLtMatrixLayout_t Bdesc, const void *beta, const void *C,
                              cublasLtMatrixLayout_t Cdesc, void *D, cublasLtMatrixLayout_t Ddesc,
                              const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream)
{
    const cublasLtMatrixLayout_t layouts[4] = {Adesc, Bdesc, Cdesc, Ddesc};
    algorithm chosen;
    problem p;

    if (handle == NULL || handle->live != LIVE) {
        return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "no handle");
    }
    if (algo == NULL || alpha == NULL || beta == NULL) {
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "product: algorithm, alpha or beta missing");
    }
    cublasStatus_t status = describe(desc, layouts, &p);
    if (status != CUBLAS_STATUS_SUCCESS) {
        return status;
    }
    memcpy(&chosen, algo, sizeof chosen);
    if (chosen.problem != hash_of(&p)) {
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "the algorithm is another problem's");
    }
    p.a_data = A;
    p.b_data = B;
    p.c_data = C;
    p.d_data = D;
    p.workspace = chosen.kind == SPLIT ? workspace : NULL;
    memcpy(&p.alpha, alpha, sizeof p.alpha);
    memcpy(&p.beta, beta, sizeof p.beta);
    status = check_data(&p, &chosen);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = check_workspace(&chosen, workspace, workspace_bytes);
    }
    if (status != CUBLAS_STATUS_SUCCESS) {
        return status;
    }
    return fake_enqueue(stream, run, &p, sizeof p) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                                  : CUBLAS_STATUS_EXECUTION_FAILED;
}
