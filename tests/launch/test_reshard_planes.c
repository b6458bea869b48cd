/* State of experts between owners on several nodes and planes, which are pretended: each row
 * arrives to the bit, and no byte goes across planes. */
#include "tests/launch/planes_rig.h"

#include "launch/reshard.h"

#include <string.h>

enum { WIDTH = 16, EXPERT_WIDTH = 24 };

/* Of each element of the state another number, exact in f32 and in bf16's range. */
static float value_of(int kind, int param, int64_t at)
{
    return (float)((param * 3 + kind) * 100003 + at % 99991);
}

/* Set the values of all slices, or see whether they are as they were set. */
static tsr_status visit_state(trainer *t, bool sets, bool *is_right)
{
    tsr_state_view view;

    TSR_TRY(trainer_view(t, NULL, &view));
    for (int i = 0; i < view.slice_count; ++i) {
        const tsr_state_slice *slice = &view.slices[i];
        const int64_t width = t->table.params[slice->param].width;
        const int64_t count = (slice->row_end - slice->row_begin) * width;
        float *const values[] = {slice->master, slice->m, slice->v};

        for (int kind = 0; kind < 3; ++kind) {
            for (int64_t at = 0; at < count; ++at) {
                const float value = value_of(kind, slice->param, slice->row_begin * width + at);

                *is_right = *is_right && (sets || values[kind][at] == value);
                values[kind][at] = value;
            }
        }
    }
    return TSR_OK;
}

/* Bytes of resharding by link, of all ranks together. */
static tsr_status read_bytes(tsr_comm *comm, double *sums)
{
    int64_t bytes[TSR_TRAFFICS][TSR_LINKS];

    tsr_traffic_read(bytes);
    for (int link = 0; link < TSR_LINKS; ++link) {
        sums[link] = (double)bytes[TSR_TRAFFIC_RESHARD][link];
    }
    return tsr_comm_all_reduce_f64(comm, sums, TSR_LINKS, TSR_REDUCE_SUM);
}

/* What must travel if each rank has whole experts: once between nodes, once more where planes
 * differ. */
static void count_expected(const int32_t *before, const int32_t *after, double *sums)
{
    const double expert = 3.0 * 3.0 * WIDTH * EXPERT_WIDTH * sizeof(float);

    memset(sums, 0, TSR_LINKS * sizeof *sums);
    for (int i = 0; i < RIG_LAYERS * RIG_EXPERTS; ++i) {
        const int from = before[i], to = after[i];
        const bool other_node = from / RIG_PLANES != to / RIG_PLANES;

        sums[TSR_LINK_IN_PLANE] += other_node ? expert : 0.0;
        sums[TSR_LINK_INTRA_NODE] += from % RIG_PLANES != to % RIG_PLANES ? expert : 0.0;
    }
}

/* Each layer's owners turn by another number of ranks, and back. */
static tsr_status deal_around(trainer *t, bool has_whole_experts, bool *ok)
{
    int32_t before[RIG_LAYERS * RIG_EXPERTS], after[RIG_LAYERS * RIG_EXPERTS];
    double sums[2][TSR_LINKS], expected[TSR_LINKS];
    reshard_move move;

    for (int turn = 1; turn < t->mesh.ep; ++turn) {
        memcpy(before, t->owner, sizeof before);
        for (int i = 0; i < RIG_LAYERS * RIG_EXPERTS; ++i) {
            after[i] = (before[i] + turn + i / RIG_EXPERTS) % t->mesh.ep;
        }
        TSR_TRY(read_bytes(t->w->comm, sums[0]));
        TSR_TRY(reshard_deal(t, after, &move));
        TSR_TRY(read_bytes(t->w->comm, sums[1]));
        TSR_TRY(visit_state(t, false, ok));
        count_expected(before, after, expected);
        for (int link = 0; link < TSR_LINKS; ++link) {
            const double sent = sums[1][link] - sums[0][link];

            *ok = *ok && (has_whole_experts ? sent == expected[link]
                                            : link != TSR_LINK_CROSS_PLANE || sent == 0.0);
        }
        *ok = *ok && move.experts > 0 && sums[1][TSR_LINK_IN_PLANE] > 0.0;
    }
    return TSR_OK;
}

static tsr_status move_between(world *w, int ep, bool *ok)
{
    char mesh[32];
    const char *const keys[] = {mesh, "parallel.placement=swap", "experts.reshard_every=1"};
    static settings s;
    trainer t = {0};

    (void)snprintf(mesh, sizeof mesh, "parallel.ep=%d", ep);
    TSR_TRY(settings_read(&s, rig_run_file, "test", keys, 3));
    tsr_status st = trainer_create(&t, &s, w);
    st = st != TSR_OK ? st : visit_state(&t, true, ok);
    st = st != TSR_OK ? st : deal_around(&t, ep == tsr_comm_size(w->comm), ok);
    trainer_destroy(&t);
    return st;
}

static void rows_keep_to_their_planes(void **state)
{
    const int size = tsr_comm_size(tsr_test_comm());
    bool ok = true;
    world w;

    (void)state;
    assert_all_ranks(tsr_test_comm(), rig_open_world(&w) == TSR_OK);
    for (int ep = size; ep > 1;
         --ep) { /* with replicas shards cut experts, and groups span nodes */
        if (size % ep == 0 && move_between(&w, ep, &ok) != TSR_OK) {
            print_error("ep %d: %s\n", ep, tsr_error_message());
            ok = false;
        }
        assert_all_ranks(tsr_test_comm(), ok);
    }
    tsr_comm_destroy(&w.comm);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_keep_to_their_planes)};

    return tsr_mpi_test_main(argc, argv, "reshard_planes", tests, sizeof tests / sizeof tests[0]);
}
