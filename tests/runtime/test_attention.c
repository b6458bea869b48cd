#include "tests/runtime/attention_bounds.h"

/* Packed rows of q, k and v as the layers have them, with some columns left over. */
typedef struct shape {
    int64_t batch, q_len, kv_len;
    int heads, kv_heads, head_dim;
} shape;

typedef struct tensors {
    tsr_attention_args args;
    void *q, *kv, *dout; /* kv: keys then values of a token */
    void *out, *dq, *dkv;
    float *lse;
    int64_t q_count, kv_count, lse_count;
} tensors;

static tensors take_tensors(const shape *s, tsr_dtype dtype)
{
    const int64_t q_stride = s->heads * s->head_dim + 2;
    const int64_t kv_stride = 2 * s->kv_heads * s->head_dim + 1;
    const size_t bytes = tsr_dtype_bytes(dtype);
    tensors t = {.q_count = s->batch * s->q_len * q_stride,
                 .kv_count = s->batch * s->kv_len * kv_stride,
                 .lse_count = s->batch * s->heads * s->q_len};

    t.q = take_random(dtype, t.q_count, 1, 1.0f);
    t.kv = take_random(dtype, t.kv_count, 2, 1.0f);
    t.dout = take_random(dtype, t.q_count, 3, 1.0f);
    t.out = take(t.q_count, 4);
    t.dq = take(t.q_count, 4);
    t.dkv = take(t.kv_count, 4);
    t.lse = take(t.lse_count, 4);
    t.args =
        (tsr_attention_args){.q = t.q,
                             .k = t.kv,
                             .v = (char *)t.kv + (size_t)(s->kv_heads * s->head_dim) * bytes,
                             .out = t.out,
                             .lse = t.lse,
                             .batch = s->batch,
                             .q_len = s->q_len,
                             .kv_len = s->kv_len,
                             .q_stride = q_stride,
                             .kv_stride = kv_stride,
                             .out_stride = q_stride,
                             .q_batch_stride = s->q_len * q_stride,
                             .kv_batch_stride = s->kv_len * kv_stride,
                             .out_batch_stride = s->q_len * q_stride,
                             .heads = s->heads,
                             .kv_heads = s->kv_heads,
                             .head_dim = s->head_dim,
                             .scale = 1.0f / sqrtf((float)s->head_dim),
                             .dtype = dtype,
                             .dout = t.dout,
                             .dq = t.dq,
                             .dk = t.dkv,
                             .dv = (char *)t.dkv + (size_t)(s->kv_heads * s->head_dim) * bytes};
    return t;
}

static void free_tensors(tensors *t)
{
    void *const blocks[] = {t->q, t->kv, t->dout, t->out, t->dq, t->dkv, t->lse};

    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; ++i) {
        tsr_mem_free(blocks[i]);
    }
}

/* Backward reads the outputs of `given`, so that it is compared on equal inputs. */
static void run(rig *r, tensors *t, const tensors *given)
{
    assert_ok(tsr_op_attention_reserve(r->device, &t->args));
    const int64_t calls = tsr_mem_alloc_calls();

    assert_ok(tsr_op_attention_forward(r->device, &t->args, r->stream));
    if (t->args.q_len == t->args.kv_len) {
        tsr_attention_args args = t->args;

        args.out = given->out;
        args.lse = given->lse;
        assert_ok(tsr_op_attention_backward(r->device, &args, r->stream));
    }
    assert_int_equal(tsr_mem_alloc_calls(), calls);
}

static double tolerance(const shape *s, bool is_gradient)
{
    return attention_tolerance(s->head_dim, s->kv_len, (double)s->q_len * s->heads / s->kv_heads,
                               is_gradient);
}

static double rounding(const shape *s, bool is_gradient)
{
    return attention_rounding(s->heads / s->kv_heads, s->kv_len, is_gradient);
}

static void compare(const shape *s, const tensors *got, const tensors *expected, bool is_rounded)
{
    const double more = is_rounded ? rounding(s, false) : 0.0;
    const double more_gradient = is_rounded ? rounding(s, true) : 0.0;
    const tsr_dtype dtype = got->args.dtype;

    assert_close(TSR_F32, got->lse, expected->lse, got->lse_count, tolerance(s, false));
    assert_close(dtype, got->out, expected->out, got->q_count, tolerance(s, false) + more);
    assert_close(dtype, got->dq, expected->dq, got->q_count, tolerance(s, true) + more_gradient);
    assert_close(dtype, got->dkv, expected->dkv, got->kv_count, tolerance(s, true) + more_gradient);
}

static void compare_devices(const shape *s, tsr_dtype dtype)
{
    tensors expected = take_tensors(s, dtype), single = take_tensors(s, dtype);
    tensors got = take_tensors(s, dtype);
    rig r = open_plain();

    run(&r, &expected, &expected);
    close_rig(&r);
    for (int i = 0; i < RIGS; ++i) {
        tensors *t = i % 2 == 0 ? &single : &got;

        if (!open_rig(i, &r)) {
            continue;
        }
        run(&r, t, &expected);
        compare(s, t, &expected,
                dtype == TSR_BF16 && (strcmp(tsr_device_name(r.device), "cpu:avx512bf16") == 0 ||
                                      strcmp(tsr_device_name(r.device), "cpu:amx") == 0));
        close_rig(&r);
        if (i % 2 == 1) {
            assert_memory_equal(got.out, single.out, (size_t)got.q_count * 4);
            assert_memory_equal(got.lse, single.lse, (size_t)got.lse_count * 4);
            assert_memory_equal(got.dq, single.dq, (size_t)got.q_count * 4);
            assert_memory_equal(got.dkv, single.dkv, (size_t)got.kv_count * 4);
        }
    }
    free_tensors(&expected);
    free_tensors(&single);
    free_tensors(&got);
}

