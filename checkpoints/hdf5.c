/* The wrapper around HDF5: lock, errors, and the calls that the folder uses. */
#include "checkpoints/hdf5_impl.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HEX_DIGITS = 16 };

static pthread_mutex_t library = PTHREAD_MUTEX_INITIALIZER; /* HDF5 is one global object itself */

void tsr_h5_lock(void)
{
    (void)pthread_mutex_lock(&library);
    (void)H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* per thread in some builds */
}

void tsr_h5_unlock(void)
{
    (void)pthread_mutex_unlock(&library);
}

static herr_t first_reason(unsigned depth, const H5E_error2_t *entry, void *text)
{
    if (depth == 0) {
        (void)snprintf(text, 256, "%s", entry->desc);
    }
    return 0;
}

tsr_status tsr_h5_fail(tsr_status code, const char *path, const char *what)
{
    char reason[256] = "no reason given";

    (void)H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first_reason, reason);
    return TSR_FAIL(code, "%s: cannot %s (HDF5: %s)", path, what, reason);
}

static tsr_status put_fail(const tsr_h5_file *file, const char *name)
{
    char what[160];

    (void)snprintf(what, sizeof what, "store %s", name);
    return tsr_h5_fail(TSR_ERR_INTERNAL, file->path, what);
}

static tsr_status get_fail(const tsr_h5_file *file, const char *name)
{
    char what[160];

    (void)snprintf(what, sizeof what, "read %s", name);
    return tsr_h5_fail(TSR_ERR_FORMAT, file->path, what);
}

/* ---- files ---------------------------------------------------------------------------------- */

/* Locks of files fail on many cluster file systems and protect nothing here: names are final once
 * they exist. With a strong close nothing in the file survives H5Fclose(), on error paths too. */
static hid_t file_access(void)
{
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);

    (void)H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
    (void)H5Pset_file_locking(access, false, true);
    return access;
}

/* HDF5 writes to memory only: a full disk then shows in our own write(), where it is handled; a
 * failed H5Fclose() would leave a file the library can neither close nor forget. */
tsr_status tsr_h5_create(const char *name, size_t user_block, tsr_h5_file *out, int *descriptor_out)
{
    char at[32];
    const int fd = memfd_create("tessera", MFD_CLOEXEC);

    TSR_CHECK(fd >= 0, TSR_ERR_IO, "%s: no memory file: %s", name, strerror(errno));
    (void)snprintf(at, sizeof at, "/proc/self/fd/%d", fd);
    (void)snprintf(out->path, sizeof out->path, "%s", name);
    const hid_t access = file_access(), create = H5Pcreate(H5P_FILE_CREATE);
    (void)H5Pset_fapl_stdio(access); /* the default driver wants to resolve the name */
    if (user_block > 0) {
        (void)H5Pset_userblock(create, user_block);
    } else {
        (void)H5Pset_alignment(access, 65536,
                               4096); /* arrays on pages, for readers that map them */
    }
    out->id = H5Fcreate(at, H5F_ACC_TRUNC, create, access);
    const tsr_status st =
        out->id >= 0 ? TSR_OK : tsr_h5_fail(TSR_ERR_INTERNAL, name, "make the file in memory");
    (void)H5Pclose(create);
    (void)H5Pclose(access);
    if (st != TSR_OK) {
        (void)close(fd);
        return st;
    }
    *descriptor_out = fd;
    return TSR_OK;
}

tsr_status tsr_h5_open(const char *path, tsr_h5_file *out)
{
    const hid_t access = file_access();

    (void)snprintf(out->path, sizeof out->path, "%s", path);
    out->id = H5Fopen(path, H5F_ACC_RDONLY, access);
    const tsr_status st = out->id >= 0 ? TSR_OK : tsr_h5_fail(TSR_ERR_FORMAT, path, "open as HDF5");
    (void)H5Pclose(access);
    return st;
}

