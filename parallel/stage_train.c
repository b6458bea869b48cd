#include "parallel/moe_impl.h"
#include "parallel/stage_impl.h"

tsr_pass stage_pass(const tsr_stage *stage, int64_t batch, int64_t seq)
{
    return (tsr_pass){.device = stage->options.device,
                      .stream = stage->stream,
                      .weights = stage->weights,
                      .rope = &stage->rope,
                      .dtype = stage->options.dtype,
                      .batch = batch,
                      .seq = seq};
}

tsr_status stage_check_tokens(const tsr_stage *stage, const int32_t *tokens, int64_t count)
{
    const int64_t vocab = stage->options.config->vocab_size;

    for (int64_t i = 0; i < count; ++i) {
        TSR_CHECK(tokens[i] >= 0 && tokens[i] < vocab, TSR_ERR_ARG,
                  "token %lld is %d, the vocabulary has %lld", (long long)i, tokens[i],
                  (long long)vocab);
    }
    return TSR_OK;
}

static tsr_status forward_sublayer(tsr_stage *stage, const tsr_pass *pass, stage_use use, int64_t i)
{
    tsr_layer *layer = stage->layers[i];
    const int64_t span = tsr_trace_begin();
    const tsr_status st =
        layer->ops->forward(layer, pass, stage_hidden(stage, use, i), stage_saved(stage, use, i),
                            stage_at(stage, stage->plan.work), stage_hidden(stage, use, i + 1));

    tsr_trace_end(TSR_TRACE_COMPUTE, layer->ops->name, layer->index, span);
    return st;
}

/* Both gradients of one sublayer. */
static tsr_status backward_layer(tsr_stage *stage, const tsr_pass *pass, int64_t i, float *dh)
{
    tsr_layer *layer = stage->layers[i];
    const float *h = stage_hidden(stage, STAGE_KEEP, i);
    void *saved = stage_saved(stage, STAGE_KEEP, i);
    void *work = stage_at(stage, stage->plan.work);
    int64_t span = tsr_trace_begin();

    TSR_TRY(layer->ops->backward_input(layer, pass, h, saved, work, dh));
    tsr_trace_end(TSR_TRACE_COMPUTE,
                  i % 2 == 0 ? "attention backward_input" : "feed-forward backward_input",
                  layer->index, span);
    span = tsr_trace_begin();
    TSR_TRY(layer->ops->backward_weight(layer, pass, h, saved, work));
    tsr_trace_end(TSR_TRACE_COMPUTE,
                  i % 2 == 0 ? "attention backward_weight" : "feed-forward backward_weight",
                  layer->index, span);
    return TSR_OK;
}

/* The MoE layer of block l where experts have copies, else NULL. */
static moe_layer *copies_of(const tsr_stage *stage, int64_t l)
{
    const tsr_model_config *config = stage->options.config;

    if (stage->spread == NULL || stage->spread->copies == NULL || l < 0 ||
        tsr_model_layer_is_dense(config, l)) {
        return NULL;
    }
    return (moe_layer *)stage->layers[2 * l + 1];
}

/* Before the attention of block l, under which its experts' copies come. */
static tsr_status begin_block(tsr_stage *stage, const tsr_pass *pass, int64_t l)
{
    moe_layer *moe = copies_of(stage, l);

    return moe != NULL ? moe_copies_prepare(moe, pass) : TSR_OK;
}

/* Before the gradient of that attention: copies' gradients leave, the next block's copies come. A
 * recomputed forward fetches them itself. */
static tsr_status leave_block(tsr_stage *stage, const tsr_pass *pass, int64_t l)
{
    moe_layer *moe = copies_of(stage, l), *next = copies_of(stage, l - 1);

    if (moe != NULL) {
        TSR_TRY(moe_copies_send_gradients(moe, pass));
    }
    return next != NULL && stage->options.recompute == TSR_RECOMPUTE_NONE
               ? moe_copies_prepare_backward(next, pass)
               : TSR_OK;
}

/* Copies' gradients are with their owners. */
static tsr_status end_backward(tsr_stage *stage)
{
    moe_layer *moe = copies_of(stage, stage->options.config->num_hidden_layers - 1);

    return moe != NULL ? moe_copies_gradients_sent(moe) : TSR_OK;
}

void tsr_stage_bias_gates(tsr_stage *stage, const float *bias)
{
    const tsr_stage_options *options = &stage->options;
    const int64_t layer_cells =
        options->micro_batch * options->seq_len * options->config->num_experts;

    for (int64_t l = options->config->first_k_dense_replace; l < options->config->num_hidden_layers;
         ++l) {
        moe_layer *moe = (moe_layer *)stage->layers[2 * l + 1];

        moe->gate_bias = bias != NULL ? bias + l * layer_cells : NULL;
    }
}

