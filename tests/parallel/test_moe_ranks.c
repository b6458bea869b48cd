/* Stages whose experts are spread over ranks: loss, counts and the gradient of every parameter are
 * those of one rank that has all experts and runs all sequences. */
#include "tests/support/mpi_test.h"

#include "collectives/mpi_bridge.h"
#include "tests/parallel/stage_rig.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    SEQUENCES = 5, /* of 11 tokens; on most worlds some rank has one pass fewer, or none at all */
    TOKENS = SEQUENCES * STAGE_SEQ,
    WINDOWS = SEQUENCES * (STAGE_SEQ + 1),
    CELLS = 4 * 8,      /* [L,E] at most */
    GRADIENTS = 1 << 15 /* elements of a whole model at most */
};

/* Where the experts are, and which model it is. */
typedef struct scene {
    int ep;
    int nodes; /* over which the ranks are believed to be dealt in turn; 0: as they are */
    tsr_dispatch_choice dispatch;
    tsr_dtype dtype;
    tsr_recompute recompute;
    int64_t chunks; /* 0: one */
    float bias;     /* that the choice of expert 1 has */
    tsr_model_config config;
} scene;

static int32_t tokens[WINDOWS];
static stage_rig one; /* the rank that has all experts */

/* This rank's share. */
static tsr_comm *world;
static tsr_mesh mesh;
static rig share;
static int32_t owner[CELLS];
static tsr_stage *stage;
static tsr_stage_sums sums, evaluated;
static double counts[CELLS], layers[4 * TSR_LAYER_FIGURES];

static float mine[GRADIENTS], before[GRADIENTS], all[TSR_TEST_MAX_RANKS * GRADIENTS];

static bool ok_or_say(tsr_status st)
{
    if (st != TSR_OK) {
        (void)fprintf(stderr, "%s\n", tsr_error_message());
    }
    return st == TSR_OK;
}

static scene scene_of(int ep, tsr_dtype dtype)
{
    scene how = {.ep = ep, .dtype = dtype, .config = stage_rig_config()};

    how.config.num_experts = 6; /* on 4 ranks: 2, 2, 1, 1 */
    return how;
}

/* ---- one rank that has all, and this one ----------------------------------------------------- */

/* One thread: worlds of several ranks have few cores. */
static tsr_status open_device(const scene *how, rig *r)
{
    r->config = how->config;
    r->dtype = how->dtype;
    return tsr_device_open("cpu", 1, &r->device);
}

static tsr_status open_one(const scene *how)
{
    TSR_TRY(open_device(how, &one.base));
    TSR_TRY(tsr_param_table_create(&one.base.config, &one.base.table));
    TSR_TRY(tsr_weights_create(&one.base.config, &one.base.table, one.base.device, how->dtype, true,
                               &one.base.weights));
    rig_fill(&one.base, 1);
    rig_tokens(&one.base, 9, WINDOWS, tokens);
    for (int64_t l = 0; l < how->config.num_hidden_layers; ++l) {
        one.base.weights.router_bias[l * how->config.num_experts + 1] = how->bias;
    }
    const tsr_stage_options options = stage_rig_options(&one.base, SEQUENCES);
    TSR_TRY(tsr_stage_create(&options, &one.base.weights, &one.stage));
    one.sums.counts = one.counts;
    return tsr_stage_train(one.stage, tokens, SEQUENCES, false, 1.0f / TOKENS, 1.0f / SEQUENCES,
                           &one.sums);
}

static tsr_status open_world(const scene *how)
{
    const tsr_parallel_config config = {.ep = how->ep};
    tsr_comm *comm = tsr_test_comm();
    tsr_seat seats[TSR_TEST_MAX_RANKS] = {0};

    TSR_TRY(tsr_comm_split(comm, 0, tsr_comm_rank(comm), &world));
    for (int r = 0; how->nodes > 0 && r < tsr_comm_size(comm); ++r) {
        seats[r] = (tsr_seat){.node = r % how->nodes, .plane = r / how->nodes};
    }
    if (how->nodes > 0) {
        tsr_comm_set_seats(world, seats);
    }
    return tsr_mesh_create(&config, world, &mesh);
}

