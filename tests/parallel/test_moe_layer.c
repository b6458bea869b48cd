#include "tests/support/unit_test.h"

#include "parallel/parallel.h"
#include "tests/layers/layer_rig.h"

#include <math.h>
#include <string.h>

static const char *const moe_parts[] = {".mlp.", "post_attention"};

static double aux_losses(layer_rig *r)
{
    const tsr_model_config *c = &r->base.config;
    const double per_layer =
        (double)r->pass.sequence_scale / (double)tsr_model_moe_layers(&r->base.config);
    tsr_moe_stats stats = {0};

    if (tsr_moe_layer_stats(r->layer, &r->pass, &stats) != TSR_OK) {
        return NAN;
    }
    return per_layer * (c->router_aux_loss_coef * stats.balance_loss +
                        c->router_z_loss_coef * stats.z_loss / (double)r->pass.seq);
}

static void set_bias(layer_rig *r, int64_t expert, float value)
{
    r->base.weights.router_bias[expert] = value;
}

/* All experts on this rank. */
static tsr_status create_alone(const tsr_layer_spec *spec, tsr_layer **out)
{
    return tsr_moe_layer_create(spec, NULL, out);
}

static void check_quotients(const tsr_model_config *config, int64_t batch, int64_t seq)
{
    layer_rig r = {.extra = aux_losses};
    const char *name = NULL;

    assert_ok(layer_rig_open(&r, "cpu:plain", config, TSR_F32, create_alone, batch, seq));
    set_bias(&r, 1, 0.05f); /* read where the config has a bias only */
    const double worst = layer_rig_quotients(&r, moe_parts, 2, &name);
    if (!(worst <= 1.0)) {
        fail_msg("gradient of %s: %g times the tolerance", name, worst);
    }
    layer_rig_close(&r);
}

static void softmax_gradients_are_difference_quotients(void **state)
{
    tsr_model_config c = rig_config();

    (void)state;
    check_quotients(&c, 2, 7);
    c.num_experts_per_tok = 1; /* its weight is constant: nothing may reach the gate */
    check_quotients(&c, 1, 5);
    c.norm_topk_prob = false;
    check_quotients(&c, 1, 5);
    c.num_experts_per_tok = 3;
    c.routed_scaling_factor = 1.3;
    check_quotients(&c, 1, 5);
}

static void sigmoid_gradients_are_difference_quotients(void **state)
{
    tsr_model_config c = rig_config();

    (void)state;
    c.scoring_func = TSR_GATE_SIGMOID;
    c.router_bias_update_rate = 1e-3;
    c.routed_scaling_factor = 2.5;
    check_quotients(&c, 2, 7);
    c.norm_topk_prob = false;
    check_quotients(&c, 2, 7);
}

static void gradients_of_shared_experts_are_difference_quotients(void **state)
{
    tsr_model_config c = rig_config();

    (void)state;
    c.n_shared_experts = 1;
    check_quotients(&c, 2, 7);
    c.n_shared_experts = 3;
    check_quotients(&c, 1, 3);
}

/* Coefficients far larger than in training, so that the losses matter beside the output. */
static void gradients_of_aux_losses_are_difference_quotients(void **state)
{
    tsr_model_config c = rig_config();

    (void)state;
    c.router_aux_loss_coef = 20.0;
    check_quotients(&c, 2, 7);
    c.router_aux_loss = TSR_AUX_GSHARD;
    check_quotients(&c, 3, 5);
    c.scoring_func = TSR_GATE_SIGMOID;
    check_quotients(&c, 3, 5);
    c.router_aux_loss_coef = 0.0;
    c.router_z_loss_coef = 5.0;
    check_quotients(&c, 2, 7);
    c.scoring_func = TSR_GATE_SOFTMAX;
    check_quotients(&c, 2, 7);
}

static void gradients_at_the_edges_are_difference_quotients(void **state)
{
    tsr_model_config c = rig_config();

    (void)state;
    c.num_experts_per_tok = c.num_experts; /* every expert sees every token */
    check_quotients(&c, 2, 3);
    c.num_experts = c.num_experts_per_tok = 1;
    check_quotients(&c, 2, 3);
    c = rig_config();
    check_quotients(&c, 1, 1);
}

