/* Attention on the emulated GPU against its plain twin: the plain kernels, plans of the fake cuDNN,
 * and the choice between them. */
#include "tests/cuda/cuda_test.h"
#include "tests/runtime/attention_bounds.h"

#include "runtime/cuda/attention_cudnn.h"

#include <math.h>

typedef struct shape {
    int64_t batch, q_len, kv_len;
    int heads, kv_heads, head_dim, gap; /* gap: columns between rows */
    tsr_dtype dtype;
    tsr_attention_use use;
    bool is_cudnn[2]; /* expected: forward, backward */
} shape;

typedef struct tensors {
    array q, kv, dout, out, lse, dq, dkv;
    array given_out, given_lse; /* the twin's, for both backward passes */
} tensors;

static double tolerance(const shape *s, bool is_gradient)
{
    return attention_tolerance(s->head_dim, s->kv_len, (double)s->q_len * s->heads / s->kv_heads,
                               is_gradient);
}

/* cuDNN rounds p and ds to bf16. The gradients of the heads of a group are rounded again before
 * they are added: as much once more. */
static double rounding(const shape *s, bool is_gradient)
{
    const int group = s->heads / s->kv_heads;

    return (is_gradient && group > 1 ? 2.0 : 1.0) *
           attention_rounding(group, s->kv_len, is_gradient);
}

static tsr_attention_args args_on(const shape *s, const tensors *t, side where)
{
    const int64_t q_stride = s->heads * s->head_dim + s->gap;
    const int64_t kv_stride = 2 * s->kv_heads * s->head_dim + s->gap;
    const size_t v = (size_t)(s->kv_heads * s->head_dim) * tsr_dtype_bytes(s->dtype);

    return (tsr_attention_args){.q = on(where, &t->q),
                                .k = on(where, &t->kv),
                                .v = (char *)on(where, &t->kv) + v,
                                .out = on(where, &t->out),
                                .lse = on(where, &t->lse),
                                .batch = s->batch,
                                .q_len = s->q_len,
                                .kv_len = s->kv_len,
                                .q_stride = q_stride,
                                .kv_stride = kv_stride,
                                .out_stride = q_stride,
                                .q_batch_stride = s->q_len * q_stride,
                                .kv_batch_stride = s->kv_len * kv_stride,
                                .out_batch_stride = s->q_len * q_stride,
                                .heads = s->heads,
                                .kv_heads = s->kv_heads,
                                .head_dim = s->head_dim,
                                .scale = 1.0f / sqrtf((float)s->head_dim),
                                .dtype = s->dtype,
                                .dout = on(where, &t->dout),
                                .dq = on(where, &t->dq),
                                .dk = on(where, &t->dkv),
                                .dv = (char *)on(where, &t->dkv) + v};
}

static tensors take_tensors(const shape *s)
{
    const int64_t q = s->batch * s->q_len * (s->heads * s->head_dim + s->gap);
    const int64_t kv = s->batch * s->kv_len * (2 * s->kv_heads * s->head_dim + s->gap);
    const size_t element = tsr_dtype_bytes(s->dtype);

    return (tensors){.q = make_random(s->dtype, q, 1, 1.0f),
                     .kv = make_random(s->dtype, kv, 2, 1.0f),
                     .dout = make_random(s->dtype, q, 3, 1.0f),
                     .out = make_array(NULL, q, element),
                     .lse = make_array(NULL, s->batch * s->heads * s->q_len, sizeof(float)),
                     .dq = make_array(NULL, q, element),
                     .dkv = make_array(NULL, kv, element)};
}

static void free_tensors(tensors *t)
{
    array *const arrays[] = {&t->q,  &t->kv,  &t->dout,      &t->out,      &t->lse,
                             &t->dq, &t->dkv, &t->given_out, &t->given_lse};

    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; ++i) {
        free_array(arrays[i]);
    }
}

static tsr_cuda_attention *state_of_cuda(void)
{
    return ((tsr_cuda_device *)cuda_rig[CUDA].device)->attention;
}

/* How many of the passes since `before` cuDNN ran. */
static int64_t cudnn_calls(int64_t before)
{
    return state_of_cuda()->cudnn_calls - before;
}

static void run_forward(const shape *s, tensors *t, bool with_lse)
{
    for (int where = PLAIN; where < SIDES; ++where) {
        tsr_attention_args args = args_on(s, t, (side)where);

        args.lse = with_lse ? args.lse : NULL;
        assert_ok(tsr_op_attention_forward(cuda_rig[where].device, &args, cuda_rig[where].stream));
    }
}

