#include "tests/support/unit_test.h"

#include "tests/layers/layer_rig.h"

#include <math.h>
#include <string.h>

static const char *const attention_parts[] = {"self_attn", "input_layernorm"};
static const char *const dense_parts[] = {".mlp.", "post_attention"};

static tsr_model_config dense_config(void)
{
    tsr_model_config c = rig_config();

    c.first_k_dense_replace = 1;
    return c;
}

static void check_quotients(const tsr_model_config *config, layer_create *create,
                            const char *const *parts, int64_t batch, int64_t seq)
{
    layer_rig r = {0};
    const char *name = NULL;

    assert_ok(layer_rig_open(&r, "cpu:plain", config, TSR_F32, create, batch, seq));
    const double worst = layer_rig_quotients(&r, parts, 2, &name);
    if (!(worst <= 1.0)) {
        fail_msg("gradient of %s: %g times the tolerance", name, worst);
    }
    layer_rig_close(&r);
}

static void attention_gradients_are_difference_quotients(void **state)
{
    tsr_model_config c = rig_config();

    (void)state;
    check_quotients(&c, tsr_attention_layer_create, attention_parts, 2, 7);
    c.num_key_value_heads = 4;
    check_quotients(&c, tsr_attention_layer_create, attention_parts, 1, 5);
    c.num_key_value_heads = 1;
    c.head_dim = 6;
    check_quotients(&c, tsr_attention_layer_create, attention_parts, 3, 1);
}

static void dense_gradients_are_difference_quotients(void **state)
{
    const tsr_model_config c = dense_config();

    (void)state;
    check_quotients(&c, tsr_dense_layer_create, dense_parts, 2, 7);
}

/* Gradients of one micro-batch written, then added, are twice those. */
static void check_accumulation(const tsr_model_config *config, layer_create *create,
                               const char *part)
{
    layer_rig r = {0};

    assert_ok(layer_rig_open(&r, "cpu:plain", config, TSR_F32, create, 2, 5));
    for (int g = 0; g < TSR_GROUPS; ++g) {
        for (int64_t i = 0; i < r.base.table.group_elements[g]; ++i) {
            r.base.weights.gradient[g][i] = 1e30f; /* must be overwritten */
        }
    }
    assert_ok(layer_rig_forward(&r));
    assert_ok(layer_rig_backward(&r));
    float once[512];
    const int index = tsr_param_find_in_layer(&r.base.table, 0, part);
    const tsr_param *param = &r.base.table.params[index];
    const int64_t count = param->rows * param->width;
    const float *gradient = tsr_weights_gradient(&r.base.weights, index);

    assert_true(count <= 512);
    memcpy(once, gradient, (size_t)count * sizeof(float));
    r.pass.accumulate = true;
    assert_ok(layer_rig_forward(&r));
    assert_ok(layer_rig_backward(&r));
    for (int64_t i = 0; i < count; ++i) {
        once[i] *= 2.0f;
    }
    /* once + once is exact; but c + sum(ab) may round after each of 10 tokens */
    assert_true(rig_difference(gradient, once, count) <= 10.0 * 0x1p-24);
    layer_rig_close(&r);
}

static void weight_gradients_overwrite_or_add(void **state)
{
    const tsr_model_config c = dense_config();

    (void)state;
    check_accumulation(&c, tsr_attention_layer_create, "self_attn.q_proj.weight");
    check_accumulation(&c, tsr_attention_layer_create, "self_attn.v_proj.weight");
    check_accumulation(&c, tsr_attention_layer_create, "self_attn.o_proj.weight");
    check_accumulation(&c, tsr_attention_layer_create, "input_layernorm.weight");
    check_accumulation(&c, tsr_dense_layer_create, "mlp.up_proj.weight");
    check_accumulation(&c, tsr_dense_layer_create, "mlp.down_proj.weight");
    check_accumulation(&c, tsr_dense_layer_create, "post_attention_layernorm.weight");
}

static void fill(float *at, int64_t count, float value)
{
    for (int64_t i = 0; i < count; ++i) {
        at[i] = value;
    }
}

static bool are_all(const float *at, int64_t count, float value)
{
    for (int64_t i = 0; i < count; ++i) {
        if (!(at[i] == value)) {
            return false;
        }
    }
    return true;
}

