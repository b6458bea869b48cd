#include "runtime/data/data_impl.h"
#include "runtime/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

tsr_status tsr_mapping_open(const char *path, tsr_mapping *out)
{
    struct stat info;
    tsr_status st = TSR_OK;
    /* without O_NONBLOCK a pipe of that name would stop the program here */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    TSR_CHECK(fd >= 0, TSR_ERR_IO, "%s: %s", path, strerror(errno));
    if (fstat(fd, &info) != 0) {
        st = TSR_FAIL(TSR_ERR_IO, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        st = TSR_FAIL(TSR_ERR_IO, "%s: is no regular file", path);
    } else if (info.st_size == 0) {
        st = TSR_FAIL(TSR_ERR_FORMAT, "%s: is empty", path);
    } else {
        void *bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);

        if (bytes == MAP_FAILED) {
            st = TSR_FAIL(TSR_ERR_IO, "%s: cannot map %lld bytes: %s", path,
                          (long long)info.st_size, strerror(errno));
        } else {
            *out = (tsr_mapping){.bytes = bytes, .size = info.st_size};
        }
    }
    (void)close(fd);
    return st;
}

void tsr_mapping_close(tsr_mapping *mapping)
{
    if (mapping->bytes != NULL) {
        (void)munmap(mapping->bytes, (size_t)mapping->size);
    }
    *mapping = (tsr_mapping){0};
}

static bool exists(const char *path)
{
    struct stat info;

    return stat(path, &info) == 0;
}

/* Split P, P.bin or P.idx into the names of a pair; false if path is a text file. */
static bool pair_names(const char *path, char bin_out[TSR_TEXT_MAX], char idx_out[TSR_TEXT_MAX])
{
    int length = (int)strlen(path);
    const bool has_ending = length > 4 && (strcmp(path + length - 4, ".bin") == 0 ||
                                           strcmp(path + length - 4, ".idx") == 0);

    length -= has_ending ? 4 : 0;
    if (length + 5 > TSR_TEXT_MAX) {
        return false;
    }
    (void)snprintf(bin_out, TSR_TEXT_MAX, "%.*s.bin", length, path);
    (void)snprintf(idx_out, TSR_TEXT_MAX, "%.*s.idx", length, path);
    return has_ending || (exists(bin_out) && exists(idx_out));
}

static tsr_status open_text(const char *path, tsr_token_file *file)
{
    void *spans = NULL;

    (void)snprintf(file->path, sizeof(file->path), "%s", path);
    TSR_TRY(tsr_mapping_open(path, &file->mapping));
    TSR_TRY(tsr_mem_alloc(TSR_MEM_DATA, sizeof(*file->spans), &spans));
    file->spans = spans; /* zero-filled: token 0 at byte 0 */
    file->span_count = 1;
    file->tokens = file->mapping.size;
    file->type = TSR_TOKEN_U8;
    return TSR_OK;
}

static tsr_status open_pair(const char *bin, const char *idx, tsr_token_file *file)
{
    tsr_mapping index = {0};

    (void)snprintf(file->path, sizeof(file->path), "%s", bin);
    TSR_TRY(tsr_mapping_open(bin, &file->mapping));
    TSR_TRY(tsr_mapping_open(idx, &index));
    const tsr_status st = tsr_token_index_read(idx, &index, file->mapping.size, file);
    tsr_mapping_close(&index);
    return st;
}

tsr_status tsr_token_file_open(const char *path, tsr_token_file *out)
{
    char bin[TSR_TEXT_MAX], idx[TSR_TEXT_MAX];
    tsr_token_file file = {0};
    const tsr_status st =
        pair_names(path, bin, idx) ? open_pair(bin, idx, &file) : open_text(path, &file);

    if (st != TSR_OK) {
        tsr_token_file_close(&file);
        return st;
    }
    /* windows are drawn at random: reading ahead would only fill the page cache */
    (void)posix_madvise(file.mapping.bytes, (size_t)file.mapping.size, POSIX_MADV_RANDOM);
    *out = file;
    return TSR_OK;
}

void tsr_token_file_close(tsr_token_file *file)
{
    tsr_mapping_close(&file->mapping);
    tsr_mem_free(file->spans);
    *file = (tsr_token_file){0};
}

static int64_t load_token(const unsigned char *at, tsr_token_type type)
{
    union {
        uint8_t u8;
        int8_t i8;
        int16_t i16;
        uint16_t u16;
        int32_t i32;
        int64_t i64;
    } token;

    memcpy(&token, at, (size_t)tsr_token_bytes((int)type));
    switch (type) {
    case TSR_TOKEN_U8:
        return token.u8;
    case TSR_TOKEN_I8:
        return token.i8;
    case TSR_TOKEN_I16:
        return token.i16;
    case TSR_TOKEN_U16:
        return token.u16;
    case TSR_TOKEN_I32:
        return token.i32;
    case TSR_TOKEN_I64:
        break;
    }
    return token.i64;
}

/* Last span that starts at or before a token. */
static int64_t find_span(const tsr_token_file *file, int64_t token)
{
    int64_t low = 0, high = file->span_count; /* the answer is in [low, high) */

    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;

        if (file->spans[middle].first_token <= token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

tsr_status tsr_token_file_read(const tsr_token_file *file, int64_t first, int64_t count,
                               int64_t vocab_size, int32_t *out)
{
    const int64_t token_bytes = tsr_token_bytes((int)file->type), last = first + count;

    for (int64_t s = find_span(file, first), at = first; at < last; ++s) {
        const tsr_token_span span = file->spans[s];
        const int64_t end =
            s + 1 < file->span_count ? file->spans[s + 1].first_token : file->tokens;
        const unsigned char *bytes =
            file->mapping.bytes + span.first_byte + (at - span.first_token) * token_bytes;

        for (; at < end && at < last; ++at, bytes += token_bytes) {
            const int64_t token = load_token(bytes, file->type);

            TSR_CHECK(token >= 0 && token < vocab_size, TSR_ERR_FORMAT,
                      "%s: token %lld at position %lld, must be below model.vocab_size = %lld",
                      file->path, (long long)token, (long long)at, (long long)vocab_size);
            out[at - first] = (int32_t)token;
        }
    }
    return TSR_OK;
}
