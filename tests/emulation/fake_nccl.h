/* Steering of the fake NCCL. Each process of the MPI world is a GPU of its own.
 *
 * A collective is a queued piece of work like any other: it runs when somebody waits for its
 * stream, and is not ready until its peers have got there too. So a rank that does not wait for its
 * stream does not take part. What hangs on GPUs for ever fails here after a deadline, with the
 * reason. */
#ifndef TSR_FAKE_NCCL_H
#define TSR_FAKE_NCCL_H

#include <stdbool.h>

/** Let all processes report the same GPU from now on, or each its own. */
void fake_nccl_share_gpu(bool is_shared);

/** How long work on a stream waits for its peers before it fails (20 s). */
void fake_nccl_set_deadline(double seconds);

#endif
