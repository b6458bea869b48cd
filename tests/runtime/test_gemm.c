/* Matrix products against their plain twin, dense and per expert; the cache of primitives.
 *
 * Tolerance: a sum of k products in f32, in any order, is within k eps sum |a b| of the exact one
 * (Higham 2002, section 3.1, to first order); sum |a b| is the plain product of the absolute
 * values. The twin sums in f64. bf16 results are rounded once more: one step to the neighbour. */
#include "runtime/cpu/gemm_cache.h"
#include "tests/runtime/op_test.h"
#include <dnnl.h>

enum { PAD = 3 /* columns between the end of a row and the next: never read, never written */ };

static void take_absolute(tsr_dtype dtype, void *base, int64_t count)
{
    for (int64_t i = 0; i < count; ++i) {
        if (dtype == TSR_F32) {
            ((float *)base)[i] = fabsf(((float *)base)[i]);
        } else {
            ((tsr_bf16 *)base)[i] &= 0x7fff;
        }
    }
}

/* count results of sums of k products, as far from the twin's as `bound` = sum |a b| allows */
static void assert_product(tsr_dtype dtype, const void *got, const void *expected,
                           const float *bound, int64_t k, int64_t count)
{
    for (int64_t i = 0; i < count; ++i) {
        const double g = get(dtype, got, i), e = get(dtype, expected, i);
        const double step = dtype == TSR_BF16 ? BF16_ULP * fabs(e) : F32_EPS * fabs(e);
        const double tolerance = (double)(k + 1) * F32_EPS * (double)bound[i] + step;

        if (!(fabs(g - e) <= tolerance)) {
            fail_msg("element %lld is %.9g, expected %.9g within %g", (long long)i, g, e,
                     tolerance);
        }
    }
}

/* Threads do not change a bit, as gemm_cache.h says: with kernels of our own, and with oneDNN's on
 * AVX-512 without AMX, for more than one row. Devices come in pairs of one instruction set, with
 * one thread and with two. */
static void assert_same_bits(const rig *r, tsr_dtype dtype, const void *got, const void *first,
                             size_t bytes)
{
    const int avx512 = dnnl_cpu_isa_avx512_core, amx = dnnl_cpu_isa_avx512_core_amx;
    const int isa = (int)dnnl_get_effective_cpu_isa();

    if (tsr_own_gemm_of(r->device, dtype) != NULL ||
        ((isa & avx512) == avx512 && (isa & amx) != amx)) {
        assert_memory_equal(got, first, bytes);
    }
}

typedef struct dense_case {
    int64_t m, n, k;
    bool trans_a, trans_b, accumulate;
    tsr_dtype dtype, c_dtype;
} dense_case;

static tsr_gemm_args dense_args(const dense_case *d, void *a, void *b, void *c)
{
    return (tsr_gemm_args){.a = a,
                           .b = b,
                           .c = c,
                           .m = d->m,
                           .n = d->n,
                           .k = d->k,
                           .lda = (d->trans_a ? d->m : d->k) + PAD,
                           .ldb = (d->trans_b ? d->k : d->n) + PAD,
                           .ldc = d->n + PAD,
                           .trans_a = d->trans_a,
                           .trans_b = d->trans_b,
                           .accumulate = d->accumulate,
                           .dtype = d->dtype,
                           .c_dtype = d->c_dtype};
}

static int64_t stored(int64_t rows, int64_t columns)
{
    return rows * (columns + PAD);
}

typedef struct dense_memory {
    void *a, *b, *c;
    int64_t a_count, b_count, c_count;
    tsr_gemm_args args;
} dense_memory;

static void take_dense(const dense_case *d, dense_memory *m)
{
    m->a_count = d->trans_a ? stored(d->k, d->m) : stored(d->m, d->k);
    m->b_count = d->trans_b ? stored(d->n, d->k) : stored(d->k, d->n);
    m->c_count = stored(d->m, d->n);
    m->a = take_random(d->dtype, m->a_count, 1, 1.0f);
    m->b = take_random(d->dtype, m->b_count, 2, 1.0f);
    m->c = take_random(d->c_dtype, m->c_count, 3, 1.0f);
    m->args = dense_args(d, m->a, m->b, m->c);
}

/* c of one device; the caller frees it. */
static void *run_dense(const dense_case *d, rig *r)
{
    dense_memory m;

    take_dense(d, &m);
    assert_ok(tsr_op_gemm(r->device, &m.args, r->stream));
    tsr_mem_free(m.a);
    tsr_mem_free(m.b);
    return m.c;
}

