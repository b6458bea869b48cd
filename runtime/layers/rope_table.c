#include "runtime/layers.h"

#include <math.h>

size_t tsr_rope_table_bytes(const tsr_model_config *config, int64_t positions)
{
    return (size_t)(positions * config->head_dim) * sizeof(float);
}

/* In f64, so that far positions are as exact as near ones. */
static void fill(float *cosine, float *sine, const tsr_model_config *config, int64_t positions)
{
    const int64_t half = config->head_dim / 2;

    for (int64_t p = 0; p < positions; ++p) {
        for (int64_t i = 0; i < half; ++i) {
            const double exponent = -2.0 * (double)i / (double)config->head_dim;
            const double angle = (double)p * pow(config->rope_theta, exponent);

            cosine[p * half + i] = (float)cos(angle);
            sine[p * half + i] = (float)sin(angle);
        }
    }
}

tsr_status tsr_rope_table_create(tsr_device *device, const tsr_model_config *config,
                                 int64_t positions, tsr_rope_table *out)
{
    const size_t bytes = tsr_rope_table_bytes(config, positions);
    const size_t half_bytes = bytes / 2;
    void *staging = NULL, *block = NULL;
    tsr_stream *stream = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY_GOTO(tsr_stream_create(device, &stream), done);
    TSR_TRY_GOTO(tsr_device_alloc_staging(device, TSR_MEM_OTHER, bytes, &staging), done);
    TSR_TRY_GOTO(tsr_device_alloc(device, TSR_MEM_WORKSPACE, bytes, &block), done);
    fill(staging, tsr_place_at(staging, half_bytes), config, positions);
    TSR_TRY_GOTO(tsr_device_copy(device, block, staging, bytes, TSR_COPY_HOST_TO_DEVICE, stream),
                 done);
    TSR_TRY_GOTO(tsr_stream_wait(stream), done);
    *out = (tsr_rope_table){
        .cosine = block, .sine = tsr_place_at(block, half_bytes), .positions = positions};

done:
    if (st != TSR_OK) {
        tsr_device_free(device, block);
    }
    tsr_device_free_staging(device, staging);
    tsr_stream_destroy(&stream);
    return st;
}

void tsr_rope_table_destroy(tsr_device *device, tsr_rope_table *table)
{
    tsr_device_free(device, table->cosine);
    *table = (tsr_rope_table){0};
}
