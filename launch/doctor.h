/* What the parts of `tessera doctor` share. */
#ifndef TSR_LAUNCH_DOCTOR_H
#define TSR_LAUNCH_DOCTOR_H

#include "launch/cli.h"
#include "launch/world.h"

/** The cores that this process is bound to, in words. */
void doctor_binding(char text[64]);

/** doctor --topology; the exit code. Collective. */
int doctor_topology(const cli_values *values, world *w);

#endif
