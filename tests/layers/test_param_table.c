#include "tests/support/unit_test.h"

#include "tests/layers/rig.h"

#include <math.h>
#include <string.h>

static tsr_model_config everything(void)
{
    tsr_model_config c = rig_config();

    c.num_hidden_layers = 3;
    c.first_k_dense_replace = 1;
    c.n_shared_experts = 2;
    return c;
}

static tsr_model_config bench(void)
{
    tsr_model_config c = rig_config();

    c.vocab_size = 256;
    c.hidden_size = 512;
    c.num_hidden_layers = 8;
    c.num_attention_heads = 8;
    c.num_key_value_heads = 4;
    c.head_dim = 64;
    c.moe_intermediate_size = 1024;
    c.num_experts = 16;
    return c;
}

static void check_shape(const tsr_param_table *table, const char *name, tsr_param_group group,
                        int dims, int64_t a, int64_t b, int64_t c)
{
    const int index = tsr_param_find(table, name);

    assert_true(index >= 0);
    const tsr_param *p = &table->params[index];
    assert_int_equal(p->group, group);
    assert_int_equal(p->dims, dims);
    assert_int_equal(p->shape[0], a);
    assert_int_equal(p->shape[1], b);
    assert_int_equal(p->shape[2], c);
    assert_int_equal(p->rows * p->width, a * (dims > 1 ? b : 1) * (dims > 2 ? c : 1));
    assert_int_equal(p->width, dims == 1 ? a : dims == 2 ? b : c);
    assert_int_equal(p->has_decay, dims > 1);
    assert_true((p->init_std == 0.0) == (dims == 1));
}

static void names_and_shapes_are_those_of_the_contract(void **state)
{
    const tsr_model_config c = everything();
    tsr_param_table t = {0};

    (void)state;
    assert_ok(tsr_param_table_create(&c, &t));
    check_shape(&t, "model.embed_tokens.weight", TSR_GROUP_DENSE, 2, 40, 16, 0);
    check_shape(&t, "lm_head.weight", TSR_GROUP_DENSE, 2, 40, 16, 0);
    check_shape(&t, "model.norm.weight", TSR_GROUP_FLOAT, 1, 16, 0, 0);
    check_shape(&t, "model.layers.2.input_layernorm.weight", TSR_GROUP_FLOAT, 1, 16, 0, 0);
    check_shape(&t, "model.layers.0.self_attn.q_proj.weight", TSR_GROUP_DENSE, 2, 16, 16, 0);
    check_shape(&t, "model.layers.0.self_attn.v_proj.weight", TSR_GROUP_DENSE, 2, 8, 16, 0);
    check_shape(&t, "model.layers.0.self_attn.o_proj.weight", TSR_GROUP_DENSE, 2, 16, 16, 0);
    check_shape(&t, "model.layers.0.mlp.up_proj.weight", TSR_GROUP_DENSE, 2, 20, 16, 0);
    check_shape(&t, "model.layers.0.mlp.down_proj.weight", TSR_GROUP_DENSE, 2, 16, 20, 0);
    check_shape(&t, "model.layers.1.mlp.gate.weight", TSR_GROUP_FLOAT, 2, 5, 16, 0);
    check_shape(&t, "model.layers.1.mlp.experts.gate_up_proj", TSR_GROUP_EXPERT, 3, 5, 24, 16);
    check_shape(&t, "model.layers.1.mlp.experts.down_proj", TSR_GROUP_EXPERT, 3, 5, 16, 12);
    check_shape(&t, "model.layers.1.mlp.shared_experts.gate_proj.weight", TSR_GROUP_DENSE, 2, 24,
                16, 0);
    check_shape(&t, "model.layers.1.mlp.shared_experts.down_proj.weight", TSR_GROUP_DENSE, 2, 16,
                24, 0);
    assert_int_equal(tsr_param_find(&t, "model.layers.0.mlp.gate.weight"), -1);
    assert_int_equal(tsr_param_find(&t, "model.layers.1.mlp.gate_proj.weight"), -1);
    assert_int_equal(t.count, 3 + 3 * 6 + 3 + 2 * 6);
    /* what is added to the residual starts smaller by sqrt(2 L) */
    const int down = tsr_param_find_in_layer(&t, 1, "mlp.experts.down_proj");
    assert_true(fabs(t.params[down].init_std - 0.02 / sqrt(6.0)) < 1e-12);
    tsr_param_table_destroy(&t);
}