static float *dense_bound(const dense_case *d, rig *plain, int64_t *count_out)
{
    dense_memory m;

    take_dense(d, &m);
    float *bound = take(m.c_count, sizeof *bound);
    assert_ok(
        tsr_op_convert(plain->device, m.c, d->c_dtype, bound, TSR_F32, m.c_count, plain->stream));
    take_absolute(d->dtype, m.a, m.a_count);
    take_absolute(d->dtype, m.b, m.b_count);
    take_absolute(TSR_F32, bound, m.c_count);
    m.args.c = bound;
    m.args.c_dtype = TSR_F32;
    assert_ok(tsr_op_gemm(plain->device, &m.args, plain->stream));
    tsr_mem_free(m.a);
    tsr_mem_free(m.b);
    tsr_mem_free(m.c);
    *count_out = m.c_count;
    return bound;
}

static void check_dense(const dense_case *d)
{
    rig plain = open_plain();
    int64_t count = 0;
    float *bound = dense_bound(d, &plain, &count);
    void *expected = run_dense(d, &plain), *first = NULL;

    for (int i = 0; i < RIGS; ++i) {
        rig r;

        if (!open_rig(i, &r)) {
            continue;
        }
        void *got = run_dense(d, &r);
        assert_product(d->c_dtype, got, expected, bound, d->k, count);
        if (i % 2 == 1 && d->m > 1) {
            assert_same_bits(&r, d->dtype, got, first, (size_t)count * tsr_dtype_bytes(d->c_dtype));
        }
        tsr_mem_free(first);
        first = got;
        close_rig(&r);
    }
    close_rig(&plain);
    tsr_mem_free(expected);
    tsr_mem_free(first);
    tsr_mem_free(bound);
}

static void dense_products_match_the_twin(void **state)
{
    /* from the third row on: what our kernels do, with edges in every direction, one to three
     * passes over the sum, either side packed, and more columns than are packed at once */
    static const int64_t sizes[][3] = {
        {1, 1, 1},     {1, 64, 33},   {5, 3, 7},      {37, 1, 19},    {64, 96, 48},
        {16, 8, 300},  {129, 70, 65}, {14, 64, 64},   {15, 65, 527},  {1, 97, 513},
        {300, 64, 64}, {43, 290, 71}, {29, 81, 1030}, {270, 65, 530}, {33, 300, 2101}};

    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; ++s) {
        for (int variant = 0; variant < 20; ++variant) {
            const int form = variant / 4; /* f32, f32 +=, bf16, bf16 to f32, bf16 to f32 += */
            const dense_case d = {.m = sizes[s][0],
                                  .n = sizes[s][1],
                                  .k = sizes[s][2],
                                  .trans_a = (variant & 1) != 0,
                                  .trans_b = (variant & 2) != 0,
                                  .accumulate = form == 1 || form == 4,
                                  .dtype = form < 2 ? TSR_F32 : TSR_BF16,
                                  .c_dtype = form == 2 ? TSR_BF16 : TSR_F32};
            check_dense(&d);
        }
    }
}

/* Whatever the number of rows, and whichever side is packed for it. */
static void a_row_does_not_depend_on_the_others(void **state)
{
    enum { M = 300, N = 70, K = 530 };
    float *a = take_random(TSR_F32, M * K, 1, 1.0f), *b = take_random(TSR_F32, N * K, 2, 1.0f);
    float *all = take(M * N, sizeof *all), *few = take(M * N, sizeof *few);

    (void)state;
    for (int i = 0; i < RIGS; ++i) {
        tsr_gemm_args args = {.a = a, .b = b, .c = all, .m = M, .n = N, .k = K, .lda = K, .ldb = K};
        rig r;

        if (!open_rig(i, &r)) {
            continue;
        }
        args.ldc = N;
        args.trans_b = true;
        assert_ok(tsr_op_gemm(r.device, &args, r.stream));
        args.c = few;
        for (args.m = 2; args.m < M; args.m = 3 * args.m + 1) {
            assert_ok(tsr_op_gemm(r.device, &args, r.stream));
            assert_same_bits(&r, TSR_F32, few, all, (size_t)(args.m * N) * sizeof *few);
        }
        close_rig(&r);
    }
    tsr_mem_free(a);
    tsr_mem_free(b);
    tsr_mem_free(all);
    tsr_mem_free(few);
}

