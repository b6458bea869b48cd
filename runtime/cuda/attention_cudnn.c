/* A plan is a graph, and the engine that cuDNN's heuristics put first among those that accept it.
 * Not run on a GPU yet: the real library made these plans from descriptions of GPUs only. */
#include "runtime/cuda/attention_cudnn.h"

#include "runtime/log.h"

#include <math.h>
#include <string.h>

static tsr_status check(cudnnStatus_t code, const char *call, const char *file, int line)
{
    char reason[256] = "";

    if (code == CUDNN_STATUS_SUCCESS) {
        return TSR_OK;
    }
    cudnnGetLastErrorString(reason, sizeof reason);
    const tsr_status st =
        code / 1000 == CUDNN_STATUS_NOT_SUPPORTED / 1000 ? TSR_ERR_UNSUPPORTED : TSR_ERR_DEVICE;
    return tsr_fail(st, file, line, "cuDNN: %s: %s: %s", call, cudnnGetErrorString(code), reason);
}

#define CUDNN_TRY(call)             TSR_TRY(check((call), #call, __FILE__, __LINE__))
#define CUDNN_TRY_GOTO(call, label) TSR_TRY_GOTO(check((call), #call, __FILE__, __LINE__), label)

tsr_status tsr_cuda_attention_open(tsr_cuda_device *device)
{
    void *block;

    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *device->attention, &block));
    device->attention = block;
    device->attention->workspace_max = TSR_CUDNN_WORKSPACE_MAX;
    CUDNN_TRY(cudnnCreate(&device->attention->handle));
    return TSR_OK;
}

/* Accepts a plan of which only a part was made. */
static void clear_plan(tsr_attention_plan *plan)
{
    if (plan->plan != NULL) {
        (void)cudnnBackendDestroyDescriptor(plan->plan);
    }
    if (plan->engine != NULL) {
        (void)cudnnBackendDestroyDescriptor(plan->engine);
    }
    tsr_attention_graph_destroy(&plan->graph);
    plan->plan = NULL;
    plan->engine = NULL;
}

void tsr_cuda_attention_close(tsr_cuda_device *device)
{
    tsr_cuda_attention *const self = device->attention;

    if (self == NULL) {
        return;
    }
    while (self->plans != NULL) {
        tsr_attention_plan *const plan = self->plans;

        self->plans = plan->next;
        clear_plan(plan);
        tsr_mem_free(plan);
    }
    if (self->handle != NULL) {
        (void)cudnnDestroy(self->handle);
    }
    tsr_mem_free(self);
    device->attention = NULL;
}

bool tsr_cudnn_attention_takes(const tsr_attention_args *args)
{
    const int64_t element = TSR_CUDNN_ALIGNMENT / (int64_t)sizeof(tsr_bf16);
    const int64_t strides[] = {args->q_stride,       args->kv_stride,       args->out_stride,
                               args->q_batch_stride, args->kv_batch_stride, args->out_batch_stride,
                               args->head_dim};

    for (size_t i = 0; i < sizeof strides / sizeof *strides; ++i) {
        if (strides[i] % element != 0) {
            return false;
        }
    }
    /* One query of one key is no attention; cuDNN is known to fail on its backward pass. */
    return args->dtype == TSR_BF16 && args->q_len == args->kv_len && args->q_len > 1;
}

/* ---- making a plan
 * ---------------------------------------------------------------------------- */

static tsr_attention_key key_of(const tsr_attention_args *args, int64_t batch, bool is_backward)
{
    return (tsr_attention_key){.batch = batch,
                               .length = args->q_len,
                               .heads = args->heads,
                               .kv_heads = args->kv_heads,
                               .head_dim = args->head_dim,
                               .q_stride = args->q_stride,
                               .kv_stride = args->kv_stride,
                               .out_stride = args->out_stride,
                               /* of one sequence it does not matter */
                               .q_batch_stride = batch == 1 ? 0 : args->q_batch_stride,
                               .kv_batch_stride = batch == 1 ? 0 : args->kv_batch_stride,
                               .out_batch_stride = batch == 1 ? 0 : args->out_batch_stride,
                               .is_backward = is_backward};
}

