/* Megatron pairs: every token type, sequences in any order, and no .idx that can hurt. */
#include "tests/data/data_files.h"

#include "runtime/data/data_impl.h"

enum {
    SEQ = 4,
    TOKENS = 23 /* in all sequences of the pair below */
};

static const int32_t lengths[5] = {7, 0, 3, 9, 4};

/* Token t of the stream: both signs of a byte would show. */
static int64_t token(int64_t t)
{
    return 100 + t;
}

static void store(unsigned char *at, int64_t value, int token_bytes)
{
    memcpy(at, &value, (size_t)token_bytes); /* little endian: the low bytes come first */
}

/* Bytes of the stream, TOKENS tokens behind each other. */
static void make_bin(const char *name, int token_bytes)
{
    unsigned char bytes[TOKENS * 8];

    for (int64_t t = 0; t < TOKENS; ++t) {
        store(bytes + t * token_bytes, token(t), token_bytes);
    }
    write_file(name, bytes, (size_t)token_bytes * TOKENS);
}

static void assert_stream(const char *path)
{
    tsr_data *data = NULL;
    int32_t tokens[SEQ + 1];

    assert_ok(tsr_data_open(path, SEQ, 256, &data));
    assert_int_equal(tsr_data_tokens(data), TOKENS);
    assert_int_equal(tsr_data_windows(data), (TOKENS - 1) / SEQ);
    for (int64_t w = 0; w < tsr_data_windows(data); ++w) {
        assert_ok(tsr_data_window(data, w, tokens));
        for (int64_t i = 0; i <= SEQ; ++i) {
            assert_int_equal(tokens[i], token(w * SEQ + i));
        }
    }
    tsr_data_close(&data);
}

static void every_token_type_is_read(void **state)
{
    (void)state;
    const unsigned char codes[6] = {1, 2, 3, 4, 5, 8};
    const int sizes[6] = {1, 1, 2, 4, 8, 2};

    for (int c = 0; c < 6; ++c) {
        const idx made = idx_make(codes[c], sizes[c], lengths, NULL, 5);

        make_bin("p.bin", sizes[c]);
        write_file("p.idx", made.bytes, made.size);
        assert_stream(file_at("p"));
    }
    assert_stream(file_at("p.bin"));
    assert_stream(file_at("p.idx"));
}

static void sequences_are_joined_in_the_order_of_the_index(void **state)
{
    (void)state;
    const int64_t pointers[5] = {40, 80, 3, 11, 61}; /* bytes; odd addresses on purpose */
    unsigned char bytes[80] = {0};
    int64_t t = 0;

    for (int s = 0; s < 5; ++s) {
        for (int32_t i = 0; i < lengths[s]; ++i) {
            store(bytes + pointers[s] + 2 * i, token(t++), 2);
        }
    }
    const idx made = idx_make(TSR_TOKEN_U16, 2, lengths, pointers, 5);
    write_file("s.bin", bytes, sizeof(bytes));
    write_file("s.idx", made.bytes, made.size);
    assert_stream(file_at("s"));
}

static void modes_may_follow(void **state)
{
    (void)state;
    idx made = idx_make(TSR_TOKEN_U16, 2, lengths, NULL, 5);

    idx_put(&made, "\1\0\1\0\1", 5);
    make_bin("m.bin", 2);
    write_file("m.idx", made.bytes, made.size);
    assert_stream(file_at("m"));
}

static void signed_tokens_may_not_be_negative(void **state)
{
    (void)state;
    const int32_t one[1] = {6};
    const idx made = idx_make(TSR_TOKEN_I8, 1, one, NULL, 1);
    tsr_data *data = NULL;
    int32_t tokens[SEQ + 1];

    write_file("n.bin",
               "ab\xFF"
               "def",
               6);
    write_file("n.idx", made.bytes, made.size);
    assert_ok(tsr_data_open(file_at("n"), SEQ, 256, &data));
    assert_refused(tsr_data_window(data, 0, tokens), TSR_ERR_FORMAT, "token -1 at position 2");
    tsr_data_close(&data);
}

/* The pair "x" with its index changed at one place must be refused with these words. */
static void assert_bad(size_t at, int64_t value, size_t bytes, const char *words)
{
    idx made = idx_make(TSR_TOKEN_U16, 2, lengths, NULL, 5);
    tsr_data *data = NULL;

    memcpy(made.bytes + at, &value, bytes);
    write_file("x.idx", made.bytes, made.size);
    assert_refused(tsr_data_open(file_at("x"), SEQ, 256, &data), TSR_ERR_FORMAT, words);
    assert_null(data);
}

