/* Files that the data tests make: a folder of their own, texts, and Megatron pairs. */
#ifndef TSR_TESTS_DATA_FILES_H
#define TSR_TESTS_DATA_FILES_H

#include "tests/support/unit_test.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { IDX_MAX_BYTES = 4096, IDX_HEADER_BYTES = 34 };

/** Folder of this test program; made by files_setup(), removed by files_teardown(). */
static char files_dir[64];

static inline int files_setup(void **state)
{
    (void)state;
    (void)snprintf(files_dir, sizeof(files_dir), "/tmp/tsr-data-XXXXXX");
    return mkdtemp(files_dir) == NULL ? -1 : 0;
}

static inline int files_teardown(void **state)
{
    (void)state;
    char command[128];

    (void)snprintf(command, sizeof(command), "rm -rf '%s'", files_dir);
    return system(command); /* NOLINT(cert-env33-c): a fixed command on our own folder */
}

/** Name of a file in the folder; valid until the fourth next call. */
static inline const char *file_at(const char *name)
{
    static char paths[4][128];
    static int next;
    char *path = paths[next++ % 4];

    (void)snprintf(path, sizeof(paths[0]), "%s/%s", files_dir, name);
    return path;
}

static inline void write_file(const char *name, const void *bytes, size_t count)
{
    FILE *file = fopen(file_at(name), "wb");

    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
}

/** An .idx as Megatron writes it. */
typedef struct idx {
    unsigned char bytes[IDX_MAX_BYTES];
    size_t size;
} idx;

static inline void idx_put(idx *to, const void *value, size_t bytes)
{
    assert_true(to->size + bytes <= IDX_MAX_BYTES);
    memcpy(to->bytes + to->size, value, bytes);
    to->size += bytes;
}

/** documents: every sequence is one; pointers NULL: sequences lie behind each other. */
static inline idx idx_make(unsigned char code, int token_bytes, const int32_t *lengths,
                           const int64_t *pointers, int64_t sequences)
{
    const int64_t version = 1, documents = sequences + 1;
    idx made = {.size = 0};
    int64_t at = 0;

    idx_put(&made, "MMIDIDX\0\0", 9);
    idx_put(&made, &version, 8);
    idx_put(&made, &code, 1);
    idx_put(&made, &sequences, 8);
    idx_put(&made, &documents, 8);
    for (int64_t s = 0; s < sequences; ++s) {
        idx_put(&made, &lengths[s], 4);
    }
    for (int64_t s = 0; s < sequences; ++s) {
        idx_put(&made, pointers == NULL ? &at : &pointers[s], 8);
        at += (int64_t)lengths[s] * token_bytes;
    }
    for (int64_t d = 0; d < documents; ++d) {
        idx_put(&made, &d, 8);
    }
    return made;
}

/** Expect a refusal with this code and these words in its message. */
#define assert_refused(call_, code_, words_)                                                       \
    do {                                                                                           \
        assert_int_equal((call_), (code_));                                                        \
        if (strstr(tsr_error_message(), (words_)) == NULL) {                                       \
            fail_msg("\"%s\" lacks \"%s\"", tsr_error_message(), (words_));                        \
        }                                                                                          \
    } while (0)

#endif
