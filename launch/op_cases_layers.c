/* Norm, position, activation and attention, at the sizes of the device's model, and attention of
 * the quickstart model (4 sequences of 256, 6 heads of 32). */
#include "launch/op_cases.h"

#include <math.h>

static tsr_status setup_rmsnorm(job *j)
{
    tsr_rmsnorm_args *n = &j->args.rmsnorm;
    void *x = NULL, *weight = NULL, *dy = NULL;

    *n = (tsr_rmsnorm_args){.rows = job_tokens(j, 33),
                            .width = job_size(j, j->sizes->width, 70),
                            .eps = 1e-5f,
                            .dtype = j->dtype};
    TSR_TRY(job_block(j, TSR_F32, n->rows * n->width, 1.0f, &x));
    TSR_TRY(job_block(j, TSR_F32, n->width, 1.0f, &weight));
    TSR_TRY(job_block(j, TSR_F32, n->rows * n->width, 1.0f, &dy));
    TSR_TRY(job_block(j, j->dtype, n->rows * n->width, 0.0f, &n->y));
    TSR_TRY(job_block(j, TSR_F32, n->rows, 0.0f, &n->rstd));
    TSR_TRY(job_block(j, TSR_F32, n->rows * n->width, 0.0f, &n->dx));
    TSR_TRY(job_block(j, TSR_F32, n->width, 0.0f, &n->dweight));
    n->x = x;
    n->weight = weight;
    n->dy = dy;
    job_output(j, n->y, j->dtype, n->rows * n->width);
    job_output(j, n->dx, TSR_F32, n->rows * n->width);
    job_output(j, n->dweight, TSR_F32, n->width);
    return tsr_op_rmsnorm_forward(j->device, n, j->stream); /* backward reads rstd */
}

static tsr_status run_rmsnorm_forward(job *j)
{
    return tsr_op_rmsnorm_forward(j->device, &j->args.rmsnorm, j->stream);
}

static tsr_status run_rmsnorm_backward_input(job *j)
{
    return tsr_op_rmsnorm_backward_input(j->device, &j->args.rmsnorm, j->stream);
}

static tsr_status run_rmsnorm_backward_weight(job *j)
{
    return tsr_op_rmsnorm_backward_weight(j->device, &j->args.rmsnorm, j->stream);
}

static tsr_status setup_rope(job *j)
{
    tsr_rope_args *r = &j->args.rope;
    float *table = NULL; /* of cosines, then of sines */
    void *cosine = NULL, *sine = NULL;

    *r = (tsr_rope_args){.tokens = job_tokens(j, 20),
                         .seq_len = job_size(j, j->sizes->seq_len, 10),
                         .heads = j->sizes->heads + j->sizes->kv_heads,
                         .head_dim = (int)job_size(j, j->sizes->head_dim, 36),
                         .dtype = j->dtype};
    /* values behind queries and keys */
    r->row_stride = (int64_t)(r->heads + j->sizes->kv_heads) * r->head_dim;
    const int64_t angles = r->seq_len * r->head_dim / 2;
    TSR_TRY(job_block(j, j->dtype, r->tokens * r->row_stride, 1.0f, &r->x));
    job_output(j, r->x, j->dtype, r->tokens * r->row_stride);
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, 2 * angles, sizeof *table, (void **)&table));
    for (int64_t i = 0; i < angles; ++i) {
        table[i] = cosf((float)i);
        table[angles + i] = sinf((float)i);
    }
    tsr_status st = job_copy(j, table, (size_t)angles * sizeof *table, &cosine);
    if (st == TSR_OK) {
        st = job_copy(j, table + angles, (size_t)angles * sizeof *table, &sine);
    }
    tsr_mem_free(table);
    r->cosine = cosine;
    r->sine = sine;
    return st;
}

static tsr_status run_rope(job *j)
{
    return tsr_op_rope(j->device, &j->args.rope, j->stream);
}

static tsr_status setup_swiglu(job *j)
{
    tsr_swiglu_args *s = &j->args.swiglu;
    void *gate_up = NULL, *row_weight = NULL, *dh = NULL;

    *s = (tsr_swiglu_args){.rows = job_size(j, job_tokens(j, 0) * j->sizes->top_k, 20),
                           .width = job_size(j, j->sizes->expert_width, 70),
                           .dtype = j->dtype};
    TSR_TRY(job_block(j, j->dtype, s->rows * s->width * 2, 1.0f, &gate_up));
    TSR_TRY(job_block(j, TSR_F32, s->rows, 1.0f, &row_weight));
    TSR_TRY(job_block(j, j->dtype, s->rows * s->width, 1.0f, &dh));
    TSR_TRY(job_block(j, j->dtype, s->rows * s->width, 0.0f, &s->h));
    TSR_TRY(job_block(j, j->dtype, s->rows * s->width * 2, 0.0f, &s->dgate_up));
    TSR_TRY(job_block(j, TSR_F32, s->rows, 0.0f, &s->drow_weight));
    s->gate_up = gate_up;
    s->row_weight = row_weight;
    s->dh = dh;
    job_output(j, s->h, j->dtype, s->rows * s->width);
    job_output(j, s->dgate_up, j->dtype, s->rows * s->width * 2);
    job_output(j, s->drow_weight, TSR_F32, s->rows);
    return TSR_OK;
}

