#include "parallel/experts.h"

#define AT(field) offsetof(tsr_experts_config, field)

static const tsr_option keys[] = {
    {"experts", "slots", TSR_OPTION_INT, "0", 0, 1024, NULL, "experts",
     "copies of a layer's experts that a rank has room for; 0: half of what it owns, at least one",
     AT(slots)},
    {"experts", "spill_slots", TSR_OPTION_INT, "0", 0, 1024, NULL, "experts",
     "of the slots, those kept for copies after the gate; quota takes what is free beyond them too",
     AT(spill_slots)},
    {"experts", "budget", TSR_OPTION_INT, "0", 0, 1024, NULL, "experts",
     "copies that come to a rank under a layer's attention; 0: as many as slots allow", AT(budget)},
    {"experts", "measure", TSR_OPTION_BOOL, "false", 0, 0, NULL, NULL,
     "set the budget from measured times after the third step: runs then repeat within rounding, "
     "not bit for bit",
     AT(measure)},
    {"experts", "prediction", TSR_OPTION_CHOICE, "window", 0, 0, "window ema", NULL,
     "how the last steps' loads predict the next one's: their mean, or one that forgets",
     AT(prediction)},
    {"experts", "window", TSR_OPTION_INT, "5", 1, 1000, NULL, "steps",
     "how far prediction looks back", AT(window)},
    {"experts", "target", TSR_OPTION_REAL, "1.05", 1, 1000, NULL, NULL,
     "largest over mean load of ranks above which quota makes copies after the gate", AT(target)},
    {"experts", "calibrate", TSR_OPTION_BOOL, "false", 0, 0, NULL, NULL,
     "fssdp: look again after the gate", AT(calibrate)},
    {"experts", "room", TSR_OPTION_REAL, "1", 1, 1e6, NULL, NULL,
     "largest over mean rows of a rank that memory is taken for from the start, and a quarter "
     "more; "
     "what a run's loads need beyond is planned as they are seen",
     AT(room)},
    {"experts", "rematerialize", TSR_OPTION_BOOL, "true", 0, 0, NULL, NULL,
     "keep one layer's copies at a time and fetch them again in backward; false: all layers'",
     AT(rematerialize)},
    {"experts", "reshard_every", TSR_OPTION_INT, "0", 0, 1000000, NULL, "steps",
     "look so often for better owners of experts (swap, fssdp, quota), and move if it pays until "
     "the next look; 0: never",
     AT(reshard_every)},
    {"experts", "reshard_cost", TSR_OPTION_REAL, "10000", 0, 1e12, NULL, "tokens",
     "what moving an expert and its optimizer state costs: tokens that it computes meanwhile",
     AT(reshard_cost)},
};

tsr_option_table tsr_experts_options(tsr_experts_config *config)
{
    return (tsr_option_table){keys, (int)(sizeof keys / sizeof keys[0]), config};
}

void tsr_experts_config_check(const tsr_experts_config *config, tsr_config_errors *errors)
{
    if (config->slots > 0 && config->spill_slots > config->slots) {
        tsr_config_error(errors, "[experts] spill_slots = %lld: more than slots = %lld",
                         (long long)config->spill_slots, (long long)config->slots);
    }
}