/* The same values as those of the rank that has all. */
static void copy_weights(void)
{
    for (int p = 0; p < share.table.count; ++p) {
        const tsr_param *param = &share.table.params[p];

        for (int64_t row = 0; row < param->rows; ++row) {
            const int64_t whole = tsr_param_global_row(param, row);

            for (int64_t i = 0; i < param->width; ++i) {
                const float value = rig_get(&one.base, p, whole * param->width + i);
                rig_set(&share, p, row * param->width + i, 1, &value);
            }
        }
    }
    memcpy(share.weights.router_bias, one.base.weights.router_bias,
           (size_t)(share.weights.layers * share.weights.experts) * sizeof(float));
}

static tsr_status open_share(const scene *how)
{
    tsr_expert_owners_even(how->config.num_hidden_layers, (int)how->config.num_experts, how->ep,
                           owner);
    TSR_TRY(open_device(how, &share));
    TSR_TRY(tsr_param_table_share(&one.base.table, owner, mesh.ep_rank, &share.table));
    TSR_TRY(tsr_weights_create(&share.config, &share.table, share.device, how->dtype, true,
                               &share.weights));
    copy_weights();
    tsr_stage_options options = stage_rig_options(&share, 1);
    options.recompute = how->recompute;
    options.expert_ranks = how->ep;
    options.experts = &mesh.expert;
    options.owner = owner;
    options.dispatch = how->dispatch;
    options.dispatch_chunks = how->chunks;
    return tsr_stage_create(&options, &share.weights, &stage);
}

static tsr_status open_scene(const scene *how)
{
    TSR_TRY(open_one(how));
    TSR_TRY(open_world(how));
    return open_share(how);
}

static void close_scene(void)
{
    tsr_stage_destroy(&stage);
    rig_close(&share);
    tsr_mesh_destroy(&mesh);
    tsr_comm_destroy(&world);
    stage_rig_close(&one);
    memset(&one, 0, sizeof one);
    memset(&share, 0, sizeof share);
}

/* ---- a step ---------------------------------------------------------------------------------- */

/* This rank's sequences one by one, trained on and evaluated; where experts are spread, as many
 * passes as any rank makes. */
static tsr_status run_step(void)
{
    const int ranks = tsr_comm_size(world);
    const int position = mesh.dp_rank * mesh.ep + mesh.ep_rank;
    int64_t begin = 0, end = 0;

    tsr_batch_share(SEQUENCES, ranks, position, &begin, &end);
    for (int g = 0; g < TSR_GROUPS; ++g) { /* a rank without sequences only ever adds to them */
        memset(share.weights.gradient[g], begin == end ? 0 : 0x7f,
               (size_t)share.table.group_elements[g] * sizeof(float));
    }
    memset(counts, 0, sizeof counts);
    memset(layers, 0, sizeof layers);
    sums = (tsr_stage_sums){.counts = counts, .layers = layers};
    evaluated = (tsr_stage_sums){0};
    const int64_t passes = mesh.ep == 1 ? end - begin : (SEQUENCES + ranks - 1) / ranks;
    for (int64_t pass = 0; pass < passes; ++pass) {
        const int64_t batch = begin + pass < end ? 1 : 0;
        const int32_t *window = tokens + (batch == 1 ? begin + pass : 0) * (STAGE_SEQ + 1);

        TSR_TRY(tsr_stage_train(stage, window, batch, pass > 0 || begin == end, 1.0f / TOKENS,
                                1.0f / SEQUENCES, &sums));
        TSR_TRY(tsr_stage_evaluate(stage, window, batch, &evaluated));
    }
    return TSR_OK;
}

