/* runtime: status, log, memory, configuration, random numbers, devices with their operators, the
 * model's description, its layers, and the data reader.
 *
 * Knows one process and one device. Refuses to know of ranks, MPI, files of state, or a main(). */
#ifndef TSR_RUNTIME_H
#define TSR_RUNTIME_H

#include "runtime/config.h"
#include "runtime/data.h"
#include "runtime/device.h"
#include "runtime/dtype.h"
#include "runtime/growing.h"
#include "runtime/layers.h"
#include "runtime/log.h"
#include "runtime/memory.h"
#include "runtime/model.h"
#include "runtime/ops.h"
#include "runtime/rng.h"
#include "runtime/state.h"
#include "runtime/status.h"
#include "runtime/trace.h"

#endif
