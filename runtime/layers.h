/* Layers: parts of a model with forward, backward_input and backward_weight as separate calls.
 *
 * A layer reads and adds to the residual stream: h_out = h_in + f(norm(h_in)). It owns no
 * activations: the caller lends `saved` (written by forward; backward_input may put gradients over
 * what it no longer needs, so one forward serves one backward) and `work` (scratch; what
 * backward_input leaves there is what backward_weight of the same layer needs, so nothing may come
 * between the two on that scratch). Experts across ranks are in parallel/. */
#ifndef TSR_RUNTIME_LAYERS_H
#define TSR_RUNTIME_LAYERS_H

#include "runtime/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Cosine and sine of position * theta^(-2i/head_dim). */
typedef struct tsr_rope_table {
    float *cosine, *sine; /* [positions, head_dim/2] device memory */
    int64_t positions;
} tsr_rope_table;

TSR_NODISCARD tsr_status tsr_rope_table_create(tsr_device *device, const tsr_model_config *config,
                                               int64_t positions, tsr_rope_table *out);
void tsr_rope_table_destroy(tsr_device *device, tsr_rope_table *table);
size_t tsr_rope_table_bytes(const tsr_model_config *config, int64_t positions);

/** Keys and values of earlier positions, for generation; one sequence. */
typedef struct tsr_kv_cache {
    void *keys_values;   /* [L, max_len, 2 * kv_heads * head_dim], compute type: keys then values */
    tsr_rope_table rope; /* max_len positions: more than the stage's own may have */
    int64_t max_len;
    int64_t length; /* positions filled; the stage advances it after a forward */
} tsr_kv_cache;

/** One micro-batch on its way through the layers. */
typedef struct tsr_pass {
    tsr_device *device;
    tsr_stream *stream;
    const tsr_weights *weights;
    const tsr_rope_table *rope; /* at least first_position + seq positions */
    tsr_dtype dtype;            /* compute type */
    int64_t batch, seq;         /* sequences and positions; may be smaller than at creation */
    int64_t first_position;
    bool accumulate;  /* backward_weight adds to the gradients; else it overwrites them */
    float loss_scale; /* d(step loss) / d(sum of token losses): 1 / tokens of the global batch */
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
    void (*destroy)(tsr_layer *); /* NULL: the layer is one block, which is freed */
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

/** Device bytes of one layer's `saved` and of its `work`. */
typedef struct tsr_layer_bytes {
    size_t saved, work;
} tsr_layer_bytes;

/** The base of a layer made from this spec; config is borrowed from it. */
static inline tsr_layer tsr_layer_base(const tsr_layer_spec *spec, const tsr_layer_ops *ops,
                                       tsr_layer_bytes bytes)
{
    const tsr_layer base = {ops,       spec->config, spec->index, spec->max_batch,
                            spec->seq, bytes.saved,  bytes.work};

    return base;
}

/** Pre-norm causal attention: input_layernorm, q k v, RoPE, attention, o. */
TSR_NODISCARD tsr_status tsr_attention_layer_create(const tsr_layer_spec *spec, tsr_layer **out);
tsr_layer_bytes tsr_attention_layer_bytes(const tsr_layer_spec *spec);

/** Pre-norm dense feed-forward: post_attention_layernorm, gate and up, SwiGLU, down. */
TSR_NODISCARD tsr_status tsr_dense_layer_create(const tsr_layer_spec *spec, tsr_layer **out);
tsr_layer_bytes tsr_dense_layer_bytes(const tsr_layer_spec *spec);

/* ---- what layers are made of ------------------------------------------------------------------
 */

/** Offset of the next part of a block: parts lie one after another, 64-byte aligned. */
static inline size_t tsr_place(size_t *end, int64_t count, size_t element_bytes)
{
    const size_t at = *end;

    *end = (at + (size_t)count * element_bytes + 63) / 64 * 64;
    return at;
}

static inline void *tsr_place_at(void *block, size_t offset)
{
    return (char *)block + offset;
}

static inline int64_t tsr_pass_tokens(const tsr_pass *pass)
{
    return pass->batch * pass->seq;
}

/** y[T,out] (+)= x[T,in] w[out,in]^T and its two gradients; rows contiguous. */
typedef struct tsr_linear {
    int64_t in, out;
    tsr_dtype dtype; /* of x, w and dy */
    tsr_dtype y_dtype, dx_dtype;
    bool y_adds, dx_adds; /* instead of overwriting; the type is f32 then */
} tsr_linear;

TSR_NODISCARD tsr_status tsr_linear_forward(const tsr_linear *linear, const tsr_pass *pass,
                                            int64_t tokens, const void *x, const void *w, void *y);
TSR_NODISCARD tsr_status tsr_linear_backward_input(const tsr_linear *linear, const tsr_pass *pass,
                                                   int64_t tokens, const void *dy, const void *w,
                                                   void *dx);
/** dw is overwritten, or added to if accumulate. */
TSR_NODISCARD tsr_status tsr_linear_backward_weight(const tsr_linear *linear, const tsr_pass *pass,
                                                    int64_t tokens, const void *dy, const void *x,
                                                    bool accumulate, float *dw);
/** Prepare the products for 1 .. max_batch sequences of seq tokens; the gradients' too if train. */
TSR_NODISCARD tsr_status tsr_linear_reserve(const tsr_linear *linear, tsr_device *device,
                                            int64_t max_batch, int64_t seq, bool train);
/** As above for one number of tokens. */
TSR_NODISCARD tsr_status tsr_linear_reserve_tokens(const tsr_linear *linear, tsr_device *device,
                                                   int64_t tokens, bool train);

/** out += down(silu(gate x) * up x): the inside of a dense layer, and the shared experts. */
typedef struct tsr_feed_forward {
    tsr_linear gate_up, down;
    int gate_param, down_param; /* up_proj lies right behind gate_proj */
} tsr_feed_forward;

/** prefix: of the three names inside the layer, such as "mlp."; dx_adds: dx += instead of =. */
tsr_feed_forward tsr_feed_forward_of(const tsr_layer_spec *spec, const char *prefix, int64_t width,
                                     bool dx_adds);
TSR_NODISCARD tsr_status tsr_feed_forward_reserve(const tsr_feed_forward *ff,
                                                  const tsr_layer_spec *spec);
/** x [T,D]; gate_up [T,2F] is kept for backward; h [T,F] scratch; out [T,D] f32 is added to. */
TSR_NODISCARD tsr_status tsr_feed_forward_forward(const tsr_feed_forward *ff, const tsr_pass *pass,
                                                  const void *x, void *gate_up, void *h,
                                                  float *out);
/** dy [T,D] dtype. gate_up becomes its own gradient, h [T,F] is made again, dh [T,F] scratch. */
TSR_NODISCARD tsr_status tsr_feed_forward_backward_input(const tsr_feed_forward *ff,
                                                         const tsr_pass *pass, const void *dy,
                                                         void *gate_up, void *h, void *dh,
                                                         float *dx);
/** After backward_input, with what it left in gate_up and h. */
TSR_NODISCARD tsr_status tsr_feed_forward_backward_weight(const tsr_feed_forward *ff,
                                                          const tsr_pass *pass, const void *x,
                                                          const void *dy, const void *gate_up,
                                                          const void *h);

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
size_t tsr_head_work_bytes(const tsr_layer_spec *spec);

/**
 * Losses of all tokens; when dh is not NULL also the gradients: dh [T,D] is overwritten and those
 * of final norm and projection are added or written as pass->accumulate says. One pass over the
 * tiles, as in Liger (Hsu et al. 2024, arXiv:2410.10989), so there is no separate backward.
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
