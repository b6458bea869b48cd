/* Products and attention of the cuda device against cpu:plain, on shapes drawn from a fixed seed:
 * what libraries and tensor cores compute, so that every kernel of theirs may be met. The other
 * operators have their shapes in tests/cuda. */
#include "tests/cuda/cuda_test.h"

#include <math.h>

enum { SHAPES = 8 };

static uint64_t draws;

/* A size from 1 to most; every other one a multiple of 16, which tensor cores and TMA want. */
static int64_t draw(int64_t most)
{
    uint32_t words[4];

    tsr_rng_words(tsr_rng_key(17, "gpu shapes"), draws++, words);
    const int64_t size = 1 + (int64_t)(words[0] % (uint64_t)most);
    return words[1] % 2 == 0 ? (size + 15) / 16 * 16 : size;
}

/* The emulated GPU is slow. */
static int64_t most(int64_t on_gpu, int64_t emulated)
{
    return strcmp(tsr_device_name(cuda_rig[CUDA].device), "cuda:emulated") == 0 ? emulated : on_gpu;
}

/* ---- products: a sum of k terms in f32, in any order, is within k eps sum |a b| of the exact one;
 * by Cauchy and Schwarz, and as k normal numbers have a norm below sqrt(k) + 6, sum |a b| is at
 * most (sqrt(k) + 6)^2. One eps more for what the result is added to, one for its own rounding. */
static double product_tolerance(int64_t k)
{
    const double norm = sqrt((double)k) + 6.0;

    return (double)(k + 2) * F32_EPS * norm * norm;
}

static struct {
    array a, b, c, offsets;
    tsr_gemm_args gemm;
    tsr_grouped_gemm_args grouped;
} products;

static const tsr_gemm_args *gemm_args(side s)
{
    static tsr_gemm_args args;

    args = products.gemm;
    args.a = on(s, &products.a);
    args.b = on(s, &products.b);
    args.c = on(s, &products.c);
    return &args;
}

static void check_gemm(int variant)
{
    const tsr_dtype dtype = variant % 2 == 0 ? TSR_BF16 : TSR_F32;
    const bool accumulate = variant % 3 == 0, trans_a = (variant & 2) != 0;
    const bool trans_b = (variant & 4) != 0;
    const int64_t m = draw(most(300, 30)), n = draw(most(300, 30)), k = draw(most(400, 40));
    const tsr_dtype c_dtype = accumulate ? TSR_F32 : dtype;

    products.a = make_random(dtype, m * k, 1, 1.0f);
    products.b = make_random(dtype, k * n, 2, 1.0f);
    products.c = make_random(c_dtype, m * n, 3, 1.0f);
    products.gemm = (tsr_gemm_args){.m = m,
                                    .n = n,
                                    .k = k,
                                    .lda = trans_a ? m : k,
                                    .ldb = trans_b ? k : n,
                                    .ldc = n,
                                    .trans_a = trans_a,
                                    .trans_b = trans_b,
                                    .accumulate = accumulate,
                                    .dtype = dtype,
                                    .c_dtype = c_dtype};
    BOTH(tsr_op_gemm, gemm_args);
    assert_array(c_dtype, &products.c, product_tolerance(k));
    free_array(&products.a);
    free_array(&products.b);
    free_array(&products.c);
}

/* Not by each_order(): the algorithm is chosen by timing when the device is opened anew, and
 * another one may round differently. */
static void dense_products_match_the_twin(void **state)
{
    (void)state;
    cuda_rig[PLAIN] = open_plain();
    assert_true(open_named("cuda:emulated", 1, &cuda_rig[CUDA]));
    draws = 0;
    for (int variant = 0; variant < 2 * SHAPES; ++variant) {
        cuda_shifted = variant >= SHAPES;
        check_gemm(variant);
    }
    close_rig(&cuda_rig[CUDA]);
    close_rig(&cuda_rig[PLAIN]);
}