void tsr_stage_observe(tsr_stage *stage, const double *counts)
{
    if (stage->spread != NULL && stage->spread->copies != NULL && counts != NULL) {
        moe_copies_observe(stage->spread->copies, counts, stage->options.config->num_hidden_layers);
    }
}

tsr_status stage_forward(tsr_stage *stage, const tsr_pass *pass, stage_use use)
{
    TSR_TRY(tsr_embedding_forward(pass, stage->options.table, stage_at(stage, stage->plan.tokens),
                                  stage_hidden(stage, use, 0)));
    for (int64_t i = 0; i < 2 * stage->options.config->num_hidden_layers; ++i) {
        if (i % 2 == 0) {
            TSR_TRY(begin_block(stage, pass, i / 2));
        }
        TSR_TRY(forward_sublayer(stage, pass, use, i));
    }
    return TSR_OK;
}

/* The way back through one sublayer. With recomputation a block's activations are made again first:
 * its output is written over itself with equal bits. */
static tsr_status backward_sublayer(tsr_stage *stage, const tsr_pass *pass, int64_t i, float *dh)
{
    if (i % 2 == 0) {
        TSR_TRY(leave_block(stage, pass, i / 2));
    } else if (stage->options.recompute == TSR_RECOMPUTE_BLOCK) {
        TSR_TRY(begin_block(stage, pass, i / 2));
        TSR_TRY(forward_sublayer(stage, pass, STAGE_KEEP, i - 1));
        TSR_TRY(forward_sublayer(stage, pass, STAGE_KEEP, i));
    }
    return backward_layer(stage, pass, i, dh);
}

static tsr_status backward(tsr_stage *stage, const tsr_pass *pass, float *dh)
{
    const tsr_model_config *config = stage->options.config;

    for (int64_t i = 2 * config->num_hidden_layers - 1; i >= 0; --i) {
        TSR_TRY(backward_sublayer(stage, pass, i, dh));
    }
    TSR_TRY(end_backward(stage));
    /* With tied embeddings the head has begun the table's gradient. */
    return tsr_embedding_backward(pass, stage->options.table, stage_at(stage, stage->plan.tokens),
                                  dh, pass->accumulate || config->tie_word_embeddings);
}

/* Windows of seq_len + 1 tokens -> inputs and targets on the device. */
static tsr_status send_tokens(tsr_stage *stage, const tsr_pass *pass, const int32_t *tokens)
{
    const int64_t seq = pass->seq;
    const size_t bytes = (size_t)tsr_pass_tokens(pass) * sizeof(int32_t);

    TSR_TRY(stage_check_tokens(stage, tokens, pass->batch * (seq + 1)));
    for (int64_t b = 0; b < pass->batch; ++b) {
        for (int64_t s = 0; s < seq; ++s) {
            stage->tokens[b * seq + s] = tokens[b * (seq + 1) + s];
            stage->targets[b * seq + s] = tokens[b * (seq + 1) + s + 1];
        }
    }
    TSR_TRY(tsr_device_copy(pass->device, stage_at(stage, stage->plan.tokens), stage->tokens, bytes,
                            TSR_COPY_HOST_TO_DEVICE, pass->stream));
    return tsr_device_copy(pass->device, stage_at(stage, stage->plan.targets), stage->targets,
                           bytes, TSR_COPY_HOST_TO_DEVICE, pass->stream);
}

static tsr_status add_moe_sums(const tsr_stage *stage, const tsr_pass *pass, tsr_stage_sums *sums)
{
    const tsr_model_config *config = stage->options.config;
    const double share = 1.0 / (double)tsr_model_moe_layers(config);

    for (int64_t l = config->first_k_dense_replace; l < config->num_hidden_layers; ++l) {
        tsr_moe_stats stats = {0};

        TSR_TRY(tsr_moe_layer_stats(stage->layers[2 * l + 1], pass, &stats));
        sums->aux_loss += share * (config->router_aux_loss_coef * stats.balance_loss +
                                   config->router_z_loss_coef * stats.z_loss / (double)pass->seq);
        for (int64_t e = 0; sums->counts != NULL && e < config->num_experts; ++e) {
            sums->counts[l * config->num_experts + e] += (double)stats.counts[e];
        }
        if (sums->layers != NULL) {
            double *figures = sums->layers + l * TSR_LAYER_FIGURES;

            figures[TSR_LAYER_COMPUTED] += (double)stats.computed;
            figures[TSR_LAYER_COPIES] += (double)stats.copies;
            figures[TSR_LAYER_COPY_BYTES] += (double)stats.copy_bytes;
            figures[TSR_LAYER_EXPOSED_MS] += stats.exposed_ms;
        }
    }
    return TSR_OK;
}

