/* Operators of the cuda device against cpu:plain: arrays that live on both, runs in all orders.
 *
 * An array has equal contents on both sides, between guards that no operator may touch. A check
 * makes arrays, calls the operator once with on(PLAIN, array) and once with on(CUDA, array), and
 * compares. each_order() runs it with the emulated threads, blocks and streams in three orders,
 * with arrays aligned and not, and fails if the order shows in a single bit of the results. */
#ifndef TSR_TESTS_CUDA_TEST_H
#define TSR_TESTS_CUDA_TEST_H

#include "tests/emulation/fake_cudart.h"
#include "tests/runtime/op_test.h"

typedef enum side { PLAIN, CUDA, SIDES } side;

enum { ORDERS = 3, GUARD = 0xa5, GUARD_BYTES = 64, UNWRITTEN = 0xff /* NaN in all types */ };

static rig cuda_rig[SIDES];
static bool cuda_shifted;    /* arrays start one element past an aligned address */
static uint64_t cuda_digest; /* of all results compared in this order */

typedef struct array {
    char *host;   /* guard, contents, guard; what cpu:plain works on */
    char *device; /* the same on the cuda device */
    size_t front, bytes;
} array;

static inline void *on(side s, const array *a)
{
    return (s == PLAIN ? a->host : a->device) + a->front;
}

static inline void copy_array(const array *a, void *to, const void *from, tsr_copy_kind kind)
{
    assert_ok(tsr_device_copy(cuda_rig[CUDA].device, to, from, a->front + a->bytes + GUARD_BYTES,
                              kind, cuda_rig[CUDA].stream));
    assert_ok(tsr_stream_wait(cuda_rig[CUDA].stream));
}

/* Contents from `from`, or the pattern of memory never written if that is NULL. */
static inline array make_array(const void *from, int64_t count, size_t size)
{
    array a = {.front = GUARD_BYTES + (cuda_shifted ? size : 0), .bytes = (size_t)count * size};
    const size_t total = a.front + a.bytes + GUARD_BYTES;

    a.host = take((int64_t)total, 1);
    memset(a.host, GUARD, total);
    if (from != NULL && a.bytes > 0) {
        memcpy(a.host + a.front, from, a.bytes);
    } else {
        memset(a.host + a.front, UNWRITTEN, a.bytes);
    }
    assert_ok(tsr_device_alloc(cuda_rig[CUDA].device, TSR_MEM_OTHER, total, (void **)&a.device));
    copy_array(&a, a.device, a.host, TSR_COPY_HOST_TO_DEVICE);
    return a;
}

static inline array make_random(tsr_dtype dtype, int64_t count, uint64_t key, float scale)
{
    void *contents = take_random(dtype, count, key, scale);
    const array a = make_array(contents, count, tsr_dtype_bytes(dtype));

    tsr_mem_free(contents);
    return a;
}

static inline void free_array(array *a)
{
    tsr_device_free(cuda_rig[CUDA].device, a->device);
    tsr_mem_free(a->host);
    *a = (array){0};
}

/* The device's side as the host sees it, guards checked and counted into the digest; free it. */
static inline char *fetch(const array *a)
{
    const size_t total = a->front + a->bytes + GUARD_BYTES;
    char *got = take((int64_t)total, 1);

    copy_array(a, got, a->device, TSR_COPY_DEVICE_TO_HOST);
    for (size_t i = 0; i < total; ++i) {
        if (i < a->front || i >= a->front + a->bytes) {
            if ((unsigned char)got[i] != GUARD) {
                fail_msg("byte %lld of %lld was written", (long long)i - (long long)a->front,
                         (long long)a->bytes);
            }
        }
        cuda_digest = (cuda_digest ^ (unsigned char)got[i]) * 0x100000001b3u;
    }
    return got;
}

static inline void assert_same_bytes(const array *a)
{
    char *got = fetch(a);

    for (size_t i = a->front; i < a->front + a->bytes; ++i) {
        if (got[i] != a->host[i]) {
            fail_msg("byte %lld of %lld is %d, expected %d", (long long)(i - a->front),
                     (long long)a->bytes, got[i], a->host[i]);
        }
    }
    tsr_mem_free(got);
}

/* As assert_close(), with NaN and the infinities equal to themselves. */
static inline void assert_array(tsr_dtype dtype, const array *a, double tolerance)
{
    char *got = fetch(a);

    for (int64_t i = 0; i < (int64_t)(a->bytes / tsr_dtype_bytes(dtype)); ++i) {
        const double g = get(dtype, got + a->front, i), e = get(dtype, a->host + a->front, i);
        const double step = dtype == TSR_BF16 ? BF16_ULP * fabs(e) : 0.0;
        const bool is_same = g == e || (isnan(g) && isnan(e));

        if (!is_same && !(fabs(g - e) <= tolerance + step)) {
            fail_msg("element %lld of %lld is %.9g, expected %.9g within %g", (long long)i,
                     (long long)(a->bytes / tsr_dtype_bytes(dtype)), g, e, tolerance + step);
        }
    }
    tsr_mem_free(got);
}

static inline void each_order(void (*check)(void))
{
    for (int shifted = 0; shifted < 2; ++shifted) {
        uint64_t first_digest = 0;

        for (int order = 0; order < ORDERS; ++order) {
            fake_set_order((fake_order)order, 17);
            cuda_rig[PLAIN] = open_plain();
            assert_true(open_named("cuda:emulated", 1, &cuda_rig[CUDA]));
            cuda_shifted = shifted != 0;
            cuda_digest = 0xcbf29ce484222325u;
            check();
            close_rig(&cuda_rig[CUDA]);
            close_rig(&cuda_rig[PLAIN]);
            first_digest = order == 0 ? cuda_digest : first_digest;
            if (cuda_digest != first_digest) {
                fail_msg("results in order %d differ from those in order 0", order);
            }
        }
    }
}

/* Run one operator on both sides; args_on(s) gives the arguments. */
#define BOTH(op_, args_on_)                                                                        \
    do {                                                                                           \
        for (int side_ = PLAIN; side_ < SIDES; ++side_) {                                          \
            rig *const rig_ = &cuda_rig[side_];                                                    \
            assert_ok(op_(rig_->device, args_on_((side)side_), rig_->stream));                     \
        }                                                                                          \
    } while (0)

#endif
