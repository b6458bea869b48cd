/* `tessera generate`: text that a checkpoint's model writes. */
#include "launch/cli.h"
#include "launch/inference.h"
#include "launch/sampling.h"

#include <jansson.h>
#include <string.h>

static const cli_option generate_options[] = {
    {"prompt", "TEXT", "what the text begins with; needed"},
    {"max-new", "N", "tokens to write (200)"},
    {"temperature", "T", "0 takes the likeliest token each time (0.8)"},
    {"top-p", "P", "sample from the likeliest tokens that hold this share (0.95)"},
    {"seed", "S", "of the random choices (1)"},
    {"precision", "f32|bf16", "compute type; the checkpoint's own by default"},
    {"device", "auto|cpu|cuda", "where to compute (auto)"},
    {"json", NULL, "print one JSON object on stdout instead of the text"},
    {NULL, NULL, NULL},
};

typedef struct generation {
    int64_t max_new;
    sampling how;
    const char *prompt;
    size_t prompt_length;
    unsigned char *text; /* [max_new] bytes written */
} generation;

static tsr_status write_text(inference *in, generation *g, FILE *stream)
{
    const int64_t vocab = in->s.model.vocab_size, prompt = (int64_t)g->prompt_length;
    tsr_kv_cache cache = {0};
    float *logits = NULL;
    int32_t *tokens = NULL, *order = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, vocab, sizeof *logits, (void **)&logits), done);
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, vocab, sizeof *order, (void **)&order), done);
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_DATA, prompt, sizeof *tokens, (void **)&tokens), done);
    TSR_TRY_GOTO(tsr_stage_cache_create(in->stage, prompt + g->max_new, &cache), done);
    for (int64_t i = 0; i < prompt; ++i) {
        tokens[i] = (unsigned char)g->prompt[i];
    }
    for (int64_t at = 0; at < prompt;) { /* a forward takes seq_len tokens at most */
        const int64_t left = prompt - at, seq = in->s.data.seq_len;
        const int64_t count = left < seq ? left : seq;

        TSR_TRY_GOTO(tsr_stage_next_logits(in->stage, &cache, tokens + at, count, logits), done);
        at += count;
    }
    for (int64_t i = 0; i < g->max_new; ++i) {
        const int64_t usable = vocab < 256 ? vocab : 256;
        const int32_t token = sampling_choose(&g->how, logits, usable, i, order);

        g->text[i] = (unsigned char)token;
        if (stream != NULL) {
            (void)fputc(token, stream);
            (void)fflush(stream);
        }
        if (i + 1 < g->max_new) {
            TSR_TRY_GOTO(tsr_stage_next_logits(in->stage, &cache, &token, 1, logits), done);
        }
    }
done:
    tsr_stage_cache_destroy(in->stage, &cache);
    tsr_mem_free(tokens);
    tsr_mem_free(order);
    tsr_mem_free(logits);
    return st;
}

/* JSON is UTF-8: bytes that are not are shown as '?'. */
static void print_json(const generation *g, const inference *in)
{
    json_t *text = json_stringn((const char *)g->text, (size_t)g->max_new);

    if (text == NULL) {
        for (int64_t i = 0; i < g->max_new; ++i) {
            g->text[i] = g->text[i] < 0x80 ? g->text[i] : '?';
        }
        text = json_stringn((const char *)g->text, (size_t)g->max_new);
    }
    json_t *object = json_pack("{s:s,s:o,s:I,s:s,s:I}", "prompt", g->prompt, "text", text, "tokens",
                               (json_int_t)g->max_new, "checkpoint", in->info.path, "step",
                               (json_int_t)in->info.step);
    (void)json_dumpf(object, stdout, 0);
    (void)fputc('\n', stdout);
    json_decref(object);
}

static tsr_status read_options(const cli_values *values, generation *g)
{
    int64_t seed = 1;

    g->prompt = cli_get(&cli_generate, values, "prompt");
    TSR_CHECK(g->prompt != NULL && g->prompt[0] != '\0', TSR_ERR_ARG,
              "generate: --prompt TEXT is needed, one character at least");
    g->prompt_length = strlen(g->prompt);
    TSR_TRY(cli_get_int(&cli_generate, values, "max-new", 1, 1000000, 200, &g->max_new));
    TSR_TRY(
        cli_get_real(&cli_generate, values, "temperature", 0.0, 100.0, 0.8, &g->how.temperature));
    TSR_TRY(cli_get_real(&cli_generate, values, "top-p", 1e-6, 1.0, 0.95, &g->how.top_p));
    TSR_TRY(cli_get_int(&cli_generate, values, "seed", 0, INT64_MAX, 1, &seed));
    g->how.key = tsr_rng_key((uint64_t)seed, "generate");
    return TSR_OK;
}

static int run_generate(const cli_values *values, world *w)
{
    static inference in; /* large: the settings hold texts */
    generation g = {0};

    tsr_status st = read_options(values, &g);
    if (st == TSR_OK) {
        st = inference_open(&in, w, values->positional[0],
                            cli_get(&cli_generate, values, "precision"),
                            cli_get(&cli_generate, values, "device"), 1);
    }
    if (st == TSR_OK) {
        st = tsr_mem_alloc_array(TSR_MEM_OTHER, g.max_new, 1, (void **)&g.text);
    }
    if (st == TSR_OK) {
        if (!w->json) {
            (void)fputs(g.prompt, stdout);
        }
        st = write_text(&in, &g, w->json ? NULL : stdout);
    }
    if (st == TSR_OK) {
        if (w->json) {
            print_json(&g, &in);
        } else {
            (void)fputc('\n', stdout);
        }
    }
    tsr_mem_free(g.text);
    inference_close(&in);
    return st == TSR_OK ? EXIT_DONE : world_fail(w, st);
}

const cli_command cli_generate = {
    .name = "generate",
    .arguments = "CHECKPOINT --prompt TEXT [--max-new N] [--temperature T] [--top-p P] [--seed S]",
    .summary = "Write text with a checkpoint's model.",
    .details =
        "CHECKPOINT is a run folder (its newest valid checkpoint) or one checkpoint's folder.\n",
    .min_positional = 1,
    .max_positional = 1,
    .options = generate_options,
    .run = run_generate,
    .needs_ranks = false,
};
