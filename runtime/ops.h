/* The operators of the device table. One argument struct and one queueing call each.
 *
 * All pointers are device memory. Rows are contiguous unless a stride is named; strides and sizes
 * count elements. "compute" tensors have the type `dtype` (f32 or bf16); the residual stream,
 * statistics, gate and gradients are f32. Sums are accumulated in f32 or wider, in an order that
 * does not depend on the number of threads. An empty size is a valid no-op. Every call validates
 * its sizes (TSR_ERR_ARG) and then queues; none allocates once tsr_op_reserve() was called.
 * Letters: B sequences, S positions, T = B * S tokens, D width, F expert width, E experts,
 * K experts per token, V vocabulary, R rows of the permuted token copies. */
#ifndef TSR_RUNTIME_OPS_H
#define TSR_RUNTIME_OPS_H

#include "runtime/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Limits of all backends; larger sizes are refused (TSR_ERR_ARG). */
enum {
    TSR_HEAD_DIM_MAX = 256, /* attention */
    TSR_EXPERTS_MAX = 1024, /* routing */
    TSR_TOP_K_MAX = 16
};

/* ---- matrix products ------------------------------------------------------------------------ */

/** c[M,N] = op(a)[M,K] * op(b)[K,N], or c += ...; op transposes the stored matrix if asked. */
typedef struct tsr_gemm_args {
    const void *a; /* stored [M,K], or [K,M] if trans_a */
    const void *b; /* stored [K,N], or [N,K] if trans_b */
    void *c;       /* [M,N] */
    int64_t m, n, k;
    int64_t lda, ldb, ldc; /* elements from one stored row to the next */
    bool trans_a, trans_b, accumulate;
    tsr_dtype dtype;   /* of a and b */
    tsr_dtype c_dtype; /* f32, or dtype; f32 if accumulate */
} tsr_gemm_args;
TSR_NODISCARD tsr_status tsr_op_gemm(tsr_device *device, const tsr_gemm_args *args,
                                     tsr_stream *stream);

/* Row ranges of experts start and end at multiples of this, so that kernels may round up. */
#define TSR_ROW_ALIGN 16

static inline int64_t tsr_padded_rows(int64_t rows)
{
    return (rows + TSR_ROW_ALIGN - 1) / TSR_ROW_ALIGN * TSR_ROW_ALIGN;
}

typedef enum tsr_grouped_pass {
    TSR_GROUPED_FORWARD, /* y[r] = w[e] x[r]                         for the rows r of expert e */
    TSR_GROUPED_DGRAD,   /* x[r] = w[e]^T y[r] */
    TSR_GROUPED_WGRAD    /* w[e] (+)= sum over its rows of y[r] x[r]^T */
} tsr_grouped_pass;

/** One matrix product per expert over its own rows. The operand that `pass` names is the output. */
typedef struct tsr_grouped_gemm_args {
    tsr_grouped_pass pass;
    void *x;                /* [R,K], dtype */
    void *y;                /* [R,N], dtype */
    void *w;                /* [E,N,K]: dtype, or f32 when it is the output */
    const int64_t *offsets; /* [E+1]: expert e owns rows offsets[e] .. offsets[e+1] - 1 */
    int64_t max_rows;       /* bound of offsets[E] */
    int64_t n, k;
    int experts;
    bool accumulate; /* WGRAD only: add to w; else w is overwritten, also where there are no rows */
    tsr_dtype dtype;
} tsr_grouped_gemm_args;
TSR_NODISCARD tsr_status tsr_op_grouped_gemm(tsr_device *device, const tsr_grouped_gemm_args *args,
                                             tsr_stream *stream);

/** Prepare everything that later calls with these sizes (any pointers) need: after this they
 *  neither allocate nor search. For a grouped product any rows up to max_rows are prepared. */
