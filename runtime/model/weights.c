#include "runtime/model.h"
#include "runtime/rng.h"

tsr_status tsr_weights_create(const tsr_model_config *config, const tsr_param_table *table,
                              tsr_device *device, tsr_dtype compute, bool with_gradients,
                              tsr_weights *out)
{
    tsr_weights w = {.table = table,
                     .device = device,
                     .dtype = {TSR_F32, compute, compute},
                     .layers = config->num_hidden_layers,
                     .experts = config->num_experts};
    tsr_status st = TSR_OK;
    void *block = NULL;

    for (int g = 0; g < TSR_GROUPS; ++g) {
        const size_t count = (size_t)table->group_elements[g];

        TSR_TRY_GOTO(tsr_device_alloc(device, TSR_MEM_WEIGHTS, count * tsr_dtype_bytes(w.dtype[g]),
                                      &w.value[g]),
                     err_free);
        if (with_gradients) {
            TSR_TRY_GOTO(tsr_device_alloc(device, TSR_MEM_GRADIENTS, count * sizeof(float), &block),
                         err_free);
            w.gradient[g] = block;
        }
    }
    if (tsr_model_moe_layers(config) > 0) {
        TSR_TRY_GOTO(tsr_device_alloc(device, TSR_MEM_WEIGHTS,
                                      (size_t)(w.layers * w.experts) * sizeof(float), &block),
                     err_free);
        w.router_bias = block;
    }
    *out = w;
    return TSR_OK;

err_free:
    tsr_weights_destroy(&w);
    return st;
}

void tsr_weights_destroy(tsr_weights *weights)
{
    if (weights->device == NULL) {
        return;
    }
    for (int g = 0; g < TSR_GROUPS; ++g) {
        tsr_device_free(weights->device, weights->value[g]);
        tsr_device_free(weights->device, weights->gradient[g]);
    }
    tsr_device_free(weights->device, weights->router_bias);
    *weights = (tsr_weights){0};
}

void *tsr_weights_value(const tsr_weights *weights, int index)
{
    const tsr_param *param = &weights->table->params[index];
    char *base = weights->value[param->group];

    return base + (size_t)param->offset * tsr_dtype_bytes(weights->dtype[param->group]);
}

float *tsr_weights_gradient(const tsr_weights *weights, int index)
{
    const tsr_param *param = &weights->table->params[index];

    return weights->gradient[param->group] + param->offset;
}

void tsr_param_init(const tsr_param *param, uint64_t seed, int64_t first, int64_t count, float *out)
{
    const float std = (float)param->init_std;

    if (param->init_std > 0.0) {
        tsr_rng_normal(tsr_rng_key(seed, param->name), (uint64_t)first, count, out);
    }
    for (int64_t i = 0; i < count; ++i) {
        out[i] = param->init_std > 0.0 ? out[i] * std : 1.0f;
    }
}
