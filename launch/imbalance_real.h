/* `tessera bench imbalance` on this machine: one model for each policy, trained side by side on
 * random tokens that the same generator sends to the experts. */
#ifndef TSR_LAUNCH_IMBALANCE_REAL_H
#define TSR_LAUNCH_IMBALANCE_REAL_H

#include "launch/imbalance_gate.h"
#include "launch/trainer.h"

/** The first two contenders: ep under even loads, which nothing can beat by balance; and ep. */
enum { IMBALANCE_EVEN, IMBALANCE_EP, IMBALANCE_CONTENDERS = TSR_PLACEMENT_POLICIES + 1 };

/** One policy's model and what was seen of it. Figures are equal on all ranks. */
typedef struct imbalance_contender {
    const char *name;
    imbalance_gate *gate; /* borrowed */
    settings *s;
    trainer t;
    float *bias; /* the gate's, on the trainer's device */
    double *ms;  /* of each round: the slowest rank's */
    double median_ms, least_ms;
    double over_ep, of_even; /* speed: medians of the rounds' ratios */
    double loss;             /* of the last step */
    /* means over rounds (worst: the largest), and over layers but for exposed_ms, their sum: */
    double before, after, worst, copies, exposed_ms;
    double bytes[TSR_TRAFFICS];  /* sent in a step by all ranks to others */
    double memory[TSR_MEM_TAGS]; /* bytes of the largest rank */
    trainer_plan plan;           /* of the same, as it was planned by the end */
    double most_off; /* of a round: what is held after it over what is planned by then, less 1 */
    int outgrown;    /* rounds whose loads needed more than was planned before */
    size_t held[TSR_MEM_TAGS]; /* scratch */
} imbalance_contender;

typedef struct imbalance_bench {
    world *w;
    imbalance_gate loads, even;
    imbalance_contender contender[IMBALANCE_CONTENDERS];
    int contenders, rounds;
    int cores;           /* of this host, that its ranks may use */
    double expert_share; /* of the computation with even loads, spent on rows at the experts */
    double *scratch;     /* [rounds] */
} imbalance_bench;

/**
 * Make contenders: even, ep, and the policies wanted; overrides are of the run file.
 *
 * Collective. b has world and rounds. Errors: those of settings, loads and trainers.
 */
TSR_NODISCARD tsr_status imbalance_start(imbalance_bench *b, const tsr_load_options *load,
                                         const bool is_wanted[TSR_PLACEMENT_POLICIES],
                                         const char *const *overrides, int override_count);

/**
 * Warm up, then time rounds of one step each; every step's losses are compared with ep's.
 *
 * Collective. Errors: TSR_ERR_INTERNAL where they differ, those of trainer_step().
 */
TSR_NODISCARD tsr_status imbalance_measure(imbalance_bench *b);

/** Collective. */
void imbalance_stop(imbalance_bench *b);

/** What a rank holds for the model, planned or measured: weights, gradients, optimizer,
 *  activations and scratch. */
double imbalance_model_memory(const imbalance_contender *c);
double imbalance_planned_memory(const imbalance_contender *c);

#endif
