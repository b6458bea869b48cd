/* Matrix products on the emulated GPU against their plain twin: dense, per expert, and what the
 * fake of cuBLASLt refuses.
 *
 * Tolerance: a sum of k products in f32, in any order, is within k eps sum |a b| of the exact one
 * (Higham 2002, section 3.1, to first order); sum |a b| is the plain product of the absolute
 * values. The twin sums in f64. bf16 results are rounded once more: one step to the neighbour. */
#include "tests/cuda/cuda_gemm_rig.h"

#include "runtime/cuda/cuda_impl.h"
#include "tests/emulation/fake_cudart.h"

#include <cublasLt.h>
#include <math.h>

enum {
    PAD = 3, /* columns between the end of a row and the next: never read, never written */
    ORDERS = 3
};

/* ---- dense products
 * --------------------------------------------------------------------------- */

typedef struct dense_case {
    int64_t m, n, k, shift;
    bool trans_a, trans_b, accumulate;
    tsr_dtype dtype, c_dtype;
    int64_t pad;
} dense_case;

static tsr_gemm_args dense_args(const dense_case *d, const void *a, const void *b, void *c)
{
    return (tsr_gemm_args){.a = a,
                           .b = b,
                           .c = c,
                           .m = d->m,
                           .n = d->n,
                           .k = d->k,
                           .lda = (d->trans_a ? d->m : d->k) + d->pad,
                           .ldb = (d->trans_b ? d->k : d->n) + d->pad,
                           .ldc = d->n + d->pad,
                           .trans_a = d->trans_a,
                           .trans_b = d->trans_b,
                           .accumulate = d->accumulate,
                           .dtype = d->dtype,
                           .c_dtype = d->c_dtype};
}

typedef struct dense_arrays {
    array a, b, c;
} dense_arrays;

static dense_arrays make_dense(const dense_case *d, rig *r)
{
    const tsr_gemm_args sizes = dense_args(d, NULL, NULL, NULL);
    const dense_arrays all = {
        make_array(r, d->dtype, (d->trans_a ? d->k : d->m) * sizes.lda, d->shift, 1),
        make_array(r, d->dtype, (d->trans_b ? d->n : d->k) * sizes.ldb, d->shift, 2),
        make_array(r, d->c_dtype, d->m * sizes.ldc, d->shift, 3)};

    upload(r, &all.a);
    upload(r, &all.b);
    upload(r, &all.c);
    return all;
}

static void free_dense(rig *r, dense_arrays *all)
{
    free_array(r, &all->a);
    free_array(r, &all->b);
    free_array(r, &all->c);
}

/* The twin's result in place of c on the host, and the bound. */
static void expect_dense(const dense_case *d, dense_arrays *all, float **bound_out)
{
    rig plain = open_plain();
    float *const a = absolute(&all->a), *const b = absolute(&all->b);
    tsr_gemm_args args = dense_args(d, a, b, absolute(&all->c));

    args.dtype = args.c_dtype = TSR_F32;
    assert_ok(tsr_op_gemm(plain.device, &args, plain.stream));
    *bound_out = args.c;
    args = dense_args(d, all->a.host, all->b.host, all->c.host);
    assert_ok(tsr_op_gemm(plain.device, &args, plain.stream));
    tsr_mem_free(a);
    tsr_mem_free(b);
    close_rig(&plain);
}

static void check_dense(const dense_case *d, rig *r)
{
    dense_arrays all = make_dense(d, r);
    const tsr_gemm_args args = dense_args(d, all.a.device, all.b.device, all.c.device);
    const size_t bytes = (size_t)all.c.count * tsr_dtype_bytes(d->c_dtype);
    void *const expected = take(all.c.count, tsr_dtype_bytes(d->c_dtype));
    float *bound;

    expect_dense(d, &all, &bound);
    memcpy(expected, all.c.host, bytes);
    assert_ok(tsr_op_gemm(r->device, &args, r->stream));
    download(r, &all.c);
    assert_product(d->c_dtype, all.c.host, expected, bound, d->k, all.c.count);
    tsr_mem_free(bound);
    tsr_mem_free(expected);
    free_dense(r, &all);
}

