/* The file system: durable writing, removal, digests of files, and the points where a test kills.
 */
#define XXH_INLINE_ALL
#include "checkpoints/checkpoints_impl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

struct tsr_ckpt_out {
    XXH3_state_t hash; /* first: wants the block's alignment */
    int fd;
    bool is_published;
    uint64_t bytes; /* the file will have, for messages */
    char folder[TSR_TEXT_MAX], path[TSR_TEXT_MAX], temporary[TSR_TEXT_MAX];
};

static atomic_int kill_in; /* points left until the end; 0: never */

void tsr_ckpt_kill_at(int n)
{
    atomic_store(&kill_in, n);
}

void tsr_ckpt_point(void)
{
    if (atomic_load(&kill_in) > 0 && atomic_fetch_sub(&kill_in, 1) == 1) {
        (void)raise(SIGKILL);
    }
}

static tsr_status io_fail(const char *verb, const char *path)
{
    return TSR_FAIL(TSR_ERR_IO, "cannot %s %s: %s", verb, path, strerror(errno));
}

tsr_status tsr_ckpt_join(const char *folder, const char *name, char out[TSR_TEXT_MAX])
{
    const int length = snprintf(out, TSR_TEXT_MAX, "%s/%s", folder, name);

    TSR_CHECK(length > 0 && length < TSR_TEXT_MAX, TSR_ERR_RANGE,
              "path of %d bytes, at most %d: %.200s...", length, TSR_TEXT_MAX - 1, folder);
    return TSR_OK;
}

void tsr_ckpt_shard_name(int rank, char out[32])
{
    (void)snprintf(out, 32, "shard-%04d.h5", rank);
}

bool tsr_ckpt_exists(const char *folder, const char *name)
{
    char path[TSR_TEXT_MAX];
    struct stat info;

    return tsr_ckpt_join(folder, name, path) == TSR_OK && stat(path, &info) == 0;
}

tsr_status tsr_ckpt_make_folder(const char *path)
{
    struct stat info;

    if (mkdir(path, 0777) == 0) {
        return TSR_OK;
    }
    const int reason = errno;
    if (reason == EEXIST && stat(path, &info) == 0) {
        TSR_CHECK(S_ISDIR(info.st_mode), TSR_ERR_IO, "%s is a file, must be a folder", path);
        return TSR_OK;
    }
    errno = reason;
    return io_fail("make folder", path);
}

tsr_status tsr_ckpt_check_writable(const char *path)
{
    return access(path, W_OK | X_OK) == 0 ? TSR_OK : io_fail("write into", path);
}

tsr_status tsr_ckpt_sync_folder(const char *path)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0) {
        return io_fail("open folder", path);
    }
    /* some network file systems refuse to sync a folder; they order metadata by themselves */
    const bool ok = fsync(fd) == 0 || errno == EINVAL;
    const tsr_status st = ok ? TSR_OK : io_fail("sync folder", path);
    (void)close(fd);
    return st;
}

tsr_status tsr_ckpt_rename(const char *from, const char *to)
{
    return rename(from, to) == 0 ? TSR_OK : io_fail("rename to", to);
}

static bool is_ours(const char *name)
{
    const size_t length = strlen(name);

    return strncmp(name, "shard-", 6) == 0 ||
           (strncmp(name, "manifest.h5", 11) == 0 && (length == 11 || name[11] == '.'));
}

tsr_status tsr_ckpt_remove(const char *folder)
{
    char path[TSR_TEXT_MAX];
    struct dirent *entry;

    /* without its manifest the rest is no checkpoint, whenever this is cut short */
    TSR_TRY(tsr_ckpt_join(folder, TSR_CKPT_MANIFEST, path));
    if (unlink(path) != 0 && errno != ENOENT) {
        return io_fail("remove", path);
    }
    tsr_ckpt_point();
    DIR *list = opendir(folder);
    if (list == NULL) {
        return io_fail("list", folder);
    }
    tsr_status st = TSR_OK;
    while (st == TSR_OK && (entry = readdir(list)) != NULL) {
        if (is_ours(entry->d_name)) {
            st = tsr_ckpt_join(folder, entry->d_name, path);
            if (st == TSR_OK && unlink(path) != 0) {
                st = io_fail("remove", path);
            }
            tsr_ckpt_point();
        }
    }
    (void)closedir(list);
    TSR_TRY(st);
    if (rmdir(folder) != 0) {
        return io_fail("remove folder", folder);
    }
    tsr_ckpt_point();
    return TSR_OK;
}

static uint64_t free_bytes(const char *path)
{
    struct statvfs info;

    return statvfs(path, &info) == 0 ? (uint64_t)info.f_bavail * info.f_frsize : UINT64_MAX;
}

tsr_status tsr_ckpt_check_space(const char *path, uint64_t bytes)
{
    const uint64_t available = free_bytes(path);

    TSR_CHECK(available >= bytes, TSR_ERR_IO,
              "%s: the checkpoint needs %.1f MiB, the disk has %.1f MiB free; make room or lower "
              "checkpoint.keep",
              path, (double)bytes / 1048576.0, (double)available / 1048576.0);
    return TSR_OK;
}

/* ---- a file written front to back ----------------------------------------------------------- */

static tsr_status write_fail(const tsr_ckpt_out *out, const char *verb)
{
    const int reason = errno;

    if (reason == ENOSPC || reason == EDQUOT) {
        return TSR_FAIL(TSR_ERR_IO,
                        "cannot %s %s: %s (the file needs %.1f MiB, %.1f MiB are free now)", verb,
                        out->path, strerror(reason), (double)out->bytes / 1048576.0,
                        (double)free_bytes(out->folder) / 1048576.0);
    }
    errno = reason;
    return io_fail(verb, out->path);
}

