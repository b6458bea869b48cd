/* Manifests made to mislead: the digest in front is right, the contents are not. Each is refused
 * with a message that names the file, before memory is taken for what it claims. */
#define XXH_INLINE_ALL
#include "tests/checkpoints/state_fixture.h"
#include "tests/support/unit_test.h"

#include <hdf5.h>
#include <string.h>
#include <xxhash.h>

static const hsize_t huge[4] = {(hsize_t)1 << 40, (hsize_t)1 << 20, 7, 7};

/* ---- ways to mislead ------------------------------------------------------------------------ */

static void put_attribute(hid_t object, const char *name, hid_t type, const void *value,
                          bool is_pair)
{
    const hsize_t two[1] = {2};
    const hid_t space = is_pair ? H5Screate_simple(1, two, NULL) : H5Screate(H5S_SCALAR);

    (void)H5Adelete(object, name);
    const hid_t attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(attribute >= 0 && H5Awrite(attribute, type, value) >= 0);
    (void)H5Aclose(attribute);
    (void)H5Sclose(space);
}

static void put_text_attribute(hid_t object, const char *name, const char *text, size_t size)
{
    const hid_t type = H5Tcopy(H5T_C_S1);

    (void)H5Tset_size(type, size);
    put_attribute(object, name, type, text, false);
    (void)H5Tclose(type);
}

/* A dataset of any type and shape that takes no space; optionally with a good digest. */
static void put_claim(hid_t file, const char *name, hid_t type, int dims, const hsize_t *shape,
                      bool with_digest)
{
    const hsize_t chunk[4] = {1, 1, 1, 1};
    const hid_t space = H5Screate_simple(dims, shape, NULL), create = H5Pcreate(H5P_DATASET_CREATE);

    (void)H5Pset_chunk(create, dims, chunk);
    if (H5Lexists(file, name, H5P_DEFAULT) > 0) {
        assert_true(H5Ldelete(file, name, H5P_DEFAULT) >= 0);
    }
    const hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, create, H5P_DEFAULT);
    assert_true(set >= 0);
    if (with_digest) {
        put_text_attribute(set, "digest", "0123456789abcdef", 16);
    }
    (void)H5Dclose(set);
    (void)H5Pclose(create);
    (void)H5Sclose(space);
}

static void drop_tensor(hid_t file)
{
    assert_true(H5Ldelete(file, "adam_v/lm_head.weight", H5P_DEFAULT) >= 0);
}

static void drop_group(hid_t file)
{
    assert_true(H5Ldelete(file, "adam_m", H5P_DEFAULT) >= 0);
}

static void drop_digest(hid_t file)
{
    const hid_t set = H5Dopen2(file, "master/lm_head.weight", H5P_DEFAULT);
    assert_true(H5Adelete(set, "digest") >= 0);
    (void)H5Dclose(set);
}

static void digest_is_no_hex(hid_t file)
{
    put_text_attribute(file, "digest", "0123456789abcdeg", 16);
}

static void digest_is_long(hid_t file)
{
    char text[1000];

    memset(text, 'a', sizeof text);
    put_text_attribute(file, "digest", text, sizeof text);
}

static void digest_is_another(hid_t file)
{
    put_text_attribute(file, "digest", "0123456789abcdef", 16);
}

static void step_is_negative(hid_t file)
{
    put_attribute(file, "step", H5T_NATIVE_INT64, &(int64_t){-5}, false);
}

static void step_is_a_pair(hid_t file)
{
    const int64_t pair[2] = {10, 10};
    put_attribute(file, "step", H5T_NATIVE_INT64, pair, true);
}

static void step_is_a_text(hid_t file)
{
    put_text_attribute(file, "step", "10", 2);
}

static void format_is_new(hid_t file)
{
    put_attribute(file, "format", H5T_NATIVE_INT, &(int){2}, false);
}

static void config_is_fixed(hid_t file)
{
    put_text_attribute(file, "config", "unterminated", 12);
}

static void config_is_missing(hid_t file)
{
    assert_true(H5Adelete(file, "config") >= 0);
}

static void tensor_is_huge(hid_t file)
{
    put_claim(file, "master/lm_head.weight", H5T_IEEE_F32LE, 2, huge, true);
    put_claim(file, "adam_m/lm_head.weight", H5T_IEEE_F32LE, 2, huge, true);
    put_claim(file, "adam_v/lm_head.weight", H5T_IEEE_F32LE, 2, huge, true);
}

