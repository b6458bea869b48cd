#include "parallel/mesh_impl.h"

#include <string.h>

#define AT(field) offsetof(tsr_parallel_config, field)

static const char placements[] = "ep shadow swap eplb fssdp quota";

static const tsr_option keys[] = {
    {"parallel", "pp", TSR_OPTION_INT, "1", 0, 1 << 20, NULL, "ranks", "pipeline stages", AT(pp)},
    {"parallel", "dp", TSR_OPTION_INT, "0", 0, 1 << 20, NULL, "ranks",
     "replicas of all experts together; 0: what ep leaves", AT(dp)},
    {"parallel", "ep", TSR_OPTION_INT, "1", 0, 1 << 20, NULL, "ranks",
     "ranks that the experts of a layer are spread over; 0: what dp leaves, else 1", AT(ep)},
    {"parallel", "placement", TSR_OPTION_CHOICE, "ep", 0, 0, placements, NULL,
     "which ranks compute which experts", AT(placement)},
    {"parallel", "collectives", TSR_OPTION_CHOICE, "auto", 0, 0, "auto mpi nccl", NULL,
     "what moves gradients and weights; auto: nccl between GPUs, else mpi", AT(collectives)},
    {"parallel", "dispatch", TSR_OPTION_CHOICE, "auto", 0, 0, "auto two_stage flat", NULL,
     "how tokens reach their experts; auto: two_stage between nodes, else flat", AT(dispatch)},
    {"parallel", "dispatch_chunks", TSR_OPTION_INT, "1", 1, TSR_DISPATCH_CHUNKS_MAX, NULL, NULL,
     "parts that a layer's tokens are cut into: the rows of one travel while the experts work on "
     "another; 1: all at once",
     AT(dispatch_chunks)},
};

tsr_option_table tsr_parallel_options(tsr_parallel_config *config)
{
    return (tsr_option_table){keys, (int)(sizeof keys / sizeof keys[0]), config};
}

/* "1, 2, 4": what divides the ranks. */
static void list_divisors(int ranks, char out[static 128])
{
    size_t at = 0;

    out[0] = '\0';
    for (int d = 1; d <= ranks && at + 16 < 128; ++d) {
        if (ranks % d == 0) {
            at += (size_t)snprintf(out + at, 128 - at, at == 0 ? "%d" : ", %d", d);
        }
    }
}

static tsr_status fill_sizes(const tsr_parallel_config *config, int ranks, tsr_mesh *mesh)
{
    const int64_t dp = config->dp, ep = dp == 0 && config->ep == 0 ? 1 : config->ep;
    char valid[128];

    list_divisors(ranks, valid);
    TSR_CHECK(config->pp <= 1, TSR_ERR_UNSUPPORTED,
              "parallel.pp = %lld: pipelines are not built yet, set pp = 1", (long long)config->pp);
    TSR_CHECK(ep == 0 || ranks % ep == 0, TSR_ERR_ARG,
              "parallel.ep = %lld does not divide the %d ranks, valid are %s", (long long)ep, ranks,
              valid);
    TSR_CHECK(dp == 0 || ranks % dp == 0, TSR_ERR_ARG,
              "parallel.dp = %lld does not divide the %d ranks, valid are %s", (long long)dp, ranks,
              valid);
    TSR_CHECK(dp == 0 || ep == 0 || dp * ep == ranks, TSR_ERR_ARG,
              "parallel.dp = %lld * ep = %lld must be the %d ranks: set dp = %lld or dp = 0",
              (long long)dp, (long long)ep, ranks, (long long)(ranks / ep));
    mesh->pp = 1;
    mesh->dp = (int)(dp > 0 ? dp : ranks / ep);
    mesh->ep = ranks / mesh->dp;
    return TSR_OK;
}

/* Ranks by node, then by place on the node. */
static int position_of(const tsr_comm *world)
{
    const tsr_seat *seats = tsr_comm_seats(world), *mine = &seats[tsr_comm_rank(world)];
    int position = 0;

    for (int r = 0; r < tsr_comm_size(world); ++r) {
        position += seats[r].node < mine->node ||
                    (seats[r].node == mine->node && seats[r].local < mine->local);
    }
    return position;
}

/* The four groups; a NULL in place of replica where it is dense. */
static void list_groups(tsr_mesh *mesh, tsr_group *groups_out[4])
{
    groups_out[0] = &mesh->world;
    groups_out[1] = &mesh->dense;
    groups_out[2] = &mesh->expert;
    groups_out[3] = mesh->ep > 1 ? &mesh->replica : NULL;
}

