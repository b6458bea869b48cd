/* The front end's checks of the layer and routing operators: each mistake is named. Those of
 * products, vectors and ends are in their own tests. */
#include "tests/runtime/op_test.h"

static float f[64];
static int32_t whole[64];
static int64_t wide[8];

/* Set one field of a good argument struct, expect the text, and restore it. */
#define REFUSE(call_, args_, field_, value_, text_)                                                \
    do {                                                                                           \
        const __typeof__(args_) good_ = (args_);                                                   \
        (args_).field_ = (value_);                                                                 \
        assert_refused(call_(r.device, &(args_), r.stream), text_);                                \
        (args_) = good_;                                                                           \
    } while (0)

static void rmsnorm(void **state)
{
    tsr_rmsnorm_args a = {.x = f,
                          .weight = f,
                          .y = f,
                          .rstd = f,
                          .rows = 1,
                          .width = 2,
                          .dy = f,
                          .dx = f,
                          .dweight = f};
    rig r = open_plain();

    (void)state;
    REFUSE(tsr_op_rmsnorm_forward, a, rows, -1, "rows = -1");
    REFUSE(tsr_op_rmsnorm_forward, a, width, 0, "width = 0");
    REFUSE(tsr_op_rmsnorm_forward, a, dtype, (tsr_dtype)5, "dtype = 5");
    REFUSE(tsr_op_rmsnorm_forward, a, x, NULL, "x must not be NULL");
    REFUSE(tsr_op_rmsnorm_forward, a, y, NULL, "y must not be NULL");
    REFUSE(tsr_op_rmsnorm_forward, a, weight, NULL, "weight must not be NULL");
    REFUSE(tsr_op_rmsnorm_backward_input, a, rstd, NULL, "rstd must not be NULL");
    REFUSE(tsr_op_rmsnorm_backward_input, a, dx, NULL, "dx must not be NULL");
    REFUSE(tsr_op_rmsnorm_backward_weight, a, dy, NULL, "dy must not be NULL");
    REFUSE(tsr_op_rmsnorm_backward_weight, a, dweight, NULL, "dweight must not be NULL");
    a.rows = 0;
    a.x = NULL;
    assert_ok(tsr_op_rmsnorm_forward(r.device, &a, r.stream));
    assert_ok(tsr_op_rmsnorm_backward_input(r.device, &a, r.stream));
    close_rig(&r);
}

static void rope_and_swiglu(void **state)
{
    tsr_rope_args a = {.x = f,
                       .cosine = f,
                       .sine = f,
                       .tokens = 1,
                       .seq_len = 1,
                       .row_stride = 4,
                       .heads = 1,
                       .head_dim = 4};
    tsr_swiglu_args s = {.gate_up = f, .h = f, .rows = 1, .width = 2, .dh = f, .dgate_up = f};
    rig r = open_plain();

    (void)state;
    REFUSE(tsr_op_rope, a, tokens, -1, "tokens = -1");
    REFUSE(tsr_op_rope, a, seq_len, 0, "seq_len = 0");
    REFUSE(tsr_op_rope, a, head_dim, 3, "head_dim = 3, must be even");
    REFUSE(tsr_op_rope, a, row_stride, 3, "row_stride = 3");
    REFUSE(tsr_op_rope, a, first_position, -1, "first_position = -1");
    REFUSE(tsr_op_rope, a, sine, NULL, "sine must not be NULL");
    REFUSE(tsr_op_swiglu_forward, s, rows, -1, "rows = -1");
    REFUSE(tsr_op_swiglu_forward, s, h, NULL, "h must not be NULL");
    REFUSE(tsr_op_swiglu_backward, s, gate_up, NULL, "gate_up must not be NULL");
    REFUSE(tsr_op_swiglu_backward, s, dh, NULL, "dh must not be NULL");
    REFUSE(tsr_op_swiglu_backward, s, dgate_up, NULL, "dgate_up must not be NULL");
    close_rig(&r);
}

static tsr_status reserve_attention(tsr_device *device, const tsr_attention_args *args,
                                    tsr_stream *stream)
{
    (void)stream;
    return tsr_op_attention_reserve(device, args);
}

static void attention(void **state)
{
    tsr_attention_args a = {.q = f,
                            .k = f,
                            .v = f,
                            .out = f,
                            .lse = f,
                            .batch = 1,
                            .q_len = 1,
                            .kv_len = 1,
                            .q_stride = 8,
                            .kv_stride = 4,
                            .out_stride = 8,
                            .heads = 2,
                            .kv_heads = 1,
                            .head_dim = 4,
                            .scale = 1,
                            .dout = f,
                            .dq = f,
                            .dk = f,
                            .dv = f};
    rig r = open_plain();

    (void)state;
    REFUSE(tsr_op_attention_forward, a, batch, -1, "batch = -1");
    REFUSE(tsr_op_attention_forward, a, kv_len, 0, "kv_len = 0");
    REFUSE(tsr_op_attention_forward, a, kv_heads, 0, "kv_heads = 0");
    REFUSE(tsr_op_attention_forward, a, heads, 0, "heads = 0");
    REFUSE(reserve_attention, a, head_dim, 0, "head_dim = 0");
    REFUSE(tsr_op_attention_forward, a, q_stride, 7, "q_stride = 7");
    REFUSE(tsr_op_attention_forward, a, kv_stride, 3, "kv_stride = 3");
    REFUSE(tsr_op_attention_forward, a, out_stride, 7, "out_stride = 7");
    REFUSE(tsr_op_attention_forward, a, q_batch_stride, -1, "q_batch_stride = -1");
    REFUSE(tsr_op_attention_forward, a, v, NULL, "v must not be NULL");
    REFUSE(tsr_op_attention_backward, a, kv_len, 2, "q_len = 1, must be kv_len = 2");
    REFUSE(tsr_op_attention_backward, a, lse, NULL, "lse must not be NULL");
    REFUSE(tsr_op_attention_backward, a, dk, NULL, "dk must not be NULL");
    a.heads = 3;
    a.kv_heads = 2;
    a.q_stride = a.kv_stride = a.out_stride = 12;
    assert_refused(tsr_op_attention_forward(r.device, &a, r.stream), "a multiple of kv_heads = 2");
    close_rig(&r);
}

