#include "runtime/cpu/gemm_cache.h"

#include <omp.h>

/* Fewer columns or steps of the sum than this would leave gemm_f32's tiles half empty. */
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

/* Whether gemm_f32 does this one. Not a question of m: a row must not depend on how many there
 * are. */
static bool is_own(const tsr_device *device, const tsr_gemm_args *args)
{
    return tsr_gemm_f32_of(device) != NULL && args->dtype == TSR_F32 && args->n >= LEAST_OWN &&
           args->k >= LEAST_OWN;
}

/* Few rows are the side to pack; else it is b, by parts. */
static tsr_gemm_f32_args dense_own(const tsr_gemm_args *args)
{
    const tsr_gemm_side a = {args->a, args->trans_a ? 1 : args->lda, args->trans_a ? args->lda : 1};
    const tsr_gemm_side b = {args->b, args->trans_b ? args->ldb : 1, args->trans_b ? 1 : args->ldb};
    const bool is_low = args->m < args->n && args->m <= TSR_GEMM_F32_COLUMNS;

    return is_low
               ? (tsr_gemm_f32_args){b,       a,       args->c,          1,    args->ldc, args->n,
                                     args->m, args->k, args->accumulate, false}
               : (tsr_gemm_f32_args){a,       b,       args->c, args->ldc,        1,
                                     args->m, args->n, args->k, args->accumulate, false};
}

/* Tiles of c, two or more for each thread, taken one by one. */
static void run_own(tsr_device *device, const tsr_gemm_args *args)
{
    const tsr_gemm_f32_args whole = dense_own(args);
    const tsr_gemm_cache *cache = tsr_gemm_cache_of(device);
    const int64_t across = (whole.n + TSR_GEMM_F32_COLUMNS - 1) / TSR_GEMM_F32_COLUMNS;
    const int64_t down = ((int64_t)2 * device->threads + across - 1) / across;
    const int64_t rows = tsr_round_up((whole.m + down - 1) / down, TSR_GEMM_F32_ROWS);
    const int64_t columns = tsr_round_up((whole.n + across - 1) / across, 32);

#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(device->threads)
    for (int64_t j = 0; j < whole.n; j += columns) {
        for (int64_t i = 0; i < whole.m; i += rows) {
            tsr_gemm_f32_args part = whole;

            part.a.at += i * part.a.outer;
            part.b.at += j * part.b.outer;
            part.c += i * part.c_outer_a + j * part.c_outer_b;
            part.m = rows < whole.m - i ? rows : whole.m - i;
            part.n = columns < whole.n - j ? columns : whole.n - j;
            tsr_gemm_f32_of(device)(&part, tsr_gemm_cache_part(cache, omp_get_thread_num()));
        }
    }
}

tsr_status tsr_cpu_gemm_reserve(tsr_device *device, const tsr_gemm_args *args)
{
    if (is_own(device, args)) {
        return tsr_gemm_cache_reserve_parts(tsr_gemm_cache_of(device),
                                            tsr_gemm_f32_scratch_bytes());
    }
    const tsr_matmul_shape shape = dense_shape(args);
    const tsr_matmul *matmul = NULL;

    return tsr_gemm_cache_find(tsr_gemm_cache_of(device), &shape, &matmul);
}

tsr_status tsr_cpu_gemm(tsr_device *device, const tsr_gemm_args *args, tsr_stream *stream)
{
    const tsr_matmul_shape shape = dense_shape(args);
    const tsr_matmul *matmul = NULL;

    (void)stream;
    if (is_own(device, args)) {
        TSR_TRY(tsr_cpu_gemm_reserve(device, args));
        run_own(device, args);
        return TSR_OK;
    }
    TSR_TRY(tsr_gemm_cache_find(tsr_gemm_cache_of(device), &shape, &matmul));
    omp_set_num_threads(device->threads); /* another device may have set its own */
    return tsr_matmul_status(
        tsr_matmul_run(tsr_gemm_cache_of(device), matmul, 0, args->a, args->b, args->c));
}