/* This rank's gradients where the whole model has them, zeros elsewhere. Returns their number. */
static int64_t list_gradients(float *out)
{
    int64_t at = 0;

    memset(out, 0, sizeof mine);
    for (int p = 0; p < share.table.count; ++p) {
        const tsr_param *param = &share.table.params[p], *whole = &one.base.table.params[p];

        for (int64_t row = 0; row < param->rows && at + whole->rows * whole->width <= GRADIENTS;
             ++row) {
            memcpy(out + at + tsr_param_global_row(param, row) * param->width,
                   tsr_weights_gradient(&share.weights, p) + row * param->width,
                   (size_t)param->width * sizeof *out);
        }
        at += whole->rows * whole->width;
    }
    return at;
}

/* Into out [count]: the sum of all ranks' lists. Each expert is in the lists of its replicas. */
static tsr_status sum_gradients(int64_t count, float *out)
{
    TSR_CHECK(count <= GRADIENTS, TSR_ERR_RANGE, "%lld elements, at most %d", (long long)count,
              GRADIENTS);
    TSR_TRY(tsr_comm_all_gather(world, mine, (size_t)count * sizeof *mine, all));
    for (int64_t i = 0; i < count; ++i) {
        double sum = 0.0;

        for (int r = 0; r < tsr_comm_size(world); ++r) {
            sum += (double)all[r * count + i];
        }
        out[i] = (float)sum;
    }
    return TSR_OK;
}

/* ---- what must be equal ---------------------------------------------------------------------- */

/* f32: 12 products a layer and 3 layers, 4 beside them, each sum over 55 tokens at most, so off by
 * sqrt(55) roundings of 2^-24; both sides have their own, as in test_stage.c.
 * bf16: 40 roundings of 2^-9 on the way, as derived there, which the other order of f32 sums may
 * turn; and where rows come home, one a hop, so two, out and back, in two layers: 8 more. */
static double tolerance_of(tsr_dtype dtype)
{
    return dtype == TSR_F32 ? 2.0 * (12.0 * 3.0 + 4.0) * sqrt(55.0) * 0x1p-24
                            : 2.0 * sqrt(48.0) * 0x1p-9;
}

static double norm_of_difference(const float *a, const float *b, int64_t count)
{
    double difference = 0.0, squares = 0.0;

    for (int64_t i = 0; i < count; ++i) {
        const double d = (double)a[i] - (double)b[i];

        difference += d * d;
        squares += (double)b[i] * (double)b[i];
    }
    return difference == 0.0 ? 0.0 : sqrt(difference / squares);
}

static bool gradients_agree(tsr_dtype dtype)
{
    static float sum[GRADIENTS];
    const int64_t count = list_gradients(mine);
    int64_t at = 0;
    bool ok = ok_or_say(sum_gradients(count, sum));

    for (int p = 0; ok && p < one.base.table.count; ++p) {
        const tsr_param *param = &one.base.table.params[p];
        const int64_t elements = param->rows * param->width;
        const float *want = tsr_weights_gradient(&one.base.weights, p);
        const double off = dtype == TSR_F32 ? rig_difference(sum + at, want, elements)
                                            : norm_of_difference(sum + at, want, elements);

        at += elements;
        if (!(off <= tolerance_of(dtype))) {
            (void)fprintf(stderr, "gradient of %s is off by %g\n", param->name, off);
            ok = false;
        }
    }
    return ok;
}

static bool is_close(double value, double want, tsr_dtype dtype)
{
    return fabs(value / want - 1.0) <= tolerance_of(dtype);
}