static void tied_embeddings_have_no_head(void **state)
{
    tsr_model_config c = everything();
    tsr_param_table t = {0};

    (void)state;
    c.tie_word_embeddings = true;
    assert_ok(tsr_param_table_create(&c, &t));
    assert_int_equal(tsr_param_find(&t, "lm_head.weight"), -1);
    tsr_param_table_destroy(&t);
}

static void tensors_do_not_overlap_and_start_aligned(void **state)
{
    tsr_model_config c = everything();
    tsr_param_table t = {0};

    (void)state;
    c.head_dim = 6; /* k and v then start unaligned, right behind q */
    assert_ok(tsr_param_table_create(&c, &t));
    for (int g = 0; g < TSR_GROUPS; ++g) {
        int64_t end = 0;

        for (int i = 0; i < t.count; ++i) {
            const tsr_param *p = &t.params[i];
            const bool joined = strstr(p->name, "k_proj") != NULL ||
                                strstr(p->name, "v_proj") != NULL ||
                                strstr(p->name, "up_proj.weight") != NULL;

            if (p->group != (tsr_param_group)g) {
                continue;
            }
            assert_true(p->offset >= end);
            assert_true(joined ? p->offset == end : p->offset % 16 == 0);
            end = p->offset + p->rows * p->width;
        }
        assert_true(t.group_elements[g] >= end && t.group_elements[g] < end + 16);
    }
    tsr_param_table_destroy(&t);
}

/* Each row of each tensor lies in exactly one part, parts are even up to a row. */
static void shards_cover_everything_once(void **state)
{
    const tsr_model_config c = everything();
    tsr_param_table t = {0};

    (void)state;
    assert_ok(tsr_param_table_create(&c, &t));
    for (int parts = 1; parts <= 7; ++parts) {
        for (int i = 0; i < t.count; ++i) {
            const tsr_param *p = &t.params[i];
            int64_t next = 0;

            for (int part = 0; part < parts; ++part) {
                const int64_t from = tsr_shard_cut(&t, p->group, parts, part);
                const int64_t to = tsr_shard_cut(&t, p->group, parts, part + 1);
                const int64_t even = t.group_elements[p->group] * part / parts;
                int64_t begin = -1, end = -1;

                assert_true(from <= to && from <= even && even - from < 24);
                tsr_param_rows_between(p, from, to, &begin, &end);
                if (begin < end) {
                    assert_int_equal(begin, next);
                    next = end;
                }
                assert_true(from <= p->offset || (from - p->offset) % p->width == 0 ||
                            from >= p->offset + p->rows * p->width);
            }
            assert_int_equal(next, p->rows);
        }
        for (int g = 0; g < TSR_GROUPS; ++g) {
            assert_int_equal(tsr_shard_cut(&t, (tsr_param_group)g, parts, 0), 0);
            assert_int_equal(tsr_shard_cut(&t, (tsr_param_group)g, parts, parts),
                             t.group_elements[g]);
        }
    }
    tsr_param_table_destroy(&t);
}

