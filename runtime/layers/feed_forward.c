#include "runtime/layers.h"

#include <stdio.h>

static int find(const tsr_layer_spec *spec, const char *prefix, const char *name)
{
    char full[64];

    (void)snprintf(full, sizeof full, "%s%s", prefix, name);
    return tsr_param_find_in_layer(spec->table, spec->index, full);
}

tsr_feed_forward tsr_feed_forward_of(const tsr_layer_spec *spec, const char *prefix, int64_t width,
                                     bool dx_adds)
{
    const int64_t hidden = spec->config->hidden_size;

    return (tsr_feed_forward){
        .gate_up = {.in = hidden,
                    .out = 2 * width,
                    .dtype = spec->dtype,
                    .y_dtype = spec->dtype,
                    .dx_dtype = TSR_F32,
                    .dx_adds = dx_adds},
        .down = {.in = width,
                 .out = hidden,
                 .dtype = spec->dtype,
                 .y_dtype = TSR_F32,
                 .y_adds = true,
                 .dx_dtype = spec->dtype},
        .gate_param = find(spec, prefix, "gate_proj.weight"),
        .down_param = find(spec, prefix, "down_proj.weight"),
    };
}

tsr_status tsr_feed_forward_reserve(const tsr_feed_forward *ff, const tsr_layer_spec *spec)
{
    TSR_TRY(
        tsr_linear_reserve(&ff->gate_up, spec->device, spec->max_batch, spec->seq, spec->train));
    return tsr_linear_reserve(&ff->down, spec->device, spec->max_batch, spec->seq, spec->train);
}

tsr_status tsr_feed_forward_forward(const tsr_feed_forward *ff, const tsr_pass *pass, const void *x,
                                    void *gate_up, void *h, float *out)
{
    const int64_t tokens = tsr_pass_tokens(pass);
    const tsr_swiglu_args swiglu = {
        .gate_up = gate_up, .h = h, .rows = tokens, .width = ff->down.in, .dtype = pass->dtype};

    TSR_TRY(tsr_linear_forward(&ff->gate_up, pass, tokens, x,
                               tsr_weights_value(pass->weights, ff->gate_param), gate_up));
    TSR_TRY(tsr_op_swiglu_forward(pass->device, &swiglu, pass->stream));
    return tsr_linear_forward(&ff->down, pass, tokens, h,
                              tsr_weights_value(pass->weights, ff->down_param), out);
}

tsr_status tsr_feed_forward_backward_input(const tsr_feed_forward *ff, const tsr_pass *pass,
                                           const void *dy, void *gate_up, void *h, void *dh,
                                           float *dx)
{
    const int64_t tokens = tsr_pass_tokens(pass);
    const tsr_swiglu_args swiglu = {.gate_up = gate_up,
                                    .h = h,
                                    .rows = tokens,
                                    .width = ff->down.in,
                                    .dtype = pass->dtype,
                                    .dh = dh,
                                    .dgate_up = gate_up};

    TSR_TRY(tsr_linear_backward_input(&ff->down, pass, tokens, dy,
                                      tsr_weights_value(pass->weights, ff->down_param), dh));
    TSR_TRY(tsr_op_swiglu_backward(pass->device, &swiglu, pass->stream));
    return tsr_linear_backward_input(&ff->gate_up, pass, tokens, gate_up,
                                     tsr_weights_value(pass->weights, ff->gate_param), dx);
}

tsr_status tsr_feed_forward_backward_weight(const tsr_feed_forward *ff, const tsr_pass *pass,
                                            const void *x, const void *dy, const void *gate_up,
                                            const void *h)
{
    const int64_t tokens = tsr_pass_tokens(pass);

    TSR_TRY(tsr_linear_backward_weight(&ff->down, pass, tokens, dy, h, pass->accumulate,
                                       tsr_weights_gradient(pass->weights, ff->down_param)));
    return tsr_linear_backward_weight(&ff->gate_up, pass, tokens, gate_up, x, pass->accumulate,
                                      tsr_weights_gradient(pass->weights, ff->gate_param));
}