static tsr_attention_plan *find(tsr_cuda_attention *self, const tsr_attention_args *args,
                                int64_t batch, bool is_backward)
{
    const tsr_attention_key key = key_of(args, batch, is_backward);
    tsr_attention_plan *plan = self->plans;

    while (plan != NULL && memcmp(&plan->key, &key, sizeof key) != 0) {
        plan = plan->next;
    }
    return plan;
}

/* The engine configurations for this graph, best first; the caller destroys them all. */
static tsr_status ask_heuristics(const tsr_attention_plan *plan, cudnnBackendDescriptor_t *engines,
                                 int64_t *count_out)
{
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    cudnnBackendDescriptor_t heuristics;
    tsr_status st;

    CUDNN_TRY(cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, &heuristics));
    CUDNN_TRY_GOTO(cudnnBackendSetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
                                            CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                            &plan->graph.operations),
                   done);
    CUDNN_TRY_GOTO(cudnnBackendSetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE,
                                            CUDNN_TYPE_HEUR_MODE, 1, &mode),
                   done);
    CUDNN_TRY_GOTO(cudnnBackendFinalize(heuristics), done);
    for (int i = 0; i < TSR_CUDNN_CANDIDATES; ++i) {
        CUDNN_TRY_GOTO(
            cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &engines[i]), done);
    }
    CUDNN_TRY_GOTO(cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                            CUDNN_TYPE_BACKEND_DESCRIPTOR, TSR_CUDNN_CANDIDATES,
                                            count_out, engines),
                   done);
done:
    (void)cudnnBackendDestroyDescriptor(heuristics);
    return st;
}

/* Compile the graph for one engine. */
static tsr_status try_engine(tsr_cuda_attention *self, tsr_attention_plan *plan,
                             cudnnBackendDescriptor_t engine, int64_t workspace_max)
{
    int64_t count = 0;
    tsr_status st;

    CUDNN_TRY(cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &plan->plan));
    CUDNN_TRY_GOTO(cudnnBackendSetAttribute(plan->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE,
                                            CUDNN_TYPE_HANDLE, 1, &self->handle),
                   err_plan);
    CUDNN_TRY_GOTO(cudnnBackendSetAttribute(plan->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
                                            CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &engine),
                   err_plan);
    CUDNN_TRY_GOTO(cudnnBackendFinalize(plan->plan), err_plan);
    CUDNN_TRY_GOTO(cudnnBackendGetAttribute(plan->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                            CUDNN_TYPE_INT64, 1, &count, &plan->workspace_bytes),
                   err_plan);
    if (plan->workspace_bytes <= workspace_max) {
        return TSR_OK;
    }
    st = TSR_FAIL(TSR_ERR_UNSUPPORTED, "cuDNN's workspace is %lld bytes, must be at most %lld",
                  (long long)plan->workspace_bytes, (long long)workspace_max);
err_plan:
    (void)cudnnBackendDestroyDescriptor(plan->plan);
    plan->plan = NULL;
    return st;
}

/* A plan for this pass, or why there is none. On failure plan holds nothing. */
static tsr_status make(tsr_cuda_attention *self, const tsr_attention_args *args,
                       tsr_attention_pass pass, int64_t workspace_max, tsr_attention_plan *plan)
{
    cudnnBackendDescriptor_t engines[TSR_CUDNN_CANDIDATES] = {0};
    int64_t count = 0;
    tsr_status st;

    plan->pass = pass;
    TSR_TRY(tsr_attention_graph_create(args, plan->key.batch, pass, self->handle, &plan->graph));
    TSR_TRY_GOTO(ask_heuristics(plan, engines, &count), done);
    st = TSR_FAIL(TSR_ERR_UNSUPPORTED, "cuDNN has no engine");
    for (int64_t i = 0; i < count && st != TSR_OK; ++i) {
        st = try_engine(self, plan, engines[i], workspace_max);
        if (st == TSR_OK) {
            plan->engine = engines[i];
            engines[i] = NULL;
        }
    }
done:
    for (int i = 0; i < TSR_CUDNN_CANDIDATES; ++i) {
        if (engines[i] != NULL) {
            (void)cudnnBackendDestroyDescriptor(engines[i]);
        }
    }
    if (st != TSR_OK) {
        clear_plan(plan);
    }
    return st;
}

