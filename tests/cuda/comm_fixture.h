/* What the tests of collectives on device memory share: an emulated GPU, a communicator by NCCL
 * over one by MPI, and a vector on both sides. */
#ifndef TSR_TEST_COMM_FIXTURE_H
#define TSR_TEST_COMM_FIXTURE_H

#include "tests/support/mpi_test.h"

#include "collectives/mpi_bridge.h"
#include "tests/emulation/fake_cudart.h"
#include "tests/emulation/fake_nccl.h"

enum {
    MOST = 700,            /* elements of a vector */
    BUFFER_BYTES = 1 << 16 /* little memory to fence: fast */
};

typedef struct fixture {
    tsr_comm *host, *comm;
    tsr_device *device;
    tsr_stream *stream;
    float *far;       /* device memory [MOST] */
    float near[MOST]; /* what has become of it */
    float want[MOST]; /* what MPI makes of it */
    int64_t cuts[TSR_TEST_MAX_RANKS + 1];
} fixture;

/* Each kind begins behind the vector's first element but EVEN, and ends before its last. */
enum { EVEN, UNEVEN, SOME_EMPTY, ONE_OWNER, NOTHING, CUTS };

/** Say the error's text if there is one. */
bool ok_or_say(tsr_status st);

tsr_status set_up(fixture *f, double timeout_s, const tsr_nccl_options *options);
void tear_down(fixture *f);

/** Numbers of this rank into near and want. */
void fill(fixture *f, uint64_t seed);
void make_cuts(fixture *f, int kind);

/** near to the device, and back once all collectives are done. */
tsr_status bring(fixture *f);
tsr_status fetch(fixture *f);

/** Are near and want equal in these elements? */
bool equal_part(const fixture *f, int64_t from, int64_t to);

/** Does comm do on device memory what host does on the host's, to the bit? */
bool reduce_scatter_equals(fixture *f);
bool all_gather_equals(fixture *f, size_t element_bytes);
bool broadcast_equals(fixture *f, int root, size_t bytes);

/** Pairs of neighbours, and those with the same place in their pair: as experts and replicas. */
typedef struct groups {
    tsr_comm *host[2], *comm[2];
} groups;

tsr_status make_groups(fixture *f, const tsr_nccl_options *options, groups *g);
void end_groups(groups *g);

#endif
