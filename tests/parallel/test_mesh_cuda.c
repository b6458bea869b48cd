/* Groups of a mesh on the emulated GPU: what NCCL moves along planes equals what MPI moves. */
#include "tests/support/mpi_test.h"

#include "collectives/mpi_bridge.h"
#include "parallel/parallel.h"
#include "tests/emulation/fake_nccl.h"

#include <stdio.h>
#include <string.h>

enum { MOST = 97, BUFFER_BYTES = 1 << 16 };

static bool ok_or_say(tsr_status st)
{
    if (st != TSR_OK) {
        (void)fprintf(stderr, "%s\n", tsr_error_message());
    }
    return st == TSR_OK;
}

static void fill(const tsr_comm *comm, float values[MOST])
{
    for (int i = 0; i < MOST; ++i) {
        values[i] = (float)(tsr_rng_uniform((uint64_t)tsr_comm_rank(comm) + 7, (uint64_t)i) - 0.5);
    }
}

/* Reduce-scatter, then all-gather over one group, by NCCL and by MPI: equal bits. */
static bool equal_sums(const tsr_group *group, tsr_device *device, tsr_stream *stream)
{
    const int size = tsr_comm_size(group->flat);
    tsr_comm *near = group->host.all, *far = group->device.all;
    int64_t cuts[TSR_TEST_MAX_RANKS + 1];
    float want[MOST], got[MOST];
    void *block = NULL;

    if (size == 1) {
        return far == near; /* nothing to move */
    }
    for (int r = 0; r <= size; ++r) {
        cuts[r] = (int64_t)MOST * r / size;
    }
    fill(group->flat, want);
    bool ok = tsr_comm_takes_device_memory(far) && !tsr_comm_takes_device_memory(near) &&
              (group->host.rail == NULL) == (group->device.rail == NULL) &&
              (group->host.node == NULL) == (group->device.node == NULL) &&
              ok_or_say(tsr_device_alloc(device, TSR_MEM_OTHER, sizeof want, &block)) &&
              ok_or_say(tsr_device_copy(device, block, want, sizeof want, TSR_COPY_HOST_TO_DEVICE,
                                        stream)) &&
              ok_or_say(tsr_stream_wait(stream));
    ok = ok && ok_or_say(tsr_comm_reduce_scatter_f32_on(far, block, cuts, stream)) &&
         ok_or_say(tsr_comm_all_gather_parts_on(far, block, sizeof *want, cuts, stream)) &&
         ok_or_say(tsr_comm_stream_wait(far, stream));
    ok = ok && ok_or_say(tsr_comm_reduce_scatter_f32(near, want, cuts)) &&
         ok_or_say(tsr_comm_all_gather_parts(near, want, sizeof *want, cuts));
    ok = ok &&
         ok_or_say(
             tsr_device_copy(device, got, block, sizeof got, TSR_COPY_DEVICE_TO_HOST, stream)) &&
         ok_or_say(tsr_stream_wait(stream)) && memcmp(got, want, sizeof got) == 0;
    tsr_device_free(device, block);
    return ok;
}

static bool check_mesh(tsr_comm *world, tsr_device *device, int ep)
{
    const tsr_parallel_config config = {.ep = ep};
    const tsr_nccl_options options = {.buffer_bytes = BUFFER_BYTES};
    tsr_mesh mesh = {0};
    tsr_stream *stream = NULL;

    bool ok = ok_or_say(tsr_stream_create(device, &stream)) &&
              ok_or_say(tsr_mesh_create(&config, world, &mesh)) &&
              ok_or_say(tsr_mesh_use_nccl(&mesh, device, &options));
    ok = ok && equal_sums(&mesh.dense, device, stream) &&
         equal_sums(&mesh.expert, device, stream) && equal_sums(&mesh.replica, device, stream) &&
         mesh.world.device.all == mesh.world.host.all;
    tsr_mesh_destroy(&mesh);
    tsr_stream_destroy(&stream);
    return ok;
}

static void nccl_moves_what_mpi_moves(void **state)
{
    tsr_comm *comm = tsr_test_comm(), *world = NULL;
    const int ranks = tsr_comm_size(comm);
    tsr_device *device = NULL;
    bool ok = ok_or_say(tsr_device_open("cuda:emulated", 1, &device));

    (void)state;
    fake_nccl_set_deadline(20.0); /* a hang is a failure */
    for (int each = 1; ok && each <= ranks; ++each) {
        tsr_seat seats[TSR_TEST_MAX_RANKS] = {0};

        for (int r = 0; r < ranks; ++r) {
            seats[r] = (tsr_seat){.node = r / each, .plane = r % each};
        }
        ok = ok_or_say(tsr_comm_split(comm, 0, tsr_comm_rank(comm), &world));
        tsr_comm_set_seats(world, seats);
        for (int ep = 1; ok && ep <= ranks; ++ep) {
            ok = ranks % ep != 0 || check_mesh(world, device, ep);
        }
        tsr_comm_destroy(&world);
    }
    tsr_device_close(&device);
    assert_all_ranks(comm, ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nccl_moves_what_mpi_moves)};

    return tsr_mpi_test_main(argc, argv, "parallel.mesh_cuda", tests,
                             sizeof tests / sizeof tests[0]);
}