/* What the twin wrote, on both sides. */
static array copy_of(const array *a, size_t element)
{
    return make_array(on(PLAIN, a), (int64_t)(a->bytes / element), element);
}

static void run_backward(const shape *s, tensors *t)
{
    t->given_out = copy_of(&t->out, tsr_dtype_bytes(s->dtype));
    t->given_lse = copy_of(&t->lse, sizeof(float));
    for (int where = PLAIN; where < SIDES; ++where) {
        tsr_attention_args args = args_on(s, t, (side)where);

        args.out = on((side)where, &t->given_out);
        args.lse = on((side)where, &t->given_lse);
        assert_ok(tsr_op_attention_backward(cuda_rig[where].device, &args, cuda_rig[where].stream));
    }
}

static void check_shape(const shape *s)
{
    const bool by_cudnn[2] = {s->is_cudnn[0] && !cuda_shifted, s->is_cudnn[1] && !cuda_shifted};
    tensors t = take_tensors(s);
    int64_t before;

    state_of_cuda()->use = s->use;
    before = state_of_cuda()->cudnn_calls;
    run_forward(s, &t, true);
    assert_int_equal(cudnn_calls(before), by_cudnn[0]);
    assert_array(TSR_F32, &t.lse, tolerance(s, false));
    assert_array(s->dtype, &t.out, tolerance(s, false) + (by_cudnn[0] ? rounding(s, false) : 0.0));
    if (s->q_len == s->kv_len) {
        const double allowed = tolerance(s, true) + (by_cudnn[1] ? rounding(s, true) : 0.0);

        before = state_of_cuda()->cudnn_calls;
        run_backward(s, &t);
        assert_int_equal(cudnn_calls(before), by_cudnn[1]);
        assert_array(s->dtype, &t.dq, allowed);
        assert_array(s->dtype, &t.dkv, allowed);
    }
    free_tensors(&t);
}

static void check_shapes(const shape *shapes, size_t count)
{
    for (size_t i = 0; i < count; ++i) {
        check_shape(&shapes[i]);
    }
}

static void plain_kernels(void)
{
    static const shape shapes[] = {
        {1, 1, 1, 1, 1, 2, 0, TSR_F32, TSR_ATTENTION_USE_BEST, {false, false}},
        {2, 5, 5, 2, 2, 6, 1, TSR_F32, TSR_ATTENTION_USE_BEST, {false, false}},
        {1, 33, 33, 4, 1, 20, 3, TSR_F32, TSR_ATTENTION_USE_BEST, {false, false}},
        {1, 65, 65, 2, 1, 64, 0, TSR_F32, TSR_ATTENTION_USE_BEST, {false, false}},
        {1, 20, 20, 2, 1, 72, 0, TSR_F32, TSR_ATTENTION_USE_BEST, {false, false}},
        {1, 9, 9, 1, 1, 256, 0, TSR_F32, TSR_ATTENTION_USE_BEST, {false, false}},
        {1, 1, 64, 4, 2, 16, 0, TSR_F32, TSR_ATTENTION_USE_BEST, {false, false}},
        {2, 35, 67, 2, 1, 10, 1, TSR_F32, TSR_ATTENTION_USE_BEST, {false, false}},
        {2, 37, 37, 4, 2, 24, 0, TSR_BF16, TSR_ATTENTION_USE_PLAIN, {false, false}},
        {1, 34, 34, 2, 1, 128, 1, TSR_BF16, TSR_ATTENTION_USE_PLAIN, {false, false}},
        {1, 33, 40, 2, 1, 130, 0, TSR_BF16, TSR_ATTENTION_USE_PLAIN, {false, false}},
    };

    check_shapes(shapes, sizeof shapes / sizeof *shapes);
}

static void cudnn_plans(void)
{
    static const shape shapes[] = {
        {1, 2, 2, 1, 1, 8, 0, TSR_BF16, TSR_ATTENTION_USE_BEST, {true, true}},
        {2, 37, 37, 4, 1, 16, 8, TSR_BF16, TSR_ATTENTION_USE_BEST, {true, true}},
        {3, 9, 9, 2, 2, 40, 0, TSR_BF16, TSR_ATTENTION_USE_BEST, {true, true}},
        {1, 33, 33, 2, 1, 128, 0, TSR_BF16, TSR_ATTENTION_USE_BEST, {true, true}},
        /* one query; a longer cache; rows that are not aligned; a width that cuDNN lacks */
        {2, 1, 1, 2, 1, 16, 0, TSR_BF16, TSR_ATTENTION_USE_BEST, {false, false}},
        {1, 3, 9, 2, 1, 16, 0, TSR_BF16, TSR_ATTENTION_USE_BEST, {false, false}},
        {1, 6, 6, 2, 1, 16, 1, TSR_BF16, TSR_ATTENTION_USE_BEST, {false, false}},
        {1, 6, 6, 2, 1, 12, 0, TSR_BF16, TSR_ATTENTION_USE_BEST, {false, false}},
        /* forward only */
        {1, 6, 6, 2, 1, 136, 0, TSR_BF16, TSR_ATTENTION_USE_BEST, {true, false}},
    };

    check_shapes(shapes, sizeof shapes / sizeof *shapes);
}