static void dense_products_match_the_twin(void **state)
{
    static const int64_t sizes[][3] = {{1, 1, 1},    {1, 64, 33},   {5, 3, 7},   {37, 1, 19},
                                       {64, 96, 48}, {70, 65, 129}, {16, 8, 300}};

    rig r = open_emulated();

    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; ++s) {
        for (int variant = 0; variant < 20; ++variant) {
            const int form = variant / 4; /* f32, f32 +=, bf16, bf16 to f32, bf16 to f32 += */
            const dense_case d = {.m = sizes[s][0],
                                  .n = sizes[s][1],
                                  .k = sizes[s][2],
                                  .shift = variant % 3 == 2, /* less aligned pointers */
                                  .trans_a = (variant & 1) != 0,
                                  .trans_b = (variant & 2) != 0,
                                  .accumulate = form == 1 || form == 4,
                                  .dtype = form < 2 ? TSR_F32 : TSR_BF16,
                                  .c_dtype = form == 2 ? TSR_BF16 : TSR_F32,
                                  .pad = variant % 2 == 0 ? PAD : 0};
            fake_set_order((fake_order)((s + (size_t)variant) % ORDERS), s);
            check_dense(&d, &r);
        }
    }
    close_rig(&r);
}

/* After the reserve no call with these sizes takes memory, whatever its pointers. */
static void reserved_products_take_no_memory(void **state)
{
    (void)state;
    for (int64_t shift = 0; shift < 2; ++shift) {
        const dense_case d = {.m = 24, .n = 40, .k = 16, .shift = shift, .dtype = TSR_BF16};
        rig r = open_emulated();
        dense_arrays all = make_dense(&d, &r);
        const tsr_gemm_args args = dense_args(&d, all.a.device, all.b.device, all.c.device);

        assert_ok(tsr_op_gemm_reserve(r.device, &args));
        const int64_t calls = tsr_mem_alloc_calls(), blocks = tsr_mem_live_blocks();
        assert_ok(tsr_op_gemm(r.device, &args, r.stream));
        assert_ok(tsr_op_gemm(r.device, &args, r.stream));
        assert_int_equal(tsr_mem_alloc_calls(), calls);
        assert_int_equal(tsr_mem_live_blocks(), blocks);
        free_dense(&r, &all);
        close_rig(&r);
    }
}

/* Unaligned products of the fake go through the workspace: on two streams they must not overlap. */
static void products_on_two_streams_share_the_workspace(void **state)
{
    const dense_case d = {.m = 30, .n = 20, .k = 50, .shift = 1, .dtype = TSR_F32};

    (void)state;
    for (int order = 0; order < ORDERS; ++order) {
        rig r = open_emulated(), other = r;
        float *bound;

        fake_set_order((fake_order)order, 77);
        assert_ok(tsr_stream_create(r.device, &other.stream));
        dense_arrays one = make_dense(&d, &r), two = make_dense(&d, &r);
        const tsr_gemm_args first = dense_args(&d, one.a.device, one.b.device, one.c.device);
        const tsr_gemm_args second = dense_args(&d, two.a.device, two.b.device, two.c.device);
        assert_ok(tsr_op_gemm(r.device, &first, r.stream));
        assert_ok(tsr_op_gemm(r.device, &second, other.stream));
        expect_dense(&d, &one, &bound);
        download(&other, &two.c);
        assert_product(TSR_F32, two.c.host, one.c.host, bound, d.k, one.c.count);
        download(&r, &two.c); /* both streams are done */
        memcpy(two.c.host, one.c.host, (size_t)one.c.count * sizeof(float));
        download(&r, &one.c);
        assert_product(TSR_F32, one.c.host, two.c.host, bound, d.k, one.c.count);
        tsr_mem_free(bound);
        free_dense(&r, &one);
        free_dense(&r, &two);
        tsr_stream_destroy(&other.stream);
        close_rig(&r);
    }
}

/* ---- one product per expert
 * ------------------------------------------------------------------- */

enum { BEHIND = 40 /* rows between the last expert's and max_rows: never touched */ };

typedef struct group_case {
    int experts;
    const int64_t *rows; /* of each expert */
    int64_t n, k;
    tsr_grouped_pass pass;
    bool accumulate;
    tsr_dtype dtype;
} group_case;

typedef struct group_arrays {
    array x, y, w;
    int64_t offsets[9];
    void *device_offsets;
} group_arrays;

/* Rows that belong to no expert are NaN: one that gets into a sum shows. */
static void spoil_behind(array *a, int64_t first)
{
    for (int64_t i = first; i < a->count; ++i) {
        if (a->dtype == TSR_F32) {
            ((float *)a->host)[i] = NAN;
        } else {
            ((tsr_bf16 *)a->host)[i] = 0x7fff;
        }
    }
}

