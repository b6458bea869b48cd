/* Cases on experts: rows of tokens to them and back, and copies of them. */
#include "launch/comm_cases.h"

#include <string.h>

enum { PERIOD = 61 };

/* Variants: of dispatch, of sparse collectives. */
enum { FLAT = 0, TWO_STAGE = 1, COPIES = 0, SUMS = 1 };

/* ---- who holds what ------------------------------------------------------------------------- */

/* K different experts of each token, every set as likely (Floyd's way of drawing). */
static void draw_lanes(comm_job *j, int64_t tokens)
{
    const uint64_t key = tsr_rng_key((uint64_t)j->rank, "bench comm");
    const int top_k = j->top_k;

    for (int64_t t = 0; t < tokens; ++t) {
        int32_t *chosen = j->lanes + t * top_k;

        for (int k = 0; k < top_k; ++k) {
            const int32_t last = j->experts - top_k + k;
            uint32_t words[4];

            tsr_rng_words(key, (uint64_t)(t * top_k + k), words);
            chosen[k] = (int32_t)(words[0] % (uint32_t)(last + 1));
            for (int before = 0; before < k; ++before) {
                if (chosen[before] == chosen[k]) {
                    chosen[k] = last; /* which no earlier draw could give */
                    break;
                }
            }
        }
    }
    for (int64_t i = 0; i < tokens * top_k; ++i) {
        const int32_t expert = j->lanes[i];

        j->lanes[i] = tsr_lane(j->owner[expert], j->place[expert]);
        j->weights[i] = 1.0f;
    }
}

static bool is_copied(int chunk)
{
    return chunk % 2 == 0;
}

static void list_holders(comm_job *j)
{
    int32_t count = 0;

    for (int chunk = 0; chunk < j->experts; ++chunk) {
        j->holder_begin[chunk] = count;
        j->holders[count++] = j->owner[chunk];
        for (int rank = 0; rank < j->ranks && is_copied(chunk); ++rank) {
            if (rank != j->owner[chunk]) {
                j->holders[count++] = rank;
            }
        }
    }
    j->holder_begin[j->experts] = count;
}

/* ---- what is taken -------------------------------------------------------------------------- */

static tsr_comm *copies_comm(const comm_job *j)
{
    tsr_comm *copies = tsr_mesh_copies(j->mesh);

    return copies != NULL ? copies : j->mesh->expert.flat; /* of one rank: itself */
}

static tsr_status open_dispatch(comm_job *j, int which)
{
    tsr_dispatch_options options = tsr_group_dispatch(&j->mesh->expert, which == TWO_STAGE);

    options.device = j->device;
    options.width = j->hidden;
    options.top_k = j->top_k;
    options.dtype = TSR_F32;
    TSR_TRY(tsr_dispatch_create(&options, &j->dispatch[which]));
    return tsr_dispatch_plan_create(j->dispatch[which], &j->plan[which]);
}

static tsr_status take(int64_t count, size_t bytes, void *out)
{
    return tsr_mem_alloc_array(TSR_MEM_OTHER, count, bytes, out);
}

tsr_status comm_rows_open(comm_job *j)
{
    const int64_t tokens = j->max_bytes / (j->hidden * (int64_t)sizeof(float));
    tsr_comm *copies = copies_comm(j);
    const tsr_sparse_options sparse = {.max_chunks = j->experts,
                                       .max_parts = 1,
                                       .device =
                                           tsr_comm_takes_device_memory(copies) ? j->device : NULL};

    TSR_TRY(take(j->experts, sizeof *j->owner, &j->owner));
    TSR_TRY(take(j->experts, sizeof *j->place, &j->place));
    TSR_TRY(take((int64_t)j->experts * j->ranks, sizeof *j->holders, &j->holders));
    TSR_TRY(take(j->experts + 1, sizeof *j->holder_begin, &j->holder_begin));
    TSR_TRY(take(j->experts, sizeof *j->chunks, &j->chunks));
    TSR_TRY(take(tokens * j->top_k, sizeof *j->lanes, &j->lanes));
    TSR_TRY(take(tokens * j->top_k, sizeof *j->weights, &j->weights));
    tsr_expert_owners_even(1, j->experts, j->ranks, j->owner);
    for (int e = 0; e < j->experts; ++e) { /* owners ascend */
        j->place[e] = e > 0 && j->owner[e] == j->owner[e - 1] ? j->place[e - 1] + 1 : 0;
        j->places = j->place[e] >= j->places ? j->place[e] + 1 : j->places;
    }
    draw_lanes(j, tokens);
    list_holders(j);
    TSR_TRY(open_dispatch(j, FLAT));
    if (j->mesh->expert.host.rail != NULL) {
        TSR_TRY(open_dispatch(j, TWO_STAGE));
    }
    return tsr_sparse_create(copies, NULL, &sparse, &j->sparse);
}

