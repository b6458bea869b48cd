#include "optim/optim.h"

#include <math.h>

static int64_t length_of_decay(const tsr_optim_config *config, int64_t steps)
{
    if (config->decay_steps > 0) {
        return config->decay_steps;
    }
    return steps >= 10 ? steps / 10 : 1;
}

double tsr_lr_at(const tsr_optim_config *config, int64_t step, int64_t steps)
{
    const int64_t now = step < steps ? step : steps;
    const int64_t decay_steps = length_of_decay(config, steps);
    const double range = config->lr - config->min_lr;

    if (now <= config->warmup_steps && config->warmup_steps > 0) {
        return config->lr * (double)now / (double)config->warmup_steps;
    }
    if (config->schedule == TSR_SCHEDULE_COSINE) {
        const double done =
            (double)(now - config->warmup_steps) / (double)(steps - config->warmup_steps);
        return config->min_lr + range * 0.5 * (1.0 + cos(acos(-1.0) * done));
    }
    if (config->schedule == TSR_SCHEDULE_WSD && now > steps - decay_steps) {
        return config->min_lr + range * (double)(steps - now) / (double)decay_steps;
    }
    return config->lr;
}