/* Waits for the micro-batch and adds its figures. */
static tsr_status add_sums(tsr_stage *stage, const tsr_pass *pass, tsr_stage_sums *sums)
{
    const int64_t tokens = tsr_pass_tokens(pass);
    double *loss = stage_at(stage, stage->plan.loss);

    TSR_TRY(tsr_op_sum(pass->device, stage_at(stage, stage->plan.token_loss), tokens, loss,
                       pass->stream));
    TSR_TRY(tsr_device_copy(pass->device, stage->loss, loss, sizeof *loss, TSR_COPY_DEVICE_TO_HOST,
                            pass->stream));
    TSR_TRY(tsr_stream_wait(pass->stream));
    TSR_TRY(add_moe_sums(stage, pass, sums));
    sums->loss += *stage->loss;
    sums->tokens += tokens;
    sums->sequences += pass->batch;
    return TSR_OK;
}

/* Take part in the MoE layers' exchange: their experts may be needed by others. */
static tsr_status run_without_sequences(tsr_stage *stage, const tsr_pass *pass, stage_use use)
{
    const tsr_model_config *config = stage->options.config;
    const bool again = stage->options.recompute == TSR_RECOMPUTE_BLOCK;

    for (int64_t l = config->first_k_dense_replace; l < config->num_hidden_layers; ++l) {
        TSR_TRY(begin_block(stage, pass, l));
        TSR_TRY(forward_sublayer(stage, pass, use, 2 * l + 1));
    }
    for (int64_t l = config->num_hidden_layers - 1;
         use == STAGE_KEEP && l >= config->first_k_dense_replace; --l) {
        const int64_t i = 2 * l + 1;

        if (again) {
            TSR_TRY(begin_block(stage, pass, l));
            TSR_TRY(forward_sublayer(stage, pass, use, i));
        }
        TSR_TRY(backward_layer(stage, pass, i, stage_at(stage, stage->plan.dh)));
        TSR_TRY(leave_block(stage, pass, l));
    }
    if (use == STAGE_KEEP) {
        TSR_TRY(end_backward(stage));
    }
    return tsr_stream_wait(pass->stream);
}

static tsr_status run(tsr_stage *stage, const tsr_pass *pass, const int32_t *tokens, stage_use use,
                      tsr_stage_sums *sums)
{
    const bool may_be_empty = stage->spread != NULL && (use != STAGE_KEEP || pass->accumulate);
    float *dh = use == STAGE_KEEP ? stage_at(stage, stage->plan.dh) : NULL;
    const int64_t last = 2 * stage->options.config->num_hidden_layers;

    TSR_CHECK(pass->batch >= (may_be_empty ? 0 : 1) && pass->batch <= stage->options.micro_batch,
              TSR_ERR_ARG, "%lld sequences, the stage takes %d to %lld", (long long)pass->batch,
              may_be_empty ? 0 : 1, (long long)stage->options.micro_batch);
    if (pass->batch == 0) {
        TSR_TRY(run_without_sequences(stage, pass, use));
        return add_moe_sums(stage, pass, sums);
    }
    TSR_TRY(send_tokens(stage, pass, tokens));
    TSR_TRY(stage_forward(stage, pass, use));
    TSR_TRY(tsr_head_loss(stage->head, pass, stage_hidden(stage, use, last),
                          stage_at(stage, stage->plan.targets), stage_at(stage, stage->plan.work),
                          stage_at(stage, stage->plan.token_loss), dh));
    if (dh != NULL) {
        TSR_TRY(backward(stage, pass, dh));
    }
    return add_sums(stage, pass, sums);
}

tsr_status tsr_stage_train(tsr_stage *stage, const int32_t *tokens, int64_t batch, bool accumulate,
                           float loss_scale, float sequence_scale, tsr_stage_sums *sums)
{
    tsr_pass pass = stage_pass(stage, batch, stage->options.seq_len);

    TSR_CHECK(stage->options.train, TSR_ERR_STATE, "this stage was made without backward");
    pass.accumulate = accumulate;
    pass.loss_scale = loss_scale;
    pass.sequence_scale = sequence_scale;
    return run(stage, &pass, tokens, STAGE_KEEP, sums);
}

tsr_status tsr_stage_evaluate(tsr_stage *stage, const int32_t *tokens, int64_t batch,
                              tsr_stage_sums *sums)
{
    const tsr_pass pass = stage_pass(stage, batch, stage->options.seq_len);

    return run(stage, &pass, tokens, STAGE_DISCARD, sums);
}
