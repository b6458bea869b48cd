/* Cases on vectors, and the job that all cases share. Contents are whole numbers small enough that
 * their sums over ranks are exact in f32, in every order. */
#include "launch/comm_cases.h"

enum { PERIOD = 61 }; /* prime: pieces of one length differ */

static float value_of(int rank, int64_t at)
{
    return (float)(at % PERIOD * (rank % PERIOD + 1));
}

static float sum_of(int ranks, int64_t at)
{
    int64_t factor = 0;

    for (int rank = 0; rank < ranks; ++rank) {
        factor += rank % PERIOD + 1;
    }
    return (float)(at % PERIOD * factor);
}

/* ---- the job -------------------------------------------------------------------------------- */

static tsr_status take(int64_t count, size_t bytes, void *out)
{
    return tsr_mem_alloc_array(TSR_MEM_OTHER, count, bytes, out);
}

tsr_status comm_job_open(comm_job *j)
{
    const size_t room = 2 * (size_t)j->max_bytes;
    void *block = NULL;

    j->rank = tsr_comm_rank(j->mesh->expert.flat);
    j->ranks = tsr_comm_size(j->mesh->expert.flat);
    TSR_TRY(tsr_device_alloc_staging(j->device, TSR_MEM_COMM, room, &block));
    j->host = block;
    if (!tsr_device_is_host(j->device)) {
        TSR_TRY(tsr_device_alloc(j->device, TSR_MEM_COMM, room, &block));
    }
    j->memory = block;
    TSR_TRY(take(j->ranks + 1, sizeof *j->cuts, &j->cuts));
    TSR_TRY(take(2 * (int64_t)j->ranks, sizeof *j->segments, &j->segments));
    TSR_TRY(take(j->ranks + 1, sizeof *j->begin, &j->begin));
    for (int p = 0; p <= j->ranks; ++p) {
        j->begin[p] = p;
    }
    return comm_rows_open(j);
}

void comm_job_close(comm_job *j)
{
    comm_rows_close(j);
    tsr_mem_free(j->begin);
    tsr_mem_free(j->segments);
    tsr_mem_free(j->cuts);
    if (j->memory != j->host) {
        tsr_device_free(j->device, j->memory);
    }
    tsr_device_free_staging(j->device, j->host);
}

void *comm_job_memory(const comm_job *j)
{
    return j->on_device ? j->memory : j->host;
}

static tsr_status copy(comm_job *j, int64_t bytes, bool is_back)
{
    if (j->memory == j->host || !j->on_device || bytes == 0) {
        return TSR_OK;
    }
    TSR_TRY(tsr_device_copy(
        j->device, is_back ? j->host : j->memory, is_back ? j->memory : j->host, (size_t)bytes,
        is_back ? TSR_COPY_DEVICE_TO_HOST : TSR_COPY_HOST_TO_DEVICE, j->stream));
    return tsr_stream_wait(j->stream);
}

tsr_status comm_job_send(comm_job *j, int64_t bytes)
{
    return copy(j, bytes, false);
}

tsr_status comm_job_fetch(comm_job *j, int64_t bytes)
{
    return copy(j, bytes, true);
}

static tsr_status fail_at(const comm_job *j, int64_t at, double found, double expected)
{
    return TSR_FAIL(TSR_ERR_INTERNAL, "rank %d: element %lld of %lld bytes is %g, must be %g",
                    j->rank, (long long)at, (long long)j->bytes, found, expected);
}

/* ---- messages without a size ---------------------------------------------------------------- */

/* host.all goes along the planes, as what a run's ranks agree on does. */
static tsr_status use_host(comm_job *j)
{
    j->comm = j->mesh->expert.host.all;
    j->on_device = false;
    return TSR_OK;
}

static tsr_status run_barrier(comm_job *j)
{
    return tsr_comm_barrier(j->comm);
}

static tsr_status check_nothing(comm_job *j)
{
    (void)j; /* that it came back is all there is to see */
    return TSR_OK;
}

static tsr_status run_agree(comm_job *j)
{
    return tsr_comm_agree(j->comm, TSR_OK);
}

