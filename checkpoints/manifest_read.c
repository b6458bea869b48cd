/* Reading a manifest. Nothing in it is believed: its digest comes first, then every type, size and
 * name is checked before memory is taken. */
#include "checkpoints/hdf5_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

static const hsize_t max_entries = 1 << 20; /* tensors; shards */

/* ---- the digest in front -------------------------------------------------------------------- */

static tsr_status check_digest(const char *path, uint64_t *bytes_out)
{
    char head[TSR_CKPT_USER_BLOCK], expected[TSR_CKPT_USER_BLOCK];
    uint64_t digest = 0;
    int format = 0;

    TSR_TRY(tsr_ckpt_hash_file(path, head, sizeof head, bytes_out, &digest));
    head[sizeof head - 1] = '\0';
    TSR_CHECK(sscanf(head, "tessera manifest %d ", &format) == 1, TSR_ERR_FORMAT,
              "%s does not begin as a manifest: not one of Tessera, or damaged", path);
    TSR_CHECK(format == TSR_CKPT_FORMAT, TSR_ERR_FORMAT, "%s has format %d, this program reads %d",
              path, format, TSR_CKPT_FORMAT);
    tsr_ckpt_user_block(digest, expected);
    TSR_CHECK(memcmp(head, expected, sizeof head) == 0, TSR_ERR_FORMAT,
              "%s does not match its digest: damaged or cut short", path);
    return TSR_OK;
}

/* ---- tensors -------------------------------------------------------------------------------- */

/* Shape and digest of one kind. */
static tsr_status read_set(const tsr_h5_file *file, int kind, tsr_ckpt_tensor *tensor,
                           uint64_t *digest_out)
{
    char path[TSR_CKPT_NAME_MAX + 32];
    hid_t set = -1;
    tsr_status st;

    (void)snprintf(path, sizeof path, "%s/%s", tsr_ckpt_kind_names[kind], tensor->name);
    TSR_TRY(tsr_h5_get_object(file, path, H5I_DATASET, &set));
    const hid_t type = H5Dget_type(set);
    const bool ok = H5Tget_class(type) == H5T_FLOAT && H5Tget_size(type) == sizeof(float);
    (void)H5Tclose(type);
    st = ok ? tsr_h5_get_shape(file, set, path, &tensor->dims, tensor->shape)
            : TSR_FAIL(TSR_ERR_FORMAT, "%s: %s is not f32", file->path, path);
    if (st == TSR_OK) {
        st = tsr_h5_get_hex(file, set, "digest", digest_out);
    }
    (void)H5Dclose(set);
    return st;
}

tsr_status tsr_h5_get_tensor(const tsr_h5_file *file, tsr_ckpt_tensor *tensor)
{
    for (int kind = 0; kind < TSR_CKPT_KINDS; ++kind) {
        tsr_ckpt_tensor other = *tensor;
        TSR_TRY(read_set(file, kind, &other, &tensor->digest[kind]));
        if (kind == 0) {
            tensor->dims = other.dims;
            memcpy(tensor->shape, other.shape, sizeof tensor->shape);
        }
        TSR_CHECK(tensor->dims == other.dims &&
                      memcmp(tensor->shape, other.shape, sizeof tensor->shape) == 0,
                  TSR_ERR_FORMAT, "%s: %s differs in shape between master and %s", file->path,
                  tensor->name, tsr_ckpt_kind_names[kind]);
    }
    if (tsr_ckpt_tensor_matrix(tensor) != TSR_OK) {
        return TSR_FAIL(TSR_ERR_FORMAT, "%s: %s", file->path, tsr_error_message());
    }
    return TSR_OK;
}

static tsr_status count_tensors(const tsr_h5_file *file, hid_t *group_out, int *count_out)
{
    hsize_t counts[TSR_CKPT_KINDS] = {0};
    hid_t groups[TSR_CKPT_KINDS];

    for (int kind = 0; kind < TSR_CKPT_KINDS; ++kind) {
        H5G_info_t info = {.nlinks = 0};
        TSR_TRY(tsr_h5_get_object(file, tsr_ckpt_kind_names[kind], H5I_GROUP, &groups[kind]));
        if (H5Gget_info(groups[kind], &info) < 0) {
            return tsr_h5_fail(TSR_ERR_FORMAT, file->path, "count the tensors");
        }
        counts[kind] = info.nlinks;
    }
    TSR_CHECK(counts[0] > 0 && counts[0] <= max_entries && counts[0] == counts[1] &&
                  counts[0] == counts[2],
              TSR_ERR_FORMAT, "%s holds %llu, %llu and %llu tensors, must be as many of each kind",
              file->path, (unsigned long long)counts[0], (unsigned long long)counts[1],
              (unsigned long long)counts[2]);
    *group_out = groups[0];
    *count_out = (int)counts[0];
    return TSR_OK;
}

