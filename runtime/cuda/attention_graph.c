/* Attention as cuDNN operations. cuDNN recognises fused attention by the shape of the graph, so the
 * order and the types of the operations below are those that its documentation gives (cuDNN 9
 * developer guide, graph API, fused attention forward and backward).
 *
 * forward    s = q k^T; s = mask(scale * s); m = max s; e = exp(s - m); z = sum e;
 *            lse = m + log z; out = (e / z) v
 * backward   r = sum(dout * out); p = exp(mask(scale * q k^T - lse)); dv = p^T dout;
 *            ds = (dout v^T - r) * p * scale; dk = ds^T q; dq = ds k
 * Heads of a group share a key-value head: products broadcast it, dk and dv are summed over it.
 */
#include "runtime/cuda/attention_graph.h"

#include <stdio.h>

enum { RANK = 4, MAX_OPERATIONS = 32 };

typedef struct shape {
    int64_t size[RANK], stride[RANK];
} shape;

/* A graph under construction. After the first refusal every step is a no-op, so that the callers
 * below read as the formulas do; `status` and `what` keep the first refusal. */
typedef struct builder {
    tsr_attention_graph *graph;
    cudnnBackendDescriptor_t operations[MAX_OPERATIONS];
    int operation_count;
    int64_t next_virtual;
    cudnnStatus_t status;
    const char *what;
    shape scores, row; /* [B, heads, q_len, kv_len] and [B, heads, q_len, 1], packed */
} builder;

static void note(builder *b, cudnnStatus_t status, const char *what)
{
    if (b->status == CUDNN_STATUS_SUCCESS && status != CUDNN_STATUS_SUCCESS) {
        b->status = status;
        b->what = what;
    }
}

static cudnnBackendDescriptor_t create(builder *b, cudnnBackendDescriptorType_t type,
                                       const char *what)
{
    cudnnBackendDescriptor_t made = NULL;
    tsr_attention_graph *graph = b->graph;

    if (b->status != CUDNN_STATUS_SUCCESS) {
        return NULL;
    }
    if (graph->part_count == (int)(sizeof graph->parts / sizeof graph->parts[0])) {
        note(b, CUDNN_STATUS_INTERNAL_ERROR, what);
        return NULL;
    }
    note(b, cudnnBackendCreateDescriptor(type, &made), what);
    if (made != NULL) {
        graph->parts[graph->part_count++] = made;
    }
    return made;
}

static void set(builder *b, cudnnBackendDescriptor_t of, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *values,
                const char *what)
{
    if (b->status == CUDNN_STATUS_SUCCESS) {
        note(b, cudnnBackendSetAttribute(of, name, type, count, values), what);
    }
}

static void set_part(builder *b, cudnnBackendDescriptor_t of, cudnnBackendAttributeName_t name,
                     cudnnBackendDescriptor_t part, const char *what)
{
    set(b, of, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part, what);
}

static void finalize(builder *b, cudnnBackendDescriptor_t of, const char *what)
{
    if (b->status == CUDNN_STATUS_SUCCESS) {
        note(b, cudnnBackendFinalize(of), what);
    }
}

static void add_operation(builder *b, cudnnBackendDescriptor_t operation, const char *what)
{
    finalize(b, operation, what);
    if (b->operation_count == MAX_OPERATIONS) {
        note(b, CUDNN_STATUS_INTERNAL_ERROR, what);
    } else {
        b->operations[b->operation_count++] = operation;
    }
}

/* ---- tensors -------------------------------------------------------------------------------- */

static shape packed(int64_t n0, int64_t n1, int64_t n2, int64_t n3)
{
    return (shape){{n0, n1, n2, n3}, {n1 * n2 * n3, n2 * n3, n3, 1}};
}

/* The last two axes exchanged: the same memory read as the transposed matrix. */
static shape transposed(shape of)
{
    return (shape){{of.size[0], of.size[1], of.size[3], of.size[2]},
                   {of.stride[0], of.stride[1], of.stride[3], of.stride[2]}};
}

typedef enum memory { REAL, VIRTUAL, BY_VALUE } memory;