/* All ranks' figures together. */
static bool sums_agree(const scene *how)
{
    const int64_t cells = how->config.num_hidden_layers * how->config.num_experts;
    double totals[CELLS + 5] = {sums.loss, sums.aux_loss, evaluated.loss, (double)sums.tokens};

    for (int64_t l = 0; l < how->config.num_hidden_layers; ++l) {
        totals[4] += layers[l * TSR_LAYER_FIGURES + TSR_LAYER_COMPUTED];
    }
    memcpy(totals + 5, counts, (size_t)cells * sizeof *counts);
    if (!ok_or_say(tsr_comm_all_reduce_f64(world, totals, CELLS + 5, TSR_REDUCE_SUM))) {
        return false;
    }
    /* with bf16 the seed is one where rounding does not change which experts are chosen */
    return is_close(totals[0], one.sums.loss, how->dtype) &&
           is_close(totals[1], one.sums.aux_loss, how->dtype) &&
           is_close(totals[2], one.sums.loss, how->dtype) && totals[3] == TOKENS &&
           totals[4] == (double)(TOKENS * how->config.num_experts_per_tok *
                                 tsr_model_moe_layers(&how->config)) &&
           memcmp(totals + 5, one.counts, (size_t)cells * sizeof *counts) == 0;
}

/* Once more: no bit differs, and no memory is taken. */
static bool repeats(void)
{
    const double loss = sums.loss;
    const int64_t calls = tsr_mem_alloc_calls();

    (void)list_gradients(before);
    const bool ok = ok_or_say(run_step()) && tsr_mem_alloc_calls() == calls && sums.loss == loss;
    (void)list_gradients(mine);
    return ok && memcmp(mine, before, sizeof mine) == 0;
}

static void check_scene(scene how)
{
    tsr_comm *comm = tsr_test_comm();

    assert_all_ranks(comm, ok_or_say(open_scene(&how)) && ok_or_say(run_step()));
    const bool sums_ok = sums_agree(&how), gradients_ok = gradients_agree(how.dtype);
    const bool again_ok = repeats();
    close_scene();
    assert_all_ranks(comm, sums_ok);
    assert_all_ranks(comm, gradients_ok);
    assert_all_ranks(comm, again_ok);
}

/* With ep = 1 as well: then a stage is what it always was. Worlds beyond 4 are there for nodes. */
static void check_every_mesh(scene how)
{
    const int ranks = tsr_comm_size(tsr_test_comm());

    for (how.ep = 1; how.ep <= ranks; ++how.ep) {
        if (ranks % how.ep == 0 && (ranks <= 4 || how.ep == 3)) {
            check_scene(how);
        }
    }
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void every_mesh_computes_what_one_rank_does(void **state)
{
    (void)state;
    check_every_mesh(scene_of(1, TSR_F32));
    check_every_mesh(scene_of(1, TSR_BF16));
}

static void recomputation_takes_part_in_every_exchange(void **state)
{
    scene how = scene_of(1, TSR_F32);

    (void)state;
    how.recompute = TSR_RECOMPUTE_BLOCK;
    check_every_mesh(how);
}

static void softmax_gates_and_whole_layers_agree(void **state)
{
    scene how = scene_of(1, TSR_F32);

    (void)state;
    how.config.scoring_func = TSR_GATE_SOFTMAX;
    how.config.router_bias_update_rate = 0.0;
    how.config.n_shared_experts = 0;
    how.config.first_k_dense_replace = 0;
    check_every_mesh(how);
}

/* On 4 ranks one has no expert; and each token goes to all. */
static void fewer_experts_than_ranks_agree(void **state)
{
    scene how = scene_of(1, TSR_F32);

    (void)state;
    how.config.num_experts = how.config.num_experts_per_tok = 3;
    check_every_mesh(how);
}

/* All but one have no token. */
static void all_tokens_to_one_expert_agree(void **state)
{
    scene how = scene_of(1, TSR_F32);
    bool ok = true;

    (void)state;
    how.config.num_experts_per_tok = 1;
    how.config.norm_topk_prob = false; /* else the one weight is 1, and the gate learns nothing */
    how.bias = 10.0f;
    ok = ok_or_say(open_one(&how));
    for (int64_t l = 1; l < how.config.num_hidden_layers; ++l) {
        ok = ok && one.counts[l * how.config.num_experts + 1] == TOKENS;
    }
    stage_rig_close(&one);
    memset(&one, 0, sizeof one);
    assert_all_ranks(tsr_test_comm(), ok);
    check_every_mesh(how);
}

/* Expert groups over several nodes of several ranks each, two stages and flat, f32 and bf16; the
 * chunks of one and of the other. */
static void check_every_way(const int64_t chunks[2])
{
    const int ranks = tsr_comm_size(tsr_test_comm());

    for (int nodes = 2; nodes <= ranks / 2; ++nodes) {
        for (int kind = 0; kind < 4 && ranks % nodes == 0; ++kind) {
            scene how = scene_of(ranks, kind % 2 == 0 ? TSR_F32 : TSR_BF16);

            how.nodes = nodes;
            how.dispatch = kind / 2 == 0 ? TSR_DISPATCH_TWO_STAGE : TSR_DISPATCH_FLAT;
            how.chunks = chunks[kind % 2];
            check_scene(how);
        }
    }
}

static void nodes_change_the_way_and_not_the_result(void **state)
{
    (void)state;
    check_every_way((const int64_t[]){1, 1});
}

/* A pass has 11 tokens, or none: no number of chunks divides them, and 16 leave some empty. */
static void chunks_change_nothing_but_rounding(void **state)
{
    const int64_t chunks[] = {2, 3, 16};
    scene how = scene_of(1, TSR_F32);

    (void)state;
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; ++i) {
        how.chunks = chunks[i];
        how.dtype = i == 1 ? TSR_BF16 : TSR_F32;
        how.recompute = i == 0 ? TSR_RECOMPUTE_BLOCK : TSR_RECOMPUTE_NONE;
        check_every_mesh(how);
    }
    how.config.num_experts = how.config.num_experts_per_tok = 3; /* on 4 ranks one has none */
    check_every_mesh(how);
}

