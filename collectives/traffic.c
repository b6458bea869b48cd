/* Bytes that this process sent, by purpose and link. */
#include "collectives/comm_impl.h"

#include <stdatomic.h>

static _Atomic int64_t sent[TSR_TRAFFICS][TSR_LINKS];

const char *tsr_traffic_name(tsr_traffic purpose)
{
    static const char *const names[TSR_TRAFFICS] = {
        [TSR_TRAFFIC_CONTROL] = "control",
        [TSR_TRAFFIC_REDUCE_SCATTER] = "reduce_scatter",
        [TSR_TRAFFIC_ALL_GATHER] = "all_gather",
        [TSR_TRAFFIC_DISPATCH] = "dispatch",
        [TSR_TRAFFIC_COMBINE] = "combine",
        [TSR_TRAFFIC_SPARSE_ALL_GATHER] = "sparse_all_gather",
        [TSR_TRAFFIC_SPARSE_REDUCE_SCATTER] = "sparse_reduce_scatter",
        [TSR_TRAFFIC_RESHARD] = "reshard",
    };

    return names[purpose];
}

void tsr_traffic_add(tsr_traffic purpose, tsr_link link, int64_t bytes)
{
    (void)atomic_fetch_add_explicit(&sent[purpose][link], bytes, memory_order_relaxed);
}

void tsr_traffic_read(int64_t bytes_out[TSR_TRAFFICS][TSR_LINKS])
{
    for (int purpose = 0; purpose < TSR_TRAFFICS; ++purpose) {
        for (int link = 0; link < TSR_LINKS; ++link) {
            bytes_out[purpose][link] =
                atomic_load_explicit(&sent[purpose][link], memory_order_relaxed);
        }
    }
}