static cudnnBackendDescriptor_t tensor(builder *b, int64_t uid, cudnnDataType_t type,
                                       const shape *of, memory where, const char *what)
{
    const cudnnBackendDescriptor_t made = create(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR, what);
    const int64_t alignment = 16;
    const bool yes = true;

    set(b, made, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid, what);
    set(b, made, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type, what);
    set(b, made, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment, what);
    set(b, made, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, RANK, of->size, what);
    set(b, made, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, RANK, of->stride, what);
    if (where == VIRTUAL) {
        set(b, made, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &yes, what);
    } else if (where == BY_VALUE) {
        set(b, made, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &yes, what);
    }
    finalize(b, made, what);
    return made;
}

static cudnnBackendDescriptor_t virtual_of(builder *b, cudnnDataType_t type, const shape *of,
                                           const char *what)
{
    return tensor(b, b->next_virtual++, type, of, VIRTUAL, what);
}

static cudnnBackendDescriptor_t scalar(builder *b, int64_t uid, const char *what)
{
    const shape one = packed(1, 1, 1, 1);

    return tensor(b, uid, CUDNN_DATA_FLOAT, &one, BY_VALUE, what);
}

/* ---- operations ----------------------------------------------------------------------------- */

static void matmul(builder *b, cudnnBackendDescriptor_t left, cudnnBackendDescriptor_t right,
                   cudnnBackendDescriptor_t product, const char *what)
{
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    const cudnnBackendDescriptor_t kind = create(b, CUDNN_BACKEND_MATMUL_DESCRIPTOR, what);

    set(b, kind, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f32, what);
    finalize(b, kind, what);
    const cudnnBackendDescriptor_t made =
        create(b, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, what);
    set_part(b, made, CUDNN_ATTR_OPERATION_MATMUL_DESC, kind, what);
    set_part(b, made, CUDNN_ATTR_OPERATION_MATMUL_ADESC, left, what);
    set_part(b, made, CUDNN_ATTR_OPERATION_MATMUL_BDESC, right, what);
    set_part(b, made, CUDNN_ATTR_OPERATION_MATMUL_CDESC, product, what);
    add_operation(b, made, what);
}

static cudnnBackendDescriptor_t pointwise_kind(builder *b, cudnnPointwiseMode_t mode,
                                               cudnnDataType_t compute, int64_t axis,
                                               const char *what)
{
    const cudnnBackendDescriptor_t kind = create(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, what);

    set(b, kind, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode, what);
    set(b, kind, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &compute, what);
    if (mode == CUDNN_POINTWISE_GEN_INDEX) {
        set(b, kind, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis, what);
    }
    finalize(b, kind, what);
    return kind;
}

/* y = mode(x), mode(x, second), or second chosen where `choice` is false (BINARY_SELECT). */
static void pointwise(builder *b, cudnnBackendDescriptor_t kind, cudnnBackendDescriptor_t x,
                      cudnnBackendDescriptor_t second, cudnnBackendDescriptor_t choice,
                      cudnnBackendDescriptor_t y, const char *what)
{
    const cudnnBackendDescriptor_t made =
        create(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, what);

    set_part(b, made, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind, what);
    set_part(b, made, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x, what);
    if (second != NULL) {
        set_part(b, made, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, second, what);
    }
    if (choice != NULL) {
        set_part(b, made, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, choice, what);
    }
    set_part(b, made, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y, what);
    add_operation(b, made, what);
}

/* A new virtual f32 tensor: mode(x) or mode(x, second). */
static cudnnBackendDescriptor_t compute(builder *b, cudnnPointwiseMode_t mode,
                                        cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t second,
                                        const shape *of, const char *what)
{
    const cudnnBackendDescriptor_t y = virtual_of(b, CUDNN_DATA_FLOAT, of, what);

    pointwise(b, pointwise_kind(b, mode, CUDNN_DATA_FLOAT, 0, what), x, second, NULL, y, what);
    return y;
}

static void reduce(builder *b, cudnnReduceTensorOp_t mode, cudnnBackendDescriptor_t x,
                   cudnnBackendDescriptor_t y, const char *what)
{
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    const cudnnBackendDescriptor_t kind = create(b, CUDNN_BACKEND_REDUCTION_DESCRIPTOR, what);

    set(b, kind, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode, what);
    set(b, kind, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f32, what);
    finalize(b, kind, what);
    const cudnnBackendDescriptor_t made =
        create(b, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, what);
    set_part(b, made, CUDNN_ATTR_OPERATION_REDUCTION_DESC, kind, what);
    set_part(b, made, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x, what);
    set_part(b, made, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y, what);
    add_operation(b, made, what);
}

