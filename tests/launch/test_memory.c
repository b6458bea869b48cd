/* Memory that is planned is what is held: at the start, under any policy, in one stage of dispatch
 * or two, and when loads have outgrown the plan. Nodes and planes are pretended. */
#include "tests/launch/planes_rig.h"

#include "launch/bench.h"
#include "launch/trainer_impl.h"

enum { WINDOW = 5, HOT_STEP = WINDOW + 2, STEPS = HOT_STEP + 2, TOKENS = 4 * 64 };

/* What is not planned: lists of the optimizer, some entries a tensor. */
enum { LIST_BYTES = 256 };

typedef struct fixture {
    settings s;
    trainer t;
    size_t before; /* held by others */
    float *bias;   /* [L,T,E] of the gates: all tokens to the first two experts */
} fixture;

static tsr_status open_trainer(fixture *f, world *w, const char *const *more, int count)
{
    const char *keys[16] = {"model.hidden_size=64",           "model.head_dim=32",
                            "model.moe_intermediate_size=96", "data.seq_len=64",
                            "train.global_batch=16",          "parallel.ep=4"};
    void *block = NULL;

    for (int i = 0; i < count; ++i) {
        keys[6 + i] = more[i];
    }
    TSR_TRY(settings_read(&f->s, rig_run_file, "test", keys, 6 + count));
    f->before = trainer_held_bytes();
    TSR_TRY(trainer_create(&f->t, &f->s, w));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, RIG_LAYERS * TOKENS * RIG_EXPERTS, sizeof(float),
                                &block));
    f->bias = block;
    for (int i = 0; i < RIG_LAYERS * TOKENS; ++i) {
        f->bias[i * RIG_EXPERTS] = f->bias[i * RIG_EXPERTS + 1] = 1000.0f;
    }
    return tsr_optimizer_init(f->t.optimizer, 1, f->t.stream);
}

static void close_trainer(fixture *f)
{
    tsr_mem_free(f->bias);
    trainer_destroy(&f->t);
}

/* What the largest rank holds is what is planned, but for lists. */
static bool keeps_to_plan(fixture *f)
{
    const double plan = (double)f->t.plan.model;
    double held = (double)(trainer_held_bytes() - f->before);

    return tsr_comm_all_reduce_f64(f->t.comm, &held, 1, TSR_REDUCE_MAX) == TSR_OK && held >= plan &&
           held <= plan + LIST_BYTES * f->t.table.count;
}

static tsr_status step(fixture *f, step_result *result)
{
    const step_flags flags = {0};

    return trainer_step(&f->t, bench_random_sample, &f->s, &flags, result);
}

/* Calm steps, one that sends all to the first owner, and calm ones again. */
static bool follows_its_loads(fixture *f)
{
    bool ok = keeps_to_plan(f);

    for (int i = 1; ok && i <= STEPS; ++i) {
        const size_t planned = f->t.plan.model;
        step_result r;

        tsr_stage_bias_gates(f->t.stage, i == HOT_STEP ? f->bias : NULL);
        ok = step(f, &r) == TSR_OK && r.planned_bytes == (double)planned && keeps_to_plan(f);
        ok = ok && r.is_planned_anew == (f->t.plan.model != planned);
        if (i == HOT_STEP && r.has_outgrown) {
            ok = ok && f->t.plan.model > planned;
        }
        ok = ok && (i <= HOT_STEP || !r.has_outgrown); /* as large as has been seen */
    }
    return ok;
}

static void run_case(const char *const *keys, int count, bool outgrows)
{
    static fixture f;
    world w;
    step_result r = {0};

    assert_all_ranks(tsr_test_comm(), rig_open_world(&w) == TSR_OK);
    tsr_status st = open_trainer(&f, &w, keys, count);
    bool ok = st == TSR_OK && (outgrows ? follows_its_loads(&f) : keeps_to_plan(&f));
    if (ok && !outgrows) {
        tsr_stage_bias_gates(f.t.stage, f.bias);
        ok = step(&f, &r) == TSR_OK && !r.has_outgrown && keeps_to_plan(&f);
    }
    if (!ok) {
        print_error("%s ...: %s\n", keys[0], st != TSR_OK ? tsr_error_message() : "not as planned");
    }
    close_trainer(&f);
    tsr_comm_destroy(&w.comm);
    assert_all_ranks(tsr_test_comm(), ok);
}

static void every_policy_keeps_to_its_plan(void **state)
{
    static const char *const policies[] = {"ep", "shadow", "swap", "eplb", "fssdp", "quota"};

    (void)state;
    for (size_t i = 0; i < sizeof policies / sizeof *policies; ++i) {
        char placement[64];
        const char *const keys[] = {placement};

        (void)snprintf(placement, sizeof placement, "parallel.placement=%s", policies[i]);
        run_case(keys, 1, true);
    }
}

static void every_way_keeps_to_its_plan(void **state)
{
    const char *const bf16[] = {"parallel.placement=quota", "precision.compute=bf16"};
    const char *const flat[] = {"parallel.placement=ep", "parallel.dispatch=flat"};
    const char *const kept[] = {"parallel.placement=fssdp", "experts.rematerialize=false",
                                "experts.slots=3"};
    const char *const again[] = {"parallel.placement=eplb", "train.recompute=block",
                                 "model.n_shared_experts=1"};

    (void)state;
    run_case(bf16, 2, true);
    run_case(flat, 2, true);
    run_case(kept, 3, true);
    run_case(again, 3, true);
}

/* All rows on one of four ranks are four times those of even loads. */
static void room_that_is_asked_for_is_there(void **state)
{
    const char *const keys[] = {"parallel.placement=ep", "experts.room=4"};

    (void)state;
    run_case(keys, 2, false);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_policy_keeps_to_its_plan),
        cmocka_unit_test(every_way_keeps_to_its_plan),
        cmocka_unit_test(room_that_is_asked_for_is_there),
    };

    return tsr_mpi_test_main(argc, argv, "memory", tests, sizeof tests / sizeof tests[0]);
}
