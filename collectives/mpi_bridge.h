/* The one place where a raw MPI handle crosses: for launch, checkpoints and tests. */
#ifndef TSR_MPI_BRIDGE_H
#define TSR_MPI_BRIDGE_H

#include "collectives/collectives.h"

#include <mpi.h>

/**
 * Make a communicator over a private duplicate of parent.
 *
 * timeout_s bounds every later wait on it. Collective on parent.
 * Errors: TSR_ERR_NOMEM, TSR_ERR_PEER, TSR_ERR_COMM.
 */
TSR_NODISCARD tsr_status tsr_comm_create_mpi(MPI_Comm parent, double timeout_s,
                                             tsr_comm **comm_out);

#endif
