/* Memory that runs out on purpose: for programs linked with LINKER:--wrap=aligned_alloc, where all
 * blocks of less than 4 MiB come from. */
#ifndef TSR_SCARCE_MEMORY_H
#define TSR_SCARCE_MEMORY_H

#include <stdint.h>

/** From now on the block number `block` (from 1) of this process is refused, once; 0: none. */
void tsr_test_refuse_block(int64_t block);

#endif
