#include "runtime/layers.h"

static tsr_embedding_args common(const tsr_pass *pass, const tsr_param_table *table,
                                 const int32_t *tokens, int *param_out)
{
    const int index = tsr_param_find(table, "model.embed_tokens.weight");
    const tsr_param *param = &table->params[index];

    *param_out = index;
    return (tsr_embedding_args){.token = tokens,
                                .table = tsr_weights_value(pass->weights, index),
                                .tokens = tsr_pass_tokens(pass),
                                .vocab = param->shape[0],
                                .width = param->shape[1],
                                .dtype = pass->dtype};
}

tsr_status tsr_embedding_forward(const tsr_pass *pass, const tsr_param_table *table,
                                 const int32_t *tokens, float *h_out)
{
    int param = 0;
    tsr_embedding_args args = common(pass, table, tokens, &param);

    args.x = h_out;
    return tsr_op_embedding_forward(pass->device, &args, pass->stream);
}

tsr_status tsr_embedding_backward(const tsr_pass *pass, const tsr_param_table *table,
                                  const int32_t *tokens, const float *dh, bool accumulate)
{
    int param = 0;
    tsr_embedding_args args = common(pass, table, tokens, &param);

    args.dx = dh;
    args.dtable = tsr_weights_gradient(pass->weights, param);
    args.accumulate = accumulate;
    return tsr_op_embedding_backward(pass->device, &args, pass->stream);
}
