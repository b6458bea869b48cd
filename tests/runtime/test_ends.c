/* Embedding and cross-entropy against their plain twins. */
#include "tests/runtime/op_test.h"

enum { VOCAB = 23, TOKENS = 57 };

static int32_t *take_tokens(int64_t count, int64_t vocab)
{
    int32_t *token = take(count, sizeof *token);

    for (int64_t t = 0; t < count; ++t) { /* the last row is hit often, some rows never */
        const double u = tsr_rng_uniform(77, (uint64_t)t);
        token[t] = t % 3 == 0 ? (int32_t)(vocab - 1) : (int32_t)(u * u * (double)vocab);
    }
    return token;
}

static void check_embedding(rig *r, rig *plain, int64_t tokens, int64_t width, tsr_dtype dtype,
                            bool accumulate)
{
    int32_t *token = take_tokens(tokens, VOCAB);
    void *table = take_random(dtype, VOCAB * width, 1, 1.0f);
    float *x = take(tokens * width, 4), *x_plain = take(tokens * width, 4);
    float *dx = take_random(TSR_F32, tokens * width, 2, 1.0f);
    float *dtable = take_random(TSR_F32, VOCAB * width, 3, 1.0f);
    float *dtable_plain = take_random(TSR_F32, VOCAB * width, 3, 1.0f);
    tsr_embedding_args args = {.token = token,
                               .table = table,
                               .x = x,
                               .tokens = tokens,
                               .vocab = VOCAB,
                               .width = width,
                               .dtype = dtype,
                               .dx = dx,
                               .dtable = dtable,
                               .accumulate = accumulate};

    assert_ok(tsr_op_embedding_forward(r->device, &args, r->stream));
    assert_ok(tsr_op_embedding_backward(r->device, &args, r->stream));
    args.x = x_plain;
    args.dtable = dtable_plain;
    assert_ok(tsr_op_embedding_forward(plain->device, &args, plain->stream));
    assert_ok(tsr_op_embedding_backward(plain->device, &args, plain->stream));
    /* copies, and sums in the order of the tokens: equal to the bit */
    assert_memory_equal(x, x_plain, (size_t)(tokens * width) * sizeof *x);
    assert_memory_equal(dtable, dtable_plain, (size_t)(VOCAB * width) * sizeof *dtable);
    tsr_mem_free(token);
    tsr_mem_free(table);
    tsr_mem_free(x);
    tsr_mem_free(x_plain);
    tsr_mem_free(dx);
    tsr_mem_free(dtable);
    tsr_mem_free(dtable_plain);
}

static void embedding_equals_the_twin(void **state)
{
    static const int64_t widths[] = {1, 5, 16, 33, 130};
    rig plain = open_plain();

    (void)state;
    for (int i = 0; i < RIGS; ++i) {
        rig r;

        if (!open_rig(i, &r)) {
            continue;
        }
        for (int w = 0; w < 5; ++w) {
            for (int variant = 0; variant < 4; ++variant) {
                const tsr_dtype dtype = variant % 2 == 0 ? TSR_F32 : TSR_BF16;

                check_embedding(&r, &plain, TOKENS, widths[w], dtype, variant < 2);
                check_embedding(&r, &plain, 1, widths[w], dtype, variant < 2);
                check_embedding(&r, &plain, 0, widths[w], dtype, variant < 2);
            }
        }
        close_rig(&r);
    }
    close_rig(&plain);
}

/* ---- cross-entropy
 * ---------------------------------------------------------------------------- */

typedef struct entropy_case {
    int64_t rows, vocab;
    float scale; /* of the logits */
    tsr_dtype dtype;
    bool in_place;
} entropy_case;

typedef struct entropy_memory {
    float *logits, *loss;
    int32_t *target;
    void *dlogits;
} entropy_memory;

static void run_entropy(const entropy_case *c, rig *r, entropy_memory *m)
{
    m->logits = take_random(TSR_F32, c->rows * c->vocab, 21, c->scale);
    m->loss = take(c->rows, sizeof *m->loss);
    m->target = take_tokens(c->rows, c->vocab);
    m->dlogits = take(c->rows * c->vocab, 4);
    const tsr_cross_entropy_args args = {.logits = m->logits,
                                         .target = m->target,
                                         .loss = m->loss,
                                         .dlogits = c->in_place ? (void *)m->logits : m->dlogits,
                                         .rows = c->rows,
                                         .vocab = c->vocab,
                                         .grad_scale = 0.5f,
                                         .dtype = c->dtype};
    assert_ok(tsr_op_cross_entropy(r->device, &args, r->stream));
    if (c->in_place) {
        memcpy(m->dlogits, m->logits, (size_t)(c->rows * c->vocab) * sizeof *m->logits);
    }
}

static void free_entropy(entropy_memory *m)
{
    tsr_mem_free(m->logits);
    tsr_mem_free(m->loss);
    tsr_mem_free(m->target);
    tsr_mem_free(m->dlogits);
}

/* Rounding x - max costs range * eps of each exponential, vec_exp() 4 eps more, and the sum at most
 * vocab / 16 + 8 eps (4 chains of at least 4 lanes, then a tree): that is the relative error of the
 * sum of exponentials, so the absolute error of its logarithm. Each p is such a quotient. */
