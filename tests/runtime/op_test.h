/* What the operator tests share: every device of this machine, random arrays, comparisons.
 *
 * Arrays are host memory, which is device memory for all cpu devices. */
#ifndef TSR_TESTS_OP_TEST_H
#define TSR_TESTS_OP_TEST_H

#include "tests/support/unit_test.h"

#include <math.h>
#include <string.h>

#define BF16_ULP 0x1p-7  /* relative distance of two neighbours at most */
#define F32_EPS  0x1p-24 /* relative rounding error at most */

/* Devices under test: each instruction set with one and with two threads. */
enum { RIGS = 10 };

typedef struct rig {
    tsr_device *device;
    tsr_stream *stream;
} rig;

static inline bool open_named(const char *name, int threads, rig *out)
{
    const tsr_status st = tsr_device_open(name, threads, &out->device);

    if (st == TSR_ERR_UNSUPPORTED) {
        return false;
    }
    assert_ok(st);
    assert_ok(tsr_stream_create(out->device, &out->stream));
    return true;
}

/* Device number i < RIGS: odd ones have two threads. False where this machine lacks it. */
static inline bool open_rig(int i, rig *out)
{
    static const char *const names[RIGS / 2] = {"cpu:generic", "cpu:avx2", "cpu:avx512",
                                                "cpu:avx512bf16", "cpu:amx"};

    return open_named(names[i / 2], 1 + i % 2, out);
}

static inline rig open_plain(void)
{
    rig plain;

    assert_true(open_named("cpu:plain", 1, &plain));
    return plain;
}

static inline void close_rig(rig *r)
{
    assert_ok(tsr_stream_wait(r->stream));
    tsr_stream_destroy(&r->stream);
    tsr_device_close(&r->device);
}

static inline void *take(int64_t count, size_t size)
{
    void *block;

    assert_ok(tsr_mem_alloc_array(TSR_MEM_OTHER, count, size, &block));
    return block;
}

/* Normal numbers times scale, rounded to dtype; the same for the same key. */
static inline void *take_random(tsr_dtype dtype, int64_t count, uint64_t key, float scale)
{
    float *f = take(count, sizeof *f);
    tsr_bf16 *half = (tsr_bf16 *)(void *)f;

    tsr_rng_normal(key, 0, count, f);
    for (int64_t i = 0; i < count; ++i) {
        f[i] *= scale;
        if (dtype == TSR_BF16) {
            half[i] = tsr_f32_to_bf16(f[i]); /* place i is not read again */
        }
    }
    return f;
}

static inline double get(tsr_dtype dtype, const void *base, int64_t at)
{
    return dtype == TSR_F32 ? (double)((const float *)base)[at]
                            : (double)tsr_bf16_to_f32(((const tsr_bf16 *)base)[at]);
}

/* |got - expected| <= tolerance, and for bf16 one step to the neighbour more. */
static inline void assert_close(tsr_dtype dtype, const void *got, const void *expected,
                                int64_t count, double tolerance)
{
    for (int64_t i = 0; i < count; ++i) {
        const double g = get(dtype, got, i), e = get(dtype, expected, i);
        const double step = dtype == TSR_BF16 ? BF16_ULP * fabs(e) : 0.0;

        if (!(fabs(g - e) <= tolerance + step)) {
            fail_msg("element %lld is %.9g, expected %.9g within %g", (long long)i, g, e,
                     tolerance + step);
        }
    }
}

/* The caller's mistake, named in the message. */
static inline void assert_refused(tsr_status st, const char *text)
{
    assert_int_equal(st, TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), text));
}

#endif