static group_arrays make_group(const group_case *g, rig *r)
{
    group_arrays all = {0};

    for (int e = 0; e < g->experts; ++e) {
        all.offsets[e + 1] = all.offsets[e] + g->rows[e];
    }
    const int64_t rows = all.offsets[g->experts], most = rows + BEHIND;
    all.x = make_array(r, g->dtype, most * g->k, 0, 11);
    all.y = make_array(r, g->dtype, most * g->n, 0, 12);
    all.w = make_array(r, g->pass == TSR_GROUPED_WGRAD ? TSR_F32 : g->dtype,
                       g->experts * g->n * g->k, 0, 13);
    spoil_behind(&all.x, rows * g->k);
    spoil_behind(&all.y, rows * g->n);
    upload(r, &all.x);
    upload(r, &all.y);
    upload(r, &all.w);
    assert_ok(tsr_device_alloc(r->device, TSR_MEM_OTHER, sizeof all.offsets, &all.device_offsets));
    assert_ok(tsr_device_copy(r->device, all.device_offsets, all.offsets, sizeof all.offsets,
                              TSR_COPY_HOST_TO_DEVICE, r->stream));
    assert_ok(tsr_stream_wait(r->stream));
    return all;
}

static void free_group(rig *r, group_arrays *all)
{
    free_array(r, &all->x);
    free_array(r, &all->y);
    free_array(r, &all->w);
    tsr_device_free(r->device, all->device_offsets);
}

static tsr_grouped_gemm_args group_args(const group_case *g, const group_arrays *all)
{
    return (tsr_grouped_gemm_args){.pass = g->pass,
                                   .x = all->x.device,
                                   .y = all->y.device,
                                   .w = all->w.device,
                                   .offsets = all->device_offsets,
                                   .max_rows = all->offsets[g->experts] + BEHIND,
                                   .n = g->n,
                                   .k = g->k,
                                   .experts = g->experts,
                                   .accumulate = g->accumulate,
                                   .dtype = g->dtype};
}

static array *output_of(const group_case *g, group_arrays *all)
{
    return g->pass == TSR_GROUPED_FORWARD ? &all->y
           : g->pass == TSR_GROUPED_DGRAD ? &all->x
                                          : &all->w;
}

/* The twin's result in place of the output on the host, and the bound. */
static void expect_group(const group_case *g, group_arrays *all, float **bound_out)
{
    rig plain = open_plain();
    tsr_grouped_gemm_args args = group_args(g, all);
    float *wide[3] = {absolute(&all->x), absolute(&all->y), absolute(&all->w)};
    const int out = g->pass == TSR_GROUPED_FORWARD ? 1 : g->pass == TSR_GROUPED_DGRAD ? 0 : 2;

    args.offsets = all->offsets;
    args.x = wide[0];
    args.y = wide[1];
    args.w = wide[2];
    args.dtype = TSR_F32;
    assert_ok(tsr_op_grouped_gemm(plain.device, &args, plain.stream));
    args.x = all->x.host;
    args.y = all->y.host;
    args.w = all->w.host;
    args.dtype = g->dtype;
    assert_ok(tsr_op_grouped_gemm(plain.device, &args, plain.stream));
    for (int i = 0; i < 3; ++i) {
        if (i != out) {
            tsr_mem_free(wide[i]);
        }
    }
    *bound_out = wide[out];
    close_rig(&plain);
}

/* Emulated GPUs are of sm_80; Hopper has kernels of its own. */
static void pretend(rig *r, int architecture)
{
    tsr_cuda_device *const device = (tsr_cuda_device *)r->device;

    tsr_cuda_grouped_close(device);
    device->architecture = architecture;
    assert_ok(tsr_cuda_grouped_open(device));
}

/* Run once; the output replaces the host's. */
static group_arrays run_group(const group_case *g, rig *r)
{
    group_arrays all = make_group(g, r);
    const tsr_grouped_gemm_args args = group_args(g, &all);

    assert_ok(tsr_op_grouped_gemm(r->device, &args, r->stream));
    download(r, output_of(g, &all));
    return all;
}