static void empty_products(void **state)
{
    float a[4] = {1, 1, 1, 1}, c[6] = {7, 7, 7, 7, 7, 7};
    tsr_gemm_args args = {.a = a, .b = a, .c = c, .m = 2, .n = 2, .k = 0, .ldb = 2, .ldc = 3};

    (void)state;
    for (int i = 0; i < RIGS; ++i) {
        rig r;

        if (!open_rig(i, &r)) {
            continue;
        }
        c[0] = c[1] = c[3] = c[4] = 7;
        args.accumulate = true;
        assert_ok(tsr_op_gemm(r.device, &args, r.stream));
        assert_true(c[0] == 7 && c[4] == 7);
        args.accumulate = false;
        assert_ok(tsr_op_gemm(r.device, &args, r.stream));
        assert_true(c[0] == 0 && c[1] == 0 && c[2] == 7 && c[3] == 0 && c[4] == 0 && c[5] == 7);
        args.m = 0;
        args.c = NULL;
        assert_ok(tsr_op_gemm(r.device, &args, r.stream));
        args.m = 2;
        args.c = c;
        close_rig(&r);
    }
}

static void bad_products_are_refused(void **state)
{
    float f[4] = {0};
    const tsr_gemm_args good = {
        .a = f, .b = f, .c = f, .m = 2, .n = 2, .k = 2, .lda = 2, .ldb = 2, .ldc = 2};
    tsr_gemm_args bad = good;
    rig r = open_plain();

    (void)state;
    bad.m = -1;
    assert_refused(tsr_op_gemm(r.device, &bad, r.stream), "m = -1");
    bad = good;
    bad.lda = 1;
    assert_refused(tsr_op_gemm(r.device, &bad, r.stream), "lda = 1");
    bad = good;
    bad.ldc = 1;
    assert_refused(tsr_op_gemm(r.device, &bad, r.stream), "ldc = 1");
    bad = good;
    bad.b = NULL;
    assert_refused(tsr_op_gemm(r.device, &bad, r.stream), "b must not be NULL");
    bad = good;
    bad.c_dtype = TSR_BF16;
    assert_refused(tsr_op_gemm(r.device, &bad, r.stream), "c_dtype = bf16");
    bad = good;
    bad.dtype = (tsr_dtype)7;
    assert_refused(tsr_op_gemm_reserve(r.device, &bad), "dtype = 7");
    assert_refused(tsr_op_gemm(r.device, &good, NULL), "stream");
    tsr_grouped_gemm_args group = {.x = f, .y = f, .w = f, .n = 0, .k = 2, .experts = 1};
    assert_refused(tsr_op_grouped_gemm(r.device, &group, r.stream), "n = 0");
    group.n = 2;
    assert_refused(tsr_op_grouped_gemm(r.device, &group, r.stream), "offsets must not be NULL");
    group.accumulate = true;
    assert_refused(tsr_op_grouped_gemm(r.device, &group, r.stream), "accumulate");
    close_rig(&r);
}

/* ---- one product per expert ------------------------------------------------------------------ */

typedef struct group_case {
    int experts;
    const int64_t *rows; /* of each expert */
    int64_t n, k;
    tsr_grouped_pass pass;
    bool accumulate;
    tsr_dtype dtype;
} group_case;

typedef struct group_memory {
    int64_t offsets[65], counts[3]; /* of x, y, w */
    void *x, *y, *w;
} group_memory;

static tsr_dtype group_type(const group_case *g, int operand)
{
    return g->pass == TSR_GROUPED_WGRAD && operand == 2 ? TSR_F32 : g->dtype;
}

static void take_group(const group_case *g, group_memory *m)
{
    m->offsets[0] = 0;
    for (int e = 0; e < g->experts; ++e) {
        m->offsets[e + 1] = m->offsets[e] + g->rows[e];
    }
    m->counts[0] = m->offsets[g->experts] * g->k;
    m->counts[1] = m->offsets[g->experts] * g->n;
    m->counts[2] = g->experts * g->n * g->k;
    m->x = take_random(group_type(g, 0), m->counts[0], 11, 1.0f);
    m->y = take_random(group_type(g, 1), m->counts[1], 12, 1.0f);
    m->w = take_random(group_type(g, 2), m->counts[2], 13, 1.0f);
}

static void free_group(group_memory *m)
{
    tsr_mem_free(m->x);
    tsr_mem_free(m->y);
    tsr_mem_free(m->w);
}

static tsr_grouped_gemm_args group_args(const group_case *g, const group_memory *m)
{
    return (tsr_grouped_gemm_args){.pass = g->pass,
                                   .x = m->x,
                                   .y = m->y,
                                   .w = m->w,
                                   .offsets = m->offsets,
                                   .max_rows = m->offsets[g->experts],
                                   .n = g->n,
                                   .k = g->k,
                                   .experts = g->experts,
                                   .accumulate = g->accumulate,
                                   .dtype = g->dtype};
}

