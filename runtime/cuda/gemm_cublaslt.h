/* A dense product as cuBLASLt knows it: made once by shape, its algorithm chosen by timing.
 *
 * This folder's only. FP8 will add scale pointers as attributes of `product`, where the shape says
 * so: nothing else of a plan depends on them. */
#ifndef TSR_RUNTIME_CUDA_GEMM_CUBLASLT_H
#define TSR_RUNTIME_CUDA_GEMM_CUBLASLT_H

#include "runtime/cuda/cuda_impl.h"

#include <cublasLt.h>

enum {
    TSR_GEMM_TRANS_A = 1,
    TSR_GEMM_TRANS_B = 2,
    TSR_GEMM_ACCUMULATE = 4,
    TSR_GEMM_BF16 = 8,       /* a and b */
    TSR_GEMM_C_BF16 = 16,    /* c */
    TSR_GEMM_ALIGNED = 32,   /* all pointers are multiples of TSR_GEMM_ALIGNMENT */
    TSR_GEMM_ALIGNMENT = 16, /* bytes: what the fast kernels of cuBLASLt ask for */
    TSR_GEMM_CANDIDATES = 8
};

#ifdef TSR_EMULATED
#define TSR_GEMM_WORKSPACE_BYTES ((size_t)1 << 20) /* emulated memory is fenced page by page */
#else
#define TSR_GEMM_WORKSPACE_BYTES ((size_t)32 << 20) /* what cuBLASLt wants on Hopper */
#endif

/* What makes two products the same plan. No padding: compared and hashed as words. */
typedef struct tsr_gemm_shape {
    int64_t m, n, k, lda, ldb, ldc, flags;
} tsr_gemm_shape;

typedef struct tsr_gemm_plan {
    struct tsr_gemm_plan *next; /* in its bucket */
    tsr_gemm_shape shape;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace_bytes;
} tsr_gemm_plan;

typedef struct tsr_cuda_gemms {
    cublasLtHandle_t handle;
    tsr_gemm_plan *buckets[256];
} tsr_cuda_gemms;

/** Turn a code of cuBLASLt into a status; the one place where that is done. */
TSR_NODISCARD tsr_status tsr_cublas_check(cublasStatus_t code, const char *call, const char *file,
                                          int line);

#define TSR_CUBLAS_TRY(call) TSR_TRY(tsr_cublas_check((call), #call, __FILE__, __LINE__))
#define TSR_CUBLAS_TRY_GOTO(call, label)                                                           \
    TSR_TRY_GOTO(tsr_cublas_check((call), #call, __FILE__, __LINE__), label)

/** Queue the product of plan on these pointers. */
TSR_NODISCARD tsr_status tsr_gemm_run(tsr_cuda_device *device, const tsr_gemm_plan *plan,
                                      const void *a, const void *b, void *c, tsr_stream *stream);

/** Time the candidates on scratch memory and put the best into plan; blocks. With less free memory
 *  than the operands need the plan keeps the first candidate, cuBLASLt's own choice. */
TSR_NODISCARD tsr_status tsr_gemm_tune(tsr_cuda_device *device, tsr_gemm_plan *plan,
                                       const cublasLtMatmulHeuristicResult_t *candidates,
                                       int count);

#endif
