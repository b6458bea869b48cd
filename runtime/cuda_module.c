/* Finds and opens the module of a device that is not built into the program. */
#include "runtime/cuda_module.h"

#include "runtime/device.h"
#include "runtime/log.h"

#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SEARCH_MAX = 4096,
    TRIES = 16, /* libraries that a module, or one of them, may need */
    DEPTH = 3   /* of libraries that need others */
};

/* Where CUDA's libraries are when the system's own path does not have them; patterns of glob(). */
static const char default_search[] = "/usr/local/cuda/lib64"
                                     ":/usr/local/lib/python3*/*-packages/nvidia/*/lib"
                                     ":/usr/lib/python3*/*-packages/nvidia/*/lib"
                                     ":/opt/*/lib/python3*/site-packages/nvidia/*/lib";
static char search[SEARCH_MAX];

tsr_status tsr_cuda_module_search(const char *folders)
{
    TSR_CHECK(strlen(folders) < sizeof search, TSR_ERR_ARG,
              "%zu characters of folders to search for CUDA, at most %zu", strlen(folders),
              sizeof search - 1);
    (void)snprintf(search, sizeof search, "%s", folders);
    return TSR_OK;
}

/* ---- the libraries a module needs ----------------------------------------------------------- */

/* The loader's message names what it misses first: "libX.so.1: cannot open shared object file". */
static bool missing_library(const char *message, char name[static 128])
{
    const size_t length = strcspn(message, ":");

    if (length == 0 || length >= 128 || strstr(message, "cannot open shared object") == NULL) {
        return false;
    }
    memcpy(name, message, length);
    name[length] = '\0';
    return strchr(name, '/') == NULL;
}

static bool open_library(const char *library, int depth);

/* Open a library by its path, after those that it needs from other folders. */
static bool open_path(const char *path, int depth)
{
    char missing[128];

    for (int i = 0; i < TRIES; ++i) {
        if (dlopen(path, RTLD_NOW | RTLD_LOCAL) != NULL) {
            return true;
        }
        if (depth == 0 || !missing_library(dlerror(), missing) ||
            !open_library(missing, depth - 1)) {
            return false;
        }
    }
    return false;
}

/* Open `library` in the folders that match one pattern; they stay open as long as the process. */
static bool open_in_pattern(const char *pattern, const char *library, int depth)
{
    char text[PATH_MAX + 130];
    glob_t found = {0};
    bool is_open = false;

    (void)snprintf(text, sizeof text, "%s/%s", pattern, library);
    if (glob(text, 0, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc && !is_open; ++i) {
            is_open = open_path(found.gl_pathv[i], depth);
        }
    }
    globfree(&found);
    return is_open;
}

static bool open_in_list(const char *folders, const char *library, int depth)
{
    char pattern[PATH_MAX];

    while (*folders != '\0') {
        const size_t length = strcspn(folders, ":");

        if (length != 0 && length < sizeof pattern) {
            memcpy(pattern, folders, length);
            pattern[length] = '\0';
            if (open_in_pattern(pattern, library, depth)) {
                return true;
            }
        }
        folders += length + (folders[length] == ':');
    }
    return false;
}

static bool open_library(const char *library, int depth)
{
    return open_in_list(search, library, depth) || open_in_list(default_search, library, depth);
}

/* Open a module; a library that the loader misses is looked for, opened by its path, and then found
 * by its name when the module is tried again. */
static tsr_status open_file(const char *device, const char *path, void **handle_out)
{
    char missing[128];

    for (int i = 0; i < TRIES; ++i) {
        void *const handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);

        if (handle != NULL) {
            tsr_log(TSR_LOG_DEBUG, "device %s: opened %s", device, path);
            *handle_out = handle;
            return TSR_OK;
        }
        const char *const message = dlerror();
        TSR_CHECK(missing_library(message, missing), TSR_ERR_UNSUPPORTED,
                  "device = %s: %s cannot be opened: %.300s", device, path, message);
        TSR_CHECK(
            open_library(missing, DEPTH), TSR_ERR_UNSUPPORTED,
            "device = %s: %s is in none of the system's library folders%s%.400s and %s; install "
            "the CUDA libraries or name their folder in CUDA_HOME",
            device, missing, search[0] != '\0' ? ", " : "", search, default_search);
    }
    return TSR_FAIL(TSR_ERR_UNSUPPORTED, "device = %s: %s needs more than %d libraries", device,
                    path, TRIES);
}