/* The output of one device; the caller frees it. */
static void *run_group(const group_case *g, rig *r)
{
    group_memory m;
    take_group(g, &m);
    tsr_grouped_gemm_args args = group_args(g, &m);
    void **output = g->pass == TSR_GROUPED_FORWARD ? &m.y
                    : g->pass == TSR_GROUPED_DGRAD ? &m.x
                                                   : &m.w;
    void *result = *output;

    assert_ok(tsr_op_grouped_gemm(r->device, &args, r->stream));
    *output = NULL;
    free_group(&m);
    return result;
}

/* sum |x y w| of every result, by products of one expert at a time */
static float *group_bound(const group_case *g, rig *plain, int64_t *k_out, int64_t *count_out)
{
    group_memory m;
    take_group(g, &m);
    const int out = g->pass == TSR_GROUPED_FORWARD ? 1 : g->pass == TSR_GROUPED_DGRAD ? 0 : 2;
    void *all[3] = {m.x, m.y, m.w}, *wide[3];

    for (int i = 0; i < 3; ++i) { /* as f32, whatever the type: then the bound is f32 too */
        wide[i] = take(m.counts[i], sizeof(float));
        assert_ok(tsr_op_convert(plain->device, all[i], group_type(g, i), wide[i], TSR_F32,
                                 m.counts[i], plain->stream));
        take_absolute(TSR_F32, wide[i], m.counts[i]);
    }
    free_group(&m);
    m.x = wide[0];
    m.y = wide[1];
    m.w = wide[2];
    tsr_grouped_gemm_args args = group_args(g, &m);
    args.dtype = TSR_F32;
    assert_ok(tsr_op_grouped_gemm(plain->device, &args, plain->stream));
    *count_out = m.counts[out];
    *k_out = out == 1 ? g->k : out == 0 ? g->n : m.offsets[g->experts];
    for (int i = 0; i < 3; ++i) {
        if (i != out) {
            tsr_mem_free(wide[i]);
        }
    }
    return wide[out];
}

static void check_group(const group_case *g)
{
    const tsr_dtype type = group_type(g, g->pass == TSR_GROUPED_WGRAD ? 2 : 0);
    rig plain = open_plain();
    int64_t k = 0, count = 0;
    float *bound = group_bound(g, &plain, &k, &count);
    void *expected = run_group(g, &plain), *first = NULL;

    for (int i = 0; i < RIGS; ++i) {
        rig r;

        if (!open_rig(i, &r)) {
            continue;
        }
        void *got = run_group(g, &r);
        assert_product(type, got, expected, bound, k, count);
        if (i % 2 == 1) {
            assert_same_bits(&r, g->dtype, got, first, (size_t)count * tsr_dtype_bytes(type));
        }
        tsr_mem_free(first);
        first = got;
        close_rig(&r);
    }
    close_rig(&plain);
    tsr_mem_free(expected);
    tsr_mem_free(first);
    tsr_mem_free(bound);
}

/* Memory taken holds random numbers here: a device that leaves them is seen, the twin too. */
static void experts_without_rows_get_a_gradient_of_zero(void **state)
{
    static const int64_t rows[] = {0, 32, 0};

    (void)state;
    for (int i = -1; i < RIGS; ++i) {
        rig r;

        if (!(i < 0 ? open_named("cpu:plain", 1, &r) : open_rig(i, &r))) {
            continue;
        }
        for (int dtype = TSR_F32; dtype <= TSR_BF16; ++dtype) {
            for (int experts = 1; experts <= 3;
                 ++experts) { /* with one, there are no rows at all */
                const group_case g = {.experts = experts,
                                      .rows = rows,
                                      .n = 24,
                                      .k = 40,
                                      .pass = TSR_GROUPED_WGRAD,
                                      .dtype = (tsr_dtype)dtype};
                float *w = run_group(&g, &r);

                for (int64_t at = 0; at < experts * g.n * g.k; ++at) {
                    assert_true((w[at] == 0.0f) == (rows[at / (g.n * g.k)] == 0));
                }
                tsr_mem_free(w);
            }
        }
        close_rig(&r);
    }
}

