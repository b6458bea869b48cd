/* Measured numbers in JSON. */
#ifndef TSR_LAUNCH_FIGURE_H
#define TSR_LAUNCH_FIGURE_H

#include <jansson.h>
#include <math.h>

/** A new number; null where value is not finite: JSON has no word for that, and jansson then gives
 *  up the whole object. */
static inline json_t *figure_json(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

#endif