/* ---- the module
 * ------------------------------------------------------------------------------- */

/* Folder of the running program. */
static tsr_status program_folder(char folder[static PATH_MAX])
{
    const ssize_t length = readlink("/proc/self/exe", folder, PATH_MAX - 1);

    TSR_CHECK(length > 0, TSR_ERR_IO, "cannot tell where this program is: /proc/self/exe");
    folder[length] = '\0';
    *strrchr(folder, '/') = '\0';
    return TSR_OK;
}

tsr_status tsr_cuda_module_load(const char *device, const char *file, const char *option,
                                void **handle_out)
{
    /* beside the program, installed, and the build folder as seen from its tests */
    static const char *const places[] = {"", "/../lib/tessera", "/.."};
    char folder[PATH_MAX], path[PATH_MAX + 300];

    TSR_TRY(program_folder(folder));
    for (size_t i = 0; i < sizeof places / sizeof *places; ++i) {
        (void)snprintf(path, sizeof path, "%s%s/%s", folder, places[i], file);
        if (access(path, R_OK) == 0) {
            return open_file(device, path, handle_out);
        }
    }
    return TSR_FAIL(
        TSR_ERR_UNSUPPORTED,
        "device = %s: %s is neither beside the program in %s nor in ../lib/tessera: build "
        "with %s",
        device, file, folder, option);
}

tsr_status tsr_cuda_module_open(const char *name, int threads, tsr_device **out)
{
    const bool is_emulated = strcmp(name, "cuda:emulated") == 0;
    tsr_status (*open)(int, int, tsr_device **) = NULL;
    void *module = NULL;
    int index = 0, used = 0;

    TSR_CHECK(is_emulated || strcmp(name, "cuda") == 0 ||
                  (sscanf(name, "cuda:%4d%n", &index, &used) == 1 && name[used] == '\0' &&
                   index >= 0 && name[5] >= '0' && name[5] <= '9'),
              TSR_ERR_ARG, "device = %s, must be cuda, cuda:N with N from 0, or cuda:emulated",
              name);
    if (is_emulated) {
        TSR_TRY(tsr_cuda_module_load(name, "libtessera_cuda_emulated.so",
                                     "-DTSR_CUDA=ON -DTSR_TESTS=ON where CUDA's headers are",
                                     &module));
    } else {
        TSR_TRY(tsr_cuda_module_load(name, "libtessera_cuda.so",
                                     "-DTSR_CUDA=ON where the CUDA toolkit is", &module));
    }
    void *const entry = dlsym(module, "tsr_cuda_device_open");
    TSR_CHECK(entry != NULL, TSR_ERR_UNSUPPORTED,
              "device = %s: the module found is of another version, it has no entry", name);
    memcpy(&open, &entry, sizeof open);
    return open(index, threads, out);
}

/* ---- what was taken
 * --------------------------------------------------------------------------- */

typedef struct file_list {
    char *text;
    size_t size, used;
} file_list;

static int add_file(struct dl_phdr_info *info, size_t size, void *user)
{
    static const char *const prefixes[] = {"libtessera_", "libcuda", "libcublas", "libcudnn",
                                           "libnccl"};
    file_list *const list = user;
    const char *const slash = strrchr(info->dlpi_name, '/');

    (void)size;
    for (size_t i = 0; slash != NULL && i < sizeof prefixes / sizeof *prefixes; ++i) {
        if (strncmp(slash + 1, prefixes[i], strlen(prefixes[i])) == 0 && list->used < list->size) {
            list->used += (size_t)snprintf(list->text + list->used, list->size - list->used, "%s%s",
                                           list->used != 0 ? "\n" : "", info->dlpi_name);
        }
    }
    return 0;
}

void tsr_cuda_module_files(char *text, size_t size)
{
    file_list list = {.text = text, .size = size};

    text[0] = '\0';
    (void)dl_iterate_phdr(add_file, &list);
}
