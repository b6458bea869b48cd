/* The one place where a raw MPI handle crosses: for launch, checkpoints and tests. */
#ifndef TSR_MPI_BRIDGE_H
#define TSR_MPI_BRIDGE_H

#include "collectives/comm.h"

#include <mpi.h>

/**
 * Make a communicator over private duplicates of parent.
 *
 * timeout_s bounds every later wait on it: time without progress, at the end of which (the last
 * quarter, 1 s at least, half at most) the waiting ranks find out who does not respond.
 * plane: of this rank's network interface, >= 0.
 * Collective on parent.
 * Errors: TSR_ERR_ARG if timeout_s is not positive; TSR_ERR_NOMEM, TSR_ERR_PEER, TSR_ERR_COMM.
 */
TSR_NODISCARD tsr_status tsr_comm_create_mpi(MPI_Comm parent, double timeout_s, int plane,
                                             tsr_comm **comm_out);

/** For tests: believe that ranks sit there (node may have any numbers >= 0; local is worked out).
 *  Equal on all ranks, before anything is made from comm; other backends ignore it. */
void tsr_comm_set_seats(tsr_comm *comm, const tsr_seat *seats);

/** For tests and benchmarks: cut large transfers on comm into messages of at most about `bytes` >
 * 0. Equal on all ranks; other backends have no messages and ignore it. */
void tsr_comm_set_message_bytes(tsr_comm *comm, size_t bytes);

#endif
