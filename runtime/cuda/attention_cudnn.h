/* Attention by cuDNN: plans by shape, and how they are run.
 *
 * This folder's only; attention.c chooses between this and the plain kernels. */
#ifndef TSR_RUNTIME_CUDA_ATTENTION_CUDNN_H
#define TSR_RUNTIME_CUDA_ATTENTION_CUDNN_H

#include "runtime/cuda/attention_graph.h"
#include "runtime/cuda/cuda_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    TSR_CUDNN_ALIGNMENT = 16, /* bytes, of pointers and of rows */
    TSR_CUDNN_CANDIDATES = 8
};

/* A backward pass with an order of its own has a workspace that grows with the square of the
 * length. Beyond this a batch is taken a sequence at a time, then the order is given up. */
#define TSR_CUDNN_WORKSPACE_MAX ((int64_t)2 << 30)

/* What makes two calls the same plan; compared as words. */
typedef struct tsr_attention_key {
    int64_t batch, length, heads, kv_heads, head_dim;
    int64_t q_stride, kv_stride, out_stride;
    int64_t q_batch_stride, kv_batch_stride, out_batch_stride;
    int64_t is_backward;
} tsr_attention_key;

typedef struct tsr_attention_plan {
    struct tsr_attention_plan *next;
    tsr_attention_key key;
    tsr_attention_pass pass;
    tsr_attention_graph graph;
    cudnnBackendDescriptor_t engine, plan; /* plan NULL: cuDNN has none */
    int64_t workspace_bytes;
} tsr_attention_plan;

typedef enum tsr_attention_use {
    TSR_ATTENTION_USE_BEST = 0, /* cuDNN, or the plain kernels where it has no plan */
    TSR_ATTENTION_USE_PLAIN     /* tests compare the two */
} tsr_attention_use;

typedef struct tsr_cuda_attention {
    cudnnHandle_t handle;
    tsr_attention_plan *plans;
    tsr_attention_use use;
    int64_t workspace_max; /* TSR_CUDNN_WORKSPACE_MAX; tests set less */
    int64_t cudnn_calls;   /* passes that cuDNN ran: tests know which path they took */
} tsr_cuda_attention;

/** Is this a shape that cuDNN is asked about: bf16, as many keys as queries, aligned rows? */
bool tsr_cudnn_attention_takes(const tsr_attention_args *args);

/**
 * Make the plans of one direction, for this batch and for one sequence. A shape that cuDNN refuses
 * is remembered, and logged once.
 *
 * Errors: TSR_ERR_NOMEM.
 */
TSR_NODISCARD tsr_status tsr_cudnn_attention_prepare(tsr_cuda_device *device,
                                                     const tsr_attention_args *args,
                                                     bool is_backward);

/** Queue the pass by a plan of this batch, or of one sequence again and again. *done_out says
 *  whether there was one, and whether all pointers were aligned. */
TSR_NODISCARD tsr_status tsr_cudnn_attention_run(tsr_cuda_device *device,
                                                 const tsr_attention_args *args, bool is_backward,
                                                 tsr_stream *stream, bool *done_out);

#ifdef __cplusplus
}
#endif

#endif
