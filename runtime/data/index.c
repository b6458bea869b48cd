/* The .idx of Megatron-LM (megatron/core/datasets/indexed_dataset.py), little endian, packed:
 * magic, u64 version, u8 token type, u64 sequences, u64 documents, i32 lengths[sequences],
 * i64 byte pointers[sequences], i64 document indices[documents], and maybe i8 modes[sequences]. */
#include "runtime/data/data_impl.h"
#include "runtime/memory.h"

#include <string.h>

enum {
    MAGIC_BYTES = 9,
    VERSION_AT = 9,
    TYPE_AT = 17,
    SEQUENCES_AT = 18,
    DOCUMENTS_AT = 26,
    HEADER_BYTES = 34
};

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token files are read as they lie");

/* Where the arrays of a checked index lie; none of them is aligned. */
typedef struct index_view {
    const char *path;
    const unsigned char *lengths, *pointers, *documents;
    int64_t sequences, document_count;
} index_view;

static int64_t load_i64(const unsigned char *at, int64_t index)
{
    int64_t value = 0;

    memcpy(&value, at + index * 8, sizeof(value));
    return value;
}

static int64_t load_i32(const unsigned char *at, int64_t index)
{
    int32_t value = 0;

    memcpy(&value, at + index * 4, sizeof(value));
    return value;
}

int tsr_token_bytes(int code)
{
    switch (code) {
    case TSR_TOKEN_U8:
    case TSR_TOKEN_I8:
        return 1;
    case TSR_TOKEN_I16:
    case TSR_TOKEN_U16:
        return 2;
    case TSR_TOKEN_I32:
        return 4;
    case TSR_TOKEN_I64:
        return 8;
    default:
        return 0;
    }
}

static tsr_status view_index(const char *path, const tsr_mapping *index, index_view *out)
{
    const unsigned char *bytes = index->bytes;

    TSR_CHECK(index->size >= HEADER_BYTES, TSR_ERR_FORMAT,
              "%s: has %lld bytes, the header of an .idx has %d; copy or make it again", path,
              (long long)index->size, HEADER_BYTES);
    TSR_CHECK(memcmp(bytes, "MMIDIDX\0\0", MAGIC_BYTES) == 0, TSR_ERR_FORMAT,
              "%s: does not start with MMIDIDX: it is no Megatron .idx file", path);
    const int64_t version = load_i64(bytes + VERSION_AT, 0);
    TSR_CHECK(version == 1, TSR_ERR_FORMAT, "%s: version = %lld, only 1 is known", path,
              (long long)version);
    TSR_CHECK(tsr_token_bytes(bytes[TYPE_AT]) != 0, TSR_ERR_FORMAT,
              "%s: token type = %d, must be 1, 2, 3, 4, 5 or 8 (a whole-number type)", path,
              bytes[TYPE_AT]);

    const int64_t sequences = load_i64(bytes + SEQUENCES_AT, 0);
    const int64_t documents = load_i64(bytes + DOCUMENTS_AT, 0);
    const int64_t room = index->size - HEADER_BYTES;
    TSR_CHECK(sequences >= 0 && sequences <= room / 12, TSR_ERR_FORMAT,
              "%s: names %llu sequences, its %lld bytes hold at most %lld; copy or make it again",
              path, (unsigned long long)sequences, (long long)index->size, (long long)(room / 12));
    const int64_t left = room - sequences * 12;
    TSR_CHECK(documents >= 0 && documents <= left / 8 &&
                  (left == documents * 8 || left == documents * 8 + sequences),
              TSR_ERR_FORMAT,
              "%s: names %llu documents, but %lld bytes follow the %lld sequences; copy or make it "
              "again",
              path, (unsigned long long)documents, (long long)left, (long long)sequences);
    *out = (index_view){.path = path,
                        .lengths = bytes + HEADER_BYTES,
                        .pointers = bytes + HEADER_BYTES + sequences * 4,
                        .documents = bytes + HEADER_BYTES + sequences * 12,
                        .sequences = sequences,
                        .document_count = documents};
    return TSR_OK;
}

static tsr_status check_documents(const index_view *view)
{
    for (int64_t d = 0; d < view->document_count; ++d) {
        const int64_t document = load_i64(view->documents, d);

        TSR_CHECK(document >= 0 && document <= view->sequences, TSR_ERR_FORMAT,
                  "%s: document %lld starts at sequence %lld of %lld", view->path, (long long)d,
                  (long long)document, (long long)view->sequences);
    }
    return TSR_OK;
}

static tsr_status check_sequence(const index_view *view, int64_t s, int64_t token_bytes,
                                 int64_t bin_size)
{
    const int64_t length = load_i32(view->lengths, s), pointer = load_i64(view->pointers, s);

    TSR_CHECK(length >= 0, TSR_ERR_FORMAT, "%s: sequence %lld has length %lld", view->path,
              (long long)s, (long long)length);
    TSR_CHECK(pointer >= 0 && pointer <= bin_size && length * token_bytes <= bin_size - pointer,
              TSR_ERR_FORMAT,
              "%s: sequence %lld is %lld bytes at byte %lld, but the .bin has %lld bytes; copy or "
              "make the pair again",
              view->path, (long long)s, (long long)(length * token_bytes), (long long)pointer,
              (long long)bin_size);
    return TSR_OK;
}

/* Join neighbours into spans; with spans = NULL only count them. All sequences have been checked.
 */
static int64_t join_spans(const index_view *view, int64_t token_bytes, tsr_token_span *spans)
{
    int64_t count = 0, tokens = 0, end = -1;

    for (int64_t s = 0; s < view->sequences; ++s) {
        const int64_t length = load_i32(view->lengths, s), pointer = load_i64(view->pointers, s);

        if (length == 0) {
            continue;
        }
        if (pointer != end) {
            if (spans != NULL) {
                spans[count] = (tsr_token_span){.first_token = tokens, .first_byte = pointer};
            }
            ++count;
        }
        tokens += length;
        end = pointer + length * token_bytes;
    }
    return count;
}

tsr_status tsr_token_index_read(const char *path, const tsr_mapping *index, int64_t bin_size,
                                tsr_token_file *file)
{
    index_view view = {0};
    int64_t tokens = 0;
    void *spans = NULL;

    TSR_TRY(view_index(path, index, &view));
    TSR_TRY(check_documents(&view));
    const int code = index->bytes[TYPE_AT], token_bytes = tsr_token_bytes(code);
    for (int64_t s = 0; s < view.sequences; ++s) {
        TSR_TRY(check_sequence(&view, s, token_bytes, bin_size));
        TSR_CHECK(!__builtin_add_overflow(tokens, load_i32(view.lengths, s), &tokens),
                  TSR_ERR_FORMAT, "%s: more than 2^63 tokens", path);
    }
    const int64_t count = join_spans(&view, token_bytes, NULL);
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_DATA, count, sizeof(*file->spans), &spans));
    file->spans = spans;
    file->span_count = join_spans(&view, token_bytes, spans);
    file->tokens = tokens;
    file->type = (tsr_token_type)code;
    return TSR_OK;
}