static void initial_values_do_not_depend_on_the_partition(void **state)
{
    const tsr_model_config c = everything();
    tsr_param_table t = {0};
    float whole[1920], part[1920];
    double squares = 0.0;

    (void)state;
    assert_ok(tsr_param_table_create(&c, &t));
    const tsr_param *p = &t.params[tsr_param_find(&t, "model.layers.1.mlp.experts.gate_up_proj")];
    tsr_param_init(p, 3, 0, 1920, whole);
    for (int64_t first = 0, length = 1; first < 1920; first += length, length += 6) {
        const int64_t count = first + length < 1920 ? length : 1920 - first;

        tsr_param_init(p, 3, first, count, part);
        assert_memory_equal(part, whole + first, (size_t)count * sizeof(float));
    }
    for (int i = 0; i < 1920; ++i) {
        squares += (double)whole[i] * (double)whole[i];
    }
    /* the deviation of 1920 normals is off by 1 / sqrt(2 * 1920) = 1.6 %; four times that */
    assert_true(fabs(sqrt(squares / 1920.0) / 0.02 - 1.0) < 0.065);
    tsr_param_init(p, 4, 0, 8, part);
    assert_memory_not_equal(part, whole, 8 * sizeof(float));
    tsr_param_init(&t.params[tsr_param_find(&t, "model.norm.weight")], 3, 0, 16, part);
    for (int i = 0; i < 16; ++i) {
        assert_true(part[i] == 1.0f);
    }
    tsr_param_table_destroy(&t);
}

static void the_benchmark_model_costs_what_is_documented(void **state)
{
    const tsr_model_config c = bench();
    tsr_param_table t = {0};

    (void)state;
    assert_ok(tsr_param_table_create(&c, &t));
    assert_true(fabs((double)tsr_model_parameters(&t) / 1e6 - 208.0) < 0.05);
    assert_true(fabs(tsr_model_train_flops_per_token(&c, &t, 512) / 1e6 - 202.5) < 0.05);
    /* 8 layers of attention, gate, 2 of 16 experts and 2 norms; head and last norm */
    const int64_t layer = 786432 + 8192 + 2 * 3 * 1024 * 512 + 2 * 512;
    assert_int_equal(tsr_model_active_parameters(&c, &t), 8 * layer + 256 * 512 + 512);
    tsr_param_table_destroy(&t);
}

static void weights_lie_in_their_groups(void **state)
{
    const tsr_model_config c = everything();
    tsr_param_table t = {0};
    tsr_weights w = {0};
    tsr_device *device = NULL;

    (void)state;
    assert_ok(tsr_param_table_create(&c, &t));
    assert_ok(tsr_device_open("cpu:plain", 1, &device));
    assert_ok(tsr_weights_create(&c, &t, device, TSR_BF16, false, &w));
    assert_null(w.gradient[TSR_GROUP_DENSE]);
    assert_non_null(w.router_bias);
    for (int i = 0; i < t.count; ++i) {
        const tsr_param *p = &t.params[i];
        const size_t element = p->group == TSR_GROUP_FLOAT ? 4 : 2;
        const char *base = w.value[p->group];

        assert_true((const char *)tsr_weights_value(&w, i) == base + (size_t)p->offset * element);
    }
    tsr_weights_destroy(&w);
    tsr_weights_destroy(&w); /* empty: fine */
    tsr_param_table_destroy(&t);
    tsr_device_close(&device);
}

static int errors_of(tsr_model_config c, const char *text)
{
    tsr_config_errors errors = {0};

    tsr_model_config_check(&c, &errors);
    if (errors.count > 0 && (text == NULL || strstr(errors.text, text) == NULL)) {
        print_message("%s", errors.text);
        return -1;
    }
    return errors.count;
}

