/* The MoE layer's struct and where its parts lie in the caller's memory. */
#ifndef TSR_PARALLEL_MOE_IMPL_H
#define TSR_PARALLEL_MOE_IMPL_H

#include "parallel/moe_chunks.h"

/* One of the two stacked matrices, [E,n,k]. */
typedef struct moe_matrix {
    int64_t n, k;
    int param;
} moe_matrix;

typedef struct moe_layer {
    tsr_layer base;     /* first */
    tsr_device *device; /* borrowed */
    tsr_linear gate;
    moe_matrix gate_up, down;
    tsr_feed_forward shared;
    bool has_shared;
    int norm_param, gate_param;
    int experts, top_k; /* E, K */
    int places;         /* experts of this layer that are here; all E where they are not spread */
    const float *gate_bias; /* [T,E] added to the gate's logits, NULL: none; borrowed */
    void *figures;          /* staging memory: the last forward's figures, laid out as in saved */
    /* where experts are spread over ranks: */
    tsr_moe_spread *spread;                            /* borrowed; NULL: they are not */
    tsr_dispatch_plan *plans[TSR_DISPATCH_CHUNKS_MAX]; /* the last forward's ways, one a chunk */
    tsr_plan holders;    /* of the last forward: who has which experts */
    int32_t *place;      /* [E,P] of each expert on each rank, -1: not there */
    int32_t *turn;       /* [E] lane that the next token takes */
    int64_t copies;      /* beyond the owners, on all ranks, in the last forward */
    int64_t moved_bytes; /* of copies, by all ranks, since this was read */
    int64_t exposed_ns;  /* waited for copies since this was read */
    int32_t *lane_of;    /* [E] */
    tsr_growing kept;    /* from forward to backward_weight: see moe_rows */
    double met; /* largest need of passes since it was asked for, over that of even loads */
} moe_layer;

enum { MOE_PARTS = 2 }; /* of an expert: gate and up, down */

/* What they share where experts have copies. */
typedef struct moe_copies {
    tsr_device *device; /* borrowed */
    tsr_placement_policy policy;
    tsr_comm *all; /* borrowed: for counts */
    int ranks, rank, experts, slots, first_layer;
    bool rematerializes;
    int64_t shares; /* of a step's tokens: what one forward of the group sees is one */
    int64_t free_from, free_ns, free_count; /* between a fetch's start and the gate after it */
    int held_layer;                         /* whose copies are in the shared slots; -1: none */
    tsr_planner *planner;
    tsr_load_history *history;
    tsr_worker *worker; /* on the host, else */
    tsr_stream *stream; /* of the copies */
    tsr_event *computed;
    tsr_sparse *sparse;
    void *weights; /* device memory: sets of slots, each [m,2F,D] then [m,D,F], dtype */
    size_t set_bytes;
    float *gradients;         /* the same in f32, one set */
    int64_t part_bytes[2][2]; /* of weights, of gradients */
    void **memory[2];         /* [E, 2] of the fetch and of the reduction under way */
    tsr_sparse_call fetch, reduce;
    int64_t *counts;          /* [P,E] */
    int64_t *own, *predicted; /* [E] */
    int64_t *next, *left;     /* [E] quotas */
    int32_t *used;            /* [P] places taken */
} moe_copies;

/* Byte offsets in a layer's kept memory (x, gate_up) and in the spread's scratch; units U, rows R
 * as in moe_rows. */
typedef struct moe_arena {
    size_t x, gate_up, kept_bytes;
    size_t copies, h, dy, dh, drow_weight, unit, sum, numbers, scratch_bytes;
} moe_arena;

/* What the layers of a stage share: one works at a time. */
struct tsr_moe_spread {
    tsr_device *device; /* borrowed */
    moe_arena even;     /* if ranks and experts are evenly loaded */
    tsr_dispatch *dispatch;
    int chunks;           /* of a pass's tokens */
    moe_beside *beside;   /* NULL: one chunk, which this thread moves */
    const int32_t *owner; /* [L,E]; borrowed */
    int experts, ranks;
    moe_copies *copies;       /* NULL: each expert is computed by its owner */
    tsr_growing scratch;      /* device: of moe_rows */
    tsr_growing chosen;       /* staging: index and weight [T,K] as they come from the device */
    tsr_growing lanes;        /* staging: i32 [T,K] */
    tsr_growing numbers;      /* staging: f32 [T,K], come home */
    tsr_growing unit_numbers; /* staging: f32 [U,K] */
};

/* Token copies that are computed here, as forward and backward of the experts see them. Units are
 * the tokens themselves, or where experts are spread what dispatch has brought. */
