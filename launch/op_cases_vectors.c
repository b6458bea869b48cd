/* Vectors, the optimizer's step, and the two ends of the model. */
#include "launch/op_cases.h"

static tsr_status setup_vector(job *j)
{
    const int64_t count = job_size(j, j->sizes->vector, 5000);

    j->args.vector.count = count;
    TSR_TRY(job_block(j, TSR_F32, count, 1.0f, &j->args.vector.x));
    TSR_TRY(job_block(j, TSR_F32, count, 1.0f, &j->args.vector.y));
    return job_block(j, TSR_F32, 2, 0.0f, &j->args.vector.sum);
}

static tsr_status setup_convert(job *j)
{
    TSR_TRY(setup_vector(j));
    job_output(j, j->args.vector.y, TSR_BF16, j->args.vector.count);
    return TSR_OK;
}

static tsr_status run_convert(job *j)
{
    return tsr_op_convert(j->device, j->args.vector.x, TSR_F32, j->args.vector.y, TSR_BF16,
                          j->args.vector.count, j->stream);
}

static tsr_status setup_add(job *j)
{
    TSR_TRY(setup_vector(j));
    job_output(j, j->args.vector.y, TSR_F32, j->args.vector.count);
    return TSR_OK;
}

static tsr_status run_add(job *j)
{
    return tsr_op_add_f32(j->device, j->args.vector.x, j->args.vector.y, j->args.vector.count,
                          j->stream);
}

static tsr_status setup_sum_squares(job *j)
{
    TSR_TRY(setup_vector(j));
    job_output_f64(j, j->args.vector.sum, 1);
    return TSR_OK;
}

static tsr_status run_sum_squares(job *j)
{
    return tsr_op_sum_squares(j->device, j->args.vector.x, j->args.vector.count, j->args.vector.sum,
                              j->stream);
}

static tsr_status setup_adamw(job *j)
{
    tsr_adamw_args *a = &j->args.adamw;
    void *grad = NULL;

    *a = (tsr_adamw_args){.count = job_size(j, j->sizes->parameters, 5000),
                          .lr = 1e-3f,
                          .beta1 = 0.9f,
                          .beta2 = 0.95f,
                          .eps = 1e-8f,
                          .decay = 0.1f,
                          .grad_scale = 1.0f,
                          .step = 10,
                          .work_dtype = j->dtype,
                          .moment_dtype = j->dtype};
    TSR_TRY(job_block(j, TSR_F32, a->count, 1.0f, &a->master));
    TSR_TRY(job_block(j, a->moment_dtype, a->count, 0.1f, &a->m));
    TSR_TRY(job_block(j, a->moment_dtype, a->count, 0.0f, &a->v));
    TSR_TRY(job_block(j, TSR_F32, a->count, 1.0f, &grad));
    TSR_TRY(job_block(j, a->work_dtype, a->count, 0.0f, &a->work));
    a->grad = grad;
    job_output(j, a->master, TSR_F32, a->count);
    job_output(j, a->m, a->moment_dtype, a->count);
    job_output(j, a->v, a->moment_dtype, a->count);
    job_output(j, a->work, a->work_dtype, a->count);
    return TSR_OK;
}

static tsr_status run_adamw(job *j)
{
    return tsr_op_adamw(j->device, &j->args.adamw, j->stream);
}

static tsr_status fill_tokens(job *j, int64_t count, int64_t vocab, const int32_t **out)
{
    int32_t *token = NULL;
    void *far = NULL;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, count, sizeof *token, (void **)&token));
    for (int64_t t = 0; t < count; ++t) {
        token[t] = (int32_t)(tsr_rng_uniform(41, (uint64_t)t) * (double)vocab);
    }
    const tsr_status st = job_copy(j, token, (size_t)count * sizeof *token, &far);
    tsr_mem_free(token);
    *out = far;
    return st;
}