/* A virtual dataset may claim any shape: no tensor has more bytes than the shards together. */
static tsr_status check_sizes(const tsr_h5_file *file, const tsr_ckpt_manifest *manifest)
{
    uint64_t stored = 0, claimed = 0;

    for (int i = 0; i < manifest->shard_count; ++i) {
        stored += manifest->shards[i].bytes;
    }
    for (int i = 0; i < manifest->tensor_count; ++i) {
        const tsr_ckpt_tensor *tensor = &manifest->tensors[i];
        const uint64_t bytes = (uint64_t)tensor->rows * (uint64_t)tensor->width * sizeof(float);
        claimed += bytes * TSR_CKPT_KINDS;
        TSR_CHECK(bytes <= stored && claimed <= stored, TSR_ERR_FORMAT,
                  "%s: tensors up to %s are larger than all shards (%" PRIu64 " bytes)", file->path,
                  tensor->name, stored);
    }
    return TSR_OK;
}

static tsr_status read_tensors(const tsr_h5_file *file, tsr_ckpt_manifest *manifest)
{
    hid_t group = -1;
    void *block = NULL;
    int count = 0;

    TSR_TRY(count_tensors(file, &group, &count));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, count, sizeof(tsr_ckpt_tensor), &block));
    manifest->tensors = block;
    manifest->tensor_count = count;
    for (int i = 0; i < count; ++i) {
        tsr_ckpt_tensor *tensor = &manifest->tensors[i];
        const ssize_t length =
            H5Lget_name_by_idx(group, ".", H5_INDEX_NAME, H5_ITER_INC, (hsize_t)i, tensor->name,
                               sizeof tensor->name, H5P_DEFAULT);
        TSR_CHECK(length > 0 && length < (ssize_t)sizeof tensor->name, TSR_ERR_FORMAT,
                  "%s: tensor %d has a name of %zd bytes, must have 1 to %zu", file->path, i,
                  length, sizeof tensor->name - 1);
        TSR_TRY(tsr_h5_get_tensor(file, tensor));
    }
    return check_sizes(file, manifest);
}

/* ---- the rest ------------------------------------------------------------------------------- */

static tsr_status take_shards(const tsr_h5_file *file, hid_t set, int64_t count,
                              tsr_ckpt_manifest *manifest)
{
    void *records_block = NULL, *block = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, count, sizeof(tsr_ckpt_file), &block));
    manifest->shards = block;
    manifest->shard_count = (int)count;
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, count, sizeof(tsr_ckpt_shard_record),
                                &records_block));
    const tsr_ckpt_shard_record *records = records_block;
    const hid_t type = tsr_ckpt_shard_record_type();
    if (H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, records_block) < 0) {
        st = tsr_h5_fail(TSR_ERR_FORMAT, file->path, "read /shards");
    }
    (void)H5Tclose(type);
    for (int i = 0; i < (int)count && st == TSR_OK; ++i) {
        char name[32], digits[17] = "";
        int used = 0;
        unsigned long long digest = 0;
        tsr_ckpt_shard_name(i, name);
        memcpy(digits, records[i].digest, sizeof records[i].digest);
        /* only our own names: a path elsewhere is never opened */
        if (strncmp(records[i].file, name, sizeof name) != 0 ||
            sscanf(digits, "%16llx%n", &digest, &used) != 1 || used != 16) {
            st = TSR_FAIL(TSR_ERR_FORMAT, "%s: entry %d of /shards is not that of %s", file->path,
                          i, name);
        }
        manifest->shards[i] = (tsr_ckpt_file){.bytes = records[i].bytes, .digest = digest};
    }
    tsr_mem_free(records_block);
    return st;
}

static tsr_status read_shards(const tsr_h5_file *file, tsr_ckpt_manifest *manifest)
{
    hid_t set = -1;
    int64_t shape[3] = {0};
    int dims = 0;
    tsr_status st;

    TSR_TRY(tsr_h5_get_object(file, "shards", H5I_DATASET, &set));
    st = tsr_h5_get_shape(file, set, "/shards", &dims, shape);
    if (st == TSR_OK && (dims != 1 || shape[0] < 1 || shape[0] > (int64_t)max_entries)) {
        st = TSR_FAIL(TSR_ERR_FORMAT, "%s: /shards has %" PRId64 " entries, must have 1 to %llu",
                      file->path, shape[0], (unsigned long long)max_entries);
    }
    if (st == TSR_OK) {
        st = take_shards(file, set, shape[0], manifest);
    }
    (void)H5Dclose(set);
    return st;
}