static void contradictions_are_named(void **state)
{
    tsr_model_config c = everything();

    (void)state;
    assert_int_equal(errors_of(c, NULL), 0);
    c.num_key_value_heads = 3;
    assert_int_equal(errors_of(c, "num_attention_heads = 4, must be a multiple"), 1);
    c = everything();
    c.head_dim = 5;
    assert_int_equal(errors_of(c, "head_dim = 5, must be even"), 1);
    c.head_dim = 0;
    c.hidden_size = 18;
    assert_int_equal(errors_of(c, "hidden_size = 18 is no multiple"), 1);
    c = everything();
    c.num_experts_per_tok = 6;
    assert_int_equal(errors_of(c, "num_experts_per_tok = 6, at most num_experts = 5"), 1);
    c = everything();
    c.n_group = 2;
    assert_int_equal(errors_of(c, "n_group = 2, must divide num_experts = 5"), 1);
    c.num_experts = 6;
    c.topk_group = 3;
    assert_int_equal(errors_of(c, "topk_group = 3, at most n_group = 2"), 1);
    c.topk_group = 1;
    c.num_experts_per_tok = 4;
    assert_int_equal(errors_of(c, "num_experts_per_tok = 4, at most the 3 experts of"), 1);
    c.num_experts_per_tok = 3;
    assert_int_equal(errors_of(c, NULL), 0);
    c = everything();
    c.first_k_dense_replace = 4;
    assert_int_equal(errors_of(c, "first_k_dense_replace = 4, at most"), 1);
    c = everything();
    c.intermediate_size = 0;
    assert_int_equal(errors_of(c, "needs intermediate_size > 0"), 1);
}

static void zero_stands_for_the_usual(void **state)
{
    tsr_model_config c = everything();
    tsr_config_errors errors = {0};

    (void)state;
    c.num_key_value_heads = 0;
    c.head_dim = 0;
    c.n_group = c.topk_group = 0;
    tsr_model_config_check(&c, &errors);
    assert_int_equal(errors.count, 0);
    assert_int_equal(c.num_key_value_heads, 4);
    assert_int_equal(c.head_dim, 4);
    assert_int_equal(c.n_group, 1);
    assert_int_equal(c.topk_group, 1);
}

static void the_option_table_fills_the_struct(void **state)
{
    static const char text[] =
        "[model]\nvocab_size = 256\nhidden_size = 32\nnum_hidden_layers = 2\n"
        "num_attention_heads = 4\nmoe_intermediate_size = 24\nnum_experts = 5\n"
        "scoring_func = sigmoid\nrope_theta = 5e5\n";
    tsr_model_config c = {0};
    tsr_config_errors errors = {0};
    const tsr_option_table table = tsr_model_options(&c);

    (void)state;
    tsr_config_read(text, "x.ini", NULL, 0, &table, 1, &errors);
    assert_string_equal(errors.text, "");
    assert_int_equal(c.hidden_size, 32);
    assert_int_equal(c.num_experts_per_tok, 2);
    assert_int_equal(c.scoring_func, TSR_GATE_SIGMOID);
    assert_true(c.rope_theta == 5e5 && c.rms_norm_eps == 1e-5 && c.norm_topk_prob);
}

/* ---- shares of the experts ------------------------------------------------------------------- */

static void an_even_deal_is_in_order(void **state)
{
    const int32_t six_on_four[] = {0, 0, 1, 1, 2, 3, 0, 0, 1, 1, 2, 3};
    const int32_t two_on_three[] = {0, 1};
    int32_t owner[12];

    (void)state;
    tsr_expert_owners_even(2, 6, 4, owner);
    assert_memory_equal(owner, six_on_four, sizeof six_on_four);
    tsr_expert_owners_even(1, 2, 3, owner);
    assert_memory_equal(owner, two_on_three, sizeof two_on_three);
}

/* Every row of the whole table is in one share, at the place that global_row says; runs join rows
 * that are neighbours there. */