static tsr_status setup_embedding(job *j)
{
    tsr_embedding_args *e = &j->args.embedding;
    void *table = NULL, *dx = NULL;

    *e = (tsr_embedding_args){.tokens = job_tokens(j, 50),
                              .vocab = job_size(j, j->sizes->vocab, 40),
                              .width = job_size(j, j->sizes->width, 33),
                              .dtype = j->dtype,
                              .accumulate = true};
    TSR_TRY(fill_tokens(j, e->tokens, e->vocab, &e->token));
    TSR_TRY(job_block(j, j->dtype, e->vocab * e->width, 1.0f, &table));
    TSR_TRY(job_block(j, TSR_F32, e->tokens * e->width, 1.0f, &dx));
    TSR_TRY(job_block(j, TSR_F32, e->tokens * e->width, 0.0f, &e->x));
    TSR_TRY(job_block(j, TSR_F32, e->vocab * e->width, 0.0f, &e->dtable));
    e->table = table;
    e->dx = dx;
    return TSR_OK;
}

static tsr_status setup_embedding_forward(job *j)
{
    TSR_TRY(setup_embedding(j));
    job_output(j, j->args.embedding.x, TSR_F32, j->args.embedding.tokens * j->args.embedding.width);
    return TSR_OK;
}

static tsr_status setup_embedding_backward(job *j)
{
    TSR_TRY(setup_embedding(j));
    job_output(j, j->args.embedding.dtable, TSR_F32,
               j->args.embedding.vocab * j->args.embedding.width);
    return TSR_OK;
}

static tsr_status run_embedding_forward(job *j)
{
    return tsr_op_embedding_forward(j->device, &j->args.embedding, j->stream);
}

static tsr_status run_embedding_backward(job *j)
{
    return tsr_op_embedding_backward(j->device, &j->args.embedding, j->stream);
}

static tsr_status setup_entropy(job *j, int64_t rows, int64_t vocab)
{
    tsr_cross_entropy_args *c = &j->args.cross_entropy;
    void *logits = NULL;

    *c = (tsr_cross_entropy_args){.rows = job_size(j, rows, 9),
                                  .vocab = job_size(j, vocab, 301),
                                  .grad_scale = 1.0f,
                                  .dtype = j->dtype};
    TSR_TRY(fill_tokens(j, c->rows, c->vocab, &c->target));
    TSR_TRY(job_block(j, TSR_F32, c->rows * c->vocab, 3.0f, &logits));
    TSR_TRY(job_block(j, TSR_F32, c->rows, 0.0f, &c->loss));
    TSR_TRY(job_block(j, j->dtype, c->rows * c->vocab, 0.0f, &c->dlogits));
    c->logits = logits;
    job_output(j, c->loss, TSR_F32, c->rows);
    job_output(j, c->dlogits, j->dtype, c->rows * c->vocab);
    return TSR_OK;
}

static tsr_status setup_cross_entropy(job *j)
{
    return setup_entropy(j, j->sizes->entropy_rows, j->sizes->vocab);
}

static tsr_status setup_cross_entropy_32k(job *j)
{
    return setup_entropy(j, 128, 32000);
}

static tsr_status run_cross_entropy(job *j)
{
    return tsr_op_cross_entropy(j->device, &j->args.cross_entropy, j->stream);
}

const op_case *op_cases_vectors(int *count_out)
{
    static const op_case cases[] = {
        {"convert_to_bf16", "convert", true, setup_convert, run_convert},
        {"add_f32", "add_f32", true, setup_add, run_add},
        {"sum_squares", "sum_squares", true, setup_sum_squares, run_sum_squares},
        {"adamw", "adamw", false, setup_adamw, run_adamw},
        {"embedding_forward", "embedding_forward", false, setup_embedding_forward,
         run_embedding_forward},
        {"embedding_backward", "embedding_backward", true, setup_embedding_backward,
         run_embedding_backward},
        {"cross_entropy", "cross_entropy", false, setup_cross_entropy, run_cross_entropy},
        {"cross_entropy_32k", "cross_entropy", false, setup_cross_entropy_32k, run_cross_entropy},
    };

    *count_out = sizeof cases / sizeof *cases;
    return cases;
}