static void check_entropy(const entropy_case *c)
{
    const double range = 10.0 * (double)c->scale; /* normal numbers: none is 5 sigma off */
    const double relative = (range + 4 + (double)c->vocab / 16 + 8) * F32_EPS;
    rig plain = open_plain();
    entropy_memory expected, first = {0};

    run_entropy(c, &plain, &expected);
    for (int i = 0; i < RIGS; ++i) {
        entropy_memory got;
        rig r;

        if (!open_rig(i, &r)) {
            continue;
        }
        run_entropy(c, &r, &got);
        assert_close(TSR_F32, got.loss, expected.loss, c->rows, relative + 2 * range * F32_EPS);
        assert_close(c->dtype, got.dlogits, expected.dlogits, c->rows * c->vocab,
                     0.5 * (2 * relative + 2 * F32_EPS));
        if (i % 2 == 0) {
            free_entropy(&first);
            first = got;
        } else { /* threads do not matter */
            assert_memory_equal(got.loss, first.loss, (size_t)c->rows * 4);
            assert_memory_equal(got.dlogits, first.dlogits,
                                (size_t)(c->rows * c->vocab) * tsr_dtype_bytes(c->dtype));
            free_entropy(&got);
        }
        close_rig(&r);
    }
    close_rig(&plain);
    free_entropy(&expected);
    free_entropy(&first);
}

static void cross_entropy_matches_the_twin(void **state)
{
    static const int64_t sizes[][2] = {{1, 1}, {3, 2}, {7, 19}, {9, 64}, {5, 257}, {2, 5003}};
    static const float scales[3] = {0.1f, 1.0f, 10.0f};

    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; ++s) {
        for (int variant = 0; variant < 3; ++variant) {
            for (int magnitude = 0; magnitude < 3; ++magnitude) {
                check_entropy(&(entropy_case){.rows = sizes[s][0],
                                              .vocab = sizes[s][1],
                                              .scale = scales[magnitude],
                                              .dtype = variant == 1 ? TSR_BF16 : TSR_F32,
                                              .in_place = variant == 2});
            }
        }
    }
}

/* Logits beyond the range of e^x, and one so far below that its share vanishes. */
static void huge_logits_stay_finite(void **state)
{
    (void)state;
    for (int i = 0; i < RIGS; ++i) {
        const float logits[4] = {1000.0f, 1000.0f, -1000.0f, -INFINITY};
        const int32_t target[1] = {1};
        float loss[1], dlogits[4];
        const tsr_cross_entropy_args args = {.logits = logits,
                                             .target = target,
                                             .loss = loss,
                                             .dlogits = dlogits,
                                             .rows = 1,
                                             .vocab = 4,
                                             .grad_scale = 1.0f};
        rig r;

        if (!open_rig(i, &r)) {
            continue;
        }
        assert_ok(tsr_op_cross_entropy(r.device, &args, r.stream));
        assert_true(fabsf(loss[0] - 0.69314718f) < 1e-6f);
        assert_true(fabsf(dlogits[0] - 0.5f) < 1e-6f && fabsf(dlogits[1] + 0.5f) < 1e-6f);
        assert_true(dlogits[2] == 0.0f && dlogits[3] == 0.0f);
        close_rig(&r);
    }
}

/* A NaN must reach the loss: it is how the trainer notices. */
static void nan_is_passed_on(void **state)
{
    (void)state;
    for (int i = 0; i < RIGS; ++i) {
        float logits[70] = {0}, loss[1] = {0};
        const int32_t target[1] = {1};
        tsr_cross_entropy_args args = {
            .logits = logits, .target = target, .loss = loss, .rows = 1, .vocab = 70};
        rig r;

        if (!open_rig(i, &r)) {
            continue;
        }
        for (int at = 0; at < 70; ++at) {
            logits[at] = NAN;
            assert_ok(tsr_op_cross_entropy(r.device, &args, r.stream));
            assert_true(isnan(loss[0]));
            logits[at] = 0.0f;
        }
        close_rig(&r);
    }
}

static void bad_ends_are_refused(void **state)
{
    float f[4] = {0};
    const int32_t t[1] = {0};
    tsr_embedding_args e = {.token = t, .table = f, .tokens = 1, .vocab = 2, .width = 2};
    tsr_cross_entropy_args c = {.logits = f, .target = t, .loss = f, .rows = 1};
    rig r = open_plain();

    (void)state;
    assert_refused(tsr_op_embedding_forward(r.device, &e, r.stream), "x must not be NULL");
    assert_refused(tsr_op_embedding_backward(r.device, &e, r.stream), "dtable must not be NULL");
    e.tokens = -2;
    assert_refused(tsr_op_embedding_forward(r.device, &e, r.stream), "tokens = -2");
    assert_refused(tsr_op_cross_entropy(r.device, &c, r.stream), "vocab = 0");
    c.vocab = 4;
    c.dtype = TSR_BF16;
    c.dlogits = f;
    assert_refused(tsr_op_cross_entropy(r.device, &c, r.stream), "only in f32");
    c.dlogits = NULL;
    c.target = NULL;
    assert_refused(tsr_op_cross_entropy(r.device, &c, r.stream), "target must not be NULL");
    c.rows = 0;
    assert_ok(tsr_op_cross_entropy(r.device, &c, r.stream));
    close_rig(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embedding_equals_the_twin),
        cmocka_unit_test(cross_entropy_matches_the_twin),
        cmocka_unit_test(huge_logits_stay_finite),
        cmocka_unit_test(nan_is_passed_on),
        cmocka_unit_test(bad_ends_are_refused),
    };

    return tsr_unit_test_main("runtime.ends", tests, sizeof tests / sizeof *tests);
}