/* One expert of K = 1 with weight 1 is a dense layer. */
static void one_expert_is_a_dense_layer(void **state)
{
    tsr_model_config c = rig_config();
    layer_rig moe = {0}, dense = {0};

    (void)state;
    c.num_experts = c.num_experts_per_tok = 1;
    c.intermediate_size = c.moe_intermediate_size;
    assert_ok(layer_rig_open(&moe, "cpu:plain", &c, TSR_F32, create_alone, 2, 5));
    c.first_k_dense_replace = 1;
    assert_ok(layer_rig_open(&dense, "cpu:plain", &c, TSR_F32, tsr_dense_layer_create, 2, 5));
    const int gate = tsr_param_find_in_layer(&dense.base.table, 0, "mlp.gate_proj.weight");
    const int down = tsr_param_find_in_layer(&dense.base.table, 0, "mlp.down_proj.weight");
    const int experts = tsr_param_find_in_layer(&moe.base.table, 0, "mlp.experts.gate_up_proj");
    const int out = tsr_param_find_in_layer(&moe.base.table, 0, "mlp.experts.down_proj");
    memcpy(tsr_weights_value(&moe.base.weights, experts),
           tsr_weights_value(&dense.base.weights, gate), 2 * 12 * 16 * sizeof(float));
    memcpy(tsr_weights_value(&moe.base.weights, out), tsr_weights_value(&dense.base.weights, down),
           12 * 16 * sizeof(float));
    assert_ok(layer_rig_forward(&moe));
    assert_ok(layer_rig_backward(&moe));
    assert_ok(layer_rig_forward(&dense));
    assert_ok(layer_rig_backward(&dense));
    /* the same products, but the residual is added before or after: one rounding each */
    assert_true(rig_difference(moe.h_out, dense.h_out, moe.count) <= 4.0 * 0x1p-24);
    assert_true(rig_difference(moe.dh, dense.dh, moe.count) <= 16.0 * 0x1p-24);
    assert_true(rig_difference(tsr_weights_gradient(&moe.base.weights, experts),
                               tsr_weights_gradient(&dense.base.weights, gate),
                               2 * 12 * 16) <= 16.0 * 0x1p-24);
    layer_rig_close(&moe);
    layer_rig_close(&dense);
}

/* Selection is forced by the bias: all 14 tokens to expert 3, none to the others. */
static void all_tokens_to_one_expert(void **state)
{
    tsr_model_config c = rig_config();
    layer_rig r = {0};
    tsr_moe_stats stats = {0};

    c.num_experts_per_tok = 1;
    c.router_bias_update_rate = 1e-3;
    c.router_aux_loss_coef = 0.01;
    assert_ok(layer_rig_open(&r, *state, &c, TSR_F32, create_alone, 2, 7));
    set_bias(&r, 3, 100.0f);
    const int param = tsr_param_find_in_layer(&r.base.table, 0, "mlp.experts.gate_up_proj");
    float *gradient = tsr_weights_gradient(&r.base.weights, param);
    for (int64_t i = 0; i < 5 * 24 * 16; ++i) {
        gradient[i] = 7.0f; /* what an earlier step left */
    }
    assert_ok(layer_rig_forward(&r));
    assert_ok(layer_rig_backward(&r));
    assert_ok(tsr_moe_layer_stats(r.layer, &r.pass, &stats));
    for (int e = 0; e < 5; ++e) {
        double sum = 0.0;

        assert_int_equal(stats.counts[e], e == 3 ? 14 : 0);
        for (int i = 0; i < 24 * 16; ++i) {
            sum += fabs((double)gradient[e * 24 * 16 + i]);
        }
        assert_true(e == 3 ? sum > 0.0 : sum == 0.0);
    }
    r.pass.accumulate = true;
    gradient[0] = 7.0f;
    assert_ok(layer_rig_forward(&r));
    assert_ok(layer_rig_backward(&r));
    assert_true(gradient[0] == 7.0f); /* adding nothing */
    layer_rig_close(&r);
}