static cudnnBackendDescriptor_t reshape(builder *b, cudnnBackendDescriptor_t x,
                                        cudnnDataType_t type, const shape *of, const char *what)
{
    const cudnnBackendDescriptor_t y = virtual_of(b, type, of, what);
    const cudnnBackendDescriptor_t made =
        create(b, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, what);

    set_part(b, made, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x, what);
    set_part(b, made, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y, what);
    add_operation(b, made, what);
    return y;
}

static cudnnBackendDescriptor_t index_along(builder *b, cudnnBackendDescriptor_t scores,
                                            int64_t axis, const char *what)
{
    const cudnnBackendDescriptor_t y = virtual_of(b, CUDNN_DATA_INT32, &b->scores, what);

    pointwise(b, pointwise_kind(b, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, axis, what), scores,
              NULL, NULL, y, what);
    return y;
}

/* Query i keeps the scores of the keys up to i; the others become minus infinity. */
static cudnnBackendDescriptor_t mask(builder *b, cudnnBackendDescriptor_t scores)
{
    const char *what = "causal mask";
    const cudnnBackendDescriptor_t query = index_along(b, scores, 2, what);
    const cudnnBackendDescriptor_t key = index_along(b, scores, 3, what);
    const cudnnBackendDescriptor_t seen = virtual_of(b, CUDNN_DATA_BOOLEAN, &b->scores, what);

    pointwise(b, pointwise_kind(b, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, 0, what), query, key,
              NULL, seen, what);
    const cudnnBackendDescriptor_t minus_inf = scalar(b, TSR_UID_MINUS_INF, what);
    const cudnnBackendDescriptor_t y = virtual_of(b, CUDNN_DATA_FLOAT, &b->scores, what);
    pointwise(b, pointwise_kind(b, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, 0, what),
              scores, minus_inf, seen, y, what);
    return y;
}

/* ---- the two passes ------------------------------------------------------------------------- */

typedef struct operands {
    shape q, kv, out;
    cudnnDataType_t type;
} operands;

static operands operands_of(const tsr_attention_args *args, int64_t batch)
{
    return (operands){
        .q = {{batch, args->heads, args->q_len, args->head_dim},
              {args->q_batch_stride, args->head_dim, args->q_stride, 1}},
        .kv = {{batch, args->kv_heads, args->kv_len, args->head_dim},
               {args->kv_batch_stride, args->head_dim, args->kv_stride, 1}},
        .out = {{batch, args->heads, args->q_len, args->head_dim},
                {args->out_batch_stride, args->head_dim, args->out_stride, 1}},
        .type = args->dtype == TSR_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT,
    };
}

/* scale * q k^T */
static cudnnBackendDescriptor_t scaled_scores(builder *b, cudnnBackendDescriptor_t q,
                                              cudnnBackendDescriptor_t k_transposed,
                                              cudnnBackendDescriptor_t scale)
{
    const cudnnBackendDescriptor_t raw = virtual_of(b, CUDNN_DATA_FLOAT, &b->scores, "q k^T");

    matmul(b, q, k_transposed, raw, "q k^T");
    return compute(b, CUDNN_POINTWISE_MUL, raw, scale, &b->scores, "scale");
}