TSR_NODISCARD tsr_status tsr_op_gemm_reserve(tsr_device *device, const tsr_gemm_args *args);
TSR_NODISCARD tsr_status tsr_op_grouped_gemm_reserve(tsr_device *device,
                                                     const tsr_grouped_gemm_args *args);

/* ---- normalisation, position, activation ---------------------------------------------------- */

/**
 * y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps), a row at a time.
 * Source: Zhang, Sennrich 2019, arXiv:1910.07467; eps inside the root, as in Hugging Face's
 * Mixtral.
 */
typedef struct tsr_rmsnorm_args {
    const float *x;      /* [T,D] */
    const float *weight; /* [D] */
    void *y;             /* [T,D], dtype */
    float *rstd;         /* [T]: output of forward, input of backward; forward may get NULL */
    int64_t rows, width;
    float eps;
    tsr_dtype dtype;
    /* backward only: */
    const float *dy; /* [T,D] */
    float *dx;       /* [T,D]: the input gradient is ADDED here (it is the residual's gradient) */
    float *dweight;  /* [D], or NULL */
    bool accumulate; /* dweight += instead of = */
} tsr_rmsnorm_args;
TSR_NODISCARD tsr_status tsr_op_rmsnorm_forward(tsr_device *device, const tsr_rmsnorm_args *args,
                                                tsr_stream *stream);
TSR_NODISCARD tsr_status tsr_op_rmsnorm_backward_input(tsr_device *device,
                                                       const tsr_rmsnorm_args *args,
                                                       tsr_stream *stream);
TSR_NODISCARD tsr_status tsr_op_rmsnorm_backward_weight(tsr_device *device,
                                                        const tsr_rmsnorm_args *args,
                                                        tsr_stream *stream);

/**
 * Rotary position embedding in place, rotate-half form, on the first `heads` heads of each row.
 * Element i < hd/2 of a head pairs with element i + hd/2; angle = position * theta^(-2i/hd).
 * Source: Su et al. 2021, arXiv:2104.09864; halves paired as in Hugging Face.
 */
typedef struct tsr_rope_args {
    void *x;                    /* [T, row_stride], dtype; the heads start at column 0 */
    const float *cosine, *sine; /* [positions, head_dim/2] */
    int64_t tokens, seq_len;    /* position of token t: first_position + t % seq_len */
    int64_t first_position, row_stride;
    int heads, head_dim; /* head_dim even */
    bool inverse;        /* rotate back: the gradient */
    tsr_dtype dtype;
} tsr_rope_args;
TSR_NODISCARD tsr_status tsr_op_rope(tsr_device *device, const tsr_rope_args *args,
                                     tsr_stream *stream);

/**
 * h = silu(gate) * up * row_weight. Backward recomputes h, so that forward need not keep it.
 * Scaling the rows here commutes with the down projection and spares keeping expert outputs.
 * Source: Shazeer 2020, arXiv:2002.05202 (SwiGLU).
 */
typedef struct tsr_swiglu_args {
    const void *gate_up;     /* [R,2F], dtype: gate columns first */
    const float *row_weight; /* [R], or NULL for all ones */
    void *h;                 /* [R,F], dtype: output, in backward too; backward may get NULL */
    int64_t rows, width;     /* R, F */
    tsr_dtype dtype;
    /* backward only: */
    const void *dh;     /* [R,F], dtype */
    void *dgate_up;     /* [R,2F], dtype; may be gate_up itself */
    float *drow_weight; /* [R], or NULL */
} tsr_swiglu_args;
TSR_NODISCARD tsr_status tsr_op_swiglu_forward(tsr_device *device, const tsr_swiglu_args *args,
                                               tsr_stream *stream);
TSR_NODISCARD tsr_status tsr_op_swiglu_backward(tsr_device *device, const tsr_swiglu_args *args,
                                                tsr_stream *stream);

/* ---- attention ------------------------------------------------------------------------------ */