tsr_status tsr_h5_close(tsr_h5_file *file)
{
    const hid_t id = file->id;

    file->id = -1;
    return H5Fclose(id) >= 0 ? TSR_OK : tsr_h5_fail(TSR_ERR_INTERNAL, file->path, "close");
}

/* ---- writing -------------------------------------------------------------------------------- */

tsr_status tsr_h5_put_number(const tsr_h5_file *file, hid_t object, const char *name, hid_t type,
                             const void *value)
{
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    const bool ok = attribute >= 0 && H5Awrite(attribute, type, value) >= 0;
    const tsr_status st = ok ? TSR_OK : put_fail(file, name);

    (void)H5Aclose(attribute);
    (void)H5Sclose(space);
    return st;
}

tsr_status tsr_h5_put_text(const tsr_h5_file *file, hid_t object, const char *name,
                           const char *text)
{
    const hid_t type = H5Tcopy(H5T_C_S1);

    (void)H5Tset_size(type, H5T_VARIABLE); /* a fixed one ends at 64 KiB */
    (void)H5Tset_cset(type, H5T_CSET_UTF8);
    const tsr_status st = tsr_h5_put_number(file, object, name, type, &text);
    (void)H5Tclose(type);
    return st;
}

tsr_status tsr_h5_put_hex(const tsr_h5_file *file, hid_t object, const char *name, uint64_t value)
{
    const hid_t type = H5Tcopy(H5T_C_S1);
    char digits[HEX_DIGITS + 1];

    (void)snprintf(digits, sizeof digits, "%016llx", (unsigned long long)value);
    (void)H5Tset_size(type, HEX_DIGITS);
    (void)H5Tset_strpad(type, H5T_STR_NULLPAD);
    const tsr_status st = tsr_h5_put_number(file, object, name, type, digits);
    (void)H5Tclose(type);
    return st;
}

tsr_status tsr_h5_put_group(const tsr_h5_file *file, const char *name, hid_t *group_out)
{
    const hid_t group = H5Gcreate2(file->id, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);

    *group_out = group;
    return group >= 0 ? TSR_OK : put_fail(file, name);
}

