/* What benchmarks do with the times of their rounds. */
#ifndef TSR_BENCH_ROUNDS_H
#define TSR_BENCH_ROUNDS_H

#include <stdlib.h>

static inline int bench_by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/** Ascending: the median is seconds[rounds / 2]. */
static inline void bench_sort_rounds(double *seconds, int rounds)
{
    qsort(seconds, (size_t)rounds, sizeof *seconds, bench_by_value);
}

#endif
