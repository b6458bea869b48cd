/* A trainer's world for tests: the ranks of the test are believed to be two on each node, each on
 * its own plane. */
#ifndef TSR_PLANES_RIG_H
#define TSR_PLANES_RIG_H

#include "tests/support/mpi_test.h"

#include "collectives/mpi_bridge.h"
#include "launch/trainer.h"

enum { RIG_PLANES = 2, RIG_LAYERS = 2, RIG_EXPERTS = 12 };

/* Small; overrides change it. */
static const char rig_run_file[] =
    "[run]\ndir = none\nthreads = 1\n"
    "[model]\nfamily = mixtral\nvocab_size = 256\nhidden_size = 16\nnum_hidden_layers = 2\n"
    "num_attention_heads = 2\nnum_key_value_heads = 1\nhead_dim = 8\nmoe_intermediate_size = 24\n"
    "num_experts = 12\nnum_experts_per_tok = 2\nrms_norm_eps = 1e-5\nrope_theta = 10000\n"
    "[data]\ntrain = none\nseq_len = 8\n"
    "[train]\nglobal_batch = 12\n";

/* Communicator of its own; destroy it. */
static inline tsr_status rig_open_world(world *w)
{
    tsr_comm *all = tsr_test_comm();
    tsr_seat seats[TSR_TEST_MAX_RANKS] = {{0}};

    for (int r = 0; r < tsr_comm_size(all); ++r) {
        seats[r] = (tsr_seat){.node = r / RIG_PLANES, .plane = r % RIG_PLANES};
    }
    *w = (world){.has_mpi = true};
    TSR_TRY(tsr_comm_split(all, 0, tsr_comm_rank(all), &w->comm));
    tsr_comm_set_seats(w->comm, seats);
    return TSR_OK;
}

#endif
