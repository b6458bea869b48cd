/* One step: gradients to their owners, their norm, the update, new weights to all. */
#include "optim/optim_impl.h"

#include <inttypes.h>
#include <math.h>

static char *at_element(void *buffer, int64_t element, size_t element_bytes)
{
    return (char *)buffer + (size_t)element * element_bytes;
}

/* Bring elements [begin, end) of device memory where the communicator can reach them. */
static tsr_status stage_in(tsr_optimizer *optimizer, void *buffer, int64_t begin, int64_t end,
                           size_t element_bytes, tsr_stream *stream)
{
    if (optimizer->staging != NULL) {
        TSR_TRY(tsr_device_copy(
            optimizer->weights->device, at_element(optimizer->staging, begin, element_bytes),
            at_element(buffer, begin, element_bytes), (size_t)(end - begin) * element_bytes,
            TSR_COPY_DEVICE_TO_HOST, stream));
    }
    return tsr_stream_wait(stream);
}

static tsr_status stage_out(tsr_optimizer *optimizer, void *buffer, int64_t begin, int64_t end,
                            size_t element_bytes, tsr_stream *stream)
{
    if (optimizer->staging == NULL) {
        return TSR_OK;
    }
    TSR_TRY(tsr_device_copy(optimizer->weights->device, at_element(buffer, begin, element_bytes),
                            at_element(optimizer->staging, begin, element_bytes),
                            (size_t)(end - begin) * element_bytes, TSR_COPY_HOST_TO_DEVICE,
                            stream));
    return tsr_stream_wait(stream); /* the next group reuses the staging memory */
}

tsr_status optim_wait(tsr_optimizer *optimizer, tsr_stream *stream)
{
    for (int g = 0; g < TSR_GROUPS; ++g) {
        if (tsr_comm_takes_device_memory(optimizer->shards[g].comm)) {
            TSR_TRY(tsr_comm_stream_wait(optimizer->shards[g].comm, stream));
        }
    }
    return tsr_stream_wait(stream);
}

tsr_status optim_share(tsr_optimizer *optimizer, int group, tsr_stream *stream)
{
    const shard *s = &optimizer->shards[group];
    const size_t bytes = tsr_dtype_bytes(optimizer->weights->dtype[group]);
    const int64_t length = s->cuts[tsr_comm_size(s->comm)];
    void *value = optimizer->weights->value[group];

    if (tsr_comm_size(s->comm) == 1) {
        return TSR_OK;
    }
    if (tsr_comm_takes_device_memory(s->comm)) {
        return tsr_comm_all_gather_parts_on(s->comm, value, bytes, s->cuts, stream);
    }
    TSR_TRY(stage_in(optimizer, value, s->begin, s->end, bytes, stream));
    TSR_TRY(tsr_comm_all_gather_parts(
        s->comm, optimizer->staging != NULL ? optimizer->staging : value, bytes, s->cuts));
    return stage_out(optimizer, value, 0, length, bytes, stream);
}

tsr_status tsr_optimizer_reduce(tsr_optimizer *optimizer, tsr_stream *stream)
{
    for (int g = 0; g < TSR_GROUPS; ++g) {
        const shard *s = &optimizer->shards[g];
        float *gradient = optimizer->weights->gradient[g];

        if (tsr_comm_size(s->comm) > 1 && tsr_comm_takes_device_memory(s->comm)) {
            TSR_TRY(tsr_comm_reduce_scatter_f32_on(s->comm, gradient, s->cuts, stream));
        } else if (tsr_comm_size(s->comm) > 1) {
            TSR_TRY(stage_in(optimizer, gradient, 0, s->cuts[tsr_comm_size(s->comm)],
                             sizeof *gradient, stream));
            TSR_TRY(tsr_comm_reduce_scatter_f32(
                s->comm, optimizer->staging != NULL ? optimizer->staging : gradient, s->cuts));
            TSR_TRY(stage_out(optimizer, gradient, s->begin, s->end, sizeof *gradient, stream));
        }
    }
    return optim_wait(optimizer, stream);
}