static void log_refusal(const tsr_attention_key *key)
{
    tsr_log(TSR_LOG_WARN,
            "attention %s by plain kernels: length %lld, heads %lld/%lld, head_dim %lld: %s",
            key->is_backward ? "backward" : "forward", (long long)key->length,
            (long long)key->heads, (long long)key->kv_heads, (long long)key->head_dim,
            tsr_error_message());
}

/* Add the plan of this batch. Without one the entry says so; a batch then goes sequence by
 * sequence, so that only one sequence must have a plan, and for it the order of dq is given up at
 * last. */
static tsr_status add(tsr_cuda_attention *self, const tsr_attention_args *args, int64_t batch,
                      bool is_backward)
{
    void *block;
    tsr_status st;

    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *self->plans, &block));
    tsr_attention_plan *const plan = block;
    plan->key = key_of(args, batch, is_backward);
    plan->next = self->plans;
    self->plans = plan;
    st = make(self, args, is_backward ? TSR_ATTENTION_BACKWARD : TSR_ATTENTION_FORWARD,
              self->workspace_max, plan);
    if (st != TSR_OK && is_backward && batch == 1) {
        st = make(self, args, TSR_ATTENTION_BACKWARD_ANY_ORDER, INT64_MAX, plan);
        if (st == TSR_OK) {
            tsr_log(TSR_LOG_WARN,
                    "attention backward: length %lld, heads %lld: dq is summed in any order, as "
                    "another would need more than %lld MiB",
                    (long long)args->q_len, (long long)args->heads,
                    (long long)(self->workspace_max >> 20));
        }
    }
    if (st != TSR_OK && batch == 1) {
        log_refusal(&plan->key);
    }
    return TSR_OK;
}

/* ---- running it
 * ------------------------------------------------------------------------------- */

/* Parts of the scratch memory of a plan: byte offsets, multiples of 256. */
typedef struct scratch {
    size_t workspace, row_sum, dq_sum, lse, bytes;
} scratch;

static size_t place(size_t *bytes, int64_t wanted)
{
    const size_t at = *bytes;

    *bytes += ((size_t)wanted + 255) / 256 * 256;
    return at;
}

static scratch scratch_of(const tsr_attention_plan *plan)
{
    const int64_t rows = plan->key.batch * plan->key.heads * plan->key.length;
    const int64_t f32 = (int64_t)sizeof(float);
    const bool is_backward = plan->pass != TSR_ATTENTION_FORWARD;
    scratch at = {0};

    at.workspace = place(&at.bytes, plan->workspace_bytes);
    at.row_sum = place(&at.bytes, is_backward ? rows * f32 : 0);
    at.dq_sum =
        place(&at.bytes,
              plan->pass == TSR_ATTENTION_BACKWARD_ANY_ORDER ? rows * plan->key.head_dim * f32 : 0);
    at.lse = place(&at.bytes, is_backward ? 0 : rows * f32); /* where the caller wants none */
    return at;
}

tsr_status tsr_cudnn_attention_prepare(tsr_cuda_device *device, const tsr_attention_args *args,
                                       bool is_backward)
{
    const int64_t batches[] = {args->batch, 1};

    for (size_t i = 0; i < sizeof batches / sizeof *batches; ++i) {
        if (find(device->attention, args, batches[i], is_backward) == NULL) {
            TSR_TRY(add(device->attention, args, batches[i], is_backward));
        }
        const tsr_attention_plan *plan = find(device->attention, args, batches[i], is_backward);
        if (plan->plan != NULL) {
            TSR_TRY(tsr_cuda_workspace_reserve(&device->base, scratch_of(plan).bytes));
        }
    }
    return TSR_OK;
}

typedef struct bindings {
    int64_t uids[16];
    void *pointers[16];
    int64_t count;
} bindings;

static void bind(bindings *b, int64_t uid, const void *pointer)
{
    b->uids[b->count] = uid;
    memcpy(&b->pointers[b->count++], &pointer, sizeof pointer); /* cuDNN takes inputs so, too */
}

static tsr_status execute(tsr_cuda_attention *self, const tsr_attention_plan *plan,
                          const bindings *b, void *workspace)
{
    cudnnBackendDescriptor_t pack;
    tsr_status st;

    CUDNN_TRY(cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack));
    CUDNN_TRY_GOTO(cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS,
                                            CUDNN_TYPE_INT64, b->count, b->uids),
                   done);
    CUDNN_TRY_GOTO(cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                                            CUDNN_TYPE_VOID_PTR, b->count, b->pointers),
                   done);
    CUDNN_TRY_GOTO(cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE,
                                            CUDNN_TYPE_VOID_PTR, 1, &workspace),
                   done);
    CUDNN_TRY_GOTO(cudnnBackendFinalize(pack), done);
    CUDNN_TRY_GOTO(cudnnBackendExecute(self->handle, plan->plan, pack), done);
