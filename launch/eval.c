/* `tessera eval`: the loss of a checkpoint on a file, as contract and Hugging Face define it. */
#include "launch/cli.h"
#include "launch/figure.h"
#include "launch/inference.h"

#include <jansson.h>

enum { EVAL_BATCH = 8 };

static const cli_option eval_options[] = {
    {"data", "FILE", "text file, or prefix of a .bin/.idx pair; needed"},
    {"max-tokens", "N", "keep the first N / seq_len windows (0: all)"},
    {"precision", "f32|bf16", "compute type; the checkpoint's own by default"},
    {"device", "auto|cpu|cuda", "where to compute (auto)"},
    {"json", NULL, "print nothing but the JSON object on stdout"},
    {NULL, NULL, NULL},
};

static tsr_status evaluate_windows(inference *in, const tsr_data *data, int64_t begin, int64_t end,
                                   tsr_stage_sums *sums)
{
    const int64_t row = in->s.data.seq_len + 1;
    int32_t *tokens = NULL;
    tsr_status st =
        tsr_mem_alloc_array(TSR_MEM_DATA, EVAL_BATCH * row, sizeof *tokens, (void **)&tokens);

    for (int64_t i = begin; st == TSR_OK && i < end; i += EVAL_BATCH) {
        const int64_t batch = end - i < EVAL_BATCH ? end - i : EVAL_BATCH;

        for (int64_t j = 0; st == TSR_OK && j < batch; ++j) {
            st = tsr_data_window(data, i + j, tokens + j * row);
        }
        if (st == TSR_OK) {
            st = tsr_stage_evaluate(in->stage, tokens, batch, sums);
        }
    }
    tsr_mem_free(tokens);
    return st;
}

static tsr_status evaluate(inference *in, world *w, const char *file, int64_t max_tokens,
                           double totals[2])
{
    const int64_t seq = in->s.data.seq_len;
    tsr_data *data = NULL;
    tsr_stage_sums sums = {0};
    int64_t begin = 0, end = 0;

    tsr_status st = tsr_data_open(file, seq, in->s.model.vocab_size, &data);
    if (st == TSR_OK) {
        int64_t windows = tsr_data_windows(data);
        if (max_tokens > 0 && windows > max_tokens / seq) {
            windows = max_tokens >= seq ? max_tokens / seq : 1;
        }
        tsr_batch_share(windows, tsr_comm_size(w->comm), tsr_comm_rank(w->comm), &begin, &end);
        st = evaluate_windows(in, data, begin, end, &sums);
    }
    tsr_data_close(&data);
    TSR_TRY(tsr_comm_agree(w->comm, st));
    totals[0] = sums.loss;
    totals[1] = (double)sums.tokens;
    return tsr_comm_all_reduce_f64(w->comm, totals, 2, TSR_REDUCE_SUM);
}

static void print_result(const inference *in, const world *w, const double totals[2])
{
    const double loss = totals[0] / totals[1];
    json_t *object = json_pack("{s:o,s:I,s:s,s:I,s:s}", "loss", figure_json(loss), "tokens",
                               (json_int_t)totals[1], "checkpoint", in->info.path, "step",
                               (json_int_t)in->info.step, "precision", tsr_dtype_name(in->dtype));

    tsr_log(TSR_LOG_INFO, "loss %.6f nats/token over %.0f tokens, %s, step %lld", loss, totals[1],
            tsr_dtype_name(in->dtype), (long long)in->info.step);
    if (tsr_comm_rank(w->comm) == 0 && (w->json || w->people != stdout)) {
        (void)json_dumpf(object, stdout, JSON_REAL_PRECISION(12));
        (void)fputc('\n', stdout);
    }
    json_decref(object);
}

static int run_eval(const cli_values *values, world *w)
{
    static inference in; /* large: the settings hold texts */
    const char *file = cli_get(&cli_eval, values, "data");
    int64_t max_tokens = 0;
    double totals[2] = {0.0, 0.0};

    tsr_status st = file != NULL ? TSR_OK : TSR_FAIL(TSR_ERR_ARG, "eval: --data FILE is needed");
    if (st == TSR_OK) {
        st = cli_get_int(&cli_eval, values, "max-tokens", 0, INT64_MAX, 0, &max_tokens);
    }
    if (st == TSR_OK) {
        st = inference_open(&in, w, values->positional[0], cli_get(&cli_eval, values, "precision"),
                            cli_get(&cli_eval, values, "device"), EVAL_BATCH);
    }
    if (st == TSR_OK) {
        st = evaluate(&in, w, file, max_tokens, totals);
    }
    if (st == TSR_OK) {
        print_result(&in, w, totals);
    }
    inference_close(&in);
    return st == TSR_OK ? EXIT_DONE : world_fail(w, st);
}

const cli_command cli_eval = {
    .name = "eval",
    .arguments = "CHECKPOINT --data FILE [--max-tokens N] [--precision f32|bf16]",
    .summary = "Loss of a checkpoint on a text, in nats per token.",
    .details =
        "CHECKPOINT is a run folder (its newest valid checkpoint) or one checkpoint's folder.\n",
    .min_positional = 1,
    .max_positional = 1,
    .options = eval_options,
    .run = run_eval,
    .needs_ranks = true,
};