tsr_status tsr_h5_put_array(const tsr_h5_file *file, hid_t group, const char *name, hid_t type,
                            int dims, const hsize_t *shape, const void *data)
{
    const hid_t space = dims == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(dims, shape, NULL);
    const hid_t set = H5Dcreate2(group, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    const bool ok = set >= 0 && H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0;
    const tsr_status st = ok ? TSR_OK : put_fail(file, name);

    (void)H5Dclose(set);
    (void)H5Sclose(space);
    return st;
}

/* ---- reading -------------------------------------------------------------------------------- */

/* Open a one-element attribute of the wanted class. */
static tsr_status open_attribute(const tsr_h5_file *file, hid_t object, const char *name,
                                 H5T_class_t kind, hid_t *attribute_out, hid_t *type_out)
{
    TSR_CHECK(H5Aexists(object, name) > 0, TSR_ERR_FORMAT, "%s: attribute %s is missing",
              file->path, name);
    const hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
    if (attribute < 0) {
        return get_fail(file, name);
    }
    const hid_t space = H5Aget_space(attribute), type = H5Aget_type(attribute);
    const bool ok = H5Sget_simple_extent_npoints(space) == 1 && H5Tget_class(type) == kind;
    (void)H5Sclose(space);
    if (!ok) {
        (void)H5Tclose(type);
        (void)H5Aclose(attribute);
        return TSR_FAIL(TSR_ERR_FORMAT, "%s: attribute %s is not one value of the right type",
                        file->path, name);
    }
    *attribute_out = attribute;
    *type_out = type;
    return TSR_OK;
}

tsr_status tsr_h5_get_i64(const tsr_h5_file *file, hid_t object, const char *name, int64_t *out)
{
    hid_t attribute = -1, type = -1;
    int64_t value = 0;

    TSR_TRY(open_attribute(file, object, name, H5T_INTEGER, &attribute, &type));
    const bool ok = H5Aread(attribute, H5T_NATIVE_INT64, &value) >= 0;
    const tsr_status st = ok ? TSR_OK : get_fail(file, name);
    (void)H5Tclose(type);
    (void)H5Aclose(attribute);
    TSR_TRY(st);
    *out = value;
    return TSR_OK;
}

tsr_status tsr_h5_get_text(const tsr_h5_file *file, hid_t object, const char *name, char **out)
{
    hid_t attribute = -1, type = -1;
    char *text = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY(open_attribute(file, object, name, H5T_STRING, &attribute, &type));
    if (H5Tis_variable_str(type) <= 0) {
        st = TSR_FAIL(TSR_ERR_FORMAT, "%s: attribute %s is not a text of variable length",
                      file->path, name);
    } else if (H5Aread(attribute, type, &text) < 0) {
        st = get_fail(file, name);
    }
    if (st == TSR_OK) {
        st = tsr_mem_strdup(text != NULL ? text : "", out);
        (void)H5free_memory(text);
    }
    (void)H5Tclose(type);
    (void)H5Aclose(attribute);
    return st;
}

tsr_status tsr_h5_get_hex(const tsr_h5_file *file, hid_t object, const char *name, uint64_t *out)
{
    hid_t attribute = -1, type = -1;
    char digits[HEX_DIGITS + 1] = "";
    unsigned long long value = 0;
    int used = 0;

    TSR_TRY(open_attribute(file, object, name, H5T_STRING, &attribute, &type));
    const bool ok = H5Tis_variable_str(type) == 0 && H5Tget_size(type) == HEX_DIGITS &&
                    H5Aread(attribute, type, digits) >= 0 &&
                    sscanf(digits, "%16llx%n", &value, &used) == 1 && used == HEX_DIGITS;
    (void)H5Tclose(type);
    (void)H5Aclose(attribute);
    TSR_CHECK(ok, TSR_ERR_FORMAT, "%s: attribute %s is not %d hex digits", file->path, name,
              HEX_DIGITS);
    *out = value;
    return TSR_OK;
}

tsr_status tsr_h5_get_object(const tsr_h5_file *file, const char *path, H5I_type_t kind, hid_t *out)
{
    TSR_CHECK(H5Lexists(file->id, path, H5P_DEFAULT) > 0, TSR_ERR_FORMAT, "%s: %s is missing",
              file->path, path);
    const hid_t object = H5Oopen(file->id, path, H5P_DEFAULT);
    if (object < 0) {
        return get_fail(file, path);
    }
    if (H5Iget_type(object) != kind) {
        (void)H5Oclose(object);
        return TSR_FAIL(TSR_ERR_FORMAT, "%s: %s is not a %s", file->path, path,
                        kind == H5I_GROUP ? "group" : "dataset");
    }
    *out = object;
    return TSR_OK;
}

tsr_status tsr_h5_get_shape(const tsr_h5_file *file, hid_t dataset, const char *name, int *dims_out,
                            int64_t shape_out[3])
{
    hsize_t shape[H5S_MAX_RANK] = {0};
    const hid_t space = H5Dget_space(dataset);
    const int dims = H5Sget_simple_extent_dims(space, shape, NULL);

    (void)H5Sclose(space);
    TSR_CHECK(dims >= 0 && dims <= 3, TSR_ERR_FORMAT, "%s: %s has %d dimensions, at most 3",
              file->path, name, dims);
    for (int axis = 0; axis < 3; ++axis) {
        TSR_CHECK(shape[axis] <= INT64_MAX, TSR_ERR_FORMAT, "%s: %s is too long", file->path, name);
        shape_out[axis] = axis < dims ? (int64_t)shape[axis] : 0;
    }
    *dims_out = dims;
    return TSR_OK;
}