static void devices_agree(void **state)
{
    static const shape shapes[] = {
        {1, 1, 1, 1, 1, 2},     {2, 5, 5, 2, 2, 6},      {1, 64, 64, 2, 1, 32},
        {2, 65, 65, 4, 1, 64},  {1, 130, 130, 3, 3, 16}, {1, 67, 67, 2, 1, 72},
        {1, 70, 70, 1, 1, 256}, {1, 20, 20, 4, 2, 48},   {0, 5, 5, 1, 1, 8},
    };

    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i) {
        compare_devices(&shapes[i], TSR_F32);
        compare_devices(&shapes[i], TSR_BF16);
    }
}

/* Generation: new queries at the end of a longer cache. */
static void devices_agree_with_a_cache(void **state)
{
    static const shape shapes[] = {
        {1, 1, 2, 1, 1, 4},    {1, 1, 64, 4, 2, 64},   {2, 1, 131, 4, 1, 32}, {1, 3, 66, 2, 2, 40},
        {1, 66, 68, 2, 1, 64}, {1, 70, 200, 2, 1, 16}, {1, 5, 67, 2, 1, 10},
    };

    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i) {
        compare_devices(&shapes[i], TSR_F32);
        compare_devices(&shapes[i], TSR_BF16);
    }
}

enum { S = 7, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 6 };

/* Softmax of the whole S x S matrix, in f64; loss = sum of out * dout. */
static double direct_loss(const tensors *t, double *out)
{
    const tsr_attention_args *a = &t->args;
    double loss = 0.0;

    for (int h = 0; h < HEADS; ++h) {
        double p[S][S] = {{0}};
        const int kv = h / (HEADS / KV_HEADS) * HEAD_DIM;

        for (int i = 0; i < S; ++i) {
            double sum = 0.0;

            for (int j = 0; j <= i; ++j) {
                double score = 0.0;

                for (int d = 0; d < HEAD_DIM; ++d) {
                    score += get(TSR_F32, a->q, i * a->q_stride + h * HEAD_DIM + d) *
                             get(TSR_F32, a->k, j * a->kv_stride + kv + d);
                }
                p[i][j] = exp(score * (double)a->scale);
                sum += p[i][j];
            }
            for (int d = 0; d < HEAD_DIM; ++d) {
                const int64_t at = i * a->out_stride + h * HEAD_DIM + d;

                out[at] = 0.0;
                for (int j = 0; j <= i; ++j) {
                    out[at] += p[i][j] / sum * get(TSR_F32, a->v, j * a->kv_stride + kv + d);
                }
                loss += out[at] * get(TSR_F32, a->dout, at);
            }
        }
    }
    return loss;
}

static const shape small = {1, S, S, HEADS, KV_HEADS, HEAD_DIM};

static void plain_forward_is_the_direct_softmax(void **state)
{
    tensors t = take_tensors(&small, TSR_F32);
    double *out = take(t.q_count, sizeof *out);
    const float *got = t.out;
    rig r = open_plain();

    (void)state;
    run(&r, &t, &t);
    close_rig(&r);
    (void)direct_loss(&t, out);
    for (int64_t i = 0; i < t.q_count; ++i) {
        assert_true(fabs((double)got[i] - out[i]) <= 5.0 * F32_EPS);
    }
    tsr_mem_free(out);
    free_tensors(&t);
}

/* The direct loss is f64, so the quotient errs by h^2 (1e-6 times third derivatives of up to some
 * hundreds); the plain gradient by the rounding of lse and out, some 1e-6. */
static void plain_gradient_is_the_difference_quotient(void **state)
{
    const float h = 0x1p-10f;
    tensors t = take_tensors(&small, TSR_F32);
    double *out = take(t.q_count, sizeof *out);
    rig r = open_plain();

    (void)state;
    run(&r, &t, &t);
    close_rig(&r);
    for (int64_t i = 0; i < t.q_count + t.kv_count; ++i) {
        const bool is_q = i < t.q_count;
        const int64_t place = is_q ? i : i - t.q_count;
        float *at = (float *)(is_q ? t.q : t.kv) + place;
        const double gradient = get(TSR_F32, is_q ? t.dq : t.dkv, place);
        const float before = *at;

        *at = before + h;
        const double up = direct_loss(&t, out), high = (double)*at;
        *at = before - h;
        const double down = direct_loss(&t, out), low = (double)*at;
        *at = before;
        assert_true(fabs((up - down) / (high - low) - gradient) < 1e-4);
    }
    tsr_mem_free(out);
    free_tensors(&t);
}

static void too_wide_heads_are_refused(void **state)
{
    const shape wide = {1, 1, 1, 1, 1, TSR_HEAD_DIM_MAX + 2};
    tensors t = take_tensors(&wide, TSR_F32);
    rig r = open_plain();

    (void)state;
    assert_int_equal(tsr_op_attention_forward(r.device, &t.args, r.stream), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "head_dim = 258"));
    close_rig(&r);
    free_tensors(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_forward_is_the_direct_softmax),
        cmocka_unit_test(plain_gradient_is_the_difference_quotient),
        cmocka_unit_test(devices_agree),
        cmocka_unit_test(devices_agree_with_a_cache),
        cmocka_unit_test(too_wide_heads_are_refused),
    };

    return tsr_unit_test_main("attention", tests, sizeof tests / sizeof *tests);
}