done:
    (void)cudnnBackendDestroyDescriptor(pack);
    return st;
}

/* One call of the plan, from sequence `first` on. */
static tsr_status run_plan(tsr_cuda_device *device, const tsr_attention_args *args,
                           const tsr_attention_plan *plan, int64_t first, tsr_stream *stream)
{
    static const float minus_infinity = -INFINITY, one = 1.0f;
    const scratch at = scratch_of(plan);
    const int64_t element = (int64_t)sizeof(tsr_bf16);
    const int64_t q = first * args->q_batch_stride * element;
    const int64_t kv = first * args->kv_batch_stride * element;
    const int64_t out = first * args->out_batch_stride * element;
    bindings b = {.count = 0};
    void *block;

    TSR_TRY(tsr_cuda_workspace(&device->base, at.bytes, stream, &block));
    char *const memory = block;
    bind(&b, TSR_UID_Q, (const char *)args->q + q);
    bind(&b, TSR_UID_K, (const char *)args->k + kv);
    bind(&b, TSR_UID_V, (const char *)args->v + kv);
    bind(&b, TSR_UID_OUT, (const char *)args->out + out);
    bind(&b, TSR_UID_LSE,
         args->lse == NULL ? (float *)(void *)(memory + at.lse)
                           : args->lse + first * args->heads * args->q_len);
    bind(&b, TSR_UID_SCALE, &args->scale);
    bind(&b, TSR_UID_MINUS_INF, &minus_infinity);
    if (plan->pass != TSR_ATTENTION_FORWARD) {
        bind(&b, TSR_UID_DOUT, (const char *)args->dout + out);
        bind(&b, TSR_UID_DQ, (const char *)args->dq + q);
        bind(&b, TSR_UID_DK, (const char *)args->dk + kv);
        bind(&b, TSR_UID_DV, (const char *)args->dv + kv);
        bind(&b, TSR_UID_ROW_SUM, memory + at.row_sum);
        bind(&b, TSR_UID_ONE, &one);
    }
    if (plan->pass == TSR_ATTENTION_BACKWARD_ANY_ORDER) {
        bind(&b, TSR_UID_DQ_SUM, memory + at.dq_sum);
    }
    return execute(device->attention, plan, &b, memory + at.workspace);
}

static bool is_aligned(const tsr_attention_args *args, bool is_backward)
{
    const void *const pointers[] = {args->q,    args->k,  args->v,  args->out,
                                    args->dout, args->dq, args->dk, args->dv};
    uintptr_t bits = 0;

    for (int i = 0; i < (is_backward ? 8 : 4); ++i) {
        bits |= (uintptr_t)pointers[i];
    }
    return bits % TSR_CUDNN_ALIGNMENT == 0;
}

tsr_status tsr_cudnn_attention_run(tsr_cuda_device *device, const tsr_attention_args *args,
                                   bool is_backward, tsr_stream *stream, bool *done_out)
{
    tsr_cuda_attention *const self = device->attention;
    const tsr_attention_plan *plan = find(self, args, args->batch, is_backward);

    *done_out = false;
    if (!is_aligned(args, is_backward)) {
        return TSR_OK;
    }
    if (plan == NULL && find(self, args, 1, is_backward) == NULL) {
        TSR_TRY(tsr_cudnn_attention_prepare(device, args, is_backward));
        plan = find(self, args, args->batch, is_backward);
    }
    if (plan == NULL || plan->plan == NULL) {
        plan = find(self, args, 1, is_backward);
    }
    if (plan->plan == NULL) {
        return TSR_OK;
    }
    CUDNN_TRY(cudnnSetStream(self->handle, tsr_cuda_stream_of(stream)));
    for (int64_t first = 0; first < args->batch; first += plan->key.batch) {
        TSR_TRY(run_plan(device, args, plan, first, stream));
    }
    ++self->cudnn_calls;
    *done_out = true;
    return TSR_OK;
}
