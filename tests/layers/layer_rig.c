#include "tests/layers/layer_rig.h"

#include <math.h>
#include <string.h>

static tsr_status take(layer_rig *r, size_t bytes, void *out)
{
    return tsr_device_alloc(r->base.device, TSR_MEM_OTHER, bytes, (void **)out);
}

tsr_status layer_rig_open(layer_rig *r, const char *device, const tsr_model_config *config,
                          tsr_dtype dtype, layer_create *create, int64_t batch, int64_t seq)
{
    TSR_TRY(rig_open(&r->base, device, config, dtype));
    const tsr_layer_spec spec = {.config = &r->base.config,
                                 .table = &r->base.table,
                                 .device = r->base.device,
                                 .dtype = dtype,
                                 .max_batch = batch,
                                 .seq = seq,
                                 .train = true};

    r->count = batch * seq * config->hidden_size;
    TSR_TRY(create(&spec, &r->layer));
    TSR_TRY(tsr_rope_table_create(r->base.device, config, seq, &r->rope));
    TSR_TRY(take(r, (size_t)r->count * sizeof(float), &r->h_in));
    TSR_TRY(take(r, (size_t)r->count * sizeof(float), &r->h_out));
    TSR_TRY(take(r, (size_t)r->count * sizeof(float), &r->dh));
    TSR_TRY(take(r, (size_t)r->count * sizeof(float), &r->g));
    TSR_TRY(take(r, r->layer->saved_bytes, &r->saved));
    TSR_TRY(take(r, r->layer->work_bytes, &r->work));
    tsr_rng_normal(1, 0, r->count, r->h_in);
    tsr_rng_normal(2, 0, r->count, r->g);
    r->pass = (tsr_pass){.device = r->base.device,
                         .stream = r->base.stream,
                         .weights = &r->base.weights,
                         .rope = &r->rope,
                         .dtype = dtype,
                         .batch = batch,
                         .seq = seq,
                         .loss_scale = 1.0f,
                         .sequence_scale = 0.7f};
    return TSR_OK;
}

void layer_rig_close(layer_rig *r)
{
    void *blocks[] = {r->h_in, r->h_out, r->dh, r->g, r->saved, r->work};

    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; ++i) {
        tsr_device_free(r->base.device, blocks[i]);
    }
    tsr_rope_table_destroy(r->base.device, &r->rope);
    tsr_layer_destroy(&r->layer);
    rig_close(&r->base);
}

tsr_status layer_rig_forward(layer_rig *r)
{
    return r->layer->ops->forward(r->layer, &r->pass, r->h_in, r->saved, r->work, r->h_out);
}

tsr_status layer_rig_backward(layer_rig *r)
{
    memcpy(r->dh, r->g, (size_t)r->count * sizeof(float));
    TSR_TRY(r->layer->ops->backward_input(r->layer, &r->pass, r->h_in, r->saved, r->work, r->dh));
    return r->layer->ops->backward_weight(r->layer, &r->pass, r->h_in, r->saved, r->work);
}

static double loss(void *context, double *scale_out)
{
    layer_rig *r = context;
    double sum = 0.0, squares = 0.0;

    if (layer_rig_forward(r) != TSR_OK) {
        return NAN;
    }
    for (int64_t i = 0; i < r->count; ++i) {
        const double term = (double)r->h_out[i] * (double)r->g[i];

        sum += term;
        squares += term * term;
    }
    if (r->extra != NULL) {
        const double extra = r->extra(r);

        sum += extra;
        squares += extra * extra;
    }
    *scale_out = sqrt(squares);
    return sum;
}

static bool has_any(const char *name, const char *const *parts, int part_count)
{
    for (int i = 0; i < part_count; ++i) {
        if (strstr(name, parts[i]) != NULL) {
            return true;
        }
    }
    return false;
}

double layer_rig_quotients(layer_rig *r, const char *const *parts, int part_count,
                           const char **name_out)
{
    const double step = 2e-3;
    double worst = 0.0;

    *name_out = "h_in";
    if (layer_rig_forward(r) != TSR_OK || layer_rig_backward(r) != TSR_OK) {
        return INFINITY;
    }
    worst = rig_quotient(loss, r, r->h_in, r->dh, r->count, step, 5);
    for (int p = 0; p < r->base.table.count; ++p) {
        const tsr_param *param = &r->base.table.params[p];

        if (param->layer != 0 || !has_any(param->name, parts, part_count)) {
            continue;
        }
        const double ratio = rig_quotient(loss, r, tsr_weights_value(&r->base.weights, p),
                                          tsr_weights_gradient(&r->base.weights, p),
                                          param->rows * param->width, step, 6);
        if (!(ratio <= worst)) {
            worst = ratio;
            *name_out = param->name;
        }
    }
    return worst;
}
