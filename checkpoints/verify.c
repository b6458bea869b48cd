/* `tessera ckpt verify` and `show`: a whole checkpoint without a model. */
#include "checkpoints/checkpoints_impl.h"

#include <inttypes.h>

static tsr_status verify_tensor(tsr_ckpt_reader *reader, const tsr_ckpt_tensor *tensor, int kind,
                                const char *path)
{
    const int64_t most = (int64_t)4 * TSR_CKPT_CHUNK;
    const int64_t step = tensor->width < most ? most / tensor->width : 1;
    uint64_t digest = 0;
    void *block = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, step * tensor->width, sizeof(float), &block));
    for (int64_t row = 0; row < tensor->rows && st == TSR_OK; row += step) {
        const int64_t end = tensor->rows - row < step ? tensor->rows : row + step;
        st = tsr_ckpt_reader_rows(reader, tensor, kind, row, end, block);
        digest += st == TSR_OK ? tsr_ckpt_rows_digest(block, row, end - row, tensor->width) : 0;
    }
    tsr_mem_free(block);
    TSR_TRY(st);
    TSR_CHECK(digest == tensor->digest[kind], TSR_ERR_FORMAT,
              "%s: %s/%s has digest %016" PRIx64 ", must have %016" PRIx64, path,
              tsr_ckpt_kind_names[kind], tensor->name, digest, tensor->digest[kind]);
    return TSR_OK;
}

static tsr_status verify_tensors(const char *path, const tsr_ckpt_manifest *manifest)
{
    tsr_ckpt_reader *reader = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY(tsr_ckpt_reader_open(path, &reader));
    for (int i = 0; i < manifest->tensor_count * TSR_CKPT_KINDS && st == TSR_OK; ++i) {
        st =
            verify_tensor(reader, &manifest->tensors[i / TSR_CKPT_KINDS], i % TSR_CKPT_KINDS, path);
    }
    tsr_ckpt_reader_close(&reader);
    return st;
}

tsr_status tsr_ckpt_verify(const char *path)
{
    tsr_ckpt_manifest manifest = {0};

    TSR_CHECK(tsr_ckpt_exists(path, "."), TSR_ERR_IO, "no such folder: %s", path);
    TSR_TRY(tsr_ckpt_manifest_read(path, true, &manifest));
    tsr_status st = tsr_ckpt_check_shards(path, &manifest, 0, 1, true);
    st = st != TSR_OK ? st : verify_tensors(path, &manifest);
    tsr_ckpt_manifest_free(&manifest);
    return st;
}

tsr_status tsr_ckpt_print_tensors(const char *path, FILE *to)
{
    tsr_ckpt_manifest manifest = {0};

    TSR_TRY(tsr_ckpt_manifest_read(path, true, &manifest));
    for (int i = 0; i < manifest.tensor_count; ++i) {
        const tsr_ckpt_tensor *tensor = &manifest.tensors[i];
        (void)fprintf(to, "%-64s", tensor->name);
        for (int axis = 0; axis < tensor->dims; ++axis) {
            (void)fprintf(to, "%s%" PRId64, axis == 0 ? " [" : ", ", tensor->shape[axis]);
        }
        (void)fprintf(to, "] %016" PRIx64 "\n", tensor->digest[0]);
    }
    tsr_ckpt_manifest_free(&manifest);
    return TSR_OK;
}
