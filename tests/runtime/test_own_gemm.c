/* Our own kernels of matrix products, called by themselves; test_gemm.c compares them with their
 * twin. */
#include "runtime/cpu/gemm_cache.h"
#include "tests/runtime/op_test.h"

/* More columns than there are tiles for, one pass and more, rows left over of each
 * kind, near and far; sides exchanged, c is written the other way round, with the same bits. */
static void check_sides(const tsr_own_gemm *own, const int64_t size[3], tsr_own_gemm_args p,
                        void *scratch)
{
    const int64_t m = size[0], n = size[1], k = size[2];
    const int64_t stride = tsr_round_up(m, 32); /* lines of c start where memory's do */
    void *a = take_random(p.dtype, m * k, 1, 1.0f), *b = take_random(p.dtype, n * k, 2, 1.0f);
    void *c[2] = {take_random(p.c_dtype, n * stride, 3, 1.0f),
                  take_random(p.c_dtype, n * stride, 3, 1.0f)};

    p.a = (tsr_gemm_side){a, k, 1};
    p.b = (tsr_gemm_side){b, k, 1};
    p.c = c[0];
    p.c_outer_a = 1;
    p.c_outer_b = stride;
    p.m = m;
    p.n = n;
    p.k = k;
    own->run(&p, scratch);
    p = tsr_own_gemm_exchanged(p);
    p.c = c[1];
    own->run(&p, scratch);
    assert_memory_equal(c[0], c[1], (size_t)(n * stride) * tsr_dtype_bytes(p.c_dtype));
    tsr_mem_free(a);
    tsr_mem_free(b);
    tsr_mem_free(c[0]);
    tsr_mem_free(c[1]);
}

static void sides_of_our_kernels_are_alike(void **state)
{
    static const int64_t sizes[][3] = {{250, 2600, 20}, {116, 90, 600},  {231, 33, 64}, {5, 48, 70},
                                       {3, 17, 1030},   {70, 300, 2101}, {40, 700, 900}};
    const int variants = 6 * (int)(sizeof sizes / sizeof *sizes);

    (void)state;
    for (int kernel = 0; kernel < 3; ++kernel) {
        const int dtype = kernel == 2 ? TSR_BF16 : TSR_F32;
        rig r;

        if (!open_named(kernel == 0 ? "cpu:avx512" : "cpu:amx", 1, &r)) {
            continue;
        }
        const tsr_own_gemm *const own = tsr_own_gemm_of(r.device, (tsr_dtype)dtype);
        void *scratch = take(1, own->scratch_bytes);
        for (int variant = 0; variant < variants; ++variant) {
            const int form = variant % 6; /* c: f32, f32 +=, the type of a and b; near, far */
            const tsr_own_gemm_args p = {.dtype = (tsr_dtype)dtype,
                                         .c_dtype = form / 2 == 2 ? (tsr_dtype)dtype : TSR_F32,
                                         .accumulate = form / 2 == 1,
                                         .is_far = form % 2 != 0};

            check_sides(own, sizes[variant / 6], p, scratch);
        }
        tsr_mem_free(scratch);
        close_rig(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sides_of_our_kernels_are_alike)};

    return tsr_unit_test_main("runtime.own_gemm", tests, sizeof tests / sizeof *tests);
}
