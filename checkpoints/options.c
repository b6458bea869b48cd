/* Section [checkpoint] of the run file. */
#include "checkpoints/checkpoints.h"

tsr_option_table tsr_checkpoint_options(tsr_checkpoint_config *config)
{
    static const tsr_option options[] = {
        {.section = "checkpoint",
         .key = "every",
         .type = TSR_OPTION_INT,
         .fallback = "500",
         .min = 0,
         .max = 1e12,
         .unit = "steps",
         .help = "save a checkpoint after so many steps; 0: only at the end and when stopped",
         .offset = offsetof(tsr_checkpoint_config, every)},
        {.section = "checkpoint",
         .key = "keep",
         .type = TSR_OPTION_INT,
         .fallback = "3",
         .min = 0,
         .max = 1e6,
         .help = "complete checkpoints to keep, the newest ones; 0: all",
         .offset = offsetof(tsr_checkpoint_config, keep)},
        {.section = "checkpoint",
         .key = "async",
         .type = TSR_OPTION_BOOL,
         .fallback = "true",
         .help = "write behind the next steps, from a copy in memory",
         .offset = offsetof(tsr_checkpoint_config, async)},
    };

    return (tsr_option_table){
        .options = options, .count = (int)(sizeof options / sizeof options[0]), .target = config};
}
