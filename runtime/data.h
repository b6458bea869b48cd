/* Tokens from files: texts (vocabulary `bytes`) and Megatron's .bin/.idx pairs, mapped, not copied.
 *
 * Sample i of step n is a pure function of (seed, n, i): window number (n * global_batch + i) of an
 * endless sequence that visits all windows once an epoch in an order drawn from (seed, epoch).
 * Ranks take their share of i; the reader knows nothing of ranks. It does no tokenising. */
#ifndef TSR_RUNTIME_DATA_H
#define TSR_RUNTIME_DATA_H

#include "runtime/config.h"
#include "runtime/status.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Values of section [data]. */
typedef struct tsr_data_config {
    char train[TSR_TEXT_MAX], valid[TSR_TEXT_MAX]; /* absolute paths, comma separated */
    int vocab;                                     /* 0: bytes */
    int64_t seq_len;
} tsr_data_config;

/** Option table of section [data], filling *config. */
tsr_option_table tsr_data_options(tsr_data_config *config);

typedef struct tsr_data tsr_data;

/**
 * Open a comma-separated list: text files, or prefixes P with P.bin and P.idx.
 *
 * A file of n tokens has floor((n - 1) / seq_len) windows; window w reads tokens [w S, w S + S]
 * (one more than S: inputs and targets overlap by S - 1). Windows never cross files. The sequences
 * of a pair are joined in the order of its .idx, which is read once, here.
 * Owns:   the caller, until tsr_data_close(); files stay mapped until then. Replacing a file by
 *         rename is harmless; cutting one short in place ends the program (SIGBUS).
 * Errors: TSR_ERR_IO (missing, unreadable, no regular file), TSR_ERR_FORMAT (bad or truncated .idx,
 *         .bin too short, empty file, fewer tokens than one window needs: value and limit named),
 *         TSR_ERR_ARG (empty name in the list, seq_len or vocab_size not positive).
 */
TSR_NODISCARD tsr_status tsr_data_open(const char *paths, int64_t seq_len, int64_t vocab_size,
                                       tsr_data **out);
void tsr_data_close(tsr_data **data_p);

/** Windows in all files, and tokens in all files. */
int64_t tsr_data_windows(const tsr_data *data);
int64_t tsr_data_tokens(const tsr_data *data);

/**
 * Copy window w: seq_len + 1 tokens.
 * Errors: TSR_ERR_ARG if w is out of range; TSR_ERR_FORMAT for a token >= vocab_size or < 0, naming
 *         file and position.
 */
TSR_NODISCARD tsr_status tsr_data_window(const tsr_data *data, int64_t w, int32_t *tokens_out);

/**
 * Sample `index` of the endless shuffled sequence of this seed; see the head of this file.
 * Errors: TSR_ERR_ARG if index is negative; those of tsr_data_window().
 */
TSR_NODISCARD tsr_status tsr_data_sample(const tsr_data *data, uint64_t seed, int64_t index,
                                         int32_t *tokens_out);

#ifdef __cplusplus
}
#endif

#endif