/**
 * Causal softmax attention with grouped key-value heads; memory O(S), never an S x S matrix.
 * Query i of a sequence sees keys 0 .. kv_len - q_len + i. Head h reads key-value head
 * h / (heads / kv_heads).
 * Source: Dao et al. 2022, arXiv:2205.14135 (tiling, log-sum-exp kept for backward);
 *         Ainslie et al. 2023, arXiv:2305.13245 (grouped queries).
 */
typedef struct tsr_attention_args {
    const void *q, *k, *v; /* dtype; token t of sequence b: base + b * batch_stride + t * stride */
    void *out;             /* [B, q_len, heads, head_dim], rows out_stride apart */
    float *lse;            /* [B, heads, q_len] log-sum-exp of the scaled scores; or NULL */
    int64_t batch, q_len, kv_len;
    int64_t q_stride, kv_stride, out_stride;
    int64_t q_batch_stride, kv_batch_stride, out_batch_stride;
    int heads, kv_heads, head_dim;
    float scale;
    tsr_dtype dtype;
    /* backward only; q_len = kv_len; gradients are laid out as their tensors: */
    const void *dout;
    void *dq, *dk, *dv; /* overwritten */
} tsr_attention_args;
TSR_NODISCARD tsr_status tsr_op_attention_forward(tsr_device *device,
                                                  const tsr_attention_args *args,
                                                  tsr_stream *stream);
TSR_NODISCARD tsr_status tsr_op_attention_backward(tsr_device *device,
                                                   const tsr_attention_args *args,
                                                   tsr_stream *stream);
/** As tsr_op_gemm_reserve(), for both directions at these sizes (and any smaller batch). */
TSR_NODISCARD tsr_status tsr_op_attention_reserve(tsr_device *device,
                                                  const tsr_attention_args *args);

/* ---- routing -------------------------------------------------------------------------------- */

typedef enum tsr_gate_kind {
    TSR_GATE_SOFTMAX = 0, /* scores = softmax over all experts (Mixtral, Switch, GShard) */
    TSR_GATE_SIGMOID      /* scores = sigmoid, selection by score + bias (DeepSeek-V3) */
} tsr_gate_kind;

typedef enum tsr_aux_kind {
    TSR_AUX_SWITCH = 0, /* f_e: share of all T*K assignments */
    TSR_AUX_GSHARD      /* f_e: share of the first choices only */
} tsr_aux_kind;

/**
 * Scores, top-k choice and weights of each token, with the sums that balancing losses need.
 *
 * Ties go to the lower expert. Weights are the chosen scores, divided by their sum if renormalize,
 * times scale. With several groups (of E / groups neighbours) only experts of the kept_groups best
 * are chosen: a group is worth its best score + bias (softmax), or the sum of its two best
 * (sigmoid); ties go to the lower group. Balancing loss: per sequence b, E * sum_e f[b,e] P[b,e],
 * with f[b,e] the share of assignments (aux kind) and P[b,e] the mean normalised score (sigmoid
 * scores are divided by their sum over experts). Per sequence, so that it depends neither on ranks
 * nor on micro-batches.
 * z-loss: mean over tokens of logsumexp(logits)^2.
 * Source: Fedus et al. 2021, arXiv:2101.03961, 2.2; Lepikhin et al. 2020, arXiv:2006.16668, 2.2;
 *         Zoph et al. 2022, arXiv:2202.08906, 3.3 (z); DeepSeek-AI 2024, arXiv:2412.19437, 2.1.2;
 *         groups: the same (sigmoid) and arXiv:2405.04434, 2.2.2 (softmax).
 */
