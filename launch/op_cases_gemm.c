/* Dense products (queries, keys and values) and products of experts, at the sizes of the device's
 * model and of the quickstart model (width 192, 8 experts of 256). */
#include "launch/op_cases.h"

enum { MOST_EXPERTS = 64 };

static tsr_status setup_gemm(job *j, int64_t m, int64_t n, int64_t k, bool trans_a, bool trans_b)
{
    tsr_gemm_args *g = &j->args.gemm;
    void *a = NULL, *b = NULL, *c = NULL;

    *g = (tsr_gemm_args){.m = job_size(j, m, 65),
                         .n = job_size(j, n, 48),
                         .k = job_size(j, k, 33),
                         .trans_a = trans_a,
                         .trans_b = trans_b,
                         .dtype = j->dtype,
                         .c_dtype = trans_a ? TSR_F32 : j->dtype};
    g->lda = trans_a ? g->m : g->k;
    g->ldb = trans_b ? g->k : g->n;
    g->ldc = g->n;
    TSR_TRY(job_block(j, j->dtype, g->m * g->k, 1.0f, &a));
    TSR_TRY(job_block(j, j->dtype, g->k * g->n, 1.0f, &b));
    TSR_TRY(job_block(j, g->c_dtype, g->m * g->n, 0.0f, &c));
    g->a = a;
    g->b = b;
    g->c = c;
    job_output(j, c, g->c_dtype, g->m * g->n);
    return tsr_op_gemm_reserve(j->device, g);
}

static int64_t qkv_width(const job *j)
{
    return (int64_t)(j->sizes->heads + 2 * j->sizes->kv_heads) * j->sizes->head_dim;
}

static tsr_status setup_forward(job *j)
{
    return setup_gemm(j, job_tokens(j, 65), qkv_width(j), j->sizes->width, false, true);
}

static tsr_status setup_dgrad(job *j)
{
    return setup_gemm(j, job_tokens(j, 65), j->sizes->width, qkv_width(j), false, false);
}

static tsr_status setup_wgrad(job *j)
{
    return setup_gemm(j, qkv_width(j), j->sizes->width, job_tokens(j, 33), true, false);
}

static tsr_status run_gemm(job *j)
{
    return tsr_op_gemm(j->device, &j->args.gemm, j->stream);
}

/* Rows of the experts: from half to one and a half of the mean, as a balanced router leaves
 * them. */
static void fill_offsets(int64_t *offsets, int experts, int64_t mean)
{
    offsets[0] = 0;
    for (int e = 0; e < experts; ++e) {
        const double share = 0.5 + tsr_rng_uniform(31, (uint64_t)e);
        const int64_t rows = (int64_t)(share * (double)mean) / TSR_ROW_ALIGN * TSR_ROW_ALIGN;

        offsets[e + 1] = offsets[e] + rows;
    }
}

static tsr_status setup_grouped(job *j, tsr_grouped_pass pass, int experts, int64_t n, int64_t k,
                                int64_t mean)
{
    tsr_grouped_gemm_args *g = &j->args.grouped;
    const tsr_dtype w_dtype = pass == TSR_GROUPED_WGRAD ? TSR_F32 : j->dtype;
    int64_t offsets[MOST_EXPERTS + 1];
    void *far = NULL;

    *g = (tsr_grouped_gemm_args){.pass = pass,
                                 .n = job_size(j, n, 48),
                                 .k = job_size(j, k, 40),
                                 .experts = (int)job_size(j, experts, 3),
                                 .dtype = j->dtype};
    fill_offsets(offsets, g->experts, job_size(j, mean, 64));
    TSR_TRY(job_copy(j, offsets, (size_t)(g->experts + 1) * sizeof *offsets, &far));
    g->offsets = far;
    g->max_rows = offsets[g->experts];
    TSR_TRY(job_block(j, j->dtype, g->max_rows * g->k, 1.0f, &g->x));
    TSR_TRY(job_block(j, j->dtype, g->max_rows * g->n, 1.0f, &g->y));
    TSR_TRY(job_block(j, w_dtype, g->experts * g->n * g->k, 1.0f, &g->w));
    if (pass == TSR_GROUPED_FORWARD) {
        job_output(j, g->y, j->dtype, g->max_rows * g->n);
    } else if (pass == TSR_GROUPED_DGRAD) {
        job_output(j, g->x, j->dtype, g->max_rows * g->k);
    } else {
        job_output(j, g->w, TSR_F32, g->experts * g->n * g->k);
    }
    return tsr_op_grouped_gemm_reserve(j->device, g);
}