/* Gradients of a layer's parameters, -1 of the ends', whose name has one of two parts in it. */
static void assert_gradients(const rig *r, int layer, const char *const *parts, float value)
{
    int found = 0;

    for (int p = 0; p < r->table.count; ++p) {
        const tsr_param *param = &r->table.params[p];

        if (param->layer == layer &&
            (strstr(param->name, parts[0]) != NULL || strstr(param->name, parts[1]) != NULL)) {
            assert_true(
                are_all(tsr_weights_gradient(&r->weights, p), param->rows * param->width, value));
            ++found;
        }
    }
    assert_true(found > 1);
}

static void fill_gradients(rig *r, float value)
{
    for (int g = 0; g < TSR_GROUPS; ++g) {
        fill(r->weights.gradient[g], r->table.group_elements[g], value);
    }
}

/* A rank may be without sequences: nothing is touched but gradients to be overwritten. */
static void check_no_sequences(const char *device, tsr_dtype dtype, layer_create *create,
                               const char *const *parts)
{
    const tsr_model_config c = dense_config();
    layer_rig r = {0};

    assert_ok(layer_rig_open(&r, device, &c, dtype, create, 2, 5));
    r.pass.batch = 0;
    for (int accumulate = 0; accumulate < 2; ++accumulate) {
        r.pass.accumulate = accumulate != 0;
        fill(r.h_out, r.count, 3.0f);
        fill_gradients(&r.base, 7.0f);
        assert_ok(layer_rig_forward(&r));
        assert_ok(layer_rig_backward(&r));
        assert_true(are_all(r.h_out, r.count, 3.0f));
        assert_memory_equal(r.dh, r.g, (size_t)r.count * sizeof(float));
        assert_gradients(&r.base, 0, parts, accumulate != 0 ? 7.0f : 0.0f);
    }
    layer_rig_close(&r);
}

static void a_pass_without_sequences(void **state)
{
    static const char *const devices[] = {"cpu:plain", "cpu"};

    (void)state;
    for (int i = 0; i < 4; ++i) {
        const tsr_dtype dtype = i < 2 ? TSR_F32 : TSR_BF16;

        check_no_sequences(devices[i % 2], dtype, tsr_attention_layer_create, attention_parts);
        check_no_sequences(devices[i % 2], dtype, tsr_dense_layer_create, dense_parts);
    }
}

/* ---- the two ends ---------------------------------------------------------------------------- */

typedef struct ends_rig {
    rig base;
    tsr_head *head;
    tsr_pass pass;
    int64_t tokens;
    int32_t *token, *target;
    float *h, *dh, *token_loss;
    void *work;
} ends_rig;

static void ends_open(ends_rig *r, const tsr_model_config *config, int64_t batch, int64_t seq)
{
    assert_ok(rig_open(&r->base, "cpu:plain", config, TSR_F32));
    const tsr_layer_spec spec = {.config = &r->base.config,
                                 .table = &r->base.table,
                                 .device = r->base.device,
                                 .index = -1,
                                 .max_batch = batch,
                                 .seq = seq,
                                 .train = true};
    const int64_t tokens = batch * seq;
    const size_t width = (size_t)(tokens * config->hidden_size) * sizeof(float);

    r->tokens = tokens;
    assert_ok(tsr_head_create(&spec, &r->head));
    assert_ok(tsr_device_alloc(r->base.device, TSR_MEM_OTHER, width, (void **)&r->h));
    assert_ok(tsr_device_alloc(r->base.device, TSR_MEM_OTHER, width, (void **)&r->dh));
    assert_ok(tsr_device_alloc(r->base.device, TSR_MEM_OTHER, (size_t)tokens * 4,
                               (void **)&r->token_loss));
    assert_ok(
        tsr_device_alloc(r->base.device, TSR_MEM_OTHER, (size_t)tokens * 4, (void **)&r->token));
    assert_ok(
        tsr_device_alloc(r->base.device, TSR_MEM_OTHER, (size_t)tokens * 4, (void **)&r->target));
    assert_ok(
        tsr_device_alloc(r->base.device, TSR_MEM_OTHER, tsr_head_work_bytes(&spec), &r->work));
    rig_tokens(&r->base, 3, tokens, r->token);
    rig_tokens(&r->base, 4, tokens, r->target);
    r->pass = (tsr_pass){.device = r->base.device,
                         .stream = r->base.stream,
                         .weights = &r->base.weights,
                         .batch = batch,
                         .seq = seq,
                         .loss_scale = 0.25f};
}

