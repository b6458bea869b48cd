/* Sizes of the parts that kernels cut their work into. */
#ifndef TSR_RUNTIME_CPU_CUT_H
#define TSR_RUNTIME_CPU_CUT_H

#include "runtime/cpu/simd/vec.h"

VEC_INLINE int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

VEC_INLINE int64_t round_up(int64_t value, int64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

/* `whole` cut into as few equal parts of at most `most` as possible, rounded up to `unit` */
VEC_INLINE int64_t even_part(int64_t whole, int64_t most, int64_t unit)
{
    const int64_t parts = (whole + most - 1) / most;

    return round_up((whole + parts - 1) / parts, unit);
}

#endif