/* All orders of threads give the same bits. */
static void check_group(const group_case *g, rig *r)
{
    group_arrays expected = make_group(g, r);
    array *const twin = output_of(g, &expected);
    const int64_t depth = g->pass == TSR_GROUPED_FORWARD ? g->k
                          : g->pass == TSR_GROUPED_DGRAD ? g->n
                                                         : expected.offsets[g->experts];
    float *bound;

    expect_group(g, &expected, &bound);
    for (int order = 0; order < ORDERS; ++order) {
        fake_set_order((fake_order)order, 77);
        group_arrays all = run_group(g, r);
        const array *const out = output_of(g, &all);

        if (order == 0) {
            assert_product(out->dtype, out->host, twin->host, bound, depth, out->count);
            memcpy(twin->host, out->host, (size_t)out->count * tsr_dtype_bytes(out->dtype));
        }
        assert_memory_equal(out->host, twin->host,
                            (size_t)out->count * tsr_dtype_bytes(out->dtype));
        free_group(r, &all);
    }
    tsr_mem_free(bound);
    free_group(r, &expected);
}

static const int64_t even_rows[] = {32, 32, 32}, uneven_rows[] = {0, 176, 16, 0, 48};
static const int64_t hot_rows[] = {0, 528, 16}, no_rows[] = {0, 0};

static const struct group_sizes {
    int experts;
    const int64_t *rows;
    int64_t n, k;
} group_sizes[] = {{3, even_rows, 40, 24}, {5, uneven_rows, 96, 33},   {5, uneven_rows, 72, 264},
                   {2, no_rows, 8, 16},    {3, hot_rows, 150, 20},     {3, hot_rows, 152, 24},
                   {1, hot_rows, 8, 8},    {3, even_rows, 264, 8 * 49}};

static void check_groups(tsr_dtype dtype, int architecture)
{
    rig r = open_emulated();

    pretend(&r, architecture);
    for (size_t s = 0; s < sizeof group_sizes / sizeof *group_sizes; ++s) {
        for (int pass = 0; pass < 4; ++pass) { /* the fourth: an accumulated weight gradient */
            const group_case g = {.experts = group_sizes[s].experts,
                                  .rows = group_sizes[s].rows,
                                  .n = group_sizes[s].n,
                                  .k = group_sizes[s].k,
                                  .pass = pass == 3 ? TSR_GROUPED_WGRAD : (tsr_grouped_pass)pass,
                                  .accumulate = pass == 3,
                                  .dtype = dtype};
            check_group(&g, &r);
        }
    }
    close_rig(&r);
}

/* On each way of computing experts; the output's memory holds random numbers before. */
static void experts_without_rows_get_a_gradient_of_zero(void **state)
{
    static const int64_t rows[] = {0, 32, 0};
    static const struct {
        tsr_dtype dtype;
        int architecture;
        int64_t k; /* odd: the plain kernel */
    } ways[] = {{TSR_F32, 80, 40}, {TSR_BF16, 80, 40}, {TSR_BF16, 80, 33}, {TSR_BF16, 90, 40}};

    (void)state;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; ++i) {
        rig r = open_emulated();

        pretend(&r, ways[i].architecture);
        for (int experts = 1; experts <= 3; ++experts) { /* with one, there are no rows at all */
            const group_case g = {.experts = experts,
                                  .rows = rows,
                                  .n = 24,
                                  .k = ways[i].k,
                                  .pass = TSR_GROUPED_WGRAD,
                                  .dtype = ways[i].dtype};
            group_arrays all = run_group(&g, &r);
            const float *w = (const float *)all.w.host;

            for (int64_t at = 0; at < experts * g.n * g.k; ++at) {
                assert_true((w[at] == 0.0f) == (rows[at / (g.n * g.k)] == 0));
            }
            free_group(&r, &all);
        }
        close_rig(&r);
    }
}

static void experts_match_the_twin_in_f32(void **state)
{
    (void)state;
    check_groups(TSR_F32, 80);
}

static void experts_match_the_twin_in_bf16_by_mma(void **state)
{
    (void)state;
    check_groups(TSR_BF16, 80);
}

static void experts_match_the_twin_in_bf16_on_hopper(void **state)
{
    (void)state;
    check_groups(TSR_BF16, 90);
}

/* ---- the fake itself
 * -------------------------------------------------------------------------- */

typedef struct library {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t square; /* f32 [16, 16] */
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found[4];
    int count;
} library;