static void ends_close(ends_rig *r)
{
    void *blocks[] = {r->h, r->dh, r->token_loss, r->token, r->target, r->work};

    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; ++i) {
        tsr_device_free(r->base.device, blocks[i]);
    }
    tsr_head_destroy(&r->head);
    rig_close(&r->base);
}

/* Loss of the model that is nothing but its two ends. */
static double ends_loss(void *context, double *scale_out)
{
    ends_rig *r = context;
    double sum = 0.0, squares = 0.0;

    if (tsr_embedding_forward(&r->pass, &r->base.table, r->token, r->h) != TSR_OK ||
        tsr_head_loss(r->head, &r->pass, r->h, r->target, r->work, r->token_loss, NULL) != TSR_OK) {
        return NAN;
    }
    for (int64_t i = 0; i < r->tokens; ++i) {
        const double term = 0.25 * (double)r->token_loss[i];

        sum += term;
        squares += term * term;
    }
    *scale_out = sqrt(squares);
    return sum;
}

static void check_ends(tsr_model_config config, int64_t batch, int64_t seq)
{
    static const char *const names[] = {"model.embed_tokens.weight", "model.norm.weight",
                                        "lm_head.weight"};
    ends_rig r = {0};

    ends_open(&r, &config, batch, seq);
    assert_ok(tsr_embedding_forward(&r.pass, &r.base.table, r.token, r.h));
    assert_ok(tsr_head_loss(r.head, &r.pass, r.h, r.target, r.work, r.token_loss, r.dh));
    assert_ok(
        tsr_embedding_backward(&r.pass, &r.base.table, r.token, r.dh, config.tie_word_embeddings));
    for (int i = 0; i < (config.tie_word_embeddings ? 2 : 3); ++i) {
        const int p = tsr_param_find(&r.base.table, names[i]);
        const tsr_param *param = &r.base.table.params[p];
        const double worst = rig_quotient(ends_loss, &r, tsr_weights_value(&r.base.weights, p),
                                          tsr_weights_gradient(&r.base.weights, p),
                                          param->rows * param->width, 1e-2, 6);
        if (!(worst <= 1.0)) {
            fail_msg("gradient of %s: %g times the tolerance", names[i], worst);
        }
    }
    ends_close(&r);
}

static void gradients_of_the_ends_are_difference_quotients(void **state)
{
    tsr_model_config c = rig_config();

    (void)state;
    check_ends(c, 2, 7);
    c.tie_word_embeddings = true;
    check_ends(c, 2, 7);
}

static void ends_without_sequences(void **state)
{
    static const char *const head_parts[] = {"model.norm.weight", "lm_head.weight"};
    const tsr_model_config c = rig_config();
    ends_rig r = {0};

    (void)state;
    ends_open(&r, &c, 2, 5);
    r.pass.batch = 0;
    for (int accumulate = 0; accumulate < 2; ++accumulate) {
        r.pass.accumulate = accumulate != 0;
        fill_gradients(&r.base, 7.0f);
        r.h[0] = r.dh[0] = r.token_loss[0] = 3.0f;
        assert_ok(tsr_embedding_forward(&r.pass, &r.base.table, r.token, r.h));
        assert_ok(tsr_head_loss(r.head, &r.pass, r.h, r.target, r.work, r.token_loss, r.dh));
        assert_gradients(&r.base, -1, head_parts, accumulate != 0 ? 7.0f : 0.0f);
        assert_ok(tsr_embedding_backward(&r.pass, &r.base.table, r.token, r.dh, accumulate != 0));
        assert_true(r.h[0] == 3.0f && r.dh[0] == 3.0f && r.token_loss[0] == 3.0f);
        assert_true(are_all(
            tsr_weights_gradient(&r.base.weights,
                                 tsr_param_find(&r.base.table, "model.embed_tokens.weight")),
            c.vocab_size * c.hidden_size, accumulate != 0 ? 7.0f : 0.0f));
    }
    ends_close(&r);
}