static tsr_status read_scalar(const tsr_h5_file *file, const char *name, hid_t type, void *out)
{
    hid_t set = -1;
    int64_t shape[3];
    int dims = -1;
    tsr_status st;

    TSR_TRY(tsr_h5_get_object(file, name, H5I_DATASET, &set));
    st = tsr_h5_get_shape(file, set, name, &dims, shape);
    if (st == TSR_OK && (dims != 0 || H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out) < 0)) {
        st = TSR_FAIL(TSR_ERR_FORMAT, "%s: %s is not one number", file->path, name);
    }
    (void)H5Dclose(set);
    return st;
}

static tsr_status read_bias(const tsr_h5_file *file, uint64_t file_bytes,
                            tsr_ckpt_manifest *manifest)
{
    const char *name = "state/router_bias";
    hid_t set = -1;
    int64_t shape[3] = {0};
    int dims = 0;
    void *block = NULL;
    tsr_status st;

    if (H5Lexists(file->id, name, H5P_DEFAULT) <= 0) {
        return TSR_OK;
    }
    TSR_TRY(tsr_h5_get_object(file, name, H5I_DATASET, &set));
    TSR_TRY_GOTO(tsr_h5_get_shape(file, set, name, &dims, shape), out_set);
    const int64_t most = (int64_t)(file_bytes / sizeof(float)); /* it is stored in this file */
    if (dims != 2 || shape[0] < 1 || shape[1] < 1 || shape[0] > most / shape[1]) {
        st = TSR_FAIL(TSR_ERR_FORMAT, "%s: %s is not [layers, experts]", file->path, name);
        goto out_set;
    }
    TSR_TRY_GOTO(
        tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, shape[0] * shape[1], sizeof(float), &block),
        out_set);
    manifest->router_bias = block;
    manifest->layers = shape[0];
    manifest->experts = shape[1];
    if (H5Dread(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, block) < 0) {
        st = tsr_h5_fail(TSR_ERR_FORMAT, file->path, "read state/router_bias");
    }

out_set:
    (void)H5Dclose(set);
    return st;
}

static tsr_status read_attributes(const tsr_h5_file *file, tsr_ckpt_manifest *manifest)
{
    int64_t format = 0;
    char *version = NULL;

    TSR_TRY(tsr_h5_get_i64(file, file->id, "format", &format));
    TSR_CHECK(format == TSR_CKPT_FORMAT, TSR_ERR_FORMAT, "%s: format = %" PRId64 ", must be %d",
              file->path, format, TSR_CKPT_FORMAT);
    TSR_TRY(tsr_h5_get_i64(file, file->id, "step", &manifest->step));
    TSR_TRY(tsr_h5_get_i64(file, file->id, "tokens", &manifest->tokens));
    TSR_CHECK(manifest->step >= 0 && manifest->tokens >= 0, TSR_ERR_FORMAT,
              "%s: step = %" PRId64 ", tokens = %" PRId64 ", must not be negative", file->path,
              manifest->step, manifest->tokens);
    TSR_TRY(tsr_h5_get_text(file, file->id, "version", &version));
    (void)snprintf(manifest->version, sizeof manifest->version, "%s", version);
    tsr_mem_free(version);
    TSR_TRY(tsr_h5_get_text(file, file->id, "config", &manifest->config_text));
    return tsr_h5_get_hex(file, file->id, "digest", &manifest->digest);
}

static tsr_status read_all(const char *path, uint64_t file_bytes, bool with_tensors,
                           tsr_ckpt_manifest *manifest)
{
    tsr_h5_file file = {.id = -1};
    tsr_status st;

    TSR_TRY(tsr_h5_open(path, &file));
    TSR_TRY_GOTO(read_attributes(&file, manifest), out_file);
    TSR_TRY_GOTO(
        read_scalar(&file, "state/data_position", H5T_NATIVE_INT64, &manifest->data_position),
        out_file);
    TSR_TRY_GOTO(read_scalar(&file, "state/seed", H5T_NATIVE_UINT64, &manifest->seed), out_file);
    TSR_TRY_GOTO(read_bias(&file, file_bytes, manifest), out_file);
    TSR_TRY_GOTO(read_shards(&file, manifest), out_file);
    if (with_tensors) {
        st = read_tensors(&file, manifest);
    }

out_file:
    (void)H5Fclose(file.id);
    return st;
}

