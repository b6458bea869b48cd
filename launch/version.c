#include "launch/version.h"

#include <dnnl.h>
#include <hdf5.h>
#include <limits.h>
#include <mpi.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

/* Is the CUDA module where the program would look for it? It is not opened: that takes a while. */
static bool has_module(void)
{
    static const char *const places[] = {"libtessera_cuda.so", "../lib/tessera/libtessera_cuda.so"};
    char program[PATH_MAX], path[PATH_MAX + 64];
    const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);

    if (length < 0) {
        return false;
    }
    program[length] = '\0';
    *strrchr(program, '/') = '\0';
    for (size_t i = 0; i < sizeof places / sizeof places[0]; ++i) {
        (void)snprintf(path, sizeof path, "%s/%s", program, places[i]);
        if (access(path, R_OK) == 0) {
            return true;
        }
    }
    return false;
}

void version_print(FILE *to)
{
    char library[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    unsigned major = 0, minor = 0, release = 0;
    const dnnl_version_t *dnnl = dnnl_version();

    (void)MPI_Get_library_version(library, &length);
    library[strcspn(library, "\n,")] = '\0';
    (void)H5get_libversion(&major, &minor, &release);
    (void)fprintf(to, "tessera %s (%s, %s)\n", TSR_VERSION, TSR_REVISION, TSR_BUILD_TYPE);
    (void)fprintf(to, "compiler  gcc %s\n", __VERSION__);
    (void)fprintf(to, "MPI       %s\n", library);
    (void)fprintf(to, "HDF5      %u.%u.%u\n", major, minor, release);
    (void)fprintf(to, "oneDNN    %d.%d.%d\n", dnnl->major, dnnl->minor, dnnl->patch);
    (void)fprintf(to, "CUDA      %s\n",
                  has_module() ? "libtessera_cuda.so" : "no module beside the program");
}
