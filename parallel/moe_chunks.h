/* Chunks of a pass's tokens: how they are cut, and what moves their rows beside the computation. */
#ifndef TSR_PARALLEL_MOE_CHUNKS_H
#define TSR_PARALLEL_MOE_CHUNKS_H

#include "parallel/parallel.h"

typedef struct moe_layer moe_layer;

/* Rows of one chunk of tokens on their way to the experts, or what these made of them home. */
typedef struct moe_move {
    bool is_home;
    bool from_f32;     /* out only: the tokens are f32 */
    const void *from;  /* [tokens,D] of the chunk; home: [U,D] dtype */
    const float *base; /* home only: what `to` starts with, NULL: 0 */
    void *to;          /* [U,D] dtype; home: [tokens,D] f32 */
    /* moe_chunks.c's: */
    tsr_moe_spread *spread;
    tsr_dispatch_plan *plan;
    tsr_stream *stream;
    tsr_worker_call work; /* on the host */
    tsr_event *moved;     /* on a device */
} moe_move;

/* What moves rows beside the computation, where there are several chunks. */
typedef struct moe_beside {
    tsr_worker *worker; /* on the host, else NULL */
    tsr_device *device; /* that copies and adds the rows that move: on the host one of a single
                           thread, owned; else the layers' */
    tsr_stream *stream;
    tsr_event *computed;                        /* on a device */
    bool has_failed;                            /* a move; only those who run moves read it */
    moe_move moves[2][TSR_DISPATCH_CHUNKS_MAX]; /* out, home */
} moe_beside;

/* Before the spread's dispatch, which works on beside's device; both do nothing for one chunk. */
TSR_NODISCARD tsr_status moe_beside_create(const tsr_stage_options *options, moe_beside **out);
/* After an error: wait for what is under way, before its memory goes. */
void moe_beside_end(moe_beside *beside);
void moe_beside_destroy(moe_beside **beside_p, const tsr_device *device);

/* Chunks of a pass; 1 where experts are not spread. */
int moe_chunks(const moe_layer *self);
/* Tokens [begin, end) of a chunk: as even as whole tokens are, a function of the pass's number of
 * them alone; any may be empty. */
void moe_chunk_tokens(const moe_layer *self, const tsr_pass *pass, int chunk, int64_t *begin,
                      int64_t *end);
/* Move now, or beside from now on; all ranks start the same moves in one order. Until it has been
 * waited for, what it points to belongs to it, and the expert group's communicators do. */
TSR_NODISCARD tsr_status moe_chunk_start(moe_layer *self, const tsr_pass *pass, int chunk,
                                         const moe_move *what);
/* What is computed from now on finds the chunk's move done. */
TSR_NODISCARD tsr_status moe_chunk_wait(moe_layer *self, const tsr_pass *pass, int chunk,
                                        bool is_home);

#endif