static void describe_forward(builder *b, const operands *of)
{
    const shape k_transposed = transposed(of->kv);
    const cudnnBackendDescriptor_t q = tensor(b, TSR_UID_Q, of->type, &of->q, REAL, "q");
    const cudnnBackendDescriptor_t k = tensor(b, TSR_UID_K, of->type, &k_transposed, REAL, "k");
    const cudnnBackendDescriptor_t v = tensor(b, TSR_UID_V, of->type, &of->kv, REAL, "v");
    const cudnnBackendDescriptor_t out = tensor(b, TSR_UID_OUT, of->type, &of->out, REAL, "out");

    const cudnnBackendDescriptor_t scale = scalar(b, TSR_UID_SCALE, "scale");
    const cudnnBackendDescriptor_t s = mask(b, scaled_scores(b, q, k, scale));
    const cudnnBackendDescriptor_t top = virtual_of(b, CUDNN_DATA_FLOAT, &b->row, "maximum");
    reduce(b, CUDNN_REDUCE_TENSOR_MAX, s, top, "maximum");
    const cudnnBackendDescriptor_t below =
        compute(b, CUDNN_POINTWISE_SUB, s, top, &b->scores, "score less maximum");
    const cudnnBackendDescriptor_t e =
        compute(b, CUDNN_POINTWISE_EXP, below, NULL, &b->scores, "exponential");
    const cudnnBackendDescriptor_t sum = virtual_of(b, CUDNN_DATA_FLOAT, &b->row, "sum");
    reduce(b, CUDNN_REDUCE_TENSOR_ADD, e, sum, "sum");
    const cudnnBackendDescriptor_t lse =
        tensor(b, TSR_UID_LSE, CUDNN_DATA_FLOAT, &b->row, REAL, "log-sum-exp");
    const cudnnBackendDescriptor_t log_sum =
        compute(b, CUDNN_POINTWISE_LOG, sum, NULL, &b->row, "logarithm");
    pointwise(b, pointwise_kind(b, CUDNN_POINTWISE_ADD, CUDNN_DATA_FLOAT, 0, "log-sum-exp"), top,
              log_sum, NULL, lse, "log-sum-exp");
    const cudnnBackendDescriptor_t p = virtual_of(b, of->type, &b->scores, "probabilities");
    pointwise(b, pointwise_kind(b, CUDNN_POINTWISE_DIV, CUDNN_DATA_FLOAT, 0, "probabilities"), e,
              sum, NULL, p, "probabilities");
    matmul(b, p, v, out, "p v");
}

/* gradient = transpose(of scores) * rows, summed over the heads of a group. */
static void key_side_gradient(builder *b, const operands *of, cudnnBackendDescriptor_t scores,
                              cudnnBackendDescriptor_t rows, int64_t uid, const char *what)
{
    const shape turned = transposed(b->scores);
    const shape full = packed(of->q.size[0], of->q.size[1], of->kv.size[2], of->kv.size[3]);
    const cudnnBackendDescriptor_t left = reshape(b, scores, of->type, &turned, what);
    const cudnnBackendDescriptor_t gradient = tensor(b, uid, of->type, &of->kv, REAL, what);

    if (of->q.size[1] == of->kv.size[1]) {
        matmul(b, left, rows, gradient, what);
    } else {
        const cudnnBackendDescriptor_t each = virtual_of(b, of->type, &full, what);
        matmul(b, left, rows, each, what);
        reduce(b, CUDNN_REDUCE_TENSOR_ADD, each, gradient, what);
    }
}