void comm_rows_close(comm_job *j)
{
    tsr_sparse_destroy(&j->sparse);
    for (int which = FLAT; which <= TWO_STAGE; ++which) {
        tsr_dispatch_plan_destroy(&j->plan[which]);
        tsr_dispatch_destroy(&j->dispatch[which]);
    }
    tsr_growing_free_device(j->device, &j->units);
    tsr_growing_free_staging(j->device, &j->fetched);
    tsr_mem_free(j->weights);
    tsr_mem_free(j->lanes);
    tsr_mem_free(j->chunks);
    tsr_mem_free(j->holder_begin);
    tsr_mem_free(j->holders);
    tsr_mem_free(j->place);
    tsr_mem_free(j->owner);
}

/* ---- dispatch and combine ------------------------------------------------------------------- */

static int64_t tokens_of(const comm_job *j)
{
    return j->bytes / (j->hidden * (int64_t)sizeof(float));
}

/* No size in two stages where nodes do not allow them. */
static int64_t fit_rows(const comm_job *j, int64_t bytes)
{
    const int64_t row = j->hidden * (int64_t)sizeof(float);

    return j->dispatch[j->variant] != NULL ? bytes / row * row : 0;
}

/* A row says first which lanes its token has. */
static float row_value(const comm_job *j, int64_t token, int64_t at)
{
    return at < j->top_k ? (float)j->lanes[token * j->top_k + at]
                         : (float)((token + at + j->rank) % PERIOD);
}

static tsr_status wait_rows(comm_job *j)
{
    return tsr_comm_stream_wait(j->comm, j->stream);
}

static tsr_status dispatch_rows(comm_job *j)
{
    TSR_TRY(tsr_dispatch_make(j->dispatch[j->variant], j->plan[j->variant], j->lanes, j->weights,
                              tokens_of(j), j->places, j->stream));
    const int64_t units = tsr_dispatch_plan_view(j->plan[j->variant]).units;
    TSR_TRY(tsr_growing_device(j->device, TSR_MEM_COMM, (size_t)(units * j->hidden) * sizeof(float),
                               &j->units));
    TSR_TRY(tsr_dispatch_rows(j->dispatch[j->variant], j->plan[j->variant], j->memory, true,
                              j->units.memory, j->stream));
    return wait_rows(j);
}

static tsr_status combine_rows(comm_job *j)
{
    TSR_TRY(tsr_dispatch_combine(j->dispatch[j->variant], j->plan[j->variant], j->units.memory,
                                 NULL, (float *)(void *)(j->memory + j->bytes), j->stream));
    return wait_rows(j);
}

static tsr_status prepare_dispatch(comm_job *j)
{
    const tsr_group *group = &j->mesh->expert;
    tsr_comm *flat = group->host.rail == NULL ? group->device.all : group->flat;
    float *values = (float *)(void *)j->host;

    j->comm = j->variant == FLAT ? flat : group->device.rail;
    j->on_device = true; /* rows are device memory, staged where no communicator takes it */
    for (int64_t t = 0; t < tokens_of(j); ++t) {
        for (int64_t at = 0; at < j->hidden; ++at) {
            values[t * j->hidden + at] = row_value(j, t, at);
        }
    }
    return comm_job_send(j, j->bytes);
}

/* The way there first: its plan and rows are what combine starts from. */
static tsr_status prepare_combine(comm_job *j)
{
    TSR_TRY(prepare_dispatch(j));
    return dispatch_rows(j);
}

