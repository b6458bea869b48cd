/* Dispatch and combine: rows of tokens go to the ranks that hold their experts, and sums of what
 * these make of them come back.
 *
 * What travels is a unit: one token's row with its lanes, those that it needs where it goes. A unit
 * goes once to each destination, however many of its lanes are there.
 *
 *   flat        to each rank that has a lane of it
 *   two stages  to each node that has one, over the rail, so in the sender's own plane; from there
 *               to each rank of the node that has one
 *
 * Rows are device memory, all else is host memory. The way kept in a plan serves as often as it is
 * needed: the gradient of what was combined is dispatched, that of what was dispatched combined.
 * Source: DeepSeek-AI 2024, arXiv:2412.19437, 3.2.2; DeepEP (dispatch, combine, a handle). */
#ifndef TSR_DISPATCH_H
#define TSR_DISPATCH_H

#include "collectives/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

/** A lane: one of the places for experts on one rank of the group. */
enum { TSR_LANE_PLACES = 1 << 11 };

static inline int32_t tsr_lane(int rank, int place)
{
    return (int32_t)rank * TSR_LANE_PLACES + place;
}

/** Communicators are borrowed, and of the same ranks for host memory and for rows. */
typedef struct tsr_dispatch_options {
    tsr_device *device;
    tsr_comm *all;         /* for sizes: the group, any way */
    tsr_comm *flat;        /* for host memory: each pair of the group directly */
    tsr_comm *node, *rail; /* its parts; NULL: flat */
    tsr_comm *flat_rows, *node_rows, *rail_rows; /* for rows; what takes no device memory is
                                                    staged through the host */
    int64_t width;                               /* D */
    int top_k;                                   /* K */
    tsr_dtype dtype;
} tsr_dispatch_options;

typedef struct tsr_dispatch tsr_dispatch;

/** Memory grows to what calls have needed. Errors: TSR_ERR_ARG for sizes below 1, TSR_ERR_NOMEM. */
TSR_NODISCARD tsr_status tsr_dispatch_create(const tsr_dispatch_options *options,
                                             tsr_dispatch **out);
void tsr_dispatch_destroy(tsr_dispatch **dispatch_p);

/** Rows of tokens that are on their way at once. */
typedef struct tsr_dispatch_room {
    int64_t sent; /* gathered to be sent, in one stage */
    int64_t met;  /* between two stages; 0 where there is one */
} tsr_dispatch_room;

/** Make memory what so many take, larger or smaller. Between calls. Errors: TSR_ERR_NOMEM. */
TSR_NODISCARD tsr_status tsr_dispatch_reserve(tsr_dispatch *dispatch, tsr_dispatch_room room);
/** Device memory that these take. */
size_t tsr_dispatch_bytes(int64_t width, tsr_dtype dtype, tsr_dispatch_room room);

/** The way of one set of tokens, to be planned again and again. */
typedef struct tsr_dispatch_plan tsr_dispatch_plan;
TSR_NODISCARD tsr_status tsr_dispatch_plan_create(tsr_dispatch *dispatch, tsr_dispatch_plan **out);
void tsr_dispatch_plan_destroy(tsr_dispatch_plan **plan_p);

/**
 * Where the tokens go, and what comes here.
 *
 * Shapes:     lane, weight [tokens, K]; a token may have a lane twice, and -1 for none.
 * Collective: on the group, blocking: one all-gather of sizes, then an exchange a stage. The stream
 *             must have been waited for.
 * Errors:     TSR_ERR_ARG for a lane of no rank of the group or a place >= places; TSR_ERR_NOMEM,
 *             local; those of the communicators.
 */
TSR_NODISCARD tsr_status tsr_dispatch_make(tsr_dispatch *dispatch, tsr_dispatch_plan *plan,
                                           const int32_t *lane, const float *weight, int64_t tokens,
                                           int places, tsr_stream *stream);

/** What a plan brings here, as operators want it: units, and rows: copies of them sorted by place,
 *  in the order of units. Pointers are device memory, valid until the plan is made again. */
typedef struct tsr_dispatch_view {
    int64_t units;           /* U */
    int64_t rows;            /* R, each place's padded to TSR_ROW_ALIGN */
    int64_t lanes;           /* rows without padding */
    const int64_t *offsets;  /* [places + 1] */
    const int32_t *token_of; /* [R] unit of each row, -1 in padding */
    const int32_t *row_of;   /* [U,K] row of each lane, -1 for lanes elsewhere */
    const float *row_weight; /* [R], 0 in padding */
} tsr_dispatch_view;
tsr_dispatch_view tsr_dispatch_plan_view(const tsr_dispatch_plan *plan);

/**
 * Bring rows of tokens [tokens,D] to where they go: units_out [U,D], dtype.
 *
 * from_f32: the tokens are f32; else dtype. Collective, blocking but for what the stream does.
 */
TSR_NODISCARD tsr_status tsr_dispatch_rows(tsr_dispatch *dispatch, tsr_dispatch_plan *plan,
                                           const void *tokens, bool from_f32, void *units_out,
                                           tsr_stream *stream);

/**
 * out [tokens,D] f32 = base (or 0) + what all destinations made of each token's unit: [U,D], dtype.
 *
 * Order: by node, within a node by rank, in f32; a node's sum is rounded to dtype where it travels
 * on. base may be out.
 */
TSR_NODISCARD tsr_status tsr_dispatch_combine(tsr_dispatch *dispatch, tsr_dispatch_plan *plan,
                                              const void *units, const float *base, float *out,
                                              tsr_stream *stream);

/** Bring one number of each lane home: values [U,K] -> out [tokens,K]; lanes of -1 get 0. Host
 *  memory. Collective, blocking. */
TSR_NODISCARD tsr_status tsr_dispatch_return(tsr_dispatch *dispatch, tsr_dispatch_plan *plan,
                                             const float *values, float *out);

#ifdef __cplusplus
}
#endif

#endif