static void the_plain_kernels_agree_with_the_twin(void **state)
{
    (void)state;
    each_order(plain_kernels);
}

static void cudnn_agrees_with_the_twin(void **state)
{
    (void)state;
    each_order(cudnn_plans);
}

/* ---- plans
 * ------------------------------------------------------------------------------------ */

static const shape small = {3, 21, 21, 4, 2, 16, 0, TSR_BF16, TSR_ATTENTION_USE_BEST, {true, true}};

static void open_rigs(void)
{
    fake_set_order(FAKE_FORWARD, 0);
    cuda_rig[PLAIN] = open_plain();
    assert_true(open_named("cuda:emulated", 1, &cuda_rig[CUDA]));
    cuda_shifted = false;
}

static void close_rigs(void)
{
    close_rig(&cuda_rig[CUDA]);
    close_rig(&cuda_rig[PLAIN]);
}

static int plan_count(void)
{
    int count = 0;

    for (const tsr_attention_plan *p = state_of_cuda()->plans; p != NULL; p = p->next) {
        ++count;
    }
    return count;
}

static void reserved_shapes_need_nothing_more(void **state)
{
    (void)state;
    open_rigs();
    tensors t = take_tensors(&small);
    tsr_attention_args args = args_on(&small, &t, CUDA);
    assert_ok(tsr_op_attention_reserve(cuda_rig[CUDA].device, &args));
    free_tensors(&t);
    assert_int_equal(plan_count(), 4); /* both directions, the whole batch and one sequence */

    for (int64_t batch = 1; batch <= small.batch; ++batch) {
        shape s = small;

        s.batch = batch;
        check_shape(&s);
        assert_int_equal(plan_count(), 4);
    }
    t = take_tensors(&small);
    run_forward(&small, &t, true);
    args = args_on(&small, &t, CUDA);
    const int64_t calls = tsr_mem_alloc_calls();
    assert_ok(tsr_op_attention_forward(cuda_rig[CUDA].device, &args, cuda_rig[CUDA].stream));
    assert_ok(tsr_op_attention_backward(cuda_rig[CUDA].device, &args, cuda_rig[CUDA].stream));
    assert_int_equal(tsr_mem_alloc_calls(), calls);
    assert_ok(tsr_stream_wait(cuda_rig[CUDA].stream));
    free_tensors(&t);
    close_rigs();
}

static void out_needs_no_lse(void **state)
{
    (void)state;
    for (int use = TSR_ATTENTION_USE_BEST; use <= TSR_ATTENTION_USE_PLAIN; ++use) {
        open_rigs();
        tensors t = take_tensors(&small);

        state_of_cuda()->use = (tsr_attention_use)use;
        run_forward(&small, &t, false);
        assert_array(TSR_BF16, &t.out, tolerance(&small, false) + rounding(&small, false));
        assert_array(TSR_F32, &t.lse, 0.0); /* as it was */
        free_tensors(&t);
        close_rigs();
    }
}

static tsr_attention_pass backward_pass(int64_t batch)
{
    const tsr_attention_plan *p = state_of_cuda()->plans;

    while (p != NULL && !(p->key.is_backward && p->key.batch == batch && p->plan != NULL)) {
        p = p->next;
    }
    return p == NULL ? TSR_ATTENTION_FORWARD : p->pass;
}

static void large_workspaces_are_avoided(void **state)
{
    const int64_t one = 2 * small.heads * small.q_len * small.kv_len;

    (void)state;
    open_rigs(); /* enough for one sequence: a batch goes sequence by sequence */
    state_of_cuda()->workspace_max = one;
    check_shape(&small);
    assert_int_equal(backward_pass(small.batch), TSR_ATTENTION_FORWARD);
    assert_int_equal(backward_pass(1), TSR_ATTENTION_BACKWARD);
    close_rigs();

    open_rigs(); /* not even for one: dq in any order */
    state_of_cuda()->workspace_max = one - 1;
    check_shape(&small);
    assert_int_equal(backward_pass(1), TSR_ATTENTION_BACKWARD_ANY_ORDER);
    close_rigs();
}

