#include "runtime/data.h"

tsr_option_table tsr_data_options(tsr_data_config *config)
{
    static const tsr_option options[] = {
        {"data", "train", TSR_OPTION_PATHS, "", 0, 0, NULL, NULL,
         "training texts, or prefixes of Megatron .bin/.idx pairs",
         offsetof(tsr_data_config, train)},
        {"data", "valid", TSR_OPTION_PATHS, "", 0, 0, NULL, NULL,
         "validation texts or prefixes; none: no validation", offsetof(tsr_data_config, valid)},
        {"data", "vocab", TSR_OPTION_CHOICE, "bytes", 0, 0, "bytes", NULL,
         "how texts become tokens; bytes: each byte is one", offsetof(tsr_data_config, vocab)},
        {"data", "seq_len", TSR_OPTION_INT, "256", 1, 1 << 24, NULL, "tokens",
         "length of one sequence", offsetof(tsr_data_config, seq_len)},
    };

    return (tsr_option_table){
        .options = options, .count = sizeof(options) / sizeof(options[0]), .target = config};
}
