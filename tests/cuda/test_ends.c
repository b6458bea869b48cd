/* The ends of the model: embedding and cross-entropy. */
#include "tests/cuda/cuda_test.h"

/* ---- embedding ------------------------------------------------------------------------------ */

static struct {
    array token, table, x, dx, dtable;
    tsr_embedding_args sizes;
} embedding;

static const tsr_embedding_args *embedding_args(side s)
{
    static tsr_embedding_args args;

    args = embedding.sizes;
    args.token = on(s, &embedding.token);
    args.table = on(s, &embedding.table);
    args.x = on(s, &embedding.x);
    args.dx = on(s, &embedding.dx);
    args.dtable = on(s, &embedding.dtable);
    return &args;
}

/* Rows are copied, and added in the order of the twin: every bit is the same. */
static void check_embedding(int64_t tokens, int64_t vocab, int64_t width, tsr_dtype dtype,
                            bool accumulate)
{
    int32_t *token = take(tokens, 4);

    for (int64_t t = 0; t < tokens; ++t) { /* some often, most never */
        token[t] = (int32_t)(t % 3 == 0 ? vocab - 1 : t * t * 7919 % vocab);
    }
    embedding.token = make_array(token, tokens, 4);
    embedding.table = make_random(dtype, vocab * width, 1, 1.0f);
    embedding.x = make_array(NULL, tokens * width, 4);
    embedding.dx = make_random(TSR_F32, tokens * width, 2, 1.0f);
    embedding.dtable = make_random(TSR_F32, vocab * width, 3, 1.0f);
    embedding.sizes = (tsr_embedding_args){
        .tokens = tokens, .vocab = vocab, .width = width, .dtype = dtype, .accumulate = accumulate};
    BOTH(tsr_op_embedding_forward, embedding_args);
    BOTH(tsr_op_embedding_backward, embedding_args);
    assert_same_bytes(&embedding.x);
    assert_same_bytes(&embedding.dtable);
    free_array(&embedding.token);
    free_array(&embedding.table);
    free_array(&embedding.x);
    free_array(&embedding.dx);
    free_array(&embedding.dtable);
    tsr_mem_free(token);
}

static void check_embeddings(void)
{
    check_embedding(0, 5, 3, TSR_F32, false);
    check_embedding(0, 5, 3, TSR_F32, true);
    check_embedding(1, 1, 1, TSR_BF16, false);
    check_embedding(50, 5, 7, TSR_F32, true);
    check_embedding(40, 256, 600, TSR_BF16, false); /* one digit; two blocks of columns */
    check_embedding(700, 257, 8, TSR_BF16, true);   /* two digits, several shares */
    check_embedding(90, 66000, 4, TSR_F32, true);   /* three digits */
}

static void embedding_matches_the_twin(void **state)
{
    (void)state;
    each_order(check_embeddings);
}

/* ---- cross-entropy -------------------------------------------------------------------------- */

static struct {
    array logits, target, loss, dlogits;
    tsr_cross_entropy_args sizes;
    bool has_gradient, in_place;
} entropy;

static const tsr_cross_entropy_args *entropy_args(side s)
{
    static tsr_cross_entropy_args args;

    args = entropy.sizes;
    args.logits = on(s, &entropy.logits);
    args.target = on(s, &entropy.target);
    args.loss = on(s, &entropy.loss);
    args.dlogits =
        entropy.has_gradient ? on(s, entropy.in_place ? &entropy.logits : &entropy.dlogits) : NULL;
    return &args;
}

/* Logits are below 5 (normal), so an exponential of a difference below 10 errs by 10 + 2 eps, and
 * so does each of the at most 5 factors that bring a thread's sum to the row's maximum. A sum runs
 * through at most 16 terms a group, 5 groups, 5 levels of lanes and 32 warps: 117 roundings. So
 * the row's sum errs by less than 190 eps, and its logarithm, at most 10, by 200; a probability, at
 * most one, by 210 times grad_scale. */
static void check_entropy(const float *logits, int64_t rows, int64_t vocab, tsr_dtype dtype,
                          int options)
{
    int32_t *target = take(rows, 4);

    for (int64_t row = 0; row < rows; ++row) {
        target[row] = (int32_t)((row * 31 + vocab - 1) % vocab);
    }
    entropy.has_gradient = (options & 1) != 0;
    entropy.in_place = (options & 2) != 0;
    entropy.logits = logits != NULL ? make_array(logits, rows * vocab, 4)
                                    : make_random(TSR_F32, rows * vocab, 1, 1.0f);
    entropy.target = make_array(target, rows, 4);
    entropy.loss = make_array(NULL, rows, 4);
    entropy.dlogits = make_array(NULL, rows * vocab, tsr_dtype_bytes(dtype));
    entropy.sizes =
        (tsr_cross_entropy_args){.rows = rows, .vocab = vocab, .grad_scale = 0.25f, .dtype = dtype};
    BOTH(tsr_op_cross_entropy, entropy_args);
    assert_array(TSR_F32, &entropy.loss, 200 * F32_EPS);
    assert_array(TSR_F32, &entropy.logits, 0.25 * 210 * F32_EPS);
    assert_array(dtype, &entropy.dlogits, 0.25 * 210 * F32_EPS);
    free_array(&entropy.logits);
    free_array(&entropy.target);
    free_array(&entropy.loss);
    free_array(&entropy.dlogits);
    tsr_mem_free(target);
}

static void check_entropies(void)
{
    for (int options = 0; options < 4; ++options) {
        check_entropy(NULL, 1, 1, TSR_F32, options);
        check_entropy(NULL, 3, 7, TSR_F32, options);
        check_entropy(NULL, 2, 300, TSR_F32, options);
    }
    check_entropy(NULL, 3, 7, TSR_BF16, 1);
    check_entropy(NULL, 2, 300, TSR_BF16, 1);
    check_entropy(NULL, 1, 16408, TSR_BF16, 1); /* aligned: two groups, else five */
}

static void cross_entropy_matches_the_twin(void **state)
{
    (void)state;
    each_order(check_entropies);
}

/* What the maximum of a row must survive: -inf, large logits, NaN, +inf. */
static void check_special_logits(void)
{
    enum { ROWS = 5, V = 40 };
    float *logits = take_random(TSR_F32, ROWS * V, 1, 1.0f);

    for (int i = 0; i < V; ++i) {
        logits[i] = i % 2 == 0 ? -INFINITY : logits[i];
        logits[V + i] = 1e9f;
        logits[2 * V + i] = -INFINITY;
    }
    logits[3 * V + 9] = NAN;
    logits[4 * V + 9] = INFINITY;
    check_entropy(logits, ROWS, V, TSR_F32, 1);
    tsr_mem_free(logits);
}

static void special_logits_end_as_in_the_twin(void **state)
{
    (void)state;
    each_order(check_special_logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embedding_matches_the_twin),
        cmocka_unit_test(cross_entropy_matches_the_twin),
        cmocka_unit_test(special_logits_end_as_in_the_twin),
    };

    return tsr_unit_test_main("cuda.ends", tests, sizeof tests / sizeof *tests);
}
