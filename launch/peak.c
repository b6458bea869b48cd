#include "launch/peak.h"

#include <time.h>

enum {
    FIRST_SIZE = 256,
    LAST_SIZE = 8192,
    ROUNDS = 4,
    PATTERN = 1 << 16 /* random numbers, repeated: equal ones would draw less power on a GPU */
};
static const double busy_s = 4e-3;

double peak_clock_s(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static tsr_status fill(tsr_device *device, tsr_stream *stream, tsr_dtype dtype, char *at,
                       int64_t count)
{
    const size_t element = tsr_dtype_bytes(dtype);
    float *numbers = NULL;
    void *pattern = NULL;
    tsr_status st = tsr_device_alloc_staging(device, TSR_MEM_WORKSPACE, PATTERN * sizeof *numbers,
                                             (void **)&numbers);

    TSR_TRY(st);
    tsr_rng_normal(1, 0, PATTERN, numbers);
    TSR_TRY_GOTO(tsr_device_alloc(device, TSR_MEM_WORKSPACE, PATTERN * sizeof *numbers, &pattern),
                 done);
    TSR_TRY_GOTO(tsr_device_copy(device, pattern, numbers, PATTERN * sizeof *numbers,
                                 TSR_COPY_HOST_TO_DEVICE, stream),
                 done);
    for (int64_t i = 0; i < count; i += PATTERN) {
        const int64_t piece = count - i < PATTERN ? count - i : PATTERN;

        TSR_TRY_GOTO(tsr_op_convert(device, pattern, TSR_F32, at + (size_t)i * element, dtype,
                                    piece, stream),
                     done);
    }
    st = tsr_stream_wait(stream);
done:
    tsr_device_free(device, pattern);
    tsr_device_free_staging(device, numbers);
    return st;
}

/* Seconds of the best of some products of two size x size matrices. */
static tsr_status time_product(tsr_device *device, tsr_stream *stream, tsr_dtype dtype,
                               int64_t size, double *best_out)
{
    const size_t bytes = (size_t)(size * size) * tsr_dtype_bytes(dtype);
    char *memory = NULL;
    double best = 1e30;

    TSR_TRY(tsr_device_alloc(device, TSR_MEM_WORKSPACE, 3 * bytes, (void **)&memory));
    const tsr_gemm_args args = {.a = memory,
                                .b = memory + bytes,
                                .c = memory + 2 * bytes,
                                .m = size,
                                .n = size,
                                .k = size,
                                .lda = size,
                                .ldb = size,
                                .ldc = size,
                                .dtype = dtype,
                                .c_dtype = dtype};
    tsr_status st = fill(device, stream, dtype, memory, 2 * size * size);
    if (st == TSR_OK) {
        st = tsr_op_gemm_reserve(device, &args);
    }
    for (int round = 0; st == TSR_OK && round < ROUNDS; ++round) {
        const double start = peak_clock_s();

        st = tsr_op_gemm(device, &args, stream);
        if (st == TSR_OK) {
            st = tsr_stream_wait(stream);
        }
        const double took = peak_clock_s() - start;
        best = took < best ? took : best;
    }
    tsr_device_free(device, memory);
    *best_out = best;
    return st;
}

tsr_status peak_measure(tsr_device *device, tsr_stream *stream, tsr_dtype dtype, double *rate_out)
{
    double best = 0.0;
    int64_t size = FIRST_SIZE;

    TSR_TRY(time_product(device, stream, dtype, size, &best));
    while (best < busy_s && size < LAST_SIZE) {
        size *= 2;
        TSR_TRY(time_product(device, stream, dtype, size, &best));
    }
    *rate_out = 2.0 * (double)size * (double)size * (double)size / best;
    return TSR_OK;
}