/* products.a is x [R,K], b is y [R,N], c is w [E,N,K]. */
static const tsr_grouped_gemm_args *grouped_args(side s)
{
    static tsr_grouped_gemm_args args;

    args = products.grouped;
    args.x = on(s, &products.a);
    args.y = on(s, &products.b);
    args.w = on(s, &products.c);
    args.offsets = on(s, &products.offsets);
    return &args;
}

static void check_grouped(int variant)
{
    enum { EXPERTS = 5 };
    const tsr_grouped_pass passes[] = {TSR_GROUPED_FORWARD, TSR_GROUPED_DGRAD, TSR_GROUPED_WGRAD};
    const tsr_grouped_pass pass = passes[variant % 3];
    const bool is_wgrad = pass == TSR_GROUPED_WGRAD;
    const tsr_dtype dtype = variant % 4 == 3 ? TSR_F32 : TSR_BF16;
    const int64_t n = draw(most(300, 40)), k = draw(most(300, 40));
    int64_t offsets[EXPERTS + 1] = {0};

    for (int e = 0; e < EXPERTS; ++e) { /* expert 1 has no rows */
        const int64_t rows = e == 1 ? 0 : draw(most(200, 60)) / TSR_ROW_ALIGN * TSR_ROW_ALIGN;

        offsets[e + 1] = offsets[e] + rows;
    }
    const int64_t max_rows = offsets[EXPERTS] + TSR_ROW_ALIGN;
    products.offsets = make_array(offsets, EXPERTS + 1, sizeof *offsets);
    products.a = make_random(dtype, max_rows * k, 1, 1.0f);
    products.b = make_random(dtype, max_rows * n, 2, 1.0f);
    products.c = make_random(is_wgrad ? TSR_F32 : dtype, EXPERTS * n * k, 3, 1.0f);
    products.grouped = (tsr_grouped_gemm_args){.pass = pass,
                                               .max_rows = max_rows,
                                               .n = n,
                                               .k = k,
                                               .experts = EXPERTS,
                                               .accumulate = is_wgrad && variant % 2 == 0,
                                               .dtype = dtype};
    BOTH(tsr_op_grouped_gemm, grouped_args);
    switch (pass) {
    case TSR_GROUPED_FORWARD:
        assert_array(dtype, &products.b, product_tolerance(k));
        break;
    case TSR_GROUPED_DGRAD:
        assert_array(dtype, &products.a, product_tolerance(n));
        break;
    case TSR_GROUPED_WGRAD:
    default:
        assert_array(TSR_F32, &products.c, product_tolerance(max_rows));
        break;
    }
    free_array(&products.offsets);
    free_array(&products.a);
    free_array(&products.b);
    free_array(&products.c);
}

static void check_groups(void)
{
    draws = 100;
    for (int variant = 0; variant < 2 * SHAPES; ++variant) {
        check_grouped(variant);
    }
}

static void grouped_products_match_the_twin(void **state)
{
    (void)state;
    each_order(check_groups);
}

/* ---- attention
 * ---------------------------------------------------------------------------------- */

static struct {
    array q, k, v, out, lse, dout, dq, dk, dv;
    tsr_attention_args args;
} attention;

static const tsr_attention_args *attention_args(side s)
{
    static tsr_attention_args args;

    args = attention.args;
    args.q = on(s, &attention.q);
    args.k = on(s, &attention.k);
    args.v = on(s, &attention.v);
    args.out = on(s, &attention.out);
    args.lse = on(s, &attention.lse);
    args.dout = on(s, &attention.dout);
    args.dq = on(s, &attention.dq);
    args.dk = on(s, &attention.dk);
    args.dv = on(s, &attention.dv);
    return &args;
}

/* Derived in tests/cuda/test_cuda_attention.c: f32 sums of scores, probabilities and gradients, and
 * for bf16 cuDNN's rounding of p and ds; here also that of its own out and dout's product with
 * it. */