tsr_status tsr_optimizer_grad_squares(tsr_optimizer *optimizer, tsr_stream *stream,
                                      double *squares_out)
{
    tsr_device *device = optimizer->weights->device;
    double squares[TSR_GROUPS] = {0}, sum = 0.0;

    TSR_TRY(tsr_device_zero(device, optimizer->squares, sizeof squares, stream));
    for (int g = 0; g < TSR_GROUPS; ++g) {
        const shard *s = &optimizer->shards[g];
        if (s->end > s->begin) {
            TSR_TRY(tsr_op_sum_squares(device, optimizer->weights->gradient[g] + s->begin,
                                       s->end - s->begin, optimizer->squares + g, stream));
        }
    }
    TSR_TRY(tsr_device_copy(device, squares, optimizer->squares, sizeof squares,
                            TSR_COPY_DEVICE_TO_HOST, stream));
    TSR_TRY(tsr_stream_wait(stream));
    for (int g = 0; g < TSR_GROUPS; ++g) {
        sum += squares[g];
    }
    *squares_out = sum;
    return TSR_OK;
}

/* Decay differs by parameter, so the own rows of each are a call. */
static tsr_status update_slice(const tsr_optimizer *optimizer, int index,
                               const tsr_adamw_args *common, tsr_stream *stream)
{
    const tsr_state_slice *slice = &optimizer->slices[index];
    const tsr_weights *weights = optimizer->weights;
    const tsr_param *param = &weights->table->params[slice->param];
    const shard *s = &optimizer->shards[param->group];
    const size_t moment_bytes = tsr_dtype_bytes(optimizer->moments);
    const size_t work_bytes = tsr_dtype_bytes(weights->dtype[param->group]);
    const int64_t first = optimizer->firsts[index];
    tsr_adamw_args args = *common;

    args.master = s->master + (first - s->begin);
    args.m = at_element(s->m, first - s->begin, moment_bytes);
    args.v = at_element(s->v, first - s->begin, moment_bytes);
    args.grad = weights->gradient[param->group] + first;
    args.work = at_element(weights->value[param->group], first, work_bytes);
    args.work_dtype = weights->dtype[param->group];
    args.count = (slice->row_end - slice->row_begin) * param->width;
    args.decay = param->has_decay ? (float)optimizer->config.weight_decay : 0.0f;
    return tsr_op_adamw(weights->device, &args, stream);
}

tsr_status tsr_optimizer_step(tsr_optimizer *optimizer, int64_t step, double lr, double grad_norm,
                              tsr_stream *stream)
{
    const tsr_optim_config *config = &optimizer->config;
    const bool is_clipped = config->clip_norm > 0 && grad_norm > config->clip_norm;

    TSR_CHECK(step >= 1, TSR_ERR_ARG, "step = %" PRId64 ", must be >= 1", step);
    TSR_CHECK(isfinite(grad_norm), TSR_ERR_RANGE,
              "grad_norm = %g in step %" PRId64 ", must be finite; the weights are unchanged: "
              "lower optim.lr, or lengthen optim.warmup_steps",
              grad_norm, step);
    const tsr_adamw_args common = {
        .lr = (float)lr,
        .beta1 = (float)config->beta1,
        .beta2 = (float)config->beta2,
        .eps = (float)config->eps,
        .grad_scale = is_clipped ? (float)(config->clip_norm / grad_norm) : 1.0f,
        .step = step,
        .moment_dtype = optimizer->moments,
    };
    for (int i = 0; i < optimizer->slice_count; ++i) {
        TSR_TRY(update_slice(optimizer, i, &common, stream));
    }
    for (int g = 0; g < TSR_GROUPS; ++g) {
        TSR_TRY(optim_share(optimizer, g, stream));
    }
    return optim_wait(optimizer, stream);
}
