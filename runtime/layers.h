/* Layers: parts of a model with forward, backward_input and backward_weight as separate calls.
 *
 * A layer reads and adds to the residual stream: h_out = h_in + f(norm(h_in)). It owns no
 * activations: the caller lends `saved` (written by forward, read by both backwards) and `work`
 * (scratch; what backward_input leaves there is what backward_weight of the same layer needs, so
 * nothing may come between the two on that scratch). Experts across ranks are in parallel/. */
#ifndef TSR_RUNTIME_LAYERS_H
#define TSR_RUNTIME_LAYERS_H

#include "runtime/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Keys and values of earlier positions, for generation; one sequence. */
typedef struct tsr_kv_cache {
    void *keys_values; /* [L, max_len, 2 * kv_heads * head_dim], compute type: keys then values */
    int64_t max_len;
    int64_t length; /* positions filled; the stage advances it after a forward */
} tsr_kv_cache;

/** One micro-batch on its way through the layers. */
typedef struct tsr_pass {
    tsr_device *device;
    tsr_stream *stream;
    const tsr_weights *weights;
    tsr_dtype dtype;    /* compute type */
    int64_t batch, seq; /* sequences and positions; may be smaller than at creation */
    int64_t first_position;
    bool accumulate;      /* backward_weight adds to the gradients; else it overwrites them */
    float loss_scale;     /* d(step loss) / d(sum of token losses): 1 / tokens of the global batch */
    float sequence_scale; /* d(step loss) / d(sum over sequences): 1 / sequences of the batch */
    tsr_kv_cache *cache;  /* NULL when training */
} tsr_pass;

typedef struct tsr_layer tsr_layer;

/** What a layer can do; a NULL backward means that it has nothing to do there. */
typedef struct tsr_layer_ops {
    const char *name;
    /** h_in and h_out [T,D] f32 may be the same memory only when cache is set. */
    tsr_status (*forward)(tsr_layer *, const tsr_pass *, const float *h_in, void *saved, void *work,
                          float *h_out);
    /** dh [T,D] f32: gradient of h_out on entry, of h_in on return. */
    tsr_status (*backward_input)(tsr_layer *, const tsr_pass *, const float *h_in, void *saved,
                                 void *work, float *dh);
    tsr_status (*backward_weight)(tsr_layer *, const tsr_pass *, const float *h_in, void *saved,
                                  void *work);
    void (*destroy)(tsr_layer *);
} tsr_layer_ops;

/** Base of every layer. */
struct tsr_layer {
    const tsr_layer_ops *ops;
    const tsr_model_config *config; /* borrowed */
    int index;                      /* which transformer layer */
    int64_t max_batch, seq;         /* sizes the figures below hold for */
    size_t saved_bytes;             /* activations kept from forward to backward */
    size_t work_bytes;              /* scratch, shared by all layers */
};

void tsr_layer_destroy(tsr_layer **layer_p);

/** What layers need when they are made. */
typedef struct tsr_layer_spec {
    const tsr_model_config *config;
    const tsr_param_table *table;
    tsr_device *device;
    tsr_dtype dtype;
    int index;
    int64_t max_batch, seq;
    bool train; /* backward will be called */
} tsr_layer_spec;

/** Pre-norm causal attention: input_layernorm, q k v, RoPE, attention, o. */
TSR_NODISCARD tsr_status tsr_attention_layer_create(const tsr_layer_spec *spec, tsr_layer **out);

/** Pre-norm dense feed-forward: post_attention_layernorm, gate and up, SwiGLU, down. */
TSR_NODISCARD tsr_status tsr_dense_layer_create(const tsr_layer_spec *spec, tsr_layer **out);

/* ---- the two ends, which are no residual layers ---------------------------------------------- */

TSR_NODISCARD tsr_status tsr_embedding_forward(const tsr_pass *pass, const tsr_param_table *table,
                                               const int32_t *tokens, float *h_out);
/** accumulate is passed on its own: with tied embeddings the head has written dtable before. */
TSR_NODISCARD tsr_status tsr_embedding_backward(const tsr_pass *pass, const tsr_param_table *table,
                                                const int32_t *tokens, const float *dh,
                                                bool accumulate);

typedef struct tsr_head tsr_head;

/** Final norm and vocabulary projection, in tiles of tokens: logits never exist as a whole. */
TSR_NODISCARD tsr_status tsr_head_create(const tsr_layer_spec *spec, tsr_head **out);
void tsr_head_destroy(tsr_head **head_p);
size_t tsr_head_work_bytes(const tsr_head *head);

/**
 * Losses of all tokens; when dh is not NULL also the gradients: dh [T,D] is overwritten and those of
 * final norm and projection are added or written as pass->accumulate says. One pass over the tiles,
 * as in Liger (Hsu et al. 2024, arXiv:2410.10989), so there is no separate backward.
 *
 * Shapes: h [T,D] f32, target [T], token_loss [T] f32, all device memory.
 */
TSR_NODISCARD tsr_status tsr_head_loss(tsr_head *head, const tsr_pass *pass, const float *h,
                                       const int32_t *target, void *work, float *token_loss,
                                       float *dh);
/** Logits [rows,V] f32 of the given rows of h [rows,D]. */
TSR_NODISCARD tsr_status tsr_head_logits(tsr_head *head, const tsr_pass *pass, const float *h,
                                         int64_t rows, void *work, float *logits);

#ifdef __cplusplus
}
#endif

#endif