static void check_shares(const tsr_param_table *whole, const int32_t *owner, int parts)
{
    static int seen[64][256];

    memset(seen, 0, sizeof seen);
    for (int part = 0; part < parts; ++part) {
        tsr_param_table local = {0};
        int64_t end[TSR_GROUPS] = {0};

        assert_ok(tsr_param_table_share(whole, owner, part, &local));
        assert_int_equal(local.count, whole->count);
        for (int i = 0; i < local.count; ++i) {
            const tsr_param *p = &local.params[i], *w = &whole->params[i];
            const bool is_expert = p->group == TSR_GROUP_EXPERT;
            int64_t run = 0;

            assert_string_equal(p->name, w->name);
            assert_true(p->offset >= end[p->group] && p->width == w->width);
            assert_true((p->expert != NULL) == is_expert && (is_expert || p->offset == w->offset));
            end[p->group] = p->offset + p->rows * p->width;
            assert_true(end[p->group] <= local.group_elements[p->group]);
            for (int64_t row = 0; row < p->rows; ++row) {
                const int64_t global = tsr_param_global_row(p, row);

                seen[i][global] += is_expert || part == 0;
                assert_true(!is_expert ||
                            owner[p->layer * w->shape[0] + global / p->shape[1]] == part);
                if (row == run) {
                    run = tsr_param_run_end(p, row);
                    assert_true(run > row && run <= p->rows);
                    assert_true(run == p->rows || tsr_param_global_row(p, run) !=
                                                      tsr_param_global_row(p, run - 1) + 1);
                } else {
                    assert_true(global == tsr_param_global_row(p, row - 1) + 1);
                }
            }
        }
        tsr_param_table_destroy(&local);
    }
    for (int i = 0; i < whole->count; ++i) {
        for (int64_t row = 0; row < 256; ++row) {
            assert_int_equal(seen[i][row], row < whole->params[i].rows);
        }
    }
}

static void shares_hold_every_row_once(void **state)
{
    const tsr_model_config c = everything();
    const int32_t mixed[] = {0, 0, 0, 0, 0, 2, 0, 2, 0, 0, 1, 1, 1, 1, 1}; /* [L,E]; some empty */
    int32_t owner[15];
    tsr_param_table t = {0};

    (void)state;
    assert_ok(tsr_param_table_create(&c, &t));
    for (int parts = 1; parts <= 7; ++parts) {
        tsr_expert_owners_even(c.num_hidden_layers, c.num_experts, parts, owner);
        check_shares(&t, owner, parts);
    }
    check_shares(&t, mixed, 3);
    tsr_param_table_destroy(&t);
}

/* A share without any expert has weights all the same: the dense ones. */
static void weights_of_an_empty_share_can_be_taken(void **state)
{
    const tsr_model_config c = everything();
    int32_t owner[15];
    tsr_param_table t = {0}, local = {0};
    tsr_device *device = NULL;
    tsr_weights weights = {0};

    (void)state;
    tsr_expert_owners_even(c.num_hidden_layers, c.num_experts, 7, owner);
    assert_ok(tsr_param_table_create(&c, &t));
    assert_ok(tsr_param_table_share(&t, owner, 6, &local));
    assert_int_equal(local.group_elements[TSR_GROUP_EXPERT], 0);
    assert_ok(tsr_device_open("cpu", 1, &device));
    assert_ok(tsr_weights_create(&c, &local, device, TSR_F32, true, &weights));
    assert_int_equal(weights.experts, 5);
    assert_int_equal(tsr_shard_cut(&local, TSR_GROUP_EXPERT, 2, 1), 0);
    tsr_weights_destroy(&weights);
    tsr_device_close(&device);
    tsr_param_table_destroy(&local);
    tsr_param_table_destroy(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_shapes_are_those_of_the_contract),
        cmocka_unit_test(tied_embeddings_have_no_head),
        cmocka_unit_test(tensors_do_not_overlap_and_start_aligned),
        cmocka_unit_test(shards_cover_everything_once),
        cmocka_unit_test(initial_values_do_not_depend_on_the_partition),
        cmocka_unit_test(the_benchmark_model_costs_what_is_documented),
        cmocka_unit_test(weights_lie_in_their_groups),
        cmocka_unit_test(contradictions_are_named),
        cmocka_unit_test(zero_stands_for_the_usual),
        cmocka_unit_test(the_option_table_fills_the_struct),
        cmocka_unit_test(an_even_deal_is_in_order),
        cmocka_unit_test(shares_hold_every_row_once),
        cmocka_unit_test(weights_of_an_empty_share_can_be_taken),
    };

    return tsr_unit_test_main("layers.param_table", tests, sizeof tests / sizeof tests[0]);
}
