#include "optim/optim.h"

#include <inttypes.h>

#define OFFSET(field) offsetof(tsr_optim_config, field)

static const tsr_option options[] = {
    {.section = "optim",
     .key = "name",
     .type = TSR_OPTION_CHOICE,
     .fallback = "adamw",
     .choices = "adamw",
     .help = "how weights follow from gradients",
     .offset = OFFSET(name)},
    {.section = "optim",
     .key = "lr",
     .type = TSR_OPTION_REAL,
     .fallback = "3e-4",
     .max = 10,
     .help = "largest learning rate, reached after the warm-up",
     .offset = OFFSET(lr)},
    {.section = "optim",
     .key = "min_lr",
     .type = TSR_OPTION_REAL,
     .fallback = "0",
     .max = 10,
     .help = "learning rate of the last step (cosine and wsd)",
     .offset = OFFSET(min_lr)},
    {.section = "optim",
     .key = "warmup_steps",
     .type = TSR_OPTION_INT,
     .fallback = "0",
     .max = 1e12,
     .unit = "steps",
     .help = "length of the linear rise from 0 to lr",
     .offset = OFFSET(warmup_steps)},
    {.section = "optim",
     .key = "schedule",
     .type = TSR_OPTION_CHOICE,
     .fallback = "cosine",
     .choices = "cosine wsd constant",
     .help = "course of the learning rate after the warm-up",
     .offset = OFFSET(schedule)},
    {.section = "optim",
     .key = "decay_steps",
     .type = TSR_OPTION_INT,
     .fallback = "0",
     .max = 1e12,
     .unit = "steps",
     .help = "length of the final linear decay of wsd; 0: a tenth of train.steps",
     .offset = OFFSET(decay_steps)},
    {.section = "optim",
     .key = "beta1",
     .type = TSR_OPTION_REAL,
     .fallback = "0.9",
     .max = 0.9999999,
     .help = "memory of the mean of the gradients",
     .offset = OFFSET(beta1)},
    {.section = "optim",
     .key = "beta2",
     .type = TSR_OPTION_REAL,
     .fallback = "0.95",
     .max = 0.9999999,
     .help = "memory of the mean of their squares",
     .offset = OFFSET(beta2)},
    {.section = "optim",
     .key = "eps",
     .type = TSR_OPTION_REAL,
     .fallback = "1e-8",
     .min = 1e-30,
     .max = 1,
     .help = "added to the root of the mean square",
     .offset = OFFSET(eps)},
    {.section = "optim",
     .key = "weight_decay",
     .type = TSR_OPTION_REAL,
     .fallback = "0.1",
     .max = 10,
     .help = "pull towards zero, times the learning rate; norms are exempt",
     .offset = OFFSET(weight_decay)},
    {.section = "optim",
     .key = "clip_norm",
     .type = TSR_OPTION_REAL,
     .fallback = "1",
     .max = 1e12,
     .help = "largest norm of all gradients together; 0: not clipped",
     .offset = OFFSET(clip_norm)},
    {.section = "optim",
     .key = "moments",
     .type = TSR_OPTION_CHOICE,
     .fallback = "f32",
     .choices = "f32 bf16", /* in the order of tsr_dtype */
     .help = "type of the two means; bf16 halves their memory",
     .offset = OFFSET(moments)},
};

tsr_option_table tsr_optim_options(tsr_optim_config *config)
{
    return (tsr_option_table){
        .options = options, .count = sizeof options / sizeof *options, .target = config};
}

void tsr_optim_config_check(const tsr_optim_config *config, int64_t steps,
                            tsr_config_errors *errors)
{
    if (config->min_lr > config->lr) {
        tsr_config_error(errors, "optim.min_lr = %g, must be at most optim.lr = %g", config->min_lr,
                         config->lr);
    }
    if (config->warmup_steps > steps) {
        tsr_config_error(errors,
                         "optim.warmup_steps = %" PRId64 ", must be at most train.steps = %" PRId64,
                         config->warmup_steps, steps);
    }
    if (config->schedule == TSR_SCHEDULE_WSD && config->warmup_steps <= steps &&
        config->decay_steps > steps - config->warmup_steps) {
        tsr_config_error(errors,
                         "optim.decay_steps = %" PRId64 ", must be at most train.steps - "
                         "optim.warmup_steps = %" PRId64,
                         config->decay_steps, steps - config->warmup_steps);
    }
}