static tsr_status run_swiglu_forward(job *j)
{
    return tsr_op_swiglu_forward(j->device, &j->args.swiglu, j->stream);
}

static tsr_status run_swiglu_backward(job *j)
{
    return tsr_op_swiglu_backward(j->device, &j->args.swiglu, j->stream);
}

/* Rows hold the queries, keys and values of a token, as the attention layer has them. */
static tsr_status setup_attention(job *j, int64_t batch, int64_t q_len, int64_t kv_len, int heads,
                                  int kv_heads, int head_dim)
{
    tsr_attention_args *a = &j->args.attention;
    const int64_t at_k = (int64_t)heads * head_dim, at_v = at_k + (int64_t)kv_heads * head_dim;
    const int64_t row = at_v + (int64_t)kv_heads * head_dim;
    const int64_t queries = batch * q_len * at_k, bytes = (int64_t)tsr_dtype_bytes(j->dtype);
    char *qkv = NULL, *dqkv = NULL;
    void *dout = NULL;

    TSR_TRY(job_block(j, j->dtype, batch * kv_len * row, 1.0f, &qkv));
    TSR_TRY(job_block(j, j->dtype, batch * kv_len * row, 0.0f, &dqkv));
    TSR_TRY(job_block(j, j->dtype, queries, 1.0f, &dout));
    *a = (tsr_attention_args){
        .q = qkv,
        .k = qkv + at_k * bytes,
        .v = qkv + at_v * bytes,
        .batch = batch,
        .q_len = q_len,
        .kv_len = kv_len,
        .q_stride = row,
        .kv_stride = row,
        .out_stride = at_k,
        .q_batch_stride = kv_len * row,
        .kv_batch_stride = kv_len * row,
        .out_batch_stride = q_len * at_k,
        .heads = heads,
        .kv_heads = kv_heads,
        .head_dim = head_dim,
        .scale = 1.0f / sqrtf((float)head_dim),
        .dtype = j->dtype,
        .dout = dout,
        .dq = dqkv,
        .dk = dqkv + at_k * bytes,
        .dv = dqkv + at_v * bytes,
    };
    TSR_TRY(job_block(j, j->dtype, queries, 0.0f, &a->out));
    TSR_TRY(job_block(j, TSR_F32, batch * heads * q_len, 0.0f, &a->lse));
    job_output(j, a->out, j->dtype, queries);
    job_output(j, dqkv, j->dtype, batch * kv_len * row);
    TSR_TRY(tsr_op_attention_reserve(j->device, a));
    return tsr_op_attention_forward(j->device, a, j->stream); /* backward reads out and lse */
}

static tsr_status setup_attention_model(job *j)
{
    const op_sizes *z = j->sizes;
    const int64_t length = job_size(j, z->seq_len, 70);

    return setup_attention(j, job_size(j, z->batch, 2), length, length,
                           (int)job_size(j, z->heads, 4), (int)job_size(j, z->kv_heads, 2),
                           (int)job_size(j, z->head_dim, 64));
}

static tsr_status setup_attention_quickstart(job *j)
{
    const int64_t length = job_size(j, 256, 70);

    return setup_attention(j, job_size(j, 4, 2), length, length, 6, 6, 32);
}

static tsr_status setup_attention_generate(job *j)
{
    const op_sizes *z = j->sizes;

    return setup_attention(j, 1, 1, job_size(j, z->seq_len, 70), z->heads, z->kv_heads,
                           z->head_dim);
}

static tsr_status run_attention_forward(job *j)
{
    return tsr_op_attention_forward(j->device, &j->args.attention, j->stream);
}

static tsr_status run_attention_backward(job *j)
{
    return tsr_op_attention_backward(j->device, &j->args.attention, j->stream);
}

const op_case *op_cases_layers(int *count_out)
{
    static const op_case cases[] = {
        {"rmsnorm_forward", "rmsnorm_forward", false, setup_rmsnorm, run_rmsnorm_forward},
        {"rmsnorm_backward_input", "rmsnorm_backward_input", true, setup_rmsnorm,
         run_rmsnorm_backward_input},
        {"rmsnorm_backward_weight", "rmsnorm_backward_weight", true, setup_rmsnorm,
         run_rmsnorm_backward_weight},
        {"rope", "rope", false, setup_rope, run_rope},
        {"swiglu_forward", "swiglu_forward", false, setup_swiglu, run_swiglu_forward},
        {"swiglu_backward", "swiglu_backward", false, setup_swiglu, run_swiglu_backward},
        {"attention_forward", "attention_forward", false, setup_attention_model,
         run_attention_forward},
        {"attention_backward", "attention_backward", false, setup_attention_model,
         run_attention_backward},
        {"attention_forward_quickstart", "attention_forward", false, setup_attention_quickstart,
         run_attention_forward},
        {"attention_backward_quickstart", "attention_backward", false, setup_attention_quickstart,
         run_attention_backward},
        {"attention_forward_generate", "attention_forward", false, setup_attention_generate,
         run_attention_forward},
    };

    *count_out = sizeof cases / sizeof *cases;
    return cases;
}