static void no_token_for_one_expert(void **state)
{
    tsr_model_config c = rig_config();
    layer_rig r = {.extra = aux_losses};
    tsr_moe_stats stats = {0};
    const char *name = NULL;

    (void)state;
    c.router_bias_update_rate = 1e-3;
    c.router_aux_loss_coef = 1.0;
    assert_ok(layer_rig_open(&r, "cpu:plain", &c, TSR_F32, create_alone, 2, 7));
    set_bias(&r, 0, -100.0f);
    assert_true(layer_rig_quotients(&r, moe_parts, 2, &name) <= 1.0);
    assert_ok(tsr_moe_layer_stats(r.layer, &r.pass, &stats));
    assert_int_equal(stats.counts[0], 0);
    int64_t sum = 0;
    for (int e = 0; e < 5; ++e) {
        sum += stats.counts[e];
    }
    assert_int_equal(sum, 2 * 7 * 2); /* nothing is dropped */
    layer_rig_close(&r);
}

/* Uniform scores give a balancing loss of 1 a sequence and a z of log(E). */
static void stats_of_a_uniform_router(void **state)
{
    tsr_model_config c = rig_config();
    layer_rig r = {0};
    tsr_moe_stats stats = {0};

    c.router_z_loss_coef = 1e-3;
    assert_ok(layer_rig_open(&r, *state, &c, TSR_F32, create_alone, 3, 5));
    const int gate = tsr_param_find_in_layer(&r.base.table, 0, "mlp.gate.weight");
    memset(tsr_weights_value(&r.base.weights, gate), 0, 5 * 16 * sizeof(float));
    assert_ok(layer_rig_forward(&r));
    assert_ok(tsr_moe_layer_stats(r.layer, &r.pass, &stats));
    /* 5 products and sums of f32 numbers, the logarithm's f32 result squared */
    assert_true(fabs(stats.balance_loss - 3.0) < 3.0 * 6.0 * 0x1p-24);
    assert_true(fabs(stats.z_loss / (15.0 * log(5.0) * log(5.0)) - 1.0) < 6.0 * 0x1p-24);
    layer_rig_close(&r);
}

static void too_many_rows_are_refused(void **state)
{
    const tsr_model_config c = rig_config();
    rig r = {0};
    tsr_layer *layer = NULL;

    (void)state;
    assert_ok(rig_open(&r, "cpu:plain", &c, TSR_F32));
    const tsr_layer_spec spec = {.config = &r.config,
                                 .table = &r.table,
                                 .device = r.device,
                                 .max_batch = 1,
                                 .seq = INT32_MAX / 2,
                                 .train = true};
    assert_int_equal(create_alone(&spec, &layer), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "make train.micro_batch smaller"));
    rig_close(&r);
}

int main(void)
{
    static char plain[] = "cpu:plain", best[] = "cpu";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(softmax_gradients_are_difference_quotients),
        cmocka_unit_test(sigmoid_gradients_are_difference_quotients),
        cmocka_unit_test(gradients_of_shared_experts_are_difference_quotients),
        cmocka_unit_test(gradients_of_aux_losses_are_difference_quotients),
        cmocka_unit_test(gradients_at_the_edges_are_difference_quotients),
        cmocka_unit_test(one_expert_is_a_dense_layer),
        cmocka_unit_test_prestate(all_tokens_to_one_expert, plain),
        cmocka_unit_test_prestate(all_tokens_to_one_expert, best),
        cmocka_unit_test(no_token_for_one_expert),
        cmocka_unit_test_prestate(stats_of_a_uniform_router, plain),
        cmocka_unit_test_prestate(stats_of_a_uniform_router, best),
        cmocka_unit_test(too_many_rows_are_refused),
    };

    return tsr_unit_test_main("parallel.moe_layer", tests, sizeof tests / sizeof tests[0]);
}