/* gate_up and down are the two matrices of an expert. */
static tsr_status setup_gate_up(job *j, tsr_grouped_pass pass)
{
    const op_sizes *z = j->sizes;

    return setup_grouped(j, pass, z->experts, 2 * z->expert_width, z->width,
                         job_tokens(j, 64) * z->top_k / z->experts);
}

static tsr_status setup_down(job *j, tsr_grouped_pass pass)
{
    const op_sizes *z = j->sizes;

    return setup_grouped(j, pass, z->experts, z->width, z->expert_width,
                         job_tokens(j, 64) * z->top_k / z->experts);
}

static tsr_status setup_small_gate_up(job *j, tsr_grouped_pass pass)
{
    return setup_grouped(j, pass, 8, 512, 192, 256);
}

static tsr_status setup_small_down(job *j, tsr_grouped_pass pass)
{
    return setup_grouped(j, pass, 8, 192, 256, 256);
}

#define GROUPED_SETUPS(name_)                                                                      \
    static tsr_status name_##_forward(job *j)                                                      \
    {                                                                                              \
        return setup_##name_(j, TSR_GROUPED_FORWARD);                                              \
    }                                                                                              \
    static tsr_status name_##_dgrad(job *j)                                                        \
    {                                                                                              \
        return setup_##name_(j, TSR_GROUPED_DGRAD);                                                \
    }                                                                                              \
    static tsr_status name_##_wgrad(job *j)                                                        \
    {                                                                                              \
        return setup_##name_(j, TSR_GROUPED_WGRAD);                                                \
    }
GROUPED_SETUPS(gate_up)
GROUPED_SETUPS(down)
GROUPED_SETUPS(small_gate_up)
GROUPED_SETUPS(small_down)

static tsr_status run_grouped(job *j)
{
    return tsr_op_grouped_gemm(j->device, &j->args.grouped, j->stream);
}

const op_case *op_cases_gemm(int *count_out)
{
    static const op_case cases[] = {
        {"gemm_forward", "gemm", false, setup_forward, run_gemm},
        {"gemm_dgrad", "gemm", false, setup_dgrad, run_gemm},
        {"gemm_wgrad", "gemm", false, setup_wgrad, run_gemm},
        {"gate_up_forward", "grouped_gemm", false, gate_up_forward, run_grouped},
        {"gate_up_dgrad", "grouped_gemm", false, gate_up_dgrad, run_grouped},
        {"gate_up_wgrad", "grouped_gemm", false, gate_up_wgrad, run_grouped},
        {"down_forward", "grouped_gemm", false, down_forward, run_grouped},
        {"down_dgrad", "grouped_gemm", false, down_dgrad, run_grouped},
        {"down_wgrad", "grouped_gemm", false, down_wgrad, run_grouped},
        {"small_gate_up_forward", "grouped_gemm", false, small_gate_up_forward, run_grouped},
        {"small_gate_up_dgrad", "grouped_gemm", false, small_gate_up_dgrad, run_grouped},
        {"small_gate_up_wgrad", "grouped_gemm", false, small_gate_up_wgrad, run_grouped},
        {"small_down_forward", "grouped_gemm", false, small_down_forward, run_grouped},
        {"small_down_dgrad", "grouped_gemm", false, small_down_dgrad, run_grouped},
        {"small_down_wgrad", "grouped_gemm", false, small_down_wgrad, run_grouped},
    };

    *count_out = sizeof cases / sizeof *cases;
    return cases;
}