typedef struct tsr_route_args {
    const float *logits;     /* [T,E] */
    const float *bias;       /* [E] added for the choice only, or NULL */
    int64_t tokens, seq_len; /* tokens a multiple of seq_len */
    int experts, top_k;
    int groups, kept_groups; /* 0 or 1 group: any experts may be chosen */
    tsr_gate_kind gate;
    tsr_aux_kind aux;
    bool renormalize;
    float scale;
    float *scores;      /* [T,E] out: softmax or sigmoid values */
    int32_t *index;     /* [T,K] out: chosen experts, best first */
    float *weight;      /* [T,K] out */
    int64_t *counts;    /* [E] out: assignments of this call, all K choices */
    float *balance;     /* [B,E] out: f of the aux kind */
    float *score_means; /* [B,E] out: P */
    float *z;           /* [T] out: logsumexp of the logits, or NULL */
    /* backward only (the outputs above are inputs then): */
    const float *dweight; /* [T,K] */
    float aux_factor;     /* d loss / d (sum over sequences of the balancing loss) */
    float z_factor;       /* d loss / d (sum over tokens of z^2); needs z if not 0 */
    float *dlogits;       /* [T,E] out */
} tsr_route_args;
TSR_NODISCARD tsr_status tsr_op_route_forward(tsr_device *device, const tsr_route_args *args,
                                              tsr_stream *stream);
TSR_NODISCARD tsr_status tsr_op_route_backward(tsr_device *device, const tsr_route_args *args,
                                               tsr_stream *stream);

/** Sort the T*K token copies by expert, token order kept; each expert's range is padded. */
typedef struct tsr_sort_args {
    const int32_t *index; /* [T,K] */
    const float *weight;  /* [T,K] */
    int64_t tokens;
    int experts, top_k;
    int64_t max_rows;  /* capacity R: >= T*K + E*(TSR_ROW_ALIGN-1), rounded up to TSR_ROW_ALIGN */
    int64_t *offsets;  /* [E+1] out, multiples of TSR_ROW_ALIGN */
    int32_t *row_of;   /* [T,K] out: row of each token copy */
    int32_t *token_of; /* [R] out: token of each row, -1 in padding (up to offsets[E]) */
    float *row_weight; /* [R] out: weight of each row, 0 in padding */
} tsr_sort_args;
TSR_NODISCARD tsr_status tsr_op_sort_by_expert(tsr_device *device, const tsr_sort_args *args,
                                               tsr_stream *stream);

/** rows[r] = tokens[token_of[r]], zero in padding, for the rows below offsets[E]. */
typedef struct tsr_permute_args {
    const void *tokens; /* [T,D]: dtype, or f32 if from_f32 */
    void *rows;         /* [R,D], dtype */
    const int32_t *token_of;
    const int64_t *offsets; /* [E+1] */
    int experts;
    int64_t width;
    bool from_f32;
    tsr_dtype dtype;
} tsr_permute_args;
TSR_NODISCARD tsr_status tsr_op_permute(tsr_device *device, const tsr_permute_args *args,
                                        tsr_stream *stream);

/** out[t] = (base[t] or 0) + sum over k, in that order, of rows[row_of[t,k]]; none for a row
 *  of -1. */
typedef struct tsr_unpermute_args {
    const void *rows; /* [R,D], dtype */
    const int32_t *row_of;
    const float *base; /* [T,D] or NULL; may be out itself */
    float *out;        /* [T,D] */
    int64_t tokens, width;
    int top_k;
    tsr_dtype dtype;
} tsr_unpermute_args;
TSR_NODISCARD tsr_status tsr_op_unpermute(tsr_device *device, const tsr_unpermute_args *args,
                                          tsr_stream *stream);

/** out[i] = rows[row_of[i]] for i < count, 0 where row_of is -1: brings per-row gradients back to
 *  token order. */
TSR_NODISCARD tsr_status tsr_op_gather_f32(tsr_device *device, const float *rows,
                                           const int32_t *row_of, int64_t count, float *out,
                                           tsr_stream *stream);

/* ---- ends of the model ---------------------------------------------------------------------- */

