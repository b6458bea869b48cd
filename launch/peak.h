/* The yardstick of `share of peak`: how fast this device multiplies large matrices. */
#ifndef TSR_LAUNCH_PEAK_H
#define TSR_LAUNCH_PEAK_H

#include "runtime/runtime.h"

/** Best rate, in FLOP/s, of square products of random matrices in one type: as large as it takes to
 *  be busy for some milliseconds. Errors: those of memory and of the device. */
TSR_NODISCARD tsr_status peak_measure(tsr_device *device, tsr_stream *stream, tsr_dtype dtype,
                                      double *rate_out);

/** Seconds of a clock that only moves forward. */
double peak_clock_s(void);

#endif