typedef struct moe_rows {
    int chunk;           /* of the pass's tokens: weight gradients are added up chunk by chunk */
    int64_t units, rows; /* U; R, or its bound */
    void *x;             /* [U,D] dtype */
    const int64_t *offsets;
    const int32_t *token_of, *row_of;
    const float *row_weight;
    void *gate_up;      /* [R,2F] dtype; its gradient after backward_input */
    void *copies;       /* [R,D] dtype: of x, then expert outputs; backward: dx, then of x */
    void *h;            /* [R,F] dtype */
    void *dy;           /* [R,D] dtype */
    void *dh;           /* [R,F] dtype */
    float *drow_weight; /* [R] */
    /* spread only: */
    void *unit;     /* [U,D] dtype: of which a node or a token makes its sum */
    float *sum;     /* [U,D] f32; unit itself if dtype is f32 */
    float *numbers; /* [U,K] device memory */
} moe_rows;

/* What routing tells the host: [E] i64 counts, f64 sum of z^2, then [B,E] f32 balance and means. */
typedef struct moe_figures {
    size_t counts, z_squares, balance, score_means, bytes;
} moe_figures;
moe_figures moe_figures_layout(int64_t experts, int64_t batch);

/* Byte offsets in saved. T tokens, D hidden_size, F expert width, R rows of token copies. */
typedef struct moe_saved {
    size_t x;              /* [T,D] dtype: the normed input */
    size_t rstd;           /* [T] f32 */
    size_t logits;         /* [T,E] f32 */
    size_t scores;         /* [T,E] f32 */
    size_t index, weight;  /* [T,K] i32, f32 */
    size_t z;              /* [T] f32 */
    size_t figures;        /* see above */
    size_t offsets;        /* [E+1] i64 */
    size_t row_of;         /* [T,K] i32 */
    size_t token_of;       /* [R] i32 */
    size_t row_weight;     /* [R] f32 */
    size_t gate_up;        /* [R,2F] dtype; its gradient after backward_input */
    size_t shared_gate_up; /* [T,2Fs] dtype; likewise */
    size_t bytes;
} moe_saved;
/* Of what is here whatever the experts are: is_spread leaves out what lies in rows. */
moe_saved moe_saved_layout(const tsr_model_config *config, tsr_dtype dtype, int64_t batch,
                           int64_t seq, bool is_spread);

/* Byte offsets in work. Forward needs the first four only. */
typedef struct moe_work {
    size_t x;        /* [T,D] f32: the gate's input; bf16 only */
    size_t rows;     /* [R,D] dtype: copies of x, then expert outputs; backward: dx, then copies */
    size_t h;        /* [R,F] dtype */
    size_t shared_h; /* [T,Fs] dtype */
    size_t dy;       /* [R,D] dtype: gradient of expert outputs */
    size_t dh;       /* [R,F] dtype */
    size_t drow_weight; /* [R] f32 */
    size_t dweight;     /* [T,K] f32 */
    size_t dlogits;     /* [T,E] f32 */
    size_t dx;          /* [T,D] f32: gradient of the normed input */
    size_t shared_dy;   /* [T,D] dtype */
    size_t shared_dh;   /* [T,Fs] dtype */
    size_t bytes;
} moe_work;
moe_work moe_work_layout(const tsr_model_config *config, tsr_dtype dtype, int64_t tokens,
                         bool train, bool is_spread);

/* Rows that T * K token copies take at most, each expert's share padded. */
int64_t moe_max_rows(const tsr_model_config *config, int64_t tokens);

/* The layer's own arguments of operators that more than one direction calls. */
tsr_rmsnorm_args moe_norm_args(const moe_layer *self, const tsr_pass *pass, const float *h_in,
                               const moe_saved *at, void *saved);
tsr_route_args moe_route_args(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                              void *saved);
/* ---- moe_rows.c: the experts' part ---- */

/* Those of a pass whose tokens are all here. work may be laid out for forward only. */
moe_rows moe_rows_here(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                       void *saved, const moe_work *in, void *work);

tsr_swiglu_args moe_swiglu_args(const moe_layer *self, const tsr_pass *pass, const moe_rows *r);
/* Let the device prepare for all products with what is here now. */
TSR_NODISCARD tsr_status moe_layer_reserve(const moe_layer *self, const tsr_layer_spec *spec);
/* to [R,D] = copies of units [U,D]. */
tsr_status moe_permute(const moe_layer *self, const tsr_pass *pass, const moe_rows *r,
                       const void *units, bool from_f32, void *to);
/* out [U,D] = base + sum of each unit's copies. */
tsr_status moe_unpermute(const moe_layer *self, const tsr_pass *pass, const moe_rows *r,
                         const float *base, float *out);
/* Experts that may be here: own ones, then slots for copies. */
int moe_all_places(const moe_layer *self);
/* One of the three products of a stacked matrix, and of its copies. */
tsr_status moe_grouped(const moe_layer *self, const tsr_pass *pass, const moe_rows *r,
                       const moe_matrix *matrix, tsr_grouped_pass which, void *x, void *y);

/* ---- moe_copies.c: experts beside their owners; all collective on the expert group ---- */