/* ---- the fake refuses what cuDNN 9.19 was seen to refuse
 * --------------------------------------- */

static cudnnStatus_t set(cudnnBackendDescriptor_t of, cudnnBackendAttributeName_t name,
                         cudnnBackendAttributeType_t type, int64_t count, const void *value)
{
    return cudnnBackendSetAttribute(of, name, type, count, value);
}

static void descriptors_are_checked(void **state)
{
    const int64_t sizes[4] = {2, 3, 4, 5}, strides[4] = {60, 20, 5, 1}, uid = 7, alignment = 16;
    const cudnnDataType_t type = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t t;
    int64_t count, got[4];

    (void)state;
    assert_int_equal(cudnnBackendCreateDescriptor(CUDNN_BACKEND_TENSOR_DESCRIPTOR, &t), 0);
    assert_int_equal(set(t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_FLOAT, 1, &uid),
                     CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE);
    assert_int_equal(set(t, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type),
                     CUDNN_STATUS_BAD_PARAM);
    assert_int_equal(set(t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 2, got),
                     CUDNN_STATUS_BAD_PARAM);
    assert_int_equal(set(t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, NULL),
                     CUDNN_STATUS_BAD_PARAM);
    assert_int_equal(
        cudnnBackendGetAttribute(t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &count, got),
        CUDNN_STATUS_NOT_INITIALIZED);
    assert_int_equal(cudnnBackendFinalize(t), CUDNN_STATUS_BAD_PARAM); /* all is missing */
    assert_int_equal(set(t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid), 0);
    assert_int_equal(set(t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type), 0);
    assert_int_equal(set(t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment), 0);
    assert_int_equal(set(t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, sizes), 0);
    assert_int_equal(set(t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 3, strides), 0);
    assert_int_equal(cudnnBackendFinalize(t), CUDNN_STATUS_BAD_PARAM); /* a stride is missing */
    assert_int_equal(set(t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides), 0);
    assert_int_equal(cudnnBackendFinalize(t), 0);
    assert_int_equal(cudnnBackendFinalize(t), CUDNN_STATUS_BAD_PARAM);
    assert_int_equal(set(t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid),
                     CUDNN_STATUS_BAD_PARAM);
    assert_int_equal(cudnnBackendDestroyDescriptor(t), 0);
    assert_int_equal(cudnnBackendDestroyDescriptor(t), CUDNN_STATUS_BAD_PARAM);
}

static void a_refused_graph_says_why(void **state)
{
    tsr_attention_args args = {.heads = 1, .kv_heads = 1, .head_dim = 8, .dtype = TSR_BF16};
    tsr_attention_graph graph;

    (void)state;
    assert_int_equal(tsr_attention_graph_create(&args, 1, TSR_ATTENTION_FORWARD, NULL, &graph),
                     TSR_ERR_UNSUPPORTED);
    assert_non_null(strstr(tsr_error_message(), "(q)"));
    assert_non_null(strstr(tsr_error_message(), "a size of a tensor is not positive"));
}

/* Host memory where the device's is expected, and the other way round. */
static void wrong_memory_is_refused(void **state)
{
    (void)state;
    open_rigs();
    tensors t = take_tensors(&small);
    tsr_attention_args args = args_on(&small, &t, CUDA);
    args.out = on(PLAIN, &t.out);
    assert_int_equal(tsr_op_attention_forward(cuda_rig[CUDA].device, &args, cuda_rig[CUDA].stream),
                     TSR_ERR_DEVICE);
    assert_non_null(strstr(tsr_error_message(), "not in device memory"));
    free_tensors(&t);
    close_rigs();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_plain_kernels_agree_with_the_twin),
        cmocka_unit_test(cudnn_agrees_with_the_twin),
        cmocka_unit_test(reserved_shapes_need_nothing_more),
        cmocka_unit_test(out_needs_no_lse),
        cmocka_unit_test(large_workspaces_are_avoided),
        cmocka_unit_test(descriptors_are_checked),
        cmocka_unit_test(a_refused_graph_says_why),
        cmocka_unit_test(wrong_memory_is_refused),
    };

    return tsr_unit_test_main("cuda.attention", tests, sizeof tests / sizeof *tests);
}