/* Device memory where the host can read it, until the next call. */
static tsr_status fetch(comm_job *j, const void *from, size_t bytes, const void **out)
{
    *out = from;
    if (tsr_device_is_host(j->device) || bytes == 0) {
        return TSR_OK;
    }
    TSR_TRY(tsr_growing_staging(j->device, TSR_MEM_COMM, bytes, &j->fetched));
    TSR_TRY(tsr_device_copy(j->device, j->fetched.memory, from, bytes, TSR_COPY_DEVICE_TO_HOST,
                            j->stream));
    *out = j->fetched.memory;
    return tsr_stream_wait(j->stream);
}

/* Each unit has a row here for just those of its lanes that lead here. */
static tsr_status check_dispatch(comm_job *j)
{
    const tsr_dispatch_view v = tsr_dispatch_plan_view(j->plan[j->variant]);
    const int top_k = j->top_k;
    const void *from = NULL;
    int64_t lanes = 0;

    TSR_TRY(fetch(j, v.row_of, (size_t)(v.units * top_k) * sizeof *v.row_of, &from));
    int32_t *row_of = NULL;
    TSR_TRY(take(v.units * top_k, sizeof *row_of, &row_of));
    if (v.units > 0) {
        memcpy(row_of, from, (size_t)(v.units * top_k) * sizeof *row_of);
    }
    tsr_status st = fetch(j, j->units.memory, (size_t)(v.units * j->hidden) * sizeof(float), &from);
    for (int64_t u = 0; st == TSR_OK && u < v.units; ++u) {
        const float *row = (const float *)from + u * j->hidden;

        for (int k = 0; st == TSR_OK && k < top_k; ++k) {
            const bool leads_here = (int)row[k] / TSR_LANE_PLACES == j->rank;

            lanes += leads_here;
            if ((row_of[u * top_k + k] >= 0) != leads_here) {
                st = TSR_FAIL(TSR_ERR_INTERNAL,
                              "rank %d: unit %lld came with lane %g, but its row is %d", j->rank,
                              (long long)u, (double)row[k], row_of[u * top_k + k]);
            }
        }
    }
    if (st == TSR_OK && lanes != v.lanes) {
        st = TSR_FAIL(TSR_ERR_INTERNAL, "rank %d: %lld lanes came, %lld were planned", j->rank,
                      (long long)lanes, (long long)v.lanes);
    }
    tsr_mem_free(row_of);
    return st;
}

static int destinations_of(const comm_job *j, int64_t token)
{
    const int32_t *lanes = j->lanes + token * j->top_k;
    int count = 0;

    for (int k = 0; k < j->top_k; ++k) {
        int before = 0;

        while (before < k && lanes[before] / TSR_LANE_PLACES != lanes[k] / TSR_LANE_PLACES) {
            ++before;
        }
        count += before == k;
    }
    return count;
}

/* Units came back as they went: a token's sum is its row times the ranks that it went to. */
static tsr_status check_combine(comm_job *j)
{
    const float *sums = (const float *)(const void *)(j->host + j->bytes);

    TSR_TRY(comm_job_fetch(j, 2 * j->bytes));
    for (int64_t t = 0; t < tokens_of(j); ++t) {
        const float times = (float)destinations_of(j, t);

        for (int64_t at = 0; at < j->hidden; ++at) {
            const float expected = times * row_value(j, t, at);

            TSR_CHECK(sums[t * j->hidden + at] == expected, TSR_ERR_INTERNAL,
                      "rank %d: token %lld comes back with %g at %lld, must be %g", j->rank,
                      (long long)t, (double)sums[t * j->hidden + at], (long long)at,
                      (double)expected);
        }
    }
    return TSR_OK;
}

/* ---- copies of experts ---------------------------------------------------------------------- */

static int64_t copied_chunks(const comm_job *j)
{
    return (j->experts + 1) / 2;
}

/* A size is that of the copied chunks together; each is whole floats. */
static int64_t fit_chunks(const comm_job *j, int64_t bytes)
{
    const int64_t least = copied_chunks(j) * (int64_t)sizeof(float);

    return bytes / least * least;
}

