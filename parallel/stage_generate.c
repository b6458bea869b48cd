#include "parallel/stage_impl.h"

tsr_status tsr_stage_cache_create(tsr_stage *stage, int64_t max_len, tsr_kv_cache *out)
{
    const tsr_model_config *config = stage->options.config;
    const int64_t row = 2 * config->num_key_value_heads * config->head_dim;
    tsr_kv_cache cache = {.max_len = max_len};

    TSR_CHECK(max_len > 0 && max_len <= INT32_MAX, TSR_ERR_ARG,
              "a cache of %lld positions, must be 1 to %d", (long long)max_len, INT32_MAX);
    TSR_TRY(tsr_rope_table_create(stage->options.device, config, max_len, &cache.rope));
    const tsr_status st = tsr_device_alloc(stage->options.device, TSR_MEM_ACTIVATIONS,
                                           (size_t)(config->num_hidden_layers * max_len * row) *
                                               tsr_dtype_bytes(stage->options.dtype),
                                           &cache.keys_values);
    if (st != TSR_OK) {
        tsr_rope_table_destroy(stage->options.device, &cache.rope);
        return st;
    }
    *out = cache;
    return TSR_OK;
}

void tsr_stage_cache_destroy(tsr_stage *stage, tsr_kv_cache *cache)
{
    if (cache->keys_values != NULL) {
        tsr_rope_table_destroy(stage->options.device, &cache->rope);
        tsr_device_free(stage->options.device, cache->keys_values);
        *cache = (tsr_kv_cache){0};
    }
}

tsr_status tsr_stage_next_logits(tsr_stage *stage, tsr_kv_cache *cache, const int32_t *tokens,
                                 int64_t count, float *logits_out)
{
    const tsr_model_config *config = stage->options.config;
    const int64_t most = stage->options.micro_batch * stage->options.seq_len;
    float *h = stage_hidden(stage, STAGE_CACHED, 0);
    float *logits = stage_at(stage, stage->plan.logits);
    tsr_pass pass = stage_pass(stage, 1, count);

    TSR_CHECK(count >= 1 && count <= most, TSR_ERR_ARG, "%lld tokens at once, must be 1 to %lld",
              (long long)count, (long long)most);
    TSR_CHECK(cache->length + count <= cache->max_len, TSR_ERR_ARG,
              "%lld positions filled and %lld more, the cache has room for %lld",
              (long long)cache->length, (long long)count, (long long)cache->max_len);
    TSR_TRY(stage_check_tokens(stage, tokens, count));
    pass.cache = cache;
    pass.rope = &cache->rope;
    pass.first_position = cache->length;
    for (int64_t i = 0; i < count; ++i) {
        stage->tokens[i] = tokens[i];
    }
    TSR_TRY(tsr_device_copy(pass.device, stage_at(stage, stage->plan.tokens), stage->tokens,
                            (size_t)count * sizeof *tokens, TSR_COPY_HOST_TO_DEVICE, pass.stream));
    TSR_TRY(stage_forward(stage, &pass, STAGE_CACHED));
    TSR_TRY(tsr_head_logits(stage->head, &pass, h + (count - 1) * config->hidden_size, 1,
                            stage_at(stage, stage->plan.work), logits));
    TSR_TRY(tsr_device_copy(pass.device, logits_out, logits,
                            (size_t)config->vocab_size * sizeof(float), TSR_COPY_DEVICE_TO_HOST,
                            pass.stream));
    TSR_TRY(tsr_stream_wait(pass.stream));
    cache->length += count;
    return TSR_OK;
}
