/* Inside of runtime/data: one mapped token file, of text or of a Megatron pair. */
#ifndef TSR_RUNTIME_DATA_IMPL_H
#define TSR_RUNTIME_DATA_IMPL_H

#include "runtime/data.h"

#include <stdbool.h>

/** A whole file mapped for reading only. Zeroed is empty. */
typedef struct tsr_mapping {
    unsigned char *bytes; /* writing faults */
    int64_t size;
} tsr_mapping;

/**
 * Map a regular file.
 * Errors: TSR_ERR_IO if it is missing, unreadable or no regular file; TSR_ERR_FORMAT if empty.
 */
TSR_NODISCARD tsr_status tsr_mapping_open(const char *path, tsr_mapping *out);
void tsr_mapping_close(tsr_mapping *mapping);

/** Codes of the .idx format; those not named here are refused. */
typedef enum tsr_token_type {
    TSR_TOKEN_U8 = 1,
    TSR_TOKEN_I8 = 2,
    TSR_TOKEN_I16 = 3,
    TSR_TOKEN_I32 = 4,
    TSR_TOKEN_I64 = 5,
    TSR_TOKEN_U16 = 8
} tsr_token_type;

/** Tokens that lie behind each other both in the stream and in the file. */
typedef struct tsr_token_span {
    int64_t first_token, first_byte;
} tsr_token_span;

typedef struct tsr_token_file {
    char path[TSR_TEXT_MAX]; /* of the text, or of the .bin */
    tsr_mapping mapping;
    tsr_token_type type;
    int64_t tokens;
    tsr_token_span *spans; /* by first_token, the first one 0; own block */
    int64_t span_count;
    int64_t first_window; /* of this file among all windows of the reader */
} tsr_token_file;

/** Open one entry of a path list, see tsr_data_open(). */
TSR_NODISCARD tsr_status tsr_token_file_open(const char *path, tsr_token_file *out);
void tsr_token_file_close(tsr_token_file *file);

/**
 * Copy tokens [first, first + count), which must lie in the file.
 * Errors: TSR_ERR_FORMAT for a token outside [0, vocab_size).
 */
TSR_NODISCARD tsr_status tsr_token_file_read(const tsr_token_file *file, int64_t first,
                                             int64_t count, int64_t vocab_size, int32_t *out);

/**
 * Check every field of an .idx against its own size and bin_size, and set type, tokens and spans.
 * Owns:   the caller, file->spans.
 * Errors: TSR_ERR_FORMAT with the field, its value and its limit.
 */
TSR_NODISCARD tsr_status tsr_token_index_read(const char *path, const tsr_mapping *index,
                                              int64_t bin_size, tsr_token_file *file);

/** Bytes of one token; 0 for a code that is not taken. */
int tsr_token_bytes(int code);

#endif
