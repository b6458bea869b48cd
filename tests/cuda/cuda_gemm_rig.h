/* What the tests of products on the emulated GPU share: device, arrays on both sides, bounds. */
#ifndef TSR_CUDA_GEMM_RIG_H
#define TSR_CUDA_GEMM_RIG_H

#include "tests/runtime/op_test.h"

#include "runtime/cuda/cuda_impl.h"
#include "tests/emulation/fake_cudart.h"

#include <math.h>

static rig open_emulated(void)
{
    rig r;

    fake_set_order(FAKE_FORWARD, 0);
    assert_true(open_named("cuda:emulated", 1, &r));
    return r;
}

/* ---- arrays
 * ----------------------------------------------------------------------------------- */

/* A host array on the device, `shift` elements behind an aligned address. */
typedef struct array {
    void *host, *block, *device;
    tsr_dtype dtype;
    int64_t count;
} array;

static array make_array(rig *r, tsr_dtype dtype, int64_t count, int64_t shift, uint64_t key)
{
    const size_t element = tsr_dtype_bytes(dtype);
    array a = {.host = take_random(dtype, count, key, 1.0f), .dtype = dtype, .count = count};

    assert_ok(
        tsr_device_alloc(r->device, TSR_MEM_OTHER, (size_t)(count + shift) * element, &a.block));
    a.device = (char *)a.block + (size_t)shift * element;
    return a;
}

static void upload(rig *r, const array *a)
{
    assert_ok(tsr_device_copy(r->device, a->device, a->host,
                              (size_t)a->count * tsr_dtype_bytes(a->dtype), TSR_COPY_HOST_TO_DEVICE,
                              r->stream));
    assert_ok(tsr_stream_wait(r->stream));
}

static void download(rig *r, const array *a)
{
    assert_ok(tsr_device_copy(r->device, a->host, a->device,
                              (size_t)a->count * tsr_dtype_bytes(a->dtype), TSR_COPY_DEVICE_TO_HOST,
                              r->stream));
    assert_ok(tsr_stream_wait(r->stream));
}

static void free_array(rig *r, array *a)
{
    tsr_device_free(r->device, a->block);
    tsr_mem_free(a->host);
}

static float *absolute(const array *a)
{
    float *const out = take(a->count, sizeof *out);

    for (int64_t i = 0; i < a->count; ++i) {
        out[i] = fabsf((float)get(a->dtype, a->host, i));
    }
    return out;
}

/* Results of sums of k products; what is NaN has to stay NaN: it lies outside of the result. */
static void assert_product(tsr_dtype dtype, const void *got, const void *expected,
                           const float *bound, int64_t k, int64_t count)
{
    for (int64_t i = 0; i < count; ++i) {
        const double g = get(dtype, got, i), e = get(dtype, expected, i);
        const double step = dtype == TSR_BF16 ? BF16_ULP * fabs(e) : F32_EPS * fabs(e);
        const double tolerance = (double)(k + 1) * F32_EPS * (double)bound[i] + step;

        if (isnan(e) ? !isnan(g) : !(fabs(g - e) <= tolerance)) {
            fail_msg("element %lld is %.9g, expected %.9g within %g", (long long)i, g, e,
                     tolerance);
        }
    }
}

#endif
