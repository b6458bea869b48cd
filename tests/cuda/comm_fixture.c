#include "tests/cuda/comm_fixture.h"

#include <stdio.h>
#include <string.h>

bool ok_or_say(tsr_status st)
{
    if (st != TSR_OK) {
        (void)fprintf(stderr, "%s\n", tsr_error_message());
    }
    return st == TSR_OK;
}

tsr_status set_up(fixture *f, double timeout_s, const tsr_nccl_options *options)
{
    *f = (fixture){0};
    TSR_TRY(tsr_comm_create_mpi(MPI_COMM_WORLD, timeout_s, 0, &f->host));
    TSR_TRY(tsr_device_open("cuda:emulated", 1, &f->device));
    TSR_TRY(tsr_stream_create(f->device, &f->stream));
    TSR_TRY(tsr_device_alloc(f->device, TSR_MEM_OTHER, sizeof f->near, (void **)&f->far));
    return tsr_comm_create_nccl(f->host, f->device, options, &f->comm);
}

void tear_down(fixture *f)
{
    fake_clear_fault(); /* of a planted mistake */
    tsr_comm_destroy(&f->comm);
    tsr_device_free(f->device, f->far);
    tsr_stream_destroy(&f->stream);
    tsr_device_close(&f->device);
    tsr_comm_destroy(&f->host);
    fake_set_order(FAKE_FORWARD, 0);
    fake_nccl_set_deadline(20.0);
}

void fill(fixture *f, uint64_t seed)
{
    const uint64_t key = seed * 100 + (uint64_t)tsr_comm_rank(f->host);

    for (int i = 0; i < MOST; ++i) {
        f->near[i] = (float)(tsr_rng_uniform(key, (uint64_t)i) - 0.5);
    }
    memcpy(f->want, f->near, sizeof f->near);
}

void make_cuts(fixture *f, int kind)
{
    const int size = tsr_comm_size(f->host);

    f->cuts[0] = kind == EVEN ? 0 : 3;
    for (int part = 0; part < size; ++part) {
        const int64_t lengths[CUTS] = {
            [EVEN] = 96,
            [UNEVEN] = 17 + 31 * part,
            [SOME_EMPTY] = part % 2 == 0 ? 0 : 129,
            [ONE_OWNER] = part == size - 1 ? 333 : 0,
            [NOTHING] = 0,
        };
        f->cuts[part + 1] = f->cuts[part] + lengths[kind];
    }
}

tsr_status bring(fixture *f)
{
    return tsr_device_copy(f->device, f->far, f->near, sizeof f->near, TSR_COPY_HOST_TO_DEVICE,
                           f->stream);
}

tsr_status fetch(fixture *f)
{
    TSR_TRY(tsr_comm_stream_wait(f->comm, f->stream));
    TSR_TRY(tsr_device_copy(f->device, f->near, f->far, sizeof f->near, TSR_COPY_DEVICE_TO_HOST,
                            f->stream));
    return tsr_stream_wait(f->stream);
}

bool equal_part(const fixture *f, int64_t from, int64_t to)
{
    return memcmp(f->near + from, f->want + from, (size_t)(to - from) * sizeof(float)) == 0;
}

bool reduce_scatter_equals(fixture *f)
{
    const int rank = tsr_comm_rank(f->comm);

    fill(f, 1);
    return ok_or_say(tsr_comm_reduce_scatter_f32(f->host, f->want, f->cuts)) &&
           ok_or_say(bring(f)) &&
           ok_or_say(tsr_comm_reduce_scatter_f32_on(f->comm, f->far, f->cuts, f->stream)) &&
           ok_or_say(fetch(f)) && equal_part(f, f->cuts[rank], f->cuts[rank + 1]);
}

bool all_gather_equals(fixture *f, size_t element_bytes)
{
    fill(f, 2);
    return ok_or_say(tsr_comm_all_gather_parts(f->host, f->want, element_bytes, f->cuts)) &&
           ok_or_say(bring(f)) &&
           ok_or_say(
               tsr_comm_all_gather_parts_on(f->comm, f->far, element_bytes, f->cuts, f->stream)) &&
           ok_or_say(fetch(f)) && equal_part(f, 0, MOST);
}

bool broadcast_equals(fixture *f, int root, size_t bytes)
{
    fill(f, 3);
    return ok_or_say(tsr_comm_broadcast(f->host, f->want, bytes, root)) && ok_or_say(bring(f)) &&
           ok_or_say(tsr_comm_broadcast_on(f->comm, f->far, bytes, root, f->stream)) &&
           ok_or_say(fetch(f)) && equal_part(f, 0, MOST);
}

tsr_status make_groups(fixture *f, const tsr_nccl_options *options, groups *g)
{
    const int rank = tsr_comm_rank(f->host);

    *g = (groups){0};
    for (int i = 0; i < 2; ++i) {
        TSR_TRY(tsr_comm_split(f->host, i == 0 ? rank / 2 : rank % 2, rank, &g->host[i]));
        TSR_TRY(tsr_comm_create_nccl(g->host[i], f->device, options, &g->comm[i]));
    }
    return TSR_OK;
}

void end_groups(groups *g)
{
    for (int i = 0; i < 2; ++i) {
        tsr_comm_destroy(&g->comm[i]);
        tsr_comm_destroy(&g->host[i]);
    }
}
