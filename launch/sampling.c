#include "launch/sampling.h"

#include <math.h>
#include <stdlib.h>

static _Thread_local const float *sort_by;

/* Larger logits first; equal ones by index, NaN last: a total order. */
static int compare(const void *a, const void *b)
{
    const int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    const float x = sort_by[i], y = sort_by[j];

    if (isnan(x) != isnan(y)) {
        return isnan(x) ? 1 : -1;
    }
    if (x != y && !isnan(x)) {
        return x > y ? -1 : 1;
    }
    return i < j ? -1 : i > j;
}

int32_t sampling_choose(const sampling *how, const float *logits, int64_t vocab, int64_t position,
                        int32_t *order)
{
    double all = 0.0, kept = 0.0;
    int64_t count = 0;

    for (int64_t i = 0; i < vocab; ++i) {
        order[i] = (int32_t)i;
    }
    sort_by = logits;
    qsort(order, (size_t)vocab, sizeof *order, compare);
    const double top = logits[order[0]];
    if (how->temperature <= 0.0 || !isfinite(top)) {
        return order[0];
    }
#define MASS(i) exp(((double)logits[order[i]] - top) / how->temperature)
    for (int64_t i = 0; i < vocab && !isnan(logits[order[i]]); ++i) {
        all += MASS(i);
    }
    while (count < vocab && !isnan(logits[order[count]]) &&
           (count == 0 || kept < how->top_p * all)) {
        kept += MASS(count);
        ++count;
    }
    double left = tsr_rng_uniform(how->key, (uint64_t)position) * kept;
    for (int64_t i = 0; i < count; ++i) {
        left -= MASS(i);
        if (left < 0.0) {
            return order[i];
        }
    }
#undef MASS
    return order[count - 1];
}
