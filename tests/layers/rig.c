#include "tests/layers/rig.h"

#include <float.h>
#include <math.h>

enum { DIRECTIONS = 3, MAX_COUNT = 4096 };

tsr_model_config rig_config(void)
{
    return (tsr_model_config){.vocab_size = 40,
                              .hidden_size = 16,
                              .num_hidden_layers = 2,
                              .num_attention_heads = 4,
                              .num_key_value_heads = 2,
                              .head_dim = 4,
                              .intermediate_size = 20,
                              .moe_intermediate_size = 12,
                              .num_experts = 5,
                              .num_experts_per_tok = 2,
                              .rms_norm_eps = 1e-5,
                              .rope_theta = 1e4,
                              .initializer_range = 0.02,
                              .norm_topk_prob = true,
                              .routed_scaling_factor = 1.0};
}

tsr_status rig_open(rig *r, const char *device, const tsr_model_config *config, tsr_dtype dtype)
{
    r->config = *config;
    r->dtype = dtype;
    TSR_TRY(tsr_device_open(device, 2, &r->device));
    TSR_TRY(tsr_stream_create(r->device, &r->stream));
    TSR_TRY(tsr_param_table_create(&r->config, &r->table));
    TSR_TRY(tsr_weights_create(&r->config, &r->table, r->device, dtype, true, &r->weights));
    rig_fill(r, 1);
    return TSR_OK;
}

void rig_close(rig *r)
{
    tsr_weights_destroy(&r->weights);
    tsr_param_table_destroy(&r->table);
    tsr_stream_destroy(&r->stream);
    tsr_device_close(&r->device);
}

void rig_set(rig *r, int param, int64_t first, int64_t count, const float *values)
{
    const bool is_f32 = r->weights.dtype[r->table.params[param].group] == TSR_F32;
    void *at = tsr_weights_value(&r->weights, param);

    for (int64_t i = 0; i < count; ++i) {
        if (is_f32) {
            ((float *)at)[first + i] = values[i];
        } else {
            ((tsr_bf16 *)at)[first + i] = tsr_f32_to_bf16(values[i]);
        }
    }
}

float rig_get(const rig *r, int param, int64_t element)
{
    const void *at = tsr_weights_value(&r->weights, param);

    return r->weights.dtype[r->table.params[param].group] == TSR_F32
               ? ((const float *)at)[element]
               : tsr_bf16_to_f32(((const tsr_bf16 *)at)[element]);
}

void rig_fill(rig *r, uint64_t seed)
{
    for (int p = 0; p < r->table.count; ++p) {
        const tsr_param *param = &r->table.params[p];
        const bool is_norm = param->dims == 1;
        const float scale = param->group == TSR_GROUP_FLOAT && !is_norm ? 0.5f : 0.2f;
        const uint64_t key = tsr_rng_key(seed, param->name);

        for (int64_t i = 0; i < param->rows * param->width; ++i) {
            float value = 0.0f;

            tsr_rng_normal(key, (uint64_t)i, 1, &value);
            value = value * scale + (is_norm ? 1.0f : 0.0f);
            rig_set(r, p, i, 1, &value);
        }
    }
}

double rig_difference(const float *a, const float *b, int64_t count)
{
    double worst = 0.0, largest = 0.0;

    for (int64_t i = 0; i < count; ++i) {
        const double difference = fabs((double)a[i] - (double)b[i]);

        worst = difference > worst || isnan(difference) ? difference : worst;
        largest = fmax(largest, fabs((double)b[i]));
    }
    return worst == 0.0 ? 0.0 : worst / largest;
}

void rig_tokens(const rig *r, uint64_t seed, int64_t count, int32_t *out)
{
    for (int64_t i = 0; i < count; ++i) {
        out[i] = (int32_t)(tsr_rng_uniform(seed, (uint64_t)i) * (double)r->config.vocab_size);
    }
}

/* Central quotient along direction; value is put back. */
static double quotient(rig_function *function, void *context, float *value, const float *start,
                       const float *direction, int64_t count, double step)
{
    double result[2], scale = 0.0;

    for (int side = 0; side < 2; ++side) {
        const float signed_step = (float)(side == 0 ? step : -step);

        for (int64_t i = 0; i < count; ++i) {
            value[i] = start[i] + signed_step * direction[i];
        }
        result[side] = function(context, &scale);
    }
    for (int64_t i = 0; i < count; ++i) {
        value[i] = start[i];
    }
    return (result[0] - result[1]) / (2.0 * step);
}

double rig_quotient(rig_function *function, void *context, float *value, const float *gradient,
                    int64_t count, double step, uint64_t seed)
{
    float start[MAX_COUNT], direction[MAX_COUNT];
    double worst = count <= MAX_COUNT ? 0.0 : INFINITY, scale = 0.0;

    for (int64_t i = 0; i < count && count <= MAX_COUNT; ++i) {
        start[i] = value[i];
    }
    (void)function(context, &scale);
    for (uint64_t d = 0; d < DIRECTIONS && count <= MAX_COUNT; ++d) {
        double expected = 0.0;

        tsr_rng_normal(seed, d * MAX_COUNT, count, direction);
        for (int64_t i = 0; i < count; ++i) {
            expected += (double)gradient[i] * (double)direction[i];
        }
        const double wide = quotient(function, context, value, start, direction, count, step);
        const double narrow =
            quotient(function, context, value, start, direction, count, step / 2.0);
        const double found = (4.0 * narrow - wide) / 3.0;
        /* A term passes about 5 products of length 24 or less, each adding sqrt(24) roundings of
         * 2^-24: 11 in all. Divided by the step and combined (4/3 * 2 + 1/3) that makes 33 u; the
         * terms' errors are independent, hence the root of the sum of squares. Twice that. */
        const double tolerance = 66.0 * (double)FLT_EPSILON / 2.0 * scale / step;

        worst = fmax(worst, fabs(found - expected) / tolerance);
    }
    return worst;
}
