#include "runtime/data/data_impl.h"
#include "runtime/memory.h"
#include "runtime/rng.h"

#include <string.h>

struct tsr_data {
    tsr_token_file *files; /* own block */
    int64_t file_count;
    int64_t seq_len, vocab_size, windows, tokens;
};

static int64_t count_entries(const char *paths)
{
    int64_t count = 1;

    for (; *paths != '\0'; ++paths) {
        count += *paths == ',';
    }
    return count;
}

static tsr_status open_entry(tsr_data *data, const char *entry, size_t length)
{
    tsr_token_file *file = &data->files[data->file_count];
    char path[TSR_TEXT_MAX];

    TSR_CHECK(length > 0, TSR_ERR_ARG, "the list of data files holds an empty name");
    TSR_CHECK(length < sizeof(path), TSR_ERR_ARG, "%.60s...: %zu bytes, a path has at most %zu",
              entry, length, sizeof(path) - 1);
    memcpy(path, entry, length);
    path[length] = '\0';
    TSR_TRY(tsr_token_file_open(path, file));
    ++data->file_count; /* from here on tsr_data_close() closes it */
    TSR_CHECK(file->tokens > data->seq_len, TSR_ERR_FORMAT,
              "%s: has %lld tokens, one sequence of data.seq_len = %lld needs %lld", file->path,
              (long long)file->tokens, (long long)data->seq_len, (long long)data->seq_len + 1);
    file->first_window = data->windows;
    data->windows += (file->tokens - 1) / data->seq_len;
    data->tokens += file->tokens;
    return TSR_OK;
}

tsr_status tsr_data_open(const char *paths, int64_t seq_len, int64_t vocab_size, tsr_data **out)
{
    tsr_status st = TSR_OK;
    tsr_data *data = NULL;
    void *block = NULL;

    *out = NULL;
    TSR_CHECK(seq_len > 0 && seq_len < INT32_MAX, TSR_ERR_ARG, "seq_len = %lld, must be positive",
              (long long)seq_len);
    TSR_CHECK(vocab_size > 0 && vocab_size <= INT32_MAX, TSR_ERR_ARG,
              "vocab_size = %lld, must be from 1 to 2147483647", (long long)vocab_size);
    TSR_TRY(tsr_mem_alloc(TSR_MEM_DATA, sizeof(*data), &block));
    data = block;
    data->seq_len = seq_len;
    data->vocab_size = vocab_size;
    TSR_TRY_GOTO(
        tsr_mem_alloc_array(TSR_MEM_DATA, count_entries(paths), sizeof(*data->files), &block),
        err_close);
    data->files = block;
    for (const char *entry = paths;; ++entry) {
        const size_t length = strcspn(entry, ",");

        TSR_TRY_GOTO(open_entry(data, entry, length), err_close);
        entry += length;
        if (*entry == '\0') {
            break;
        }
    }
    *out = data;
    return TSR_OK;

err_close:
    tsr_data_close(&data);
    return st;
}

void tsr_data_close(tsr_data **data_p)
{
    tsr_data *data = *data_p;

    if (data == NULL) {
        return;
    }
    for (int64_t f = 0; f < data->file_count; ++f) {
        tsr_token_file_close(&data->files[f]);
    }
    tsr_mem_free(data->files);
    tsr_mem_free(data);
    *data_p = NULL;
}

int64_t tsr_data_windows(const tsr_data *data)
{
    return data->windows;
}

int64_t tsr_data_tokens(const tsr_data *data)
{
    return data->tokens;
}

tsr_status tsr_data_window(const tsr_data *data, int64_t w, int32_t *tokens_out)
{
    int64_t f = data->file_count - 1;

    TSR_CHECK(w >= 0 && w < data->windows, TSR_ERR_ARG, "window = %lld, must be below %lld",
              (long long)w, (long long)data->windows);
    while (data->files[f].first_window > w) { /* every file has a window, so file 0 ends this */
        --f;
    }
    return tsr_token_file_read(&data->files[f], (w - data->files[f].first_window) * data->seq_len,
                               data->seq_len + 1, data->vocab_size, tokens_out);
}

tsr_status tsr_data_sample(const tsr_data *data, uint64_t seed, int64_t index, int32_t *tokens_out)
{
    uint32_t words[4];

    TSR_CHECK(index >= 0, TSR_ERR_ARG, "sample index = %lld, must not be negative",
              (long long)index);
    const uint64_t windows = (uint64_t)data->windows, epoch = (uint64_t)index / windows;
    tsr_rng_words(tsr_rng_key(seed, "data.order"), epoch, words); /* a new order every epoch */
    const uint64_t key = (uint64_t)words[0] << 32 | words[1];
    const uint64_t w = tsr_rng_permute(key, (uint64_t)index % windows, windows);
    return tsr_data_window(data, (int64_t)w, tokens_out);
}
