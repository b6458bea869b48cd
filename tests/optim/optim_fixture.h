/* A small model's weights and their optimizer over any mesh.
 *
 * Gradients are small multiples of 2^-10, and so are the parts that ranks contribute: their sums
 * and the sums of their squares are exact in any order, so that P ranks must equal one to the bit.
 */
#ifndef TSR_OPTIM_FIXTURE_H
#define TSR_OPTIM_FIXTURE_H

#include "optim/optim.h"

enum { OPTIM_LAYERS = 2, OPTIM_EXPERTS = 6 };
static const double optim_fixture_lr = 0.01;

typedef struct optim_fixture {
    tsr_device *device;
    tsr_stream *stream;
    tsr_param_table table, local; /* of all, of this rank's experts */
    tsr_weights weights;
    tsr_optimizer *optimizer;
    tsr_optim_config config;
    tsr_comm *comm, *replica; /* replica: NULL where all ranks have all experts */
} optim_fixture;

tsr_optim_config optim_fixture_config(tsr_dtype moments, double clip_norm);
tsr_status optim_fixture_table(tsr_model_config *model, tsr_param_table *table);

typedef struct optim_options {
    const char *device;
    bool is_far; /* the host may not touch the device's memory */
    tsr_dtype compute, moments;
    double clip_norm;
    int ep;               /* rank r holds what owner gives to part r % ep; 0: everything */
    const int32_t *owner; /* [OPTIM_LAYERS, OPTIM_EXPERTS] */
} optim_options;

/** Collective on comm. */
tsr_status optim_fixture_open(optim_fixture *f, tsr_comm *comm, const optim_options *options);
void optim_fixture_close(optim_fixture *f);

/** Of the whole world, element `at` of the whole tensor: 1/2 to 1 in size, either sign. */
float optim_fixture_gradient(int64_t step, int param, int64_t at);

/** Gradients, reduction, norm, update. Collective. */
tsr_status optim_fixture_step(optim_fixture *f, int64_t step, double *norm_out);

/** Rows that a holds against the same ones of b, which holds all. */
bool optim_fixture_equal_weights(const optim_fixture *a, const optim_fixture *b);
/** Own rows of the sharded state against the same rows of the state of one rank. */
bool optim_fixture_equal_state(optim_fixture *sharded, optim_fixture *whole);

/** Prints the message of an error. */
bool optim_fixture_ok(tsr_status st);

#endif