static int64_t chunk_floats(const comm_job *j)
{
    return j->bytes / copied_chunks(j) / (int64_t)sizeof(float);
}

static float chunk_value(int rank, int chunk, int64_t at)
{
    return (float)((at + chunk) % PERIOD * (rank % PERIOD + 1));
}

static tsr_status prepare_chunks(comm_job *j)
{
    const int64_t floats = chunk_floats(j);
    float *values = (float *)(void *)j->host;

    j->comm = copies_comm(j);
    j->on_device = tsr_comm_takes_device_memory(j->comm);
    for (int chunk = 0; chunk < j->experts; ++chunk) {
        for (int64_t i = 0; i < floats; ++i) {
            values[chunk * floats + i] = chunk_value(j->rank, chunk, i);
        }
        j->chunks[chunk] = (float *)comm_job_memory(j) + chunk * floats;
    }
    return comm_job_send(j, j->experts * floats * (int64_t)sizeof(float));
}

static tsr_status run_chunks(comm_job *j)
{
    const tsr_holding holding = {j->experts, j->holder_begin, j->holders};
    const int64_t bytes = chunk_floats(j) * (int64_t)sizeof(float);
    tsr_sparse_call call = {.holding = &holding,
                            .part_bytes = &bytes,
                            .parts = 1,
                            .memory = j->chunks,
                            .stream = j->on_device ? j->stream : NULL,
                            .number = -1};

    TSR_TRY(j->variant == SUMS ? tsr_sparse_reduce_scatter(j->sparse, &call)
                               : tsr_sparse_all_gather(j->sparse, &call));
    return j->on_device ? tsr_comm_stream_wait(j->comm, j->stream) : TSR_OK;
}

static float chunk_sum(const comm_job *j, int chunk, int64_t at)
{
    float sum = 0.0f;

    for (int rank = 0; rank < j->ranks; ++rank) {
        sum += chunk_value(rank, chunk, at);
    }
    return sum;
}

static tsr_status check_chunks(comm_job *j)
{
    const bool are_sums = j->variant == SUMS;
    const int64_t floats = chunk_floats(j);
    const float *values = (const float *)(const void *)j->host;

    TSR_TRY(comm_job_fetch(j, j->experts * floats * (int64_t)sizeof(float)));
    for (int chunk = 0; chunk < j->experts; ++chunk) {
        if (!is_copied(chunk) || (are_sums && j->owner[chunk] != j->rank)) {
            continue;
        }
        for (int64_t i = 0; i < floats; ++i) {
            const float expected =
                are_sums ? chunk_sum(j, chunk, i) : chunk_value(j->owner[chunk], chunk, i);

            TSR_CHECK(values[chunk * floats + i] == expected, TSR_ERR_INTERNAL,
                      "rank %d: chunk %d is %g at %lld, must be %g", j->rank, chunk,
                      (double)values[chunk * floats + i], (long long)i, (double)expected);
        }
    }
    return TSR_OK;
}

const comm_case *comm_cases_rows(int *count_out)
{
    static const comm_case cases[] = {
        {"dispatch_flat", COMM_BUS_SENT, false, FLAT, fit_rows, prepare_dispatch, dispatch_rows,
         check_dispatch},
        {"combine_flat", COMM_BUS_SENT, false, FLAT, fit_rows, prepare_combine, combine_rows,
         check_combine},
        {"dispatch_two_stage", COMM_BUS_SENT, false, TWO_STAGE, fit_rows, prepare_dispatch,
         dispatch_rows, check_dispatch},
        {"combine_two_stage", COMM_BUS_SENT, false, TWO_STAGE, fit_rows, prepare_combine,
         combine_rows, check_combine},
        {"sparse_all_gather", COMM_BUS_SHARE, false, COPIES, fit_chunks, prepare_chunks, run_chunks,
         check_chunks},
        {"sparse_reduce_scatter", COMM_BUS_SHARE, true, SUMS, fit_chunks, prepare_chunks,
         run_chunks, check_chunks},
    };

    *count_out = (int)(sizeof cases / sizeof *cases);
    return cases;
}
