/* What an optimizer holds; for optim only. */
#ifndef TSR_OPTIM_IMPL_H
#define TSR_OPTIM_IMPL_H

#include "optim/optim.h"

/* This rank's part of one group's flat buffer. */
typedef struct shard {
    tsr_comm *comm;     /* borrowed */
    int64_t *cuts;      /* [P + 1] elements; own block */
    int64_t begin, end; /* own part: cuts[rank], cuts[rank + 1] */
    float *master;      /* device memory [end - begin]; part of the working copy if is_shared */
    void *m, *v;        /* device memory [end - begin] */
    bool is_shared;     /* f32 compute: the master weights are the working copy */
    float *host_master; /* as seen by the host: the same memory, or a mirror of it */
    void *host_m, *host_v;
} shard;

struct tsr_optimizer {
    tsr_optim_config config;
    tsr_weights *weights; /* borrowed */
    tsr_dtype moments;
    shard shards[TSR_GROUPS];
    tsr_state_slice *slices; /* own rows, parameter by parameter; own block */
    int64_t *firsts;         /* of each slice: its first element in the group's flat buffer */
    int slice_count;
    tsr_stream *copies; /* for tsr_optimizer_slices() */
    double *squares;    /* device memory [TSR_GROUPS] */
    void *staging;      /* host memory for one group; NULL if communicators reach the device's */
};

/* Copy the own working values to all ranks of the group, or queue that: optim_wait() waits for
 * both. Collective. */
TSR_NODISCARD tsr_status optim_share(tsr_optimizer *optimizer, int group, tsr_stream *stream);

/* Wait for the stream, but not for ever for a peer that does not take part in what is queued. */
TSR_NODISCARD tsr_status optim_wait(tsr_optimizer *optimizer, tsr_stream *stream);

#endif