/* ---- vectors -------------------------------------------------------------------------------- */

static int64_t fit_doubles(const comm_job *j, int64_t bytes)
{
    (void)j;
    return bytes / (int64_t)sizeof(double) * (int64_t)sizeof(double);
}

static int64_t fit_floats(const comm_job *j, int64_t bytes)
{
    (void)j;
    return bytes / (int64_t)sizeof(float) * (int64_t)sizeof(float);
}

static int64_t fit_pairs(const comm_job *j, int64_t bytes)
{
    const int64_t each = (int64_t)sizeof(float) * j->ranks;

    return bytes / each * each;
}

static tsr_status prepare_doubles(comm_job *j)
{
    double *values = (double *)(void *)j->host;

    for (int64_t i = 0; i < j->bytes / (int64_t)sizeof *values; ++i) {
        values[i] = (double)value_of(j->rank, i);
    }
    return use_host(j);
}

static tsr_status run_all_reduce(comm_job *j)
{
    return tsr_comm_all_reduce_f64(j->comm, (double *)(void *)j->host,
                                   j->bytes / (int64_t)sizeof(double), TSR_REDUCE_SUM);
}

static tsr_status check_all_reduce(comm_job *j)
{
    const double *values = (const double *)(const void *)j->host;

    for (int64_t i = 0; i < j->bytes / (int64_t)sizeof *values; ++i) {
        if (values[i] != (double)sum_of(j->ranks, i)) {
            return fail_at(j, i, values[i], (double)sum_of(j->ranks, i));
        }
    }
    return TSR_OK;
}

/* f32 on the device where it has a communicator for its memory: each rank's own values; cuts. */
static tsr_status prepare_floats(comm_job *j)
{
    const int64_t count = j->bytes / (int64_t)sizeof(float);
    float *values = (float *)(void *)j->host;

    j->comm = j->mesh->expert.device.all;
    j->on_device = tsr_comm_takes_device_memory(j->comm);
    for (int p = 0; p <= j->ranks; ++p) {
        j->cuts[p] = count * p / j->ranks;
    }
    for (int64_t i = 0; i < count; ++i) {
        values[i] = value_of(j->rank, i);
    }
    return comm_job_send(j, j->bytes);
}

static tsr_status run_broadcast(comm_job *j)
{
    if (!j->on_device) {
        return tsr_comm_broadcast(j->comm, j->host, (size_t)j->bytes, 0);
    }
    TSR_TRY(tsr_comm_broadcast_on(j->comm, j->memory, (size_t)j->bytes, 0, j->stream));
    return tsr_comm_stream_wait(j->comm, j->stream);
}

static tsr_status check_broadcast(comm_job *j)
{
    const float *values = (const float *)(const void *)j->host;

    TSR_TRY(comm_job_fetch(j, j->bytes));
    for (int64_t i = 0; i < j->bytes / (int64_t)sizeof *values; ++i) {
        if (values[i] != value_of(0, i)) {
            return fail_at(j, i, (double)values[i], (double)value_of(0, i));
        }
    }
    return TSR_OK;
}

static tsr_status run_reduce_scatter(comm_job *j)
{
    if (!j->on_device) {
        return tsr_comm_reduce_scatter_f32(j->comm, (float *)(void *)j->host, j->cuts);
    }
    TSR_TRY(
        tsr_comm_reduce_scatter_f32_on(j->comm, (float *)(void *)j->memory, j->cuts, j->stream));
    return tsr_comm_stream_wait(j->comm, j->stream);
}

static tsr_status check_reduce_scatter(comm_job *j)
{
    const float *values = (const float *)(const void *)j->host;

    TSR_TRY(comm_job_fetch(j, j->bytes));
    for (int64_t i = j->cuts[j->rank]; i < j->cuts[j->rank + 1]; ++i) {
        if (values[i] != sum_of(j->ranks, i)) {
            return fail_at(j, i, (double)values[i], (double)sum_of(j->ranks, i));
        }
    }
    return TSR_OK;
}

