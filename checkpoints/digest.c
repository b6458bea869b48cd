/* Digests that do not depend on the layout: sums over rows, so ranks add up what each of them has.
 */
#define XXH_INLINE_ALL
#include "checkpoints/checkpoints_impl.h"

#include <string.h>
#include <xxhash.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "digests and shards are little endian");

const char *const tsr_ckpt_kind_names[TSR_CKPT_KINDS] = {"master", "adam_m", "adam_v"};

uint64_t tsr_ckpt_rows_digest(const float *rows, int64_t row_begin, int64_t count, int64_t width)
{
    uint64_t sum = 0;

    for (int64_t row = 0; row < count; ++row) {
        sum += XXH3_64bits_withSeed(rows + row * width, (size_t)width * sizeof *rows,
                                    (XXH64_hash_t)(row_begin + row));
    }
    return sum;
}

uint64_t tsr_ckpt_state_digest(const tsr_ckpt_manifest *manifest)
{
    struct {
        char name[TSR_CKPT_NAME_MAX];
        int64_t shape[3];
        uint64_t kind, digest;
    } entry = {.kind = 0};
    const uint64_t state[] = {(uint64_t)manifest->step,          (uint64_t)manifest->tokens,
                              (uint64_t)manifest->data_position, manifest->seed,
                              (uint64_t)manifest->layers,        (uint64_t)manifest->experts};
    const size_t bias_bytes = (size_t)(manifest->layers * manifest->experts) * sizeof(float);
    uint64_t sum = XXH3_64bits(state, sizeof state);

    if (manifest->router_bias != NULL) {
        sum += XXH3_64bits_withSeed(manifest->router_bias, bias_bytes, 1);
    }
    for (int i = 0; i < manifest->tensor_count; ++i) {
        const tsr_ckpt_tensor *tensor = &manifest->tensors[i];
        memset(&entry, 0, sizeof entry);
        memcpy(entry.name, tensor->name, strlen(tensor->name));
        memcpy(entry.shape, tensor->shape, sizeof entry.shape);
        for (int kind = 0; kind < TSR_CKPT_KINDS; ++kind) {
            entry.kind = (uint64_t)kind;
            entry.digest = tensor->digest[kind];
            sum += XXH3_64bits(&entry, sizeof entry);
        }
    }
    return sum;
}