tsr_status tsr_ckpt_out_open(const char *folder, const char *name, uint64_t bytes,
                             tsr_ckpt_out **out_p)
{
    void *block = NULL;
    tsr_status st;

    TSR_TRY(tsr_mem_alloc(TSR_MEM_CHECKPOINT, sizeof(tsr_ckpt_out), &block));
    tsr_ckpt_out *out = block;
    out->fd = -1;
    out->bytes = bytes;
    (void)XXH3_64bits_reset(&out->hash);
    (void)snprintf(out->folder, sizeof out->folder, "%s", folder);
    TSR_TRY_GOTO(tsr_ckpt_join(folder, name, out->path), err_free);
    const int length =
        snprintf(out->temporary, sizeof out->temporary, "%.*s.tmp", TSR_TEXT_MAX - 8, out->path);
    if (length < (int)strlen(out->path) + 4) {
        st = TSR_FAIL(TSR_ERR_RANGE, "path of more than %d bytes: %.200s...", TSR_TEXT_MAX - 8,
                      folder);
        goto err_free;
    }
    out->fd = open(out->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (out->fd < 0) {
        st = write_fail(out, "create");
        goto err_free;
    }
    tsr_ckpt_point();
    *out_p = out;
    return TSR_OK;

err_free:
    tsr_mem_free(out);
    return st;
}

tsr_status tsr_ckpt_out_write(tsr_ckpt_out *out, const void *data, size_t bytes)
{
    const char *at = data;

    (void)XXH3_64bits_update(&out->hash, data, bytes);
    while (bytes > 0) {
        const ssize_t done = write(out->fd, at, bytes);
        if (done < 0 && errno != EINTR) {
            return write_fail(out, "write");
        }
        if (done > 0) {
            at += done;
            bytes -= (size_t)done;
        }
    }
    return TSR_OK;
}

tsr_status tsr_ckpt_out_publish(tsr_ckpt_out *out, uint64_t *digest_out)
{
    if (fsync(out->fd) != 0) {
        return write_fail(out, "sync");
    }
    tsr_ckpt_point();
    const int fd = out->fd;
    out->fd = -1;
    if (close(fd) != 0) {
        return write_fail(out, "close");
    }
    tsr_ckpt_point();
    TSR_TRY(tsr_ckpt_rename(out->temporary, out->path));
    out->is_published = true;
    tsr_ckpt_point();
    TSR_TRY(tsr_ckpt_sync_folder(out->folder));
    tsr_ckpt_point();
    *digest_out = XXH3_64bits_digest(&out->hash);
    return TSR_OK;
}

void tsr_ckpt_out_close(tsr_ckpt_out **out_p)
{
    tsr_ckpt_out *out = *out_p;

    *out_p = NULL;
    if (out == NULL) {
        return;
    }
    if (out->fd >= 0) {
        (void)close(out->fd);
    }
    if (!out->is_published) {
        (void)unlink(out->temporary);
    }
    tsr_mem_free(out);
}

/* ---- digest of a file ----------------------------------------------------------------------- */

static tsr_status read_some(int fd, const char *path, void *buffer, size_t bytes, size_t *got_out)
{
    size_t got = 0;

    while (got < bytes) {
        const ssize_t done = read(fd, (char *)buffer + got, bytes - got);
        if (done < 0 && errno != EINTR) {
            return io_fail("read", path);
        }
        if (done == 0) {
            break;
        }
        got += done > 0 ? (size_t)done : 0;
    }
    *got_out = got;
    return TSR_OK;
}

static tsr_status hash_rest(int fd, const char *path, void *chunk, uint64_t *bytes,
                            uint64_t *digest_out)
{
    XXH3_state_t hash;
    size_t got = 0;

    (void)XXH3_64bits_reset(&hash);
    do {
        TSR_TRY(read_some(fd, path, chunk, TSR_CKPT_CHUNK, &got));
        (void)XXH3_64bits_update(&hash, chunk, got);
        *bytes += got;
    } while (got == TSR_CKPT_CHUNK);
    *digest_out = XXH3_64bits_digest(&hash);
    return TSR_OK;
}

tsr_status tsr_ckpt_hash_file(const char *path, void *head, size_t skip, uint64_t *bytes_out,
                              uint64_t *digest_out)
{
    void *chunk = NULL;
    size_t got = 0;
    uint64_t bytes = 0, digest = 0;
    tsr_status st;

    TSR_TRY(tsr_mem_alloc(TSR_MEM_CHECKPOINT, TSR_CKPT_CHUNK, &chunk));
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        st = errno == ENOENT ? TSR_FAIL(TSR_ERR_FORMAT, "%s is missing", path)
                             : io_fail("open", path);
        goto err_chunk;
    }
    TSR_TRY_GOTO(read_some(fd, path, head, skip, &got), err_file);
    if (got < skip) {
        st = TSR_FAIL(TSR_ERR_FORMAT, "%s has %zu bytes, must have more than %zu", path, got, skip);
        goto err_file;
    }
    bytes = skip;
    TSR_TRY_GOTO(hash_rest(fd, path, chunk, &bytes, &digest), err_file);
    *bytes_out = bytes;
    *digest_out = digest;

err_file:
    (void)close(fd);
err_chunk:
    tsr_mem_free(chunk);
    return st;
}