static void expert_products_match_the_twin(void **state)
{
    static const int64_t even[] = {32, 32, 32}, uneven[] = {0, 176, 16, 0, 48};
    static const int64_t hot[] = {0, 1040, 16}, none[] = {0, 0}, one[] = {16, 560};
    static const struct {
        int experts;
        const int64_t *rows;
        int64_t n, k;
    } sizes[] = {{3, even, 40, 24}, {5, uneven, 96, 33}, {3, hot, 150, 20}, {2, none, 8, 4},
                 {2, one, 1, 1},    {2, one, 15, 530},   {2, one, 1056, 32}};

    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; ++s) {
        for (int pass = 0; pass < 4; ++pass) { /* the fourth: an accumulated weight gradient */
            for (int dtype = TSR_F32; dtype <= TSR_BF16; ++dtype) {
                const group_case g = {.experts = sizes[s].experts,
                                      .rows = sizes[s].rows,
                                      .n = sizes[s].n,
                                      .k = sizes[s].k,
                                      .pass =
                                          pass == 3 ? TSR_GROUPED_WGRAD : (tsr_grouped_pass)pass,
                                      .accumulate = pass == 3,
                                      .dtype = (tsr_dtype)dtype};
                check_group(&g);
            }
        }
    }
}

/* ---- the cache
 * -------------------------------------------------------------------------------- */

static int64_t products_made(const rig *r)
{
    return tsr_gemm_cache_created(((const tsr_cpu_device *)r->device)->gemms);
}

static bool has_own_kernel(const rig *r, tsr_dtype dtype)
{
    return ((const tsr_cpu_device *)r->device)->own_gemm[dtype] != NULL;
}

/* After the reserve of 0 .. max_rows rows no split of any number of them makes a primitive or takes
 * memory, on any number of threads. */
static void reserved_experts_make_nothing(void **state)
{
    enum { MAX_ROWS = 1104, EXPERTS = 3 };

    (void)state;
    for (int threads = 1; threads <= 3; ++threads) {
        for (int variant = 0; variant < 8; ++variant) {
            const int pass = variant % 4;
            int64_t rows[EXPERTS] = {MAX_ROWS, 0, 0};
            const group_case g = {.experts = EXPERTS,
                                  .rows = rows,
                                  .n = 130,
                                  .k = 8,
                                  .pass = pass == 3 ? TSR_GROUPED_WGRAD : (tsr_grouped_pass)pass,
                                  .accumulate = pass == 3,
                                  .dtype = variant < 4 ? TSR_F32 : TSR_BF16};
            group_memory m;
            rig r;

            take_group(&g, &m);
            tsr_grouped_gemm_args args = group_args(&g, &m);
            assert_true(open_named("cpu", threads, &r));
            assert_ok(tsr_op_grouped_gemm_reserve(r.device, &args));
            const int64_t made = products_made(&r), taken = tsr_mem_alloc_calls();
            for (int64_t total = 0; total <= MAX_ROWS; total += TSR_ROW_ALIGN) {
                m.offsets[1] = total / 5 / TSR_ROW_ALIGN * TSR_ROW_ALIGN;
                m.offsets[2] = m.offsets[1];
                m.offsets[3] = total;
                assert_ok(tsr_op_grouped_gemm(r.device, &args, r.stream));
            }
            assert_true(made > 0 || has_own_kernel(&r, g.dtype));
            assert_int_equal(products_made(&r), made);
            assert_int_equal(tsr_mem_alloc_calls(), taken);
            close_rig(&r);
            free_group(&m);
        }
    }
}

static void a_shape_is_made_once(void **state)
{
    float *f = take(200 * 200, sizeof *f);
    tsr_gemm_args args = {
        .a = f, .b = f, .c = f + 100 * 200, .n = 8, .k = 16, .lda = 16, .ldb = 8, .ldc = 8};
    rig r;

    (void)state;
    assert_true(open_named("cpu", 1, &r));
    for (int round = 0; round < 2; ++round) {
        for (args.m = 1; args.m <= 100; ++args.m) { /* more than the table holds at first */
            assert_ok(tsr_op_gemm_reserve(r.device, &args));
            assert_ok(tsr_op_gemm(r.device, &args, r.stream));
        }
        assert_int_equal(products_made(&r), 100);
    }
    close_rig(&r);
    tsr_mem_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_products_match_the_twin),
        cmocka_unit_test(a_row_does_not_depend_on_the_others),
        cmocka_unit_test(empty_products),
        cmocka_unit_test(bad_products_are_refused),
        cmocka_unit_test(expert_products_match_the_twin),
        cmocka_unit_test(experts_without_rows_get_a_gradient_of_zero),
        cmocka_unit_test(reserved_experts_make_nothing),
        cmocka_unit_test(a_shape_is_made_once),
    };

    return tsr_unit_test_main("runtime.gemm", tests, sizeof tests / sizeof *tests);
}
