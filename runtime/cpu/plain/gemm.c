/* Matrix products. */
#include "runtime/cpu/plain/plain.h"

tsr_status tsr_plain_gemm(tsr_device *device, const tsr_gemm_args *args, tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t i = 0; i < args->m; ++i) {
        for (int64_t j = 0; j < args->n; ++j) {
            const int64_t at = i * args->ldc + j;
            double sum = args->accumulate ? (double)((const float *)args->c)[at] : 0.0;

            for (int64_t l = 0; l < args->k; ++l) {
                const int64_t a = args->trans_a ? l * args->lda + i : i * args->lda + l;
                const int64_t b = args->trans_b ? j * args->ldb + l : l * args->ldb + j;

                sum += (double)tsr_plain_get(args->dtype, args->a, a) *
                       (double)tsr_plain_get(args->dtype, args->b, b);
            }
            tsr_plain_set(args->c_dtype, args->c, at, (float)sum);
        }
    }
    return TSR_OK;
}

/* The product of one expert, its rows beginning at x, y and its matrix at w. */
static tsr_gemm_args expert_product(const tsr_grouped_gemm_args *args, int64_t rows, void *x,
                                    void *y, void *w)
{
    const int64_t n = args->n, k = args->k;

    switch (args->pass) {
    case TSR_GROUPED_FORWARD:
        return (tsr_gemm_args){.a = x,
                               .b = w,
                               .c = y,
                               .m = rows,
                               .n = n,
                               .k = k,
                               .lda = k,
                               .ldb = k,
                               .ldc = n,
                               .trans_b = true,
                               .dtype = args->dtype,
                               .c_dtype = args->dtype};
    case TSR_GROUPED_DGRAD:
        return (tsr_gemm_args){.a = y,
                               .b = w,
                               .c = x,
                               .m = rows,
                               .n = k,
                               .k = n,
                               .lda = n,
                               .ldb = k,
                               .ldc = k,
                               .dtype = args->dtype,
                               .c_dtype = args->dtype};
    case TSR_GROUPED_WGRAD:
    default:
        return (tsr_gemm_args){.a = y,
                               .b = x,
                               .c = w,
                               .m = n,
                               .n = k,
                               .k = rows,
                               .lda = n,
                               .ldb = k,
                               .ldc = k,
                               .trans_a = true,
                               .accumulate = args->accumulate,
                               .dtype = args->dtype,
                               .c_dtype = TSR_F32};
    }
}

tsr_status tsr_plain_grouped_gemm(tsr_device *device, const tsr_grouped_gemm_args *args,
                                  tsr_stream *stream)
{
    const size_t element = tsr_dtype_bytes(args->dtype);
    const size_t w_element = args->pass == TSR_GROUPED_WGRAD ? sizeof(float) : element;

    for (int e = 0; e < args->experts; ++e) {
        const int64_t begin = args->offsets[e], rows = args->offsets[e + 1] - begin;
        char *x = (char *)args->x + (size_t)(begin * args->k) * element;
        char *y = (char *)args->y + (size_t)(begin * args->n) * element;
        char *w = (char *)args->w + (size_t)(e * args->n * args->k) * w_element;
        const tsr_gemm_args product = expert_product(args, rows, x, y, w);

        TSR_TRY(tsr_plain_gemm(device, &product, stream));
    }
    return TSR_OK;
}