static double attention_tolerance(const tsr_attention_args *a, bool is_gradient)
{
    const double p_error = 25.0 * (a->head_dim + 2) * F32_EPS / sqrt(a->head_dim) +
                           (4.0 + (double)a->kv_len) * F32_EPS;
    const int group = a->heads / a->kv_heads;
    const double sum = group * (1.0 + log((double)a->kv_len));
    const double rounding = 6.0 * BF16_ULP / 2.0 / sqrt(3.0);
    const double by_cudnn = a->dtype == TSR_BF16 ? rounding : 0.0;

    if (!is_gradient) {
        return 5.0 * p_error + by_cudnn;
    }
    return 5.0 * sqrt(a->head_dim) * (p_error + (double)a->q_len * group * F32_EPS) +
           by_cudnn * ((group > 1 ? 2.0 : 1.0) * sqrt(2.0 * sum));
}

static void compare_passes(tsr_dtype dtype)
{
    BOTH(tsr_op_attention_forward, attention_args);
    assert_array(TSR_F32, &attention.lse, attention_tolerance(&attention.args, false));
    assert_array(dtype, &attention.out, attention_tolerance(&attention.args, false));
    const size_t element = tsr_dtype_bytes(dtype);
    array out =
        make_array(on(PLAIN, &attention.out), (int64_t)(attention.out.bytes / element), element);
    array lse = make_array(on(PLAIN, &attention.lse), (int64_t)(attention.lse.bytes / 4), 4);
    free_array(&attention.out);
    free_array(&attention.lse);
    attention.out = out; /* both backward passes start from the twin's */
    attention.lse = lse;
    BOTH(tsr_op_attention_backward, attention_args);
    assert_array(dtype, &attention.dq, attention_tolerance(&attention.args, true));
    assert_array(dtype, &attention.dk, attention_tolerance(&attention.args, true));
    assert_array(dtype, &attention.dv, attention_tolerance(&attention.args, true));
}

static void check_attention(int variant)
{
    const tsr_dtype dtype = variant % 4 == 3 ? TSR_F32 : TSR_BF16;
    const int64_t batch = 1 + variant % 3, len = 1 + draw(most(300, 30));
    const int kv_heads = 1 + variant % 2, heads = kv_heads * (1 + variant / 2 % 3);
    const int hd = variant % 5 == 4 ? 20 : variant % 2 == 0 ? 64 : 128;
    const int64_t q = batch * len * heads * hd, kv = batch * len * kv_heads * hd;
    const size_t element = tsr_dtype_bytes(dtype);

    attention.q = make_random(dtype, q, 1, 1.0f);
    attention.k = make_random(dtype, kv, 2, 1.0f);
    attention.v = make_random(dtype, kv, 3, 1.0f);
    attention.dout = make_random(dtype, q, 4, 1.0f);
    attention.out = make_array(NULL, q, element);
    attention.lse = make_array(NULL, batch * heads * len, sizeof(float));
    attention.dq = make_array(NULL, q, element);
    attention.dk = make_array(NULL, kv, element);
    attention.dv = make_array(NULL, kv, element);
    attention.args = (tsr_attention_args){.batch = batch,
                                          .q_len = len,
                                          .kv_len = len,
                                          .q_stride = heads * hd,
                                          .kv_stride = kv_heads * hd,
                                          .out_stride = heads * hd,
                                          .q_batch_stride = len * heads * hd,
                                          .kv_batch_stride = len * kv_heads * hd,
                                          .out_batch_stride = len * heads * hd,
                                          .heads = heads,
                                          .kv_heads = kv_heads,
                                          .head_dim = hd,
                                          .scale = 1.0f / sqrtf((float)hd),
                                          .dtype = dtype};
    compare_passes(dtype);
    array *const all[] = {&attention.q,   &attention.k,   &attention.v,
                          &attention.out, &attention.lse, &attention.dout,
                          &attention.dq,  &attention.dk,  &attention.dv};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) {
        free_array(all[i]);
    }
}

static void check_attentions(void)
{
    draws = 200;
    for (int variant = 0; variant < SHAPES; ++variant) {
        check_attention(variant);
    }
}

static void attention_matches_the_twin(void **state)
{
    (void)state;
    each_order(check_attentions);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_products_match_the_twin),
        cmocka_unit_test(grouped_products_match_the_twin),
        cmocka_unit_test(attention_matches_the_twin),
    };

    return tsr_unit_test_main("gpu.random", tests, sizeof tests / sizeof *tests);
}