static void route(void **state)
{
    tsr_route_args a = {.logits = f,
                        .tokens = 2,
                        .seq_len = 2,
                        .experts = 2,
                        .top_k = 1,
                        .scale = 1,
                        .scores = f,
                        .index = whole,
                        .weight = f,
                        .counts = wide,
                        .balance = f,
                        .score_means = f,
                        .z = f,
                        .dweight = f,
                        .dlogits = f};
    rig r = open_plain();

    (void)state;
    REFUSE(tsr_op_route_forward, a, tokens, 3, "a multiple of seq_len = 2");
    REFUSE(tsr_op_route_forward, a, experts, 0, "experts = 0");
    REFUSE(tsr_op_route_forward, a, top_k, 3, "top_k = 3, must be 1 .. 2");
    REFUSE(tsr_op_route_forward, a, top_k, 0, "top_k = 0");
    REFUSE(tsr_op_route_forward, a, groups, 3, "groups = 3, must divide experts = 2");
    REFUSE(tsr_op_route_forward, a, groups, -1, "groups = -1");
    a.groups = 2;
    REFUSE(tsr_op_route_forward, a, kept_groups, 3, "kept_groups = 3, must be 1 .. 2");
    REFUSE(tsr_op_route_forward, a, kept_groups, 0, "kept_groups = 0, must be 1 .. 2");
    a.groups = 0;
    REFUSE(tsr_op_route_forward, a, gate, (tsr_gate_kind)4, "gate = 4");
    REFUSE(tsr_op_route_forward, a, aux, (tsr_aux_kind)4, "aux = 4");
    REFUSE(tsr_op_route_forward, a, counts, NULL, "counts must not be NULL");
    REFUSE(tsr_op_route_forward, a, balance, NULL, "balance must not be NULL");
    REFUSE(tsr_op_route_backward, a, dweight, NULL, "dweight must not be NULL");
    REFUSE(tsr_op_route_backward, a, dlogits, NULL, "dlogits must not be NULL");
    a.z_factor = 1;
    REFUSE(tsr_op_route_backward, a, z, NULL, "z must not be NULL");
    wide[0] = wide[1] = 5;
    a.tokens = 0; /* no tokens: no counts */
    assert_ok(tsr_op_route_forward(r.device, &a, r.stream));
    assert_true(wide[0] == 0 && wide[1] == 0);
    close_rig(&r);
}

static void sort_and_permute(void **state)
{
    tsr_sort_args s = {.index = whole,
                       .weight = f,
                       .tokens = 3,
                       .experts = 2,
                       .top_k = 1,
                       .max_rows = 32,
                       .offsets = wide,
                       .row_of = whole,
                       .token_of = whole,
                       .row_weight = f};
    tsr_permute_args p = {
        .tokens = f, .rows = f, .token_of = whole, .offsets = wide, .experts = 1, .width = 2};
    tsr_unpermute_args u = {
        .rows = f, .row_of = whole, .out = f, .tokens = 1, .width = 1, .top_k = 1};
    rig r = open_plain();

    (void)state;
    REFUSE(tsr_op_sort_by_expert, s, max_rows, 31, "max_rows = 31");
    REFUSE(tsr_op_sort_by_expert, s, experts, 0, "experts = 0");
    REFUSE(tsr_op_sort_by_expert, s, row_of, NULL, "row_of must not be NULL");
    REFUSE(tsr_op_permute, p, width, 0, "width = 0");
    REFUSE(tsr_op_permute, p, rows, NULL, "rows must not be NULL");
    REFUSE(tsr_op_permute, p, token_of, NULL, "token_of must not be NULL");
    REFUSE(tsr_op_unpermute, u, top_k, 0, "top_k = 0");
    REFUSE(tsr_op_unpermute, u, out, NULL, "out must not be NULL");
    assert_refused(tsr_op_gather_f32(r.device, f, whole, -1, f, r.stream), "count = -1");
    assert_refused(tsr_op_gather_f32(r.device, f, NULL, 1, f, r.stream), "NULL");
    assert_ok(tsr_op_gather_f32(r.device, NULL, NULL, 0, NULL, r.stream));
    wide[2] = 9;
    s.tokens = 0; /* no tokens: every range is empty */
    assert_ok(tsr_op_sort_by_expert(r.device, &s, r.stream));
    assert_true(wide[0] == 0 && wide[2] == 0);
    close_rig(&r);
}

static void a_stream_of_another_device(void **state)
{
    rig r = open_plain(), other = open_plain();

    (void)state;
    assert_refused(tsr_op_add_f32(r.device, f, f, 1, other.stream), "stream");
    close_rig(&r);
    close_rig(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rmsnorm),          cmocka_unit_test(rope_and_swiglu),
        cmocka_unit_test(attention),        cmocka_unit_test(route),
        cmocka_unit_test(sort_and_permute), cmocka_unit_test(a_stream_of_another_device),
    };

    return tsr_unit_test_main("runtime.arguments", tests, sizeof tests / sizeof *tests);
}