static void tensor_is_large(hid_t file)
{
    const hsize_t shape[2] = {(hsize_t)1 << 30, 8};
    put_claim(file, "master/lm_head.weight", H5T_IEEE_F32LE, 2, shape, true);
    put_claim(file, "adam_m/lm_head.weight", H5T_IEEE_F32LE, 2, shape, true);
    put_claim(file, "adam_v/lm_head.weight", H5T_IEEE_F32LE, 2, shape, true);
}

static void tensor_has_four_dimensions(hid_t file)
{
    put_claim(file, "master/lm_head.weight", H5T_IEEE_F32LE, 4, huge, true);
}

static void tensor_is_double(hid_t file)
{
    put_claim(file, "master/lm_head.weight", H5T_IEEE_F64LE, 2, huge, true);
}

static void tensor_is_a_group(hid_t file)
{
    assert_true(H5Ldelete(file, "master/lm_head.weight", H5P_DEFAULT) >= 0);
    (void)H5Gclose(
        H5Gcreate2(file, "master/lm_head.weight", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
}

static void tensor_is_a_dangling_link(hid_t file)
{
    assert_true(H5Ldelete(file, "master/lm_head.weight", H5P_DEFAULT) >= 0);
    assert_true(H5Lcreate_external("/nowhere/x.h5", "/x", file, "master/lm_head.weight",
                                   H5P_DEFAULT, H5P_DEFAULT) >= 0);
}

static void name_is_long(hid_t file)
{
    char name[300];

    (void)snprintf(name, sizeof name, "master/%0200d", 1);
    assert_true(H5Lmove(file, "master/lm_head.weight", file, name, H5P_DEFAULT, H5P_DEFAULT) >= 0);
}

static void bias_is_huge(hid_t file)
{
    put_claim(file, "state/router_bias", H5T_IEEE_F32LE, 2, huge, false);
}

static void seed_is_many(hid_t file)
{
    put_claim(file, "state/seed", H5T_STD_U64LE, 2, huge, false);
}

static void shards_are_huge(hid_t file)
{
    put_claim(file, "shards", H5T_STD_U64LE, 1, huge, false);
}

static void shards_are_numbers(hid_t file)
{
    put_claim(file, "shards", H5T_STD_U64LE, 1, (hsize_t[1]){1}, false);
}

/* One record with another file's name. */
static void shard_is_elsewhere(hid_t file)
{
    const hid_t set = H5Dopen2(file, "shards", H5P_DEFAULT), text = H5Tcopy(H5T_C_S1);
    const hid_t type = H5Tcreate(H5T_COMPOUND, 32);
    const char name[32] = "../../../../etc/passwd";

    (void)H5Tset_size(text, 32);
    (void)H5Tinsert(type, "file", 0, text);
    assert_true(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, name) >= 0);
    (void)H5Tclose(type);
    (void)H5Tclose(text);
    (void)H5Dclose(set);
}

static const struct {
    void (*change)(hid_t file);
    const char *says;
} tricks[] = {
    {drop_tensor, "tensors, must be as many of each kind"},
    {drop_group, "adam_m is missing"},
    {drop_digest, "attribute digest is missing"},
    {digest_is_no_hex, "attribute digest is not 16 hex digits"},
    {digest_is_long, "attribute digest is not 16 hex digits"},
    {digest_is_another, "the digest of the state is not that of its parts"},
    {step_is_negative, "step = -5"},
    {step_is_a_pair, "attribute step is not one value"},
    {step_is_a_text, "attribute step is not one value of the right type"},
    {format_is_new, "format = 2, must be 1"},
    {config_is_fixed, "attribute config is not a text of variable length"},
    {config_is_missing, "attribute config is missing"},
    {tensor_is_huge, "must be positive and all below 2^48"},
    {tensor_is_large, "are larger than all shards"},
    {tensor_has_four_dimensions, "has 4 dimensions, at most 3"},
    {tensor_is_double, "is not f32"},
    {tensor_is_a_group, "is not a dataset"},
    {tensor_is_a_dangling_link, "cannot read master/lm_head.weight"},
    {name_is_long, "has a name of 200 bytes"},
    {bias_is_huge, "is not [layers, experts]"},
    {seed_is_many, "is not one number"},
    {shards_are_huge, "entries, must have 1 to"},
    {shards_are_numbers, "/shards"},
    {shard_is_elsewhere, "entry 0 of /shards is not that of shard-0000.h5"},
};

static void array_is_whole_numbers(hid_t file)
{
    put_claim(file, "state/loads", H5T_STD_I64LE, 1, (hsize_t[1]){3}, false);
}

static void array_is_a_matrix(hid_t file)
{
    put_claim(file, "state/loads", H5T_IEEE_F64LE, 2, huge, false);
}

static void array_is_a_group(hid_t file)
{
    assert_true(H5Ldelete(file, "state/loads", H5P_DEFAULT) >= 0);
    (void)H5Gclose(H5Gcreate2(file, "state/loads", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
}

/* ---- the test ------------------------------------------------------------------------------- */

/* Change the HDF5 part of the manifest, then put the digest in front right again. */
static void tamper(const char *path, void (*change)(hid_t file))
{
    char head[64];

    const hid_t id = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    assert_true(id >= 0);
    change(id);
    assert_true(H5Fclose(id) >= 0);
    const int64_t size = fixture_file_size(path);
    void *block = NULL;
    assert_ok(tsr_mem_alloc(TSR_MEM_OTHER, (size_t)size, &block));
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    assert_int_equal(fread(block, 1, (size_t)size, file), (size_t)size);
    const int length =
        snprintf(head, sizeof head, "tessera manifest 1 xxh3 %016llx\n",
                 (unsigned long long)XXH3_64bits((char *)block + 512, (size_t)size - 512));
    rewind(file);
    assert_int_equal(fwrite(head, 1, (size_t)length, file), (size_t)length);
    assert_int_equal(fclose(file), 0);
    tsr_mem_free(block);
}

static void misleading_manifests_are_refused(void **state)
{
    (void)state;
    const tsr_checkpoint_config config = {.keep = 0, .async = false};
    tsr_comm *comm = NULL;
    tsr_ckpt_result result;
    tsr_ckpt_info info;
    fixture self;
    char run[TSR_TEXT_MAX], path[TSR_TEXT_MAX + 32];

    assert_ok(tsr_comm_create_self(&comm));
    assert_true(fixture_folder("/dev/shm", run));
    assert_true(fixture_make(&self, CUT_EVEN, 0, 1, TSR_F32, 10, 1));
    for (size_t i = 0; i < sizeof tricks / sizeof tricks[0]; ++i) {
        assert_ok(fixture_save(comm, run, &self, &config, &result));
        (void)snprintf(path, sizeof path, "%s/manifest.h5", result.path);
        tamper(path, tricks[i].change);
        const tsr_status st = tsr_ckpt_open_info(result.path, &info);
        if (st != TSR_ERR_FORMAT || strstr(tsr_error_message(), tricks[i].says) == NULL ||
            strstr(tsr_error_message(), "manifest.h5") == NULL) {
            fail_msg("trick %zu: status %d, %s", i, (int)st, tsr_error_message());
        }
        assert_int_equal(tsr_ckpt_load(comm, result.path, &self.view), TSR_ERR_FORMAT);
        assert_int_equal(tsr_ckpt_verify(result.path), TSR_ERR_FORMAT);
    }
    fixture_free(&self);
    fixture_remove(run);
    tsr_comm_destroy(&comm);
}

/* Arrays are looked at by those who want them. */
static void misleading_arrays_are_refused(void **state)
{
    (void)state;
    static void (*const changes[])(hid_t) = {array_is_whole_numbers, array_is_a_matrix,
                                             array_is_a_group};
    const tsr_checkpoint_config config = {.keep = 0, .async = false};
    double values[3] = {1.0, 2.0, 3.0};
    tsr_state_array array = {.name = "loads", .count = 3, .values = values};
    tsr_comm *comm = NULL;
    tsr_ckpt_result result;
    fixture self;
    char run[TSR_TEXT_MAX], path[TSR_TEXT_MAX + 32];

    assert_ok(tsr_comm_create_self(&comm));
    assert_true(fixture_folder("/dev/shm", run));
    assert_true(fixture_make(&self, CUT_EVEN, 0, 1, TSR_F32, 10, 1));
    self.view.arrays = &array;
    self.view.array_count = 1;
    for (size_t i = 0; i < sizeof changes / sizeof *changes; ++i) {
        assert_ok(fixture_save(comm, run, &self, &config, &result));
        (void)snprintf(path, sizeof path, "%s/manifest.h5", result.path);
        tamper(path, changes[i]);
        assert_int_equal(tsr_ckpt_load(comm, result.path, &self.view), TSR_ERR_FORMAT);
        assert_non_null(strstr(tsr_error_message(), "state/loads is not a"));
        assert_false(array.is_loaded);
    }
    fixture_free(&self);
    fixture_remove(run);
    tsr_comm_destroy(&comm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(misleading_manifests_are_refused),
                                       cmocka_unit_test(misleading_arrays_are_refused)};

    return tsr_unit_test_main("checkpoints.hostile", tests, sizeof tests / sizeof tests[0]);
}
