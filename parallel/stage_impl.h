/* The stage's struct and the plan of its memory. */
#ifndef TSR_PARALLEL_STAGE_IMPL_H
#define TSR_PARALLEL_STAGE_IMPL_H

#include "parallel/parallel.h"

/* Byte offsets. A sublayer is an attention or a feed-forward; sublayer 2l and 2l + 1 make block l.
 * T tokens of a full micro-batch, D hidden_size, V vocab_size, L layers. */
typedef struct stage_plan {
    /* block of activations */
    size_t hidden; /* residuals, hidden_bytes each: how many see stage_hidden() */
    size_t saved;  /* of sublayer i: + saved_at(i) */
    size_t activation_bytes;
    size_t hidden_bytes;
    /* block of scratch */
    size_t work;       /* of the layers and the head */
    size_t dh;         /* [T,D] f32; training only */
    size_t tokens;     /* [T] i32 */
    size_t targets;    /* [T] i32 */
    size_t token_loss; /* [T] f32 */
    size_t loss;       /* f64: their sum */
    size_t logits;     /* [V] f32: of the next token */
    size_t workspace_bytes;
} stage_plan;

tsr_layer_spec stage_layer_spec(const tsr_stage_options *options, int layer);
/* saved_at[2L]: offset of each sublayer's part, or NULL if only the sizes are asked for. */
void stage_plan_make(const tsr_stage_options *options, stage_plan *plan_out, size_t *saved_at);

/* What becomes of a forward's activations. */
typedef enum stage_use {
    STAGE_KEEP,    /* backward follows */
    STAGE_DISCARD, /* only the loss counts */
    STAGE_CACHED   /* keys and values are kept, the residual is worked on in place */
} stage_use;

struct tsr_stage {
    tsr_stage_options options; /* its pointers are borrowed */
    const tsr_weights *weights;
    stage_plan plan;
    size_t *saved_at;       /* [2L] */
    tsr_layer **layers;     /* [2L] */
    tsr_moe_spread *spread; /* NULL: all experts are here */
    tsr_head *head;
    tsr_rope_table rope;
    tsr_stream *stream;
    void *activations, *workspace; /* device memory */
    double *loss;                  /* staging memory, as the next two */
    int32_t *tokens, *targets;     /* [T] */
};

static inline void *stage_at(const tsr_stage *stage, size_t offset)
{
    return tsr_place_at(stage->workspace, offset);
}

/* The residual that sublayer i reads; i = 2L: the last one's output. */
float *stage_hidden(const tsr_stage *stage, stage_use use, int64_t i);
/* What sublayer i saves. */
void *stage_saved(const tsr_stage *stage, stage_use use, int64_t i);

tsr_pass stage_pass(const tsr_stage *stage, int64_t batch, int64_t seq);

/* Tokens in device memory -> residual after the last sublayer. */
TSR_NODISCARD tsr_status stage_forward(tsr_stage *stage, const tsr_pass *pass, stage_use use);

/* Every id must be in [0, V). */
TSR_NODISCARD tsr_status stage_check_tokens(const tsr_stage *stage, const int32_t *tokens,
                                            int64_t count);

#endif