static tsr_status make_groups(tsr_mesh *mesh, int position, bool has_copies)
{
    tsr_comm *world = mesh->world.flat;
    tsr_group *groups[4];
    uint64_t irregular = 0;

    TSR_TRY(tsr_comm_split(world, mesh->pp_rank, position, &mesh->dense.flat));
    TSR_TRY(tsr_comm_split(world, position / mesh->ep, position, &mesh->expert.flat));
    list_groups(mesh, groups);
    if (groups[3] != NULL) {
        TSR_TRY(tsr_comm_split(world, mesh->pp_rank * mesh->ep + mesh->ep_rank, position,
                               &mesh->replica.flat));
    }
    for (int i = 0; i < 4 && groups[i] != NULL; ++i) {
        bool is_irregular = false;

        /* a group that fails must not leave the others alone with the next one */
        TSR_TRY(tsr_comm_agree(world, mesh_group_open(groups[i], &is_irregular)));
        irregular += is_irregular;
    }
    if (groups[3] == NULL) {
        mesh->replica = mesh->dense;
    }
    if (mesh->ep > 1 && has_copies) {
        TSR_TRY(tsr_comm_split(world, position / mesh->ep, position, &mesh->copies));
    }
    TSR_TRY(tsr_comm_all_reduce_u64(world, &irregular, 1, TSR_REDUCE_MAX));
    if (irregular > 0 && tsr_comm_rank(world) == 0) {
        tsr_log(TSR_LOG_WARN,
                "nodes differ in their number of ranks or in their planes, for the whole run or "
                "for one of dp %d x ep %d groups: messages there go from each rank to each, also "
                "across planes",
                mesh->dp, mesh->ep);
    }
    return TSR_OK;
}

tsr_status tsr_mesh_create(const tsr_parallel_config *config, tsr_comm *world, tsr_mesh *mesh_out)
{
    tsr_mesh mesh = {.world = {.flat = world}};

    TSR_TRY(fill_sizes(config, tsr_comm_size(world), &mesh));
    const int position = position_of(world);
    mesh.ep_rank = position % mesh.ep;
    mesh.dp_rank = position / mesh.ep % mesh.dp;
    mesh.pp_rank = position / mesh.ep / mesh.dp;
    const tsr_status st = make_groups(&mesh, position, config->placement != TSR_PLACEMENT_EP);
    if (st != TSR_OK) {
        tsr_mesh_destroy(&mesh);
        return st;
    }
    *mesh_out = mesh;
    return TSR_OK;
}

tsr_status tsr_mesh_use_nccl(tsr_mesh *mesh, tsr_device *device, const tsr_nccl_options *options)
{
    tsr_group *groups[4];

    list_groups(mesh, groups);
    for (int i = 1; i < 4 && groups[i] != NULL; ++i) {
        TSR_TRY(tsr_comm_agree(mesh->world.flat, mesh_group_use_nccl(groups[i], device, options)));
    }
    if (mesh->copies != NULL) {
        TSR_TRY(tsr_comm_agree(mesh->world.flat, tsr_comm_create_nccl(mesh->copies, device, options,
                                                                      &mesh->copies_device)));
    }
    if (groups[3] == NULL) {
        mesh->replica = mesh->dense;
    }
    return TSR_OK;
}

void tsr_mesh_destroy(tsr_mesh *mesh)
{
    tsr_group *groups[4];
    bool is_dead = false;

    list_groups(mesh, groups);
    for (int i = 0; i < 4 && groups[i] != NULL; ++i) {
        is_dead = is_dead || mesh_group_is_dead(groups[i]);
    }
    is_dead = is_dead || (mesh->copies != NULL && tsr_comm_is_dead(mesh->copies)) ||
              (mesh->copies_device != NULL && tsr_comm_is_dead(mesh->copies_device));
    if (!is_dead) {
        tsr_comm_destroy(&mesh->copies_device);
        tsr_comm_destroy(&mesh->copies);
    }
    for (int i = 3; i >= 0 && !is_dead; --i) {
        if (groups[i] != NULL && groups[i]->flat != NULL) {
            mesh_group_close(groups[i], i > 0);
        }
    }
    *mesh = (tsr_mesh){0};
}

tsr_comm *tsr_mesh_copies(const tsr_mesh *mesh)
{
    return mesh->copies_device != NULL ? mesh->copies_device : mesh->copies;
}

void tsr_batch_share(int64_t global, int parts, int part, int64_t *begin, int64_t *end)
{
    const int64_t each = global / parts, rest = global % parts;

    *begin = part * each + (part < rest ? part : rest);
    *end = *begin + each + (part < rest ? 1 : 0);
}
