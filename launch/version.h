/* Who we are: version, build, libraries. */
#ifndef TSR_LAUNCH_VERSION_H
#define TSR_LAUNCH_VERSION_H

#include <stdio.h>

/** Version, source revision, compiler, MPI, HDF5, oneDNN: a line each. */
void version_print(FILE *to);

#endif