TSR_NODISCARD tsr_status moe_copies_create(const tsr_stage_options *options, moe_copies **out);
void moe_copies_destroy(moe_copies **copies_p);
TSR_NODISCARD tsr_status moe_copies_open(moe_layer *self);
void moe_copies_close(moe_layer *self);

/* Plan from past loads and start to fetch: before the attention of the layer's block. */
TSR_NODISCARD tsr_status moe_copies_prepare(moe_layer *self, const tsr_pass *pass);
/* Fetch the last forward's copies again, if others took their slots. */
TSR_NODISCARD tsr_status moe_copies_prepare_backward(moe_layer *self, const tsr_pass *pass);
/* Wait for what was started. */
TSR_NODISCARD tsr_status moe_copies_ready(moe_layer *self);
/* Lane of each choice: count of them, index as the gate gave it. */
TSR_NODISCARD tsr_status moe_copies_lanes(moe_layer *self, const tsr_pass *pass,
                                          const int32_t *index, int64_t count, int32_t *lanes);
/* Start to add the copies' gradients to their owners'; wait until none is under way. */
TSR_NODISCARD tsr_status moe_copies_send_gradients(moe_layer *self, const tsr_pass *pass);
TSR_NODISCARD tsr_status moe_copies_gradients_sent(moe_layer *self);
/* [m, n, k] of the slots. */
void *moe_copies_weights(const moe_layer *self, const tsr_pass *pass, const moe_matrix *matrix);
float *moe_copies_gradients(const moe_layer *self, const moe_matrix *matrix);
/* A step's tokens [L,E] of all ranks. */
void moe_copies_observe(moe_copies *c, const double *counts, int64_t layers);

/* ---- moe_owners.c: other owners ---- */

/* spec's table and the spread's owners have changed. Local. */
TSR_NODISCARD tsr_status moe_layer_deal(tsr_layer *layer, const tsr_layer_spec *spec);

/* ---- moe_spread.c: experts on several ranks ---- */

/* A layer's own part of it. */
TSR_NODISCARD tsr_status moe_spread_open(moe_layer *self, tsr_moe_spread *spread);
void moe_spread_close(moe_layer *self);
/* Lane of each expert at its owner. */
void moe_spread_set_lanes(moe_layer *self);

/* Lanes and ways of the tokens just routed. Collective. */
TSR_NODISCARD tsr_status moe_spread_plan(moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                                         void *saved);

/* One chunk's rows by the last moe_spread_plan(); no communication. */
TSR_NODISCARD tsr_status moe_spread_rows(moe_layer *self, const tsr_pass *pass, int chunk,
                                         moe_rows *rows_out);
/* Start to bring a chunk's rows of x [T,D] dtype to r->x, or of the outputs' gradients dh [T,D] to
 * r->unit; nothing if there is no such chunk. moe_chunk_wait(false) follows. Collective. */
TSR_NODISCARD tsr_status moe_spread_bring(moe_layer *self, const tsr_pass *pass, int chunk,
                                          const void *x);
TSR_NODISCARD tsr_status moe_spread_bring_gradients(moe_layer *self, const tsr_pass *pass,
                                                    int chunk, const float *dh);
/* Start to write, for the chunk's tokens, out [T,D] = base + the sums of what lies in r->copies.
 * moe_chunk_wait(true) follows. Collective. */
TSR_NODISCARD tsr_status moe_spread_combine(moe_layer *self, const tsr_pass *pass,
                                            const moe_rows *r, const float *base, float *out);
/* dweight [T,K] from all chunks' r->drow_weight. Collective; nothing may be moving. */
TSR_NODISCARD tsr_status moe_spread_weights(moe_layer *self, const tsr_pass *pass, float *dweight);

/* ---- moe_room.c: memory for what comes ---- */

/* Place one more chunk's behind what is in at; units U, rows R as in moe_rows. */
void moe_arena_add(moe_arena *at, const tsr_model_config *config, tsr_dtype dtype, int64_t units,
                   int64_t rows);
/* What the largest rank needs if ranks and experts are evenly loaded. */
moe_arena moe_room_even(const tsr_stage_options *options);
/* Memory of all layers of a stage, and of dispatch, for loads as planned. */
size_t moe_spread_bytes(const tsr_stage_options *options);
/* A pass needs this much. */
void moe_room_note(moe_layer *self, const moe_arena *at);

/* The normed input in f32, which the gate reads: saved itself, or converted into work. */
tsr_status moe_gate_input(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                          void *saved, const moe_work *in, void *work, const float **x_out);

tsr_status moe_forward(tsr_layer *layer, const tsr_pass *pass, const float *h_in, void *saved,
                       void *work, float *h_out);
tsr_status moe_backward_input(tsr_layer *layer, const tsr_pass *pass, const float *h_in,
                              void *saved, void *work, float *dh);
tsr_status moe_backward_weight(tsr_layer *layer, const tsr_pass *pass, const float *h_in,
                               void *saved, void *work);

#endif