/** x[t] = table[token[t]]; backward adds each dx[t] to its row of dtable in token order. */
typedef struct tsr_embedding_args {
    const int32_t *token; /* [T], each in [0, V): checked by the reader */
    const void *table;    /* [V,D], dtype */
    float *x;             /* [T,D] out */
    int64_t tokens, vocab, width;
    tsr_dtype dtype;
    /* backward only: */
    const float *dx; /* [T,D] */
    float *dtable;   /* [V,D] */
    bool accumulate; /* else dtable is overwritten */
} tsr_embedding_args;
TSR_NODISCARD tsr_status tsr_op_embedding_forward(tsr_device *device,
                                                  const tsr_embedding_args *args,
                                                  tsr_stream *stream);
TSR_NODISCARD tsr_status tsr_op_embedding_backward(tsr_device *device,
                                                   const tsr_embedding_args *args,
                                                   tsr_stream *stream);

/** Cross-entropy of rows of logits, and its gradient times grad_scale. */
typedef struct tsr_cross_entropy_args {
    const float *logits;   /* [T,V] */
    const int32_t *target; /* [T] */
    float *loss;           /* [T] out, nats */
    void *dlogits;         /* [T,V] out, dtype; or NULL; may be logits if dtype is f32 */
    int64_t rows, vocab;
    float grad_scale;
    tsr_dtype dtype;
} tsr_cross_entropy_args;
TSR_NODISCARD tsr_status tsr_op_cross_entropy(tsr_device *device,
                                              const tsr_cross_entropy_args *args,
                                              tsr_stream *stream);

/* ---- vectors -------------------------------------------------------------------------------- */

/** to = from, with conversion. */
TSR_NODISCARD tsr_status tsr_op_convert(tsr_device *device, const void *from, tsr_dtype from_dtype,
                                        void *to, tsr_dtype to_dtype, int64_t count,
                                        tsr_stream *stream);
/** y += x. */
TSR_NODISCARD tsr_status tsr_op_add_f32(tsr_device *device, const float *x, float *y, int64_t count,
                                        tsr_stream *stream);
/** *out (device memory) = sum of x, or of x^2, in f64 over fixed blocks. */
TSR_NODISCARD tsr_status tsr_op_sum(tsr_device *device, const float *x, int64_t count, double *out,
                                    tsr_stream *stream);
TSR_NODISCARD tsr_status tsr_op_sum_squares(tsr_device *device, const float *x, int64_t count,
                                            double *out, tsr_stream *stream);

/**
 * One AdamW step of `count` elements; refreshes the working copy in the same pass.
 * g = grad * grad_scale; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2;
 * master -= lr * (m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps) + decay * master).
 * Source: Loshchilov, Hutter 2017, arXiv:1711.05101.
 */
typedef struct tsr_adamw_args {
    float *master;
    void *m, *v; /* moment_dtype */
    const float *grad;
    void *work; /* copy for compute, work_dtype; may be master itself */
    int64_t count;
    float lr, beta1, beta2, eps, decay, grad_scale;
    int64_t step; /* t, from 1 */
    tsr_dtype work_dtype, moment_dtype;
} tsr_adamw_args;
TSR_NODISCARD tsr_status tsr_op_adamw(tsr_device *device, const tsr_adamw_args *args,
                                      tsr_stream *stream);

/* ---- where the time goes -------------------------------------------------------------------- */

/** Wall time, calls and work of one operator since tsr_op_profile_reset(). */
typedef struct tsr_op_profile {
    const char *name; /* of the operator; static */
    int64_t calls;
    double seconds, flops, bytes; /* bytes: least traffic of the arguments */
} tsr_op_profile;

/** Profiling waits for the device after each operator: for benchmarks only. Of the calling thread's
 *  operators: what others run beside it is not booked. */
void tsr_op_profile_enable(bool on);
void tsr_op_profile_reset(void);
/** The table, one entry an operator; count_out entries. Borrowed, static. */
const tsr_op_profile *tsr_op_profile_get(int *count_out);

#ifdef __cplusplus
}
#endif

#endif
