/* Loss and every gradient of whole models against PyTorch; make_golden.py tells the file's format.
 */
#include "tests/support/unit_test.h"

#include "parallel/parallel.h"
#include "tests/layers/rig.h"

#include <math.h>
#include <string.h>

typedef struct entry_head {
    char name[96];
    int32_t kind, zero;
    int64_t count;
} entry_head;
_Static_assert(sizeof(entry_head) == 112, "as packed by make_golden.py");

typedef struct golden {
    char *bytes;
    size_t length;
} golden;

static const char *folder;

static void golden_open(golden *g, const char *name)
{
    char path[TSR_TEXT_MAX];
    void *block = NULL;

    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    g->length = (size_t)ftell(file);
    assert_int_equal(fseek(file, 0, SEEK_SET), 0);
    assert_ok(tsr_mem_alloc(TSR_MEM_OTHER, g->length, &block));
    g->bytes = block;
    assert_int_equal(fread(g->bytes, 1, g->length, file), g->length);
    assert_int_equal(fclose(file), 0);
}

/* Data of an entry; fails the test when it is missing or of another length. */
static const void *golden_find(const golden *g, const char *prefix, const char *name, int32_t kind,
                               int64_t count)
{
    char full[sizeof(((entry_head *)0)->name)];

    (void)snprintf(full, sizeof full, "%.8s%s%.80s", prefix, prefix[0] == '\0' ? "" : "/", name);
    for (size_t at = 0; at + sizeof(entry_head) <= g->length;) {
        entry_head head;

        memcpy(&head, g->bytes + at, sizeof head);
        at += sizeof head;
        if (strncmp(head.name, full, sizeof full) == 0) {
            assert_int_equal(head.kind, kind);
            assert_int_equal(head.count, count);
            return g->bytes + at;
        }
        at += (size_t)head.count * (head.kind == 2 ? 8 : 4);
    }
    fail_msg("no entry %s", full);
    return NULL;
}

static void load_weights(rig *r, const golden *g)
{
    for (int p = 0; p < r->table.count; ++p) {
        const tsr_param *param = &r->table.params[p];
        const int64_t count = param->rows * param->width;

        rig_set(r, p, 0, count, golden_find(g, "weight", param->name, 0, count));
    }
}

/* Train one batch of 3 sequences and compare. */
static void compare(const char *file, const char *device, const tsr_model_config *config,
                    int64_t seq, double tolerance)
{
    golden g = {0};
    rig r = {0};
    tsr_stage *stage = NULL;
    tsr_stage_sums sums = {0};
    double loss = 0.0, aux = 0.0;

    golden_open(&g, file);
    assert_ok(rig_open(&r, device, config, TSR_F32));
    load_weights(&r, &g);
    if (config->router_bias_update_rate > 0.0) {
        const int64_t count = config->num_hidden_layers * config->num_experts;

        memcpy(r.weights.router_bias, golden_find(&g, "", "router_bias", 0, count),
               (size_t)count * sizeof(float));
    }
    const tsr_stage_options options = {.config = &r.config,
                                       .table = &r.table,
                                       .device = r.device,
                                       .micro_batch = 3,
                                       .seq_len = seq,
                                       .train = true};
    assert_ok(tsr_stage_create(&options, &r.weights, &stage));
    assert_ok(tsr_stage_train(stage, golden_find(&g, "", "tokens", 1, 3 * (seq + 1)), 3, false,
                              1.0f / (float)(3 * seq), 1.0f / 3.0f, &sums));
    memcpy(&loss, golden_find(&g, "", "loss", 2, 1), sizeof loss);
    memcpy(&aux, golden_find(&g, "", "aux_loss", 2, 1), sizeof aux);
    assert_true(fabs(sums.loss / (double)sums.tokens - loss) <= tolerance * loss);
    assert_true(fabs(sums.aux_loss / (double)sums.sequences - aux) <= tolerance * aux);
    for (int p = 0; p < r.table.count; ++p) {
        const tsr_param *param = &r.table.params[p];
        const int64_t count = param->rows * param->width;
        const double off =
            rig_difference(tsr_weights_gradient(&r.weights, p),
                           golden_find(&g, "gradient", param->name, 0, count), count);

        if (!(off <= tolerance)) {
            fail_msg("%s on %s: gradient of %s is off by %g of its largest element", file, device,
                     param->name, off);
        }
    }
    tsr_stage_destroy(&stage);
    rig_close(&r);
    tsr_mem_free(g.bytes);
}

/* A gradient passes at most n products forward and back, with inner lengths of about 36 on average;
 * each adds sqrt(36) roundings of 2^-24, and both sides have their own. 12 products a layer. */
static double rounding(int64_t layers)
{
    return 2.0 * (double)(12 * layers + 4) * 6.0 * 0x1p-24;
}

static tsr_model_config mixtral_config(void)
{
    tsr_model_config c = rig_config();

    c.vocab_size = 48;
    c.hidden_size = 24;
    c.head_dim = 8;
    c.moe_intermediate_size = 16;
    return c;
}

static tsr_model_config options_config(void)
{
    tsr_model_config c = rig_config();

    c.num_hidden_layers = 3;
    c.num_key_value_heads = 1;
    c.num_experts = 6;
    c.n_group = 3;
    c.topk_group = 2;
    c.n_shared_experts = 2;
    c.first_k_dense_replace = 1;
    c.tie_word_embeddings = true;
    c.scoring_func = TSR_GATE_SIGMOID;
    c.routed_scaling_factor = 1.5;
    c.router_aux_loss_coef = 0.05;
    c.router_z_loss_coef = 0.01;
    c.router_bias_update_rate = 0.001;
    return c;
}

static void mixtral_of_hugging_face(void **state)
{
    const tsr_model_config c = mixtral_config();

    compare("mixtral.bin", *state, &c, 12, rounding(2));
}

static void all_options_together(void **state)
{
    const tsr_model_config c = options_config();

    compare("options.bin", *state, &c, 11, rounding(3));
}

int main(int argc, char **argv)
{
    static char plain[] = "cpu:plain", best[] = "cpu";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(mixtral_of_hugging_face, plain),
        cmocka_unit_test_prestate(mixtral_of_hugging_face, best),
        cmocka_unit_test_prestate(all_options_together, plain),
        cmocka_unit_test_prestate(all_options_together, best),
    };

    if (argc != 2) {
        (void)fprintf(stderr, "usage: %s FOLDER_OF_GOLDEN_FILES\n", argv[0]);
        return 2;
    }
    folder = argv[1];
    return tsr_unit_test_main("parallel.golden", tests, sizeof tests / sizeof tests[0]);
}