static void chunks_travel_any_way(void **state)
{
    (void)state;
    check_every_way((const int64_t[]){2, 3});
}

static void mistakes_are_named(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    scene how = scene_of(tsr_comm_size(comm), TSR_F32);

    (void)state;
    if (how.ep == 1) {
        return;
    }
    how.dispatch = TSR_DISPATCH_TWO_STAGE; /* on one node */
    const bool is_refused = open_scene(&how) == TSR_ERR_ARG && stage == NULL &&
                            strstr(tsr_error_message(), "parallel.dispatch = two_stage") != NULL;
    close_scene();
    assert_all_ranks(comm, is_refused);
    how.dispatch = TSR_DISPATCH_FLAT;
    how.chunks = TSR_DISPATCH_CHUNKS_MAX + 1;
    const bool is_bounded = open_scene(&how) == TSR_ERR_ARG && stage == NULL &&
                            strstr(tsr_error_message(), "dispatch_chunks = 17, at most 16") != NULL;
    close_scene();
    assert_all_ranks(comm, is_bounded);
    how.chunks = 2;
    assert_all_ranks(comm, ok_or_say(open_scene(&how)));
    /* without sequences there is nothing to begin gradients with */
    const bool is_told =
        tsr_stage_train(stage, tokens, 0, false, 1.0f, 1.0f, &sums) == TSR_ERR_ARG &&
        strstr(tsr_error_message(), "0 sequences") != NULL;
    close_scene();
    assert_all_ranks(comm, is_told);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_mesh_computes_what_one_rank_does),
        cmocka_unit_test(recomputation_takes_part_in_every_exchange),
        cmocka_unit_test(softmax_gates_and_whole_layers_agree),
        cmocka_unit_test(fewer_experts_than_ranks_agree),
        cmocka_unit_test(all_tokens_to_one_expert_agree),
        cmocka_unit_test(nodes_change_the_way_and_not_the_result),
        cmocka_unit_test(chunks_change_nothing_but_rounding),
        cmocka_unit_test(chunks_travel_any_way),
        cmocka_unit_test(mistakes_are_named),
    };

    return tsr_mpi_test_main(argc, argv, "parallel.moe_ranks", tests,
                             sizeof tests / sizeof tests[0]);
}
