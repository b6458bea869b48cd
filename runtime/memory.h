/* Host memory: every block of the program comes from here and is counted by tag.
 *
 * Large blocks are mapped with huge pages asked for. There is no pool and no garbage collection;
 * the step loop must not call tsr_mem_alloc() at all, see
 * tsr_mem_alloc_calls(). */
#ifndef TSR_RUNTIME_MEMORY_H
#define TSR_RUNTIME_MEMORY_H

#include "runtime/status.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tsr_mem_tag {
    TSR_MEM_OTHER = 0,
    TSR_MEM_WEIGHTS,
    TSR_MEM_GRADIENTS,
    TSR_MEM_OPTIMIZER,
    TSR_MEM_ACTIVATIONS,
    TSR_MEM_WORKSPACE,
    TSR_MEM_DATA,
    TSR_MEM_COMM,
    TSR_MEM_CHECKPOINT,
    TSR_MEM_TAGS
} tsr_mem_tag;

/**
 * Take a zero-filled block, 64-byte aligned.
 *
 * Owns:    the caller, until tsr_mem_free().
 * Threads: any.
 * Errors:  TSR_ERR_NOMEM with size and tag; *out is NULL then. bytes = 0 gives a valid block.
 */
TSR_NODISCARD tsr_status tsr_mem_alloc(tsr_mem_tag tag, size_t bytes, void **out);

/** As tsr_mem_alloc() for count elements of size bytes; refuses a product that overflows. */
TSR_NODISCARD tsr_status tsr_mem_alloc_array(tsr_mem_tag tag, int64_t count, size_t size,
                                             void **out);

/** Give a block back; NULL is fine. */
void tsr_mem_free(void *block);

/** Count bytes that a device's allocator took under this tag (negative: gave back). They are bytes
 *  only: the backend keeps a record for each block, made by tsr_mem_alloc(), which is the block. */
void tsr_mem_count_bytes(tsr_mem_tag tag, int64_t bytes);

/** Copy of a text as an own block. */
TSR_NODISCARD tsr_status tsr_mem_strdup(const char *text, char **out);

/** Blocks not yet freed, of all tags; zero at the end of every test. */
int64_t tsr_mem_live_blocks(void);

/** Calls of tsr_mem_alloc() since the program started. */
int64_t tsr_mem_alloc_calls(void);

/** Bytes held now under one tag. */
size_t tsr_mem_live_bytes(tsr_mem_tag tag);

/** Largest resident set of this process so far, in bytes (the kernel's figure). */
size_t tsr_mem_peak_resident(void);

/** Name of a tag, such as "activations". Static. */
const char *tsr_mem_tag_name(tsr_mem_tag tag);

#ifdef __cplusplus
}
#endif

#endif
