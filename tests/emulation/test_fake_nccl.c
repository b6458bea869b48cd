/* The fake NCCL itself: what would hang or go wrong silently on GPUs is said in words. */
#include "tests/support/mpi_test.h"

#include "tests/emulation/fake_cudart.h"
#include "tests/emulation/fake_nccl.h"

#include <mpi.h>
#include <nccl.h>
#include <stdio.h>
#include <string.h>

enum { FLOATS = 64 };

typedef struct fixture {
    ncclComm_t comm;
    cudaStream_t stream;
    float *far;
    int rank, size;
} fixture;

/* A blocking communicator: the calls return when they are on the stream. */
static ncclResult_t set_up(fixture *f)
{
    ncclUniqueId id;

    *f = (fixture){.rank = tsr_comm_rank(tsr_test_comm()), .size = tsr_comm_size(tsr_test_comm())};
    if (f->rank == 0 && ncclGetUniqueId(&id) != ncclSuccess) {
        return ncclSystemError;
    }
    if (tsr_comm_broadcast(tsr_test_comm(), &id, sizeof id, 0) != TSR_OK ||
        cudaStreamCreateWithFlags(&f->stream, cudaStreamNonBlocking) != cudaSuccess ||
        cudaMalloc((void **)&f->far, FLOATS * sizeof(float)) != cudaSuccess) {
        return ncclUnhandledCudaError;
    }
    return ncclCommInitRank(&f->comm, f->size, id, f->rank);
}

static void tear_down(fixture *f)
{
    fake_clear_fault();
    (void)ncclCommAbort(f->comm);
    (void)cudaStreamDestroy(f->stream);
    (void)cudaFree(f->far);
    fake_nccl_set_deadline(20.0);
    fake_nccl_share_gpu(false);
}

static bool says(const fixture *f, const char *text)
{
    const bool ok = strstr(ncclGetLastError(f->comm), text) != NULL;

    if (!ok) {
        (void)fprintf(stderr, "wanted \"%s\", got \"%s\"\n", text, ncclGetLastError(f->comm));
    }
    return ok;
}

static void a_send_without_its_receive_ends(void **state)
{
    fixture f;

    (void)state;
    bool ok = set_up(&f) == ncclSuccess;
    fake_nccl_set_deadline(0.3);
    if (f.size > 1 && f.rank == 0) {
        ok = ok && ncclSend(f.far, 8, ncclFloat32, 1, f.comm, f.stream) == ncclSuccess &&
             cudaStreamSynchronize(f.stream) == cudaErrorLaunchFailure &&
             says(&f, "send of 8 elements of type 7 (launch 1), not received by rank 1");
    }
    assert_all_ranks(tsr_test_comm(), ok);
    tear_down(&f);
}

static void a_receive_without_its_send_ends(void **state)
{
    fixture f;
    ncclResult_t state_of = ncclSuccess;

    (void)state;
    bool ok = set_up(&f) == ncclSuccess;
    fake_nccl_set_deadline(0.3);
    if (f.size > 1 && f.rank == 1) {
        ok = ok && ncclRecv(f.far, 8, ncclFloat32, 0, f.comm, f.stream) == ncclSuccess &&
             cudaStreamSynchronize(f.stream) == cudaErrorLaunchFailure &&
             says(&f, "nothing from rank 0") &&
             ncclCommGetAsyncError(f.comm, &state_of) == ncclSuccess && state_of == ncclRemoteError;
    }
    assert_all_ranks(tsr_test_comm(), ok);
    tear_down(&f);
}

static void other_counts_and_types_are_found(void **state)
{
    static const struct {
        size_t count;
        ncclDataType_t type;
    } wrong[] = {{7, ncclFloat32}, {8, ncclInt32}};
    bool ok = true;

    (void)state;
    for (int i = 0; i < 2; ++i) {
        fixture f;
        ok = set_up(&f) == ncclSuccess && ok;
        if (f.size > 1 && f.rank == 0) {
            ok = ok && ncclSend(f.far, 8, ncclFloat32, 1, f.comm, f.stream) == ncclSuccess &&
                 cudaStreamSynchronize(f.stream) == cudaSuccess;
        } else if (f.size > 1 && f.rank == 1) {
            ok = ok &&
                 ncclRecv(f.far, wrong[i].count, wrong[i].type, 0, f.comm, f.stream) ==
                     ncclSuccess &&
                 cudaStreamSynchronize(f.stream) == cudaErrorLaunchFailure && says(&f, "mismatch");
        }
        ok = tsr_comm_barrier(tsr_test_comm()) == TSR_OK && ok;
        tear_down(&f);
    }
    assert_all_ranks(tsr_test_comm(), ok);
}

