/* The MoE layer's struct and where its parts lie in the caller's memory. */
#ifndef TSR_PARALLEL_MOE_IMPL_H
#define TSR_PARALLEL_MOE_IMPL_H

#include "parallel/parallel.h"

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
    int experts, top_k;
    void *figures; /* staging memory: the last forward's figures, laid out as in saved */
} moe_layer;

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
moe_saved moe_saved_layout(const tsr_model_config *config, tsr_dtype dtype, int64_t batch,
                           int64_t seq);

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
                         bool train);

/* Rows that T * K token copies take at most, each expert's share padded. */
int64_t moe_max_rows(const tsr_model_config *config, int64_t tokens);

/* The layer's own arguments of operators that more than one direction calls. */
tsr_rmsnorm_args moe_norm_args(const moe_layer *self, const tsr_pass *pass, const float *h_in,
                               const moe_saved *at, void *saved);
tsr_route_args moe_route_args(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                              void *saved);
tsr_swiglu_args moe_swiglu_args(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                                void *saved, void *h);

/* rows [R,D] = copies of x [T,D]. */
tsr_status moe_permute(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                       void *saved, const void *x, bool from_f32, void *rows);
/* out [T,D] = base + sum of each token's rows. */
tsr_status moe_unpermute(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                         void *saved, const void *rows, const float *base, float *out);
/* One of the three products of a stacked matrix. */
tsr_status moe_grouped(const moe_layer *self, const tsr_pass *pass, const moe_matrix *matrix,
                       tsr_grouped_pass which, const int64_t *offsets, void *x, void *y);
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
