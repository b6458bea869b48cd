#include "launch/inference.h"

#include "launch/devices.h"

#include <string.h>

static void report_problem(void *context, const char *text)
{
    (void)context;
    tsr_log(TSR_LOG_WARN, "%s", text);
}

static tsr_status read_description(inference *in, const char *path, const char *precision)
{
    bool found = false;

    TSR_TRY(tsr_ckpt_find(path, report_problem, NULL, &found, &in->info));
    TSR_CHECK(found, TSR_ERR_FORMAT, "%s: holds no checkpoint", path);
    const tsr_status st =
        settings_read(&in->s, in->info.config_text, "config of the checkpoint", NULL, 0);
    TSR_CHECK(st == TSR_OK, TSR_ERR_FORMAT, "%s: %s", in->info.path, tsr_error_message());
    in->dtype = (tsr_dtype)in->s.precision.compute;
    if (precision != NULL) {
        TSR_CHECK(strcmp(precision, "f32") == 0 || strcmp(precision, "bf16") == 0, TSR_ERR_ARG,
                  "--precision %s: must be f32 or bf16", precision);
        in->dtype = strcmp(precision, "f32") == 0 ? TSR_F32 : TSR_BF16;
    }
    return TSR_OK;
}

static tsr_status load_parameter(inference *in, int index, float *buffer)
{
    const tsr_param *param = &in->table.params[index];
    const int64_t count = param->rows * param->width;
    const tsr_dtype to = in->weights.dtype[param->group];
    void *device_buffer = NULL;

    TSR_TRY(tsr_ckpt_read_weights(in->info.path, &in->table, index, buffer));
    if (to == TSR_F32) {
        TSR_TRY(tsr_device_copy(in->device, tsr_weights_value(&in->weights, index), buffer,
                                (size_t)count * sizeof(float), TSR_COPY_HOST_TO_DEVICE,
                                in->stream));
        return tsr_stream_wait(in->stream);
    }
    TSR_TRY(tsr_device_alloc(in->device, TSR_MEM_WORKSPACE, (size_t)count * sizeof(float),
                             &device_buffer));
    tsr_status st =
        tsr_device_copy(in->device, device_buffer, buffer, (size_t)count * sizeof(float),
                        TSR_COPY_HOST_TO_DEVICE, in->stream);
    if (st == TSR_OK) {
        st = tsr_op_convert(in->device, device_buffer, TSR_F32,
                            tsr_weights_value(&in->weights, index), to, count, in->stream);
    }
    if (st == TSR_OK) {
        st = tsr_stream_wait(in->stream);
    }
    tsr_device_free(in->device, device_buffer);
    return st;
}

static tsr_status load_router_bias(inference *in)
{
    const int64_t count = in->weights.layers * in->weights.experts;
    float *bias = NULL;

    if (in->weights.router_bias == NULL) {
        return TSR_OK;
    }
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, count, sizeof *bias, (void **)&bias));
    tsr_status st =
        tsr_ckpt_read_router_bias(in->info.path, in->weights.layers, in->weights.experts, bias);
    if (st == TSR_OK) {
        st = tsr_device_copy(in->device, in->weights.router_bias, bias,
                             (size_t)count * sizeof *bias, TSR_COPY_HOST_TO_DEVICE, in->stream);
    }
    if (st == TSR_OK) {
        st = tsr_stream_wait(in->stream);
    }
    tsr_mem_free(bias);
    return st;
}

static tsr_status load_weights(inference *in)
{
    int64_t largest = 0;
    float *buffer = NULL;
    tsr_status st = TSR_OK;

    for (int i = 0; i < in->table.count; ++i) {
        const int64_t count = in->table.params[i].rows * in->table.params[i].width;
        largest = count > largest ? count : largest;
    }
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, largest, sizeof *buffer, (void **)&buffer));
    for (int i = 0; st == TSR_OK && i < in->table.count; ++i) {
        st = load_parameter(in, i, buffer);
    }
    tsr_mem_free(buffer);
    return st == TSR_OK ? load_router_bias(in) : st;
}

static tsr_status open_local(inference *in, const world *w, device_choice choice, int threads,
                             int64_t batch)
{
    TSR_TRY(devices_open(choice, w, threads, &in->device));
    TSR_TRY(tsr_stream_create(in->device, &in->stream));
    TSR_TRY(tsr_param_table_create(&in->s.model, &in->table));
    TSR_TRY(
        tsr_weights_create(&in->s.model, &in->table, in->device, in->dtype, false, &in->weights));
    const tsr_stage_options options = {
        .config = &in->s.model,
        .table = &in->table,
        .device = in->device,
        .dtype = in->dtype,
        .micro_batch = batch,
        .seq_len = in->s.data.seq_len,
        .train = false,
    };
    TSR_TRY(tsr_stage_create(&options, &in->weights, &in->stage));
    return load_weights(in);
}

tsr_status inference_open(inference *in, world *w, const char *path, const char *precision,
                          const char *device, int64_t batch)
{
    device_choice choice = DEVICE_AUTO;
    int threads = 1;

    *in = (inference){0};
    TSR_TRY(devices_parse(device, &choice));
    TSR_TRY(world_thread_share(w, &threads));
    TSR_TRY(tsr_comm_agree(w->comm, read_description(in, path, precision)));
    return tsr_comm_agree(w->comm, open_local(in, w, choice, threads, batch));
}

void inference_close(inference *in)
{
    tsr_stage_destroy(&in->stage);
    tsr_weights_destroy(&in->weights);
    tsr_param_table_destroy(&in->table);
    tsr_stream_destroy(&in->stream);
    tsr_device_close(&in->device);
    tsr_ckpt_info_free(&in->info);
}
