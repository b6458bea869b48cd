/* Router, sorting and permutation, at the sizes of the device's model. The router's job is the
 * first part of all others. */
#include "launch/op_cases.h"

static tsr_status setup_route(job *j)
{
    tsr_route_args *r = &j->args.route;
    const int64_t seq_len = job_size(j, j->sizes->seq_len, 20), batch = j->sizes->batch;
    const int64_t tokens = batch * seq_len;
    const int experts = j->sizes->experts, top_k = j->sizes->top_k;
    void *logits = NULL, *dweight = NULL;

    *r = (tsr_route_args){.tokens = tokens,
                          .seq_len = seq_len,
                          .experts = experts,
                          .top_k = top_k,
                          .renormalize = true,
                          .scale = 1.0f,
                          .aux_factor = 0.01f,
                          .z_factor = 0.001f};
    TSR_TRY(job_block(j, TSR_F32, tokens * experts, 1.0f, &logits));
    TSR_TRY(job_block(j, TSR_F32, tokens * top_k, 1.0f, &dweight));
    TSR_TRY(job_block(j, TSR_F32, tokens * experts, 0.0f, &r->scores));
    TSR_TRY(job_block(j, TSR_F32, tokens * top_k, 0.0f, &r->index));
    TSR_TRY(job_block(j, TSR_F32, tokens * top_k, 0.0f, &r->weight));
    TSR_TRY(job_block(j, TSR_F32, (int64_t)2 * experts, 0.0f, &r->counts));
    TSR_TRY(job_block(j, TSR_F32, batch * experts, 0.0f, &r->balance));
    TSR_TRY(job_block(j, TSR_F32, batch * experts, 0.0f, &r->score_means));
    TSR_TRY(job_block(j, TSR_F32, tokens, 0.0f, &r->z));
    TSR_TRY(job_block(j, TSR_F32, tokens * experts, 0.0f, &r->dlogits));
    r->logits = logits;
    r->dweight = dweight;
    TSR_TRY(tsr_op_route_forward(j->device, r, j->stream));
    job_output(j, r->scores, TSR_F32, tokens * experts);
    job_output(j, r->weight, TSR_F32, tokens * top_k);
    job_output(j, r->dlogits, TSR_F32, tokens * experts);
    return TSR_OK;
}

static tsr_status run_route_forward(job *j)
{
    return tsr_op_route_forward(j->device, &j->args.route, j->stream);
}

static tsr_status run_route_backward(job *j)
{
    return tsr_op_route_backward(j->device, &j->args.route, j->stream);
}

static tsr_status setup_sort(job *j)
{
    TSR_TRY(setup_route(j));
    const tsr_route_args route = j->args.route;
    tsr_sort_args *s = &j->args.sort;

    *s = (tsr_sort_args){.index = route.index,
                         .weight = route.weight,
                         .tokens = route.tokens,
                         .experts = route.experts,
                         .top_k = route.top_k,
                         .max_rows =
                             route.tokens * route.top_k + (int64_t)route.experts * TSR_ROW_ALIGN};
    TSR_TRY(job_block(j, TSR_F32, (int64_t)2 * (s->experts + 1), 0.0f, &s->offsets));
    TSR_TRY(job_block(j, TSR_F32, route.tokens * route.top_k, 0.0f, &s->row_of));
    TSR_TRY(job_block(j, TSR_F32, s->max_rows, 0.0f, &s->token_of));
    TSR_TRY(job_block(j, TSR_F32, s->max_rows, 0.0f, &s->row_weight));
    j->output_count = 0;
    job_output(j, s->row_weight, TSR_F32, s->max_rows);
    return tsr_op_sort_by_expert(j->device, s, j->stream);
}

static tsr_status run_sort(job *j)
{
    return tsr_op_sort_by_expert(j->device, &j->args.sort, j->stream);
}

static tsr_status setup_permute(job *j)
{
    TSR_TRY(setup_sort(j));
    const tsr_sort_args sort = j->args.sort;
    tsr_permute_args *p = &j->args.permute;
    void *tokens = NULL;

    *p = (tsr_permute_args){.token_of = sort.token_of,
                            .offsets = sort.offsets,
                            .experts = sort.experts,
                            .width = job_size(j, j->sizes->width, 70),
                            .dtype = j->dtype};
    TSR_TRY(job_block(j, j->dtype, sort.tokens * p->width, 1.0f, &tokens));
    TSR_TRY(job_block(j, j->dtype, sort.max_rows * p->width, 0.0f, &p->rows));
    p->tokens = tokens;
    j->output_count = 0;
    job_output(j, p->rows, j->dtype, sort.max_rows * p->width);
    return TSR_OK;
}

static tsr_status run_permute(job *j)
{
    return tsr_op_permute(j->device, &j->args.permute, j->stream);
}

static tsr_status setup_unpermute(job *j)
{
    TSR_TRY(setup_sort(j));
    const tsr_sort_args sort = j->args.sort;
    tsr_unpermute_args *u = &j->args.unpermute;
    void *rows = NULL, *base = NULL;

    *u = (tsr_unpermute_args){.row_of = sort.row_of,
                              .tokens = sort.tokens,
                              .width = job_size(j, j->sizes->width, 70),
                              .top_k = sort.top_k,
                              .dtype = j->dtype};
    TSR_TRY(job_block(j, j->dtype, sort.max_rows * u->width, 1.0f, &rows));
    TSR_TRY(job_block(j, TSR_F32, sort.tokens * u->width, 1.0f, &base));
    TSR_TRY(job_block(j, TSR_F32, sort.tokens * u->width, 0.0f, &u->out));
    u->rows = rows;
    u->base = base;
    j->output_count = 0;
    job_output(j, u->out, TSR_F32, sort.tokens * u->width);
    return TSR_OK;
}

static tsr_status run_unpermute(job *j)
{
    return tsr_op_unpermute(j->device, &j->args.unpermute, j->stream);
}

const op_case *op_cases_route(int *count_out)
{
    static const op_case cases[] = {
        {"route_forward", "route_forward", true, setup_route, run_route_forward},
        {"route_backward", "route_backward", true, setup_route, run_route_backward},
        {"sort_by_expert", "sort_by_expert", true, setup_sort, run_sort},
        {"permute", "permute", false, setup_permute, run_permute},
        {"unpermute", "unpermute", false, setup_unpermute, run_unpermute},
    };

    *count_out = sizeof cases / sizeof *cases;
    return cases;
}