/* Sends both ways outside a group deadlock, inside one they do not. */
static void groups_run_together(void **state)
{
    fixture f;

    (void)state;
    bool ok = set_up(&f) == ncclSuccess;
    if (f.size == 2) {
        ok = ok && ncclGroupStart() == ncclSuccess &&
             ncclSend(f.far, 8, ncclFloat32, 1 - f.rank, f.comm, f.stream) == ncclSuccess &&
             ncclRecv(f.far + 8, 8, ncclFloat32, 1 - f.rank, f.comm, f.stream) == ncclSuccess &&
             ncclGroupEnd() == ncclSuccess && cudaStreamSynchronize(f.stream) == cudaSuccess;
        fake_nccl_set_deadline(0.3);
        ok = ok && ncclSend(f.far, 8, ncclFloat32, 1 - f.rank, f.comm, f.stream) == ncclSuccess &&
             ncclRecv(f.far + 8, 8, ncclFloat32, 1 - f.rank, f.comm, f.stream) == ncclSuccess &&
             cudaStreamSynchronize(f.stream) == cudaErrorLaunchFailure && says(&f, "deadlock");
        ok = tsr_comm_barrier(tsr_test_comm()) == TSR_OK && ok;
    }
    assert_all_ranks(tsr_test_comm(), ok);
    tear_down(&f);
}

static void bad_calls_are_refused_at_once(void **state)
{
    float near[8] = {0};
    fixture f;

    (void)state;
    bool ok = set_up(&f) == ncclSuccess;
    ok = ok && ncclSend(near, 8, ncclFloat32, 0, f.comm, f.stream) == ncclInvalidArgument &&
         says(&f, "not inside a block of device memory");
    ok = ok && ncclSend(f.far + 1, FLOATS, ncclFloat32, 0, f.comm, f.stream) == ncclInvalidArgument;
    ok = ok && ncclSend(f.far, 8, ncclFloat32, f.size, f.comm, f.stream) == ncclInvalidArgument;
    ok = ok && ncclGroupEnd() == ncclInvalidUsage && says(&f, "was not begun");
    ok = ok && ncclSend(f.far, 8, ncclFloat32, f.rank, f.comm, f.stream) == ncclInvalidUsage &&
         says(&f, "a send to itself has no recv");
    ok = ok && ncclGroupStart() == ncclSuccess &&
         ncclSend(f.far, 8, ncclFloat32, f.rank, f.comm, f.stream) == ncclSuccess &&
         ncclRecv(f.far + 8, 8, ncclFloat32, f.rank, f.comm, f.stream) == ncclSuccess &&
         ncclGroupEnd() == ncclSuccess && ncclCommDestroy(f.comm) == ncclInvalidUsage &&
         says(&f, "1 launches under way") && cudaStreamSynchronize(f.stream) == cudaSuccess;
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

static void a_shared_gpu_is_refused(void **state)
{
    fixture f;

    (void)state;
    fake_nccl_share_gpu(true);
    const ncclResult_t code = set_up(&f);
    const bool ok = f.size == 1
                        ? code == ncclSuccess
                        : code == ncclInvalidUsage && says(&f, "Duplicate GPU detected : rank ");
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_run_together),
        cmocka_unit_test(bad_calls_are_refused_at_once),
        cmocka_unit_test(a_shared_gpu_is_refused),
        cmocka_unit_test(other_counts_and_types_are_found),
        cmocka_unit_test(a_receive_without_its_send_ends),
        cmocka_unit_test(a_send_without_its_receive_ends),
    };

    return tsr_mpi_test_main(argc, argv, "fake nccl", tests, sizeof tests / sizeof *tests);
}
