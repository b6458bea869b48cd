/* The attention of runtime/ops.h as cuDNN operation graphs: which operations, on which tensors.
 *
 * Only describes: nothing here needs a GPU or a handle, so that the graphs can be given to the real
 * library on a machine without one. Plans, workspace and execution are attention_cudnn.h's. */
#ifndef TSR_RUNTIME_CUDA_ATTENTION_GRAPH_H
#define TSR_RUNTIME_CUDA_ATTENTION_GRAPH_H

#include "runtime/ops.h"

#include <cudnn_graph.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Names of the tensors that have memory; virtual ones are numbered from TSR_UID_VIRTUAL. */
enum {
    TSR_UID_Q = 1,
    TSR_UID_K,
    TSR_UID_V,
    TSR_UID_OUT,
    TSR_UID_LSE,
    TSR_UID_DOUT,
    TSR_UID_DQ,
    TSR_UID_DK,
    TSR_UID_DV,
    TSR_UID_ROW_SUM, /* f32 [B, heads, q_len]: dout . out, scratch of the backward pass */
    /* f32 [B, heads, q_len, head_dim]: scratch of TSR_ATTENTION_BACKWARD_ANY_ORDER */
    TSR_UID_DQ_SUM,
    TSR_UID_SCALE, /* scalars, given by value */
    TSR_UID_MINUS_INF,
    TSR_UID_ONE,
    TSR_UID_VIRTUAL = 100
};

/* cuDNN's backward pass either keeps the gradient of the scores in its workspace (2 bytes for each
 * of B * heads * q_len * kv_len), or adds to dq from many blocks in the order in which they
 * come. */
typedef enum tsr_attention_pass {
    TSR_ATTENTION_FORWARD,
    TSR_ATTENTION_BACKWARD,
    TSR_ATTENTION_BACKWARD_ANY_ORDER /* dq differs in the last bits from run to run */
} tsr_attention_pass;

/** Descriptors of one graph: `operations` is the finalized graph, the rest what it refers to. */
typedef struct tsr_attention_graph {
    cudnnBackendDescriptor_t operations;
    cudnnBackendDescriptor_t parts[96];
    int part_count;
} tsr_attention_graph;

/**
 * Describe one pass over `batch` sequences with the sizes, strides and type of args, as a graph.
 *
 * Owns:   the descriptors, until tsr_attention_graph_destroy(); nothing on failure.
 * Errors: TSR_ERR_UNSUPPORTED if cuDNN refuses a part (names it and cuDNN's reason).
 */
TSR_NODISCARD tsr_status tsr_attention_graph_create(const tsr_attention_args *args, int64_t batch,
                                                    tsr_attention_pass pass, cudnnHandle_t handle,
                                                    tsr_attention_graph *graph_out);
void tsr_attention_graph_destroy(tsr_attention_graph *graph);

#ifdef __cplusplus
}
#endif

#endif
