#include "launch/bench.h"
tsr_status bench_ops(const cli_values *values, world *w)
{
    (void)values;
    (void)w;
    return TSR_FAIL(TSR_ERR_UNSUPPORTED, "bench ops");
}
