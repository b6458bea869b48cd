#include "runtime/cpu/gemm_cache.h"

#include <omp.h>

/* Fewer columns or steps of the sum than this would leave tiles of the f32 kernel half empty. */
enum { LEAST_OWN = 64 };

static tsr_matmul_shape dense_shape(const tsr_gemm_args *args)
{
    return (tsr_matmul_shape){
        .m = args->m,
        .n = args->n,
        .k = args->k,
        .lda = args->lda,
        .ldb = args->ldb,
        .ldc = args->ldc,
        .flags = (args->trans_a ? TSR_MATMUL_TRANS_A : 0) |
                 (args->trans_b ? TSR_MATMUL_TRANS_B : 0) |
                 (args->accumulate ? TSR_MATMUL_ACCUMULATE : 0) |
                 (args->dtype == TSR_BF16 ? TSR_MATMUL_BF16 : 0) |
                 (args->c_dtype == TSR_BF16 ? TSR_MATMUL_C_BF16 : 0),
    };
}

/* Our kernel if it does this one. Not a question of m: a row must not depend on how many there
 * are; that of bf16 does all, since oneDNN's for AMX do not keep to it. */
static const tsr_own_gemm *own_of(const tsr_device *device, const tsr_gemm_args *args)
{
    const bool is_fit = args->dtype == TSR_BF16 || (args->n >= LEAST_OWN && args->k >= LEAST_OWN);

    return is_fit ? tsr_own_gemm_of(device, args->dtype) : NULL;
}

/* Few rows are the side to pack; else it is b, by parts. */
static tsr_own_gemm_args dense_own(const tsr_gemm_args *args)
{
    const tsr_own_gemm_args product = {
        .a = {args->a, args->trans_a ? 1 : args->lda, args->trans_a ? args->lda : 1},
        .b = {args->b, args->trans_b ? args->ldb : 1, args->trans_b ? 1 : args->ldb},
        .c = args->c,
        .c_outer_a = args->ldc,
        .c_outer_b = 1,
        .m = args->m,
        .n = args->n,
        .k = args->k,
        .accumulate = args->accumulate,
        .dtype = args->dtype,
        .c_dtype = args->c_dtype,
    };
    const bool is_low = args->m < args->n && args->m <= TSR_OWN_GEMM_COLUMNS;

    return is_low ? tsr_own_gemm_exchanged(product) : product;
}

static void advance(tsr_gemm_side *side, int64_t rows, tsr_dtype dtype)
{
    side->at = (const char *)side->at + (size_t)(rows * side->outer) * tsr_dtype_bytes(dtype);
}

/* Tiles of c, two or more for each thread, taken one by one. */
static void run_own(tsr_device *device, const tsr_own_gemm *own, const tsr_gemm_args *args)
{
    const tsr_own_gemm_args whole = dense_own(args);
    const tsr_gemm_cache *cache = tsr_gemm_cache_of(device);
    const int64_t across = (whole.n + TSR_OWN_GEMM_COLUMNS - 1) / TSR_OWN_GEMM_COLUMNS;
    const int64_t down = ((int64_t)2 * device->threads + across - 1) / across;
    const int64_t rows = tsr_round_up((whole.m + down - 1) / down, own->rows);
    const int64_t columns = tsr_round_up((whole.n + across - 1) / across, 32);

#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(device->threads)
    for (int64_t j = 0; j < whole.n; j += columns) {
        for (int64_t i = 0; i < whole.m; i += rows) {
            tsr_own_gemm_args part = whole;

            advance(&part.a, i, whole.dtype);
            advance(&part.b, j, whole.dtype);
            part.c = (char *)whole.c + (size_t)(i * whole.c_outer_a + j * whole.c_outer_b) *
                                           tsr_dtype_bytes(whole.c_dtype);
            part.m = rows < whole.m - i ? rows : whole.m - i;
            part.n = columns < whole.n - j ? columns : whole.n - j;
            own->run(&part, tsr_gemm_cache_part(cache, omp_get_thread_num()));
        }
    }
}

tsr_status tsr_cpu_gemm_reserve(tsr_device *device, const tsr_gemm_args *args)
{
    const tsr_own_gemm *own = own_of(device, args);

    if (own != NULL) {
        return tsr_gemm_cache_reserve_parts(tsr_gemm_cache_of(device), own->scratch_bytes);
    }
    const tsr_matmul_shape shape = dense_shape(args);
    const tsr_matmul *matmul = NULL;

    return tsr_gemm_cache_find(tsr_gemm_cache_of(device), &shape, &matmul);
}

tsr_status tsr_cpu_gemm(tsr_device *device, const tsr_gemm_args *args, tsr_stream *stream)
{
    const tsr_own_gemm *own = own_of(device, args);
    const tsr_matmul_shape shape = dense_shape(args);
    const tsr_matmul *matmul = NULL;

    (void)stream;
    if (own != NULL) {
        TSR_TRY(tsr_gemm_cache_reserve_parts(tsr_gemm_cache_of(device), own->scratch_bytes));
        run_own(device, own, args);
        return TSR_OK;
    }
    TSR_TRY(tsr_gemm_cache_find(tsr_gemm_cache_of(device), &shape, &matmul));
    omp_set_num_threads(device->threads); /* another device may have set its own */
    return tsr_matmul_status(
        tsr_matmul_run(tsr_gemm_cache_of(device), matmul, 0, args->a, args->b, args->c));
}
