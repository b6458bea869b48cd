/* How many copies attention hides, by what this run has measured. */
#include "parallel/moe_impl.h"
#include "parallel/stage_impl.h"

#include <string.h>

enum { ROUNDS = 3 };

/* Each rank's first expert goes to the next rank's first slot: all links at once, as in a step. */
typedef struct ring {
    int32_t *begin, *rank; /* of its holding */
    tsr_holding holding;
    int64_t part_bytes[MOE_PARTS];
} ring;

static tsr_status make_ring(const moe_layer *self, const int32_t *owner, tsr_dtype dtype, ring *r)
{
    const moe_copies *c = self->spread->copies;
    const moe_matrix *const matrices[MOE_PARTS] = {&self->gate_up, &self->down};
    int32_t count = 0;
    void *block = NULL;

    TSR_TRY(
        tsr_mem_alloc_array(TSR_MEM_OTHER, 3 * (int64_t)c->experts + 1, sizeof(int32_t), &block));
    r->begin = block;
    r->rank = r->begin + c->experts + 1;
    for (int e = 0; e < c->experts; ++e) {
        bool is_first = true;

        for (int before = 0; before < e; ++before) {
            is_first = is_first && owner[before] != owner[e];
        }
        r->begin[e] = count;
        r->rank[count++] = owner[e];
        if (is_first) {
            r->rank[count++] = (owner[e] + 1) % c->ranks;
        }
    }
    r->begin[c->experts] = count;
    r->holding = (tsr_holding){c->experts, r->begin, r->rank};
    for (int part = 0; part < MOE_PARTS; ++part) {
        const moe_matrix *m = matrices[part];
        r->part_bytes[part] = m->n * m->k * (int64_t)tsr_dtype_bytes(dtype);
    }
    return TSR_OK;
}

static void list_ring(const moe_layer *self, const tsr_pass *pass, const ring *r)
{
    moe_copies *c = self->spread->copies;
    const moe_matrix *const matrices[MOE_PARTS] = {&self->gate_up, &self->down};
    int64_t own = 0;

    for (int e = 0; e < c->experts; ++e) {
        const bool is_mine = r->rank[r->begin[e]] == c->rank;

        for (int part = 0; part < MOE_PARTS; ++part) {
            char *stack = is_mine ? tsr_weights_value(pass->weights, matrices[part]->param)
                                  : moe_copies_weights(self, pass, matrices[part]);
            c->memory[0][MOE_PARTS * e + part] = stack + (is_mine ? own * r->part_bytes[part] : 0);
        }
        own += is_mine;
    }
}

/* Least time of a turn of the ring, in seconds. */
static tsr_status time_ring(moe_layer *self, const tsr_pass *pass, const ring *r, double *seconds)
{
    moe_copies *c = self->spread->copies;

    list_ring(self, pass, r);
    for (int i = 0; i < ROUNDS; ++i) {
        tsr_sparse_call call = {.holding = &r->holding,
                                .parts = MOE_PARTS,
                                .part_bytes = r->part_bytes,
                                .memory = c->memory[0],
                                .stream = c->stream,
                                .number = -1};

        TSR_TRY(tsr_comm_barrier(c->all));
        const int64_t begin = tsr_trace_clock();
        TSR_TRY(tsr_sparse_start_all_gather(c->sparse, &call)); /* the communicator is its own */
        TSR_TRY(tsr_sparse_wait(&call));
        const double now = 1e-9 * (double)(tsr_trace_clock() - begin);
        *seconds = i == 0 || now < *seconds ? now : *seconds;
    }
    return TSR_OK;
}

tsr_status tsr_stage_measure_budget(tsr_stage *stage, int *budget_out)
{
    const tsr_stage_options *options = &stage->options;
    const int64_t first = options->config->first_k_dense_replace;
    moe_copies *c = stage->spread != NULL ? stage->spread->copies : NULL;
    ring r = {0};
    double seconds = 0.0, budget = 0.0;

    TSR_CHECK(c != NULL && c->free_count > 0, TSR_ERR_STATE,
              "there are no copies, or no step yet, whose time could be measured");
    if (c->slots == 0) { /* swap: nothing comes to a rank, and there is no slot to try it with */
        *budget_out = 0;
        return TSR_OK;
    }
    moe_layer *self = (moe_layer *)stage->layers[2 * first + 1];
    const tsr_pass pass = stage_pass(stage, 1, options->seq_len);
    TSR_TRY(tsr_sparse_wait(&c->fetch));
    tsr_status st = make_ring(self, options->owner + first * c->experts, options->dtype, &r);
    st = tsr_comm_agree(c->all, st);
    if (st == TSR_OK && r.begin != NULL) {
        st = time_ring(self, &pass, &r, &seconds);
    }
    tsr_mem_free(r.begin);
    TSR_TRY(st);
    c->held_layer = -1; /* the first slot has another layer's expert */
    const double bytes = (double)(r.part_bytes[0] + r.part_bytes[1]);
    const double free_s = 1e-9 * (double)c->free_ns / (double)c->free_count;
    budget = tsr_overlap_budget(free_s, bytes / seconds, bytes, c->experts);
    TSR_TRY(tsr_comm_all_reduce_f64(c->all, &budget, 1, TSR_REDUCE_MIN));
    *budget_out = (int)budget < c->slots ? (int)budget : c->slots;
    tsr_planner_set_budget(c->planner, *budget_out);
    return TSR_OK;
}
