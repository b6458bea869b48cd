/* collectives: communicators (`self`, `mpi`, `nccl`, and what they make together) and what travels
 * over them: parts and sums, tokens to their experts, copies of experts. */
#ifndef TSR_COLLECTIVES_H
#define TSR_COLLECTIVES_H

#include "collectives/comm.h"
#include "collectives/dispatch.h"
#include "collectives/sparse.h"
#include "collectives/worker.h"

#endif
