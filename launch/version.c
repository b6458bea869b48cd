#include "launch/version.h"

#include <dnnl.h>
#include <hdf5.h>
#include <mpi.h>
#include <string.h>

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
    (void)fprintf(to, "CUDA      not in this build\n");
}