/* 8192 words make tiles of 128 tokens: 150 tokens are a full tile and a rest. The same tokens in
 * single rows must give the same gradients up to the order of 150 additions. */
static void tiles_of_the_head_add_up(void **state)
{
    tsr_model_config c = rig_config();
    ends_rig r = {0};
    void *block = NULL;
    float *sum = NULL;

    (void)state;
    c.vocab_size = 8192;
    c.hidden_size = 4;
    ends_open(&r, &c, 3, 50);
    const int head = tsr_param_find(&r.base.table, "lm_head.weight");
    const float *gradient = tsr_weights_gradient(&r.base.weights, head);
    tsr_pass row = r.pass;

    assert_ok(tsr_mem_alloc(TSR_MEM_OTHER, 8192 * 4 * sizeof *sum, &block));
    sum = block;
    assert_ok(tsr_embedding_forward(&r.pass, &r.base.table, r.token, r.h));
    row.batch = row.seq = 1;
    for (int64_t t = 0; t < 150; ++t) {
        row.accumulate = t > 0;
        assert_ok(tsr_head_loss(r.head, &row, r.h + 4 * t, r.target + t, r.work, r.token_loss + t,
                                r.dh + 4 * t));
    }
    memcpy(sum, gradient, 8192 * 4 * sizeof *sum);
    float losses[150], dh[600];
    memcpy(losses, r.token_loss, sizeof losses);
    memcpy(dh, r.dh, sizeof dh);
    assert_ok(tsr_head_loss(r.head, &r.pass, r.h, r.target, r.work, r.token_loss, r.dh));
    assert_memory_equal(losses, r.token_loss, sizeof losses);
    assert_memory_equal(dh, r.dh, sizeof dh);
    assert_true(rig_difference(gradient, sum, 8192 * 4) <= 150.0 * 0x1p-24);
    tsr_mem_free(block);
    ends_close(&r);
}

static void logits_are_those_of_the_loss(void **state)
{
    const tsr_model_config c = rig_config();
    ends_rig r = {0};
    float *logits = NULL;

    (void)state;
    ends_open(&r, &c, 1, 6);
    assert_ok(
        tsr_device_alloc(r.base.device, TSR_MEM_OTHER, 6 * 40 * sizeof(float), (void **)&logits));
    assert_ok(tsr_embedding_forward(&r.pass, &r.base.table, r.token, r.h));
    assert_ok(tsr_head_loss(r.head, &r.pass, r.h, r.target, r.work, r.token_loss, NULL));
    assert_ok(tsr_head_logits(r.head, &r.pass, r.h, 6, r.work, logits));
    for (int t = 0; t < 6; ++t) {
        double sum = 0.0;

        for (int v = 0; v < 40; ++v) {
            sum += exp((double)logits[t * 40 + v]);
        }
        const double expected = log(sum) - (double)logits[t * 40 + r.target[t]];
        assert_true(fabs((double)r.token_loss[t] - expected) < 40.0 * 0x1p-24 * fabs(expected));
    }
    tsr_device_free(r.base.device, logits);
    ends_close(&r);
}

static void a_position_without_rotation_is_refused(void **state)
{
    const tsr_model_config c = rig_config();
    layer_rig r = {0};

    (void)state;
    assert_ok(layer_rig_open(&r, "cpu:plain", &c, TSR_F32, tsr_attention_layer_create, 1, 5));
    r.pass.first_position = 1;
    assert_int_equal(layer_rig_forward(&r), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "position 5, the table of rotations has 5"));
    layer_rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_gradients_are_difference_quotients),
        cmocka_unit_test(dense_gradients_are_difference_quotients),
        cmocka_unit_test(weight_gradients_overwrite_or_add),
        cmocka_unit_test(a_pass_without_sequences),
        cmocka_unit_test(gradients_of_the_ends_are_difference_quotients),
        cmocka_unit_test(ends_without_sequences),
        cmocka_unit_test(tiles_of_the_head_add_up),
        cmocka_unit_test(logits_are_those_of_the_loss),
        cmocka_unit_test(a_position_without_rotation_is_refused),
    };

    return tsr_unit_test_main("layers.layers", tests, sizeof tests / sizeof tests[0]);
}