static void bad_fields_are_named(void **state)
{
    (void)state;
    const size_t pointers = IDX_HEADER_BYTES + 5 * 4, documents = pointers + 5 * 8;

    make_bin("x.bin", 2);
    assert_bad(0, 'X', 1, "does not start with MMIDIDX");
    assert_bad(8, 'X', 1, "does not start with MMIDIDX");
    assert_bad(9, 2, 8, "version = 2, only 1 is known");
    assert_bad(17, 6, 1, "token type = 6, must be 1, 2, 3, 4, 5 or 8");
    assert_bad(17, 7, 1, "token type = 7");
    assert_bad(17, 0, 1, "token type = 0");
    assert_bad(18, 6, 8, "names 6 documents, but 36 bytes follow the 6 sequences");
    assert_bad(18, -1, 8, "names 18446744073709551615 sequences");
    assert_bad(18, INT64_MAX / 12 * 3, 8, "sequences, its");
    assert_bad(26, 7, 8, "names 7 documents");
    assert_bad(26, -1, 8, "names 18446744073709551615 documents");
    assert_bad(26, INT64_C(1) << 61, 8, "documents, but");
    assert_bad(IDX_HEADER_BYTES, -1, 4, "sequence 0 has length -1");
    assert_bad(IDX_HEADER_BYTES + 16, 5, 4,
               "sequence 4 is 10 bytes at byte 38, but the .bin has 46");
    assert_bad(pointers, -2, 8, "at byte -2");
    assert_bad(pointers, INT64_MAX, 8, "at byte 9223372036854775807");
    assert_bad(pointers + 8, 47, 8, "sequence 1 is 0 bytes at byte 47");
    assert_bad(documents, 6, 8, "document 0 starts at sequence 6 of 5");
    assert_bad(documents, -1, 8, "document 0 starts at sequence -1");
}

static void truncation_is_seen_at_every_length(void **state)
{
    (void)state;
    const idx made = idx_make(TSR_TOKEN_U16, 2, lengths, NULL, 5);
    tsr_data *data = NULL;

    make_bin("t.bin", 2);
    for (size_t size = 0; size < made.size; ++size) {
        write_file("t.idx", made.bytes, size);
        assert_int_equal(tsr_data_open(file_at("t"), SEQ, 256, &data), TSR_ERR_FORMAT);
        assert_non_null(strstr(tsr_error_message(), "t.idx: "));
    }
    write_file("t.idx", made.bytes, made.size);
    assert_stream(file_at("t"));
    for (size_t size = 0; size < TOKENS * 2; ++size) {
        static const unsigned char zeros[TOKENS * 2];

        write_file("t.bin", zeros, size);
        assert_int_equal(tsr_data_open(file_at("t"), SEQ, 256, &data), TSR_ERR_FORMAT);
    }
}

static void half_a_pair_is_named(void **state)
{
    (void)state;
    const idx made = idx_make(TSR_TOKEN_U16, 2, lengths, NULL, 5);
    tsr_data *data = NULL;

    make_bin("b.bin", 2);
    assert_refused(tsr_data_open(file_at("b.bin"), SEQ, 256, &data), TSR_ERR_IO, "b.idx: No such");
    assert_refused(tsr_data_open(file_at("b"), SEQ, 256, &data), TSR_ERR_IO, "/b: No such file");
    write_file("i.idx", made.bytes, made.size);
    assert_refused(tsr_data_open(file_at("i.idx"), SEQ, 256, &data), TSR_ERR_IO, "i.bin: No such");
}

static void empty_pairs_are_refused(void **state)
{
    (void)state;
    const idx made = idx_make(TSR_TOKEN_U16, 2, lengths, NULL, 0);
    tsr_data *data = NULL;

    make_bin("e.bin", 2);
    write_file("e.idx", made.bytes, made.size);
    assert_refused(tsr_data_open(file_at("e"), SEQ, 256, &data), TSR_ERR_FORMAT, "has 0 tokens");
}

/* What is accepted must also be readable to the last window. */
static bool survives(const tsr_mapping *index)
{
    unsigned char bin[TOKENS * 2] = {0};
    tsr_token_file file = {.mapping = {.bytes = bin, .size = sizeof(bin)}};
    int32_t out[1];
    const tsr_status st = tsr_token_index_read("fuzz.idx", index, file.mapping.size, &file);

    for (int64_t t = 0; st == TSR_OK && t < file.tokens; ++t) {
        assert_ok(tsr_token_file_read(&file, t, 1, 256, out));
    }
    tsr_mem_free(file.spans);
    return st == TSR_OK;
}

static void changed_bytes_never_crash(void **state)
{
    (void)state;
    const idx good = idx_make(TSR_TOKEN_U16, 2, lengths, NULL, 5);
    int64_t accepted = 0;
    const uint64_t rounds = 20000;

    for (uint64_t round = 0; round < rounds; ++round) {
        uint32_t words[4];
        unsigned char *bytes = malloc(good.size); /* exact size: ASan sees one byte too many */

        assert_non_null(bytes);
        memcpy(bytes, good.bytes, good.size);
        tsr_rng_words(42, round, words);
        for (uint32_t change = 0; change <= words[0] % 3; ++change) {
            bytes[(words[1] >> (8 * change)) % good.size] = (unsigned char)(words[2] >> 8 * change);
        }
        const int64_t size = (int64_t)good.size - (words[3] % 8 == 0 ? words[3] / 8 % 32 : 0);
        accepted += survives(&(tsr_mapping){.bytes = bytes, .size = size});
        free(bytes);
    }
    assert_true(accepted > 0 && accepted < (int64_t)rounds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_token_type_is_read),
        cmocka_unit_test(sequences_are_joined_in_the_order_of_the_index),
        cmocka_unit_test(modes_may_follow),
        cmocka_unit_test(signed_tokens_may_not_be_negative),
        cmocka_unit_test(bad_fields_are_named),
        cmocka_unit_test(truncation_is_seen_at_every_length),
        cmocka_unit_test(half_a_pair_is_named),
        cmocka_unit_test(empty_pairs_are_refused),
        cmocka_unit_test(changed_bytes_never_crash),
    };

    if (files_setup(NULL) != 0) {
        return 1;
    }
    const int result = tsr_unit_test_main("index", tests, sizeof(tests) / sizeof(tests[0]));
    return files_teardown(NULL) == 0 ? result : 1;
}
