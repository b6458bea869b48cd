#include "runtime/memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

enum { BLOCK_ALIGN = 64, HEADER_BYTES = 64 };
static const size_t mapped_from = (size_t)1 << 22; /* larger blocks get pages of their own */

typedef struct header {
    size_t bytes;  /* as asked for */
    size_t mapped; /* length of the mapping, 0 for a heap block */
    tsr_mem_tag tag;
} header;

_Static_assert(sizeof(header) <= HEADER_BYTES, "the header must fit before the block");

static atomic_llong live_blocks, alloc_calls;
static atomic_size_t live_bytes[TSR_MEM_TAGS];

static void *map_block(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (at == MAP_FAILED) {
        return NULL;
    }
    (void)madvise(at, bytes, MADV_HUGEPAGE); /* a hint: without it only speed is lost */
    return at;
}

tsr_status tsr_mem_alloc(tsr_mem_tag tag, size_t bytes, void **out)
{
    const size_t huge_page = (size_t)1 << 21;
    char *base = NULL;
    size_t mapped = 0;

    *out = NULL;
    TSR_CHECK(bytes < SIZE_MAX - 2 * huge_page, TSR_ERR_NOMEM, "block of %zu bytes", bytes);
    size_t total = (bytes + HEADER_BYTES + BLOCK_ALIGN - 1) / BLOCK_ALIGN * BLOCK_ALIGN;
    if (total >= mapped_from) {
        total = (total + huge_page - 1) / huge_page * huge_page;
        mapped = total;
        base = map_block(total);
    } else {
        base = aligned_alloc(BLOCK_ALIGN, total);
        if (base != NULL) {
            memset(base, 0, total);
        }
    }
    TSR_CHECK(base != NULL, TSR_ERR_NOMEM, "cannot allocate %.2f MiB for %s",
              (double)bytes / 1048576.0, tsr_mem_tag_name(tag));
    *(header *)(void *)base = (header){.bytes = bytes, .mapped = mapped, .tag = tag};
    atomic_fetch_add(&live_blocks, 1);
    atomic_fetch_add(&alloc_calls, 1);
    atomic_fetch_add(&live_bytes[tag], bytes);
    *out = base + HEADER_BYTES;
    return TSR_OK;
}

tsr_status tsr_mem_alloc_array(tsr_mem_tag tag, int64_t count, size_t size, void **out)
{
    *out = NULL;
    TSR_CHECK(count >= 0 && (size == 0 || (uint64_t)count <= SIZE_MAX / size), TSR_ERR_NOMEM,
              "array of %lld elements of %zu bytes", (long long)count, size);
    return tsr_mem_alloc(tag, (size_t)count * size, out);
}

void tsr_mem_free(void *block)
{
    if (block == NULL) {
        return;
    }
    char *base = (char *)block - HEADER_BYTES;
    const header head = *(const header *)(const void *)base;

    atomic_fetch_sub(&live_blocks, 1);
    atomic_fetch_sub(&live_bytes[head.tag], head.bytes);
    if (head.mapped != 0) {
        (void)munmap(base, head.mapped);
    } else {
        free(base);
    }
}

void tsr_mem_count_bytes(tsr_mem_tag tag, int64_t bytes)
{
    atomic_fetch_add(&live_bytes[tag],
                     (size_t)bytes); /* modulo 2^64: adding a negative takes away */
}

tsr_status tsr_mem_strdup(const char *text, char **out)
{
    const size_t bytes = strlen(text) + 1;
    void *copy = NULL;

    *out = NULL;
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, bytes, &copy));
    memcpy(copy, text, bytes);
    *out = copy;
    return TSR_OK;
}

int64_t tsr_mem_live_blocks(void)
{
    return atomic_load(&live_blocks);
}

int64_t tsr_mem_alloc_calls(void)
{
    return atomic_load(&alloc_calls);
}

size_t tsr_mem_live_bytes(tsr_mem_tag tag)
{
    return atomic_load(&live_bytes[tag]);
}

size_t tsr_mem_peak_resident(void)
{
    struct rusage usage;

    return getrusage(RUSAGE_SELF, &usage) == 0 ? (size_t)usage.ru_maxrss * 1024 : 0;
}

const char *tsr_mem_tag_name(tsr_mem_tag tag)
{
    static const char *const names[TSR_MEM_TAGS] = {
        [TSR_MEM_OTHER] = "other",
        [TSR_MEM_WEIGHTS] = "weights",
        [TSR_MEM_GRADIENTS] = "gradients",
        [TSR_MEM_OPTIMIZER] = "optimizer",
        [TSR_MEM_ACTIVATIONS] = "activations",
        [TSR_MEM_WORKSPACE] = "workspace",
        [TSR_MEM_DATA] = "data",
        [TSR_MEM_COMM] = "communication",
        [TSR_MEM_CHECKPOINT] = "checkpoint",
    };

    return names[tag];
}
