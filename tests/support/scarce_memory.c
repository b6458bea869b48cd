#include "tests/support/scarce_memory.h"

#include <stddef.h>

/* The linker's names for what --wrap replaces and for its replacement. */
/* NOLINTBEGIN(readability-identifier-naming): as above */
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
/* NOLINTEND(readability-identifier-naming) */

static int64_t blocks_left;

void tsr_test_refuse_block(int64_t block)
{
    blocks_left = block;
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return blocks_left > 0 && --blocks_left == 0 ? NULL : __real_aligned_alloc(alignment, bytes);
}