static void describe_backward(builder *b, const operands *of, bool in_any_order)
{
    const shape turned = transposed(of->kv);
    const cudnnBackendDescriptor_t q = tensor(b, TSR_UID_Q, of->type, &of->q, REAL, "q");
    const cudnnBackendDescriptor_t k = tensor(b, TSR_UID_K, of->type, &turned, REAL, "k");
    const cudnnBackendDescriptor_t v = tensor(b, TSR_UID_V, of->type, &turned, REAL, "v");
    const cudnnBackendDescriptor_t out = tensor(b, TSR_UID_OUT, of->type, &of->out, REAL, "out");
    const cudnnBackendDescriptor_t dout = tensor(b, TSR_UID_DOUT, of->type, &of->out, REAL, "dout");
    const cudnnBackendDescriptor_t lse =
        tensor(b, TSR_UID_LSE, CUDNN_DATA_FLOAT, &b->row, REAL, "log-sum-exp");
    const cudnnBackendDescriptor_t row_sum =
        tensor(b, TSR_UID_ROW_SUM, CUDNN_DATA_FLOAT, &b->row, REAL, "dout . out");
    const cudnnBackendDescriptor_t scale = scalar(b, TSR_UID_SCALE, "scale");

    const shape queries =
        packed(of->out.size[0], of->out.size[1], of->out.size[2], of->out.size[3]);
    const cudnnBackendDescriptor_t both =
        compute(b, CUDNN_POINTWISE_MUL, dout, out, &queries, "dout . out");
    const cudnnBackendDescriptor_t bare = virtual_of(b, CUDNN_DATA_FLOAT, &b->row, "dout . out");
    reduce(b, CUDNN_REDUCE_TENSOR_ADD, both, bare, "dout . out");
    /* Times one: without dropout the pattern still has its factor. */
    pointwise(b, pointwise_kind(b, CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, 0, "dout . out"), bare,
              scalar(b, TSR_UID_ONE, "one"), NULL, row_sum, "dout . out");

    const cudnnBackendDescriptor_t below = compute(
        b, CUDNN_POINTWISE_SUB, scaled_scores(b, q, k, scale), lse, &b->scores, "score less lse");
    const cudnnBackendDescriptor_t p =
        compute(b, CUDNN_POINTWISE_EXP, mask(b, below), NULL, &b->scores, "probabilities");
    key_side_gradient(b, of, p, dout, TSR_UID_DV, "dv");

    const cudnnBackendDescriptor_t dp = virtual_of(b, CUDNN_DATA_FLOAT, &b->scores, "dout v^T");
    matmul(b, dout, v, dp, "dout v^T");
    const cudnnBackendDescriptor_t centred =
        compute(b, CUDNN_POINTWISE_SUB, dp, row_sum, &b->scores, "dp less dout . out");
    const cudnnBackendDescriptor_t weighted =
        compute(b, CUDNN_POINTWISE_MUL, centred, p, &b->scores, "gradient of scores");
    const cudnnBackendDescriptor_t ds =
        compute(b, CUDNN_POINTWISE_MUL, weighted, scale, &b->scores, "gradient of scores");
    key_side_gradient(b, of, ds, q, TSR_UID_DK, "dk");
    const cudnnBackendDescriptor_t keys = reshape(b, k, of->type, &of->kv, "dq");
    const cudnnBackendDescriptor_t dq = tensor(b, TSR_UID_DQ, of->type, &of->q, REAL, "dq");
    if (in_any_order) {
        const cudnnBackendDescriptor_t sum =
            tensor(b, TSR_UID_DQ_SUM, CUDNN_DATA_FLOAT, &queries, REAL, "sum of dq");
        matmul(b, ds, keys, sum, "dq");
        pointwise(b, pointwise_kind(b, CUDNN_POINTWISE_IDENTITY, CUDNN_DATA_FLOAT, 0, "dq"), sum,
                  NULL, NULL, dq, "dq");
    } else {
        matmul(b, ds, keys, dq, "dq");
    }
}

tsr_status tsr_attention_graph_create(const tsr_attention_args *args, int64_t batch,
                                      tsr_attention_pass pass, cudnnHandle_t handle,
                                      tsr_attention_graph *graph_out)
{
    tsr_attention_graph graph = {0};
    const operands of = operands_of(args, batch);
    builder b = {.graph = &graph, .next_virtual = TSR_UID_VIRTUAL};
    char reason[256] = "";

    b.scores = packed(batch, args->heads, args->q_len, args->kv_len);
    b.row = packed(batch, args->heads, args->q_len, 1);
    if (pass == TSR_ATTENTION_FORWARD) {
        describe_forward(&b, &of);
    } else {
        describe_backward(&b, &of, pass == TSR_ATTENTION_BACKWARD_ANY_ORDER);
    }
    graph.operations = create(&b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, "graph");
    if (handle != NULL) {
        set(&b, graph.operations, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle,
            "graph");
    }
    set(&b, graph.operations, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
        b.operation_count, b.operations, "graph");
    finalize(&b, graph.operations, "graph");
    if (b.status != CUDNN_STATUS_SUCCESS) {
        cudnnGetLastErrorString(reason, sizeof reason);
        tsr_attention_graph_destroy(&graph);
        return TSR_FAIL(TSR_ERR_UNSUPPORTED, "cuDNN refuses attention (%s): %s: %s", b.what,
                        cudnnGetErrorString(b.status), reason);
    }
    *graph_out = graph;
    return TSR_OK;
}

void tsr_attention_graph_destroy(tsr_attention_graph *graph)
{
    /* Backwards: what refers goes before what it refers to. */
    for (int i = graph->part_count - 1; i >= 0; --i) {
        (void)cudnnBackendDestroyDescriptor(graph->parts[i]);
    }
    *graph = (tsr_attention_graph){0};
}