tsr_status tsr_ckpt_manifest_read(const char *folder, bool with_tensors, tsr_ckpt_manifest *out)
{
    char path[TSR_TEXT_MAX];
    tsr_ckpt_manifest manifest = {0};
    uint64_t bytes = 0;

    TSR_TRY(tsr_ckpt_join(folder, TSR_CKPT_MANIFEST, path));
    TSR_TRY(check_digest(path, &bytes));
    tsr_h5_lock();
    tsr_status st = read_all(path, bytes, with_tensors, &manifest);
    tsr_h5_unlock();
    if (st == TSR_OK && with_tensors && tsr_ckpt_state_digest(&manifest) != manifest.digest) {
        st = TSR_FAIL(TSR_ERR_FORMAT, "%s: the digest of the state is not that of its parts", path);
    }
    if (st != TSR_OK) {
        tsr_ckpt_manifest_free(&manifest);
        return st;
    }
    *out = manifest;
    return TSR_OK;
}

/* ---- arrays, by name ------------------------------------------------------------------------- */

static tsr_status read_array(const tsr_h5_file *file, tsr_state_array *array)
{
    char path[TSR_STATE_NAME_MAX + 16];
    hid_t set = -1;
    int64_t shape[3] = {0};
    int dims = 0;
    tsr_status st;

    (void)snprintf(path, sizeof path, "state/%s", array->name);
    if (H5Lexists(file->id, path, H5P_DEFAULT) <= 0) {
        return TSR_OK;
    }
    TSR_TRY(tsr_h5_get_object(file, path, H5I_DATASET, &set));
    const hid_t type = H5Dget_type(set);
    const bool is_f64 = H5Tget_class(type) == H5T_FLOAT && H5Tget_size(type) == sizeof(double);
    (void)H5Tclose(type);
    st = tsr_h5_get_shape(file, set, path, &dims, shape);
    if (st == TSR_OK && (!is_f64 || dims != 1)) {
        st = TSR_FAIL(TSR_ERR_FORMAT, "%s: %s is not a list of f64", file->path, path);
    }
    if (st == TSR_OK && shape[0] == array->count) {
        array->is_loaded =
            H5Dread(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, array->values) >= 0;
        st = array->is_loaded ? TSR_OK : tsr_h5_fail(TSR_ERR_FORMAT, file->path, "read an array");
    }
    (void)H5Dclose(set);
    return st;
}

tsr_status tsr_ckpt_manifest_read_arrays(const char *folder, tsr_state_array *arrays, int count)
{
    char path[TSR_TEXT_MAX];
    tsr_h5_file file = {.id = -1};

    TSR_TRY(tsr_ckpt_join(folder, TSR_CKPT_MANIFEST, path));
    tsr_h5_lock();
    tsr_status st = tsr_h5_open(path, &file);
    for (int i = 0; i < count && st == TSR_OK; ++i) {
        arrays[i].is_loaded = false;
        st = read_array(&file, &arrays[i]);
    }
    if (file.id >= 0) {
        (void)H5Fclose(file.id);
    }
    tsr_h5_unlock();
    return st;
}

/* ---- shards --------------------------------------------------------------------------------- */

tsr_status tsr_ckpt_check_shards(const char *folder, const tsr_ckpt_manifest *manifest, int first,
                                 int stride, bool with_digest)
{
    for (int i = first; i < manifest->shard_count; i += stride) {
        const tsr_ckpt_file *shard = &manifest->shards[i];
        char name[32], path[TSR_TEXT_MAX];
        struct stat info;
        uint64_t bytes = 0, digest = 0;
        tsr_ckpt_shard_name(i, name);
        TSR_TRY(tsr_ckpt_join(folder, name, path));
        TSR_CHECK(stat(path, &info) == 0, TSR_ERR_FORMAT, "%s: %s", path,
                  errno == ENOENT ? "the shard is missing" : strerror(errno));
        TSR_CHECK(S_ISREG(info.st_mode) && (uint64_t)info.st_size == shard->bytes, TSR_ERR_FORMAT,
                  "%s has %lld bytes, must have %" PRIu64, path, (long long)info.st_size,
                  shard->bytes);
        if (with_digest) {
            TSR_TRY(tsr_ckpt_hash_file(path, NULL, 0, &bytes, &digest));
            TSR_CHECK(digest == shard->digest, TSR_ERR_FORMAT,
                      "%s has digest %016" PRIx64 ", must have %016" PRIx64 ": damaged", path,
                      digest, shard->digest);
        }
    }
    return TSR_OK;
}