static tsr_status run_all_gather(comm_job *j)
{
    if (!j->on_device) {
        return tsr_comm_all_gather_parts(j->comm, j->host, sizeof(float), j->cuts);
    }
    TSR_TRY(tsr_comm_all_gather_parts_on(j->comm, j->memory, sizeof(float), j->cuts, j->stream));
    return tsr_comm_stream_wait(j->comm, j->stream);
}

static tsr_status check_all_gather(comm_job *j)
{
    const float *values = (const float *)(const void *)j->host;

    TSR_TRY(comm_job_fetch(j, j->bytes));
    for (int p = 0; p < j->ranks; ++p) {
        for (int64_t i = j->cuts[p]; i < j->cuts[p + 1]; ++i) {
            if (values[i] != value_of(p, i)) {
                return fail_at(j, i, (double)values[i], (double)value_of(p, i));
            }
        }
    }
    return TSR_OK;
}

/* ---- all to all ----------------------------------------------------------------------------- */

/* What is sent lies before what is received; a rank has nothing to send to itself. */
static tsr_status prepare_all_to_all(comm_job *j)
{
    const tsr_group *group = &j->mesh->expert;
    const int64_t each = j->bytes / j->ranks;

    TSR_TRY(prepare_floats(j));
    /* where messages go along planes not all pairs have a direct way by NCCL */
    j->comm = group->device.rail == NULL ? group->device.all : group->flat;
    j->on_device = tsr_comm_takes_device_memory(j->comm);
    for (int p = 0; p < j->ranks; ++p) {
        const int64_t bytes = p == j->rank ? 0 : each;

        j->segments[p] = (tsr_segment){p * each, bytes};
        j->segments[j->ranks + p] = (tsr_segment){j->bytes + p * each, bytes};
    }
    return comm_job_send(j, j->bytes);
}

static tsr_status run_all_to_all(comm_job *j)
{
    void *memory = comm_job_memory(j);
    const tsr_exchange exchange = {.send = memory,
                                   .receive = memory,
                                   .send_segments = j->segments,
                                   .receive_segments = j->segments + j->ranks,
                                   .send_begin = j->begin,
                                   .receive_begin = j->begin,
                                   .purpose = TSR_TRAFFIC_DISPATCH};

    if (!j->on_device) {
        return tsr_comm_exchange(j->comm, &exchange);
    }
    TSR_TRY(tsr_comm_exchange_on(j->comm, &exchange, j->stream));
    return tsr_comm_stream_wait(j->comm, j->stream);
}

static tsr_status check_all_to_all(comm_job *j)
{
    const int64_t count = j->bytes / (int64_t)sizeof(float), each = count / j->ranks;
    const float *received = (const float *)(const void *)j->host + count;

    TSR_TRY(comm_job_fetch(j, 2 * j->bytes));
    for (int64_t i = 0; i < count; ++i) {
        const int from = (int)(i / each);
        const float expected = value_of(from, j->rank * each + i % each);

        if (from != j->rank && received[i] != expected) {
            return fail_at(j, i, (double)received[i], (double)expected);
        }
    }
    return TSR_OK;
}

const comm_case *comm_cases_vectors(int *count_out)
{
    static const comm_case cases[] = {
        {"barrier", COMM_BUS_NONE, false, 0, NULL, use_host, run_barrier, check_nothing},
        {"agree", COMM_BUS_NONE, false, 0, NULL, use_host, run_agree, check_nothing},
        {"all_reduce_f64", COMM_BUS_TWICE, true, 0, fit_doubles, prepare_doubles, run_all_reduce,
         check_all_reduce},
        {"broadcast", COMM_BUS_ONE, false, 0, fit_floats, prepare_floats, run_broadcast,
         check_broadcast},
        {"reduce_scatter", COMM_BUS_SHARE, true, 0, fit_floats, prepare_floats, run_reduce_scatter,
         check_reduce_scatter},
        {"all_gather", COMM_BUS_SHARE, false, 0, fit_floats, prepare_floats, run_all_gather,
         check_all_gather},
        {"all_to_all", COMM_BUS_SHARE, false, 0, fit_pairs, prepare_all_to_all, run_all_to_all,
         check_all_to_all},
    };

    *count_out = (int)(sizeof cases / sizeof *cases);
    return cases;
}