static library open_library(void)
{
    library l = {0};
    const uint64_t workspace = 1 << 20;

    assert_int_equal(cublasLtCreate(&l.handle), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtMatmulDescCreate(&l.product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                     CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtMatrixLayoutCreate(&l.square, CUDA_R_32F, 16, 16, 16),
                     CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtMatmulPreferenceCreate(&l.preference), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtMatmulPreferenceSetAttribute(l.preference,
                                                          CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                          &workspace, sizeof workspace),
                     CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtMatmulAlgoGetHeuristic(l.handle, l.product, l.square, l.square,
                                                    l.square, l.square, l.preference, 4, l.found,
                                                    &l.count),
                     CUBLAS_STATUS_SUCCESS);
    assert_int_equal(l.count, 3);
    return l;
}

static void close_library(library *l)
{
    assert_int_equal(cublasLtMatmulPreferenceDestroy(l->preference), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtMatrixLayoutDestroy(l->square), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtMatmulDescDestroy(l->product), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasLtDestroy(l->handle), CUBLAS_STATUS_SUCCESS);
}

static cublasStatus_t multiply(const library *l, const void *a, void *c,
                               cublasLtMatrixLayout_t layout, int found, size_t workspace_bytes,
                               const rig *r)
{
    const float one = 1.0f, zero = 0.0f;

    return cublasLtMatmul(l->handle, l->product, &one, a, l->square, a, l->square, &zero, c, layout,
                          c, layout, &l->found[found].algo, c, workspace_bytes,
                          tsr_cuda_stream_of(r->stream));
}

static void the_fake_refuses_what_the_library_refuses(void **state)
{
    rig r = open_emulated();
    library l = open_library();
    array a = make_array(&r, TSR_F32, 256, 0, 1), c = make_array(&r, TSR_F32, 1024, 0, 2);
    cublasLtMatrixLayout_t wide, narrow;
    const size_t split_bytes = l.found[1].workspaceSize;

    (void)state;
    assert_int_equal(cublasLtMatrixLayoutCreate(&wide, CUDA_R_32F, 16, 16, 20), 0);
    assert_int_equal(cublasLtMatrixLayoutCreate(&narrow, CUDA_R_32F, 16, 16, 15), 0);
    assert_int_equal(multiply(&l, a.device, c.device, l.square, 0, 0, &r), CUBLAS_STATUS_SUCCESS);
    /* host memory; a matrix that ends outside of its block; less aligned than was asked for */
    assert_int_equal(multiply(&l, a.host, c.device, l.square, 0, 0, &r),
                     CUBLAS_STATUS_EXECUTION_FAILED);
    assert_int_equal(multiply(&l, (float *)a.device + 4, c.device, l.square, 0, 0, &r),
                     CUBLAS_STATUS_EXECUTION_FAILED);
    assert_int_equal(multiply(&l, a.device, (float *)c.device + 1, l.square, 0, 0, &r),
                     CUBLAS_STATUS_NOT_SUPPORTED);
    /* an algorithm of another problem; rows beyond the stride; too little workspace, or
     * elsewhere */
    assert_int_equal(multiply(&l, a.device, c.device, wide, 0, 0, &r), CUBLAS_STATUS_NOT_SUPPORTED);
    assert_int_equal(multiply(&l, a.device, c.device, narrow, 0, 0, &r),
                     CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(multiply(&l, a.device, c.device, l.square, 1, split_bytes - 1, &r),
                     CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(multiply(&l, a.device, c.device, l.square, 1, (size_t)1 << 30, &r),
                     CUBLAS_STATUS_EXECUTION_FAILED);
    assert_int_equal(cublasLtMatrixLayoutDestroy(wide), 0);
    assert_int_equal(cublasLtMatrixLayoutDestroy(narrow), 0);
    free_array(&r, &a);
    free_array(&r, &c);
    close_library(&l);
    close_rig(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_products_match_the_twin),
        cmocka_unit_test(reserved_products_take_no_memory),
        cmocka_unit_test(products_on_two_streams_share_the_workspace),
        cmocka_unit_test(experts_match_the_twin_in_f32),
        cmocka_unit_test(experts_without_rows_get_a_gradient_of_zero),
        cmocka_unit_test(experts_match_the_twin_in_bf16_by_mma),
        cmocka_unit_test(experts_match_the_twin_in_bf16_on_hopper),
        cmocka_unit_test(the_fake_refuses_what_the_library_refuses),
    };

    return tsr_unit_test_main("cuda.gemm", tests, sizeof tests / sizeof *tests);
}
