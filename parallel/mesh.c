#include "parallel/parallel.h"

#include <string.h>

#define AT(field) offsetof(tsr_parallel_config, field)

static const char placements[] = "ep shadow swap eplb fssdp quota";

static const tsr_option options[] = {
    {"parallel", "pp", TSR_OPTION_INT, "1", 0, 1 << 20, NULL, "ranks", "pipeline stages", AT(pp)},
    {"parallel", "dp", TSR_OPTION_INT, "0", 0, 1 << 20, NULL, "ranks",
     "data-parallel ranks; 0: what is left", AT(dp)},
    {"parallel", "ep", TSR_OPTION_INT, "1", 0, 1 << 20, NULL, "ranks",
     "ranks that the experts of a layer are spread over", AT(ep)},
    {"parallel", "placement", TSR_OPTION_CHOICE, "ep", 0, 0, placements, NULL,
     "which ranks compute which experts", AT(placement)},
    {"parallel", "collectives", TSR_OPTION_CHOICE, "auto", 0, 0, "auto mpi nccl", NULL,
     "what moves gradients and weights; auto: nccl between GPUs, else mpi", AT(collectives)},
};

tsr_option_table tsr_parallel_options(tsr_parallel_config *config)
{
    return (tsr_option_table){options, (int)(sizeof options / sizeof options[0]), config};
}

static tsr_status check_placement(int placement)
{
    const char *name = placements;

    for (int i = 0; i < placement; ++i) {
        name = strchr(name, ' ') + 1; /* the option table bounds the number */
    }
    TSR_CHECK(placement == 0, TSR_ERR_UNSUPPORTED,
              "parallel.placement = %.*s is not built yet, set placement = ep",
              (int)strcspn(name, " "), name);
    return TSR_OK;
}

tsr_status tsr_mesh_create(const tsr_parallel_config *config, tsr_comm *world, tsr_mesh *mesh_out)
{
    const int ranks = tsr_comm_size(world);

    TSR_CHECK(config->pp <= 1, TSR_ERR_UNSUPPORTED,
              "parallel.pp = %lld: pipelines are not built yet, set pp = 1", (long long)config->pp);
    TSR_CHECK(config->ep <= 1, TSR_ERR_UNSUPPORTED,
              "parallel.ep = %lld: expert parallelism is not built yet, set ep = 1",
              (long long)config->ep);
    TSR_TRY(check_placement(config->placement));
    TSR_CHECK(
        config->dp == 0 || config->dp == ranks, TSR_ERR_ARG,
        "parallel.dp = %lld, but pp 1 * dp * ep 1 must be the %d ranks: set dp = %d or dp = 0",
        (long long)config->dp, ranks, ranks);
    *mesh_out = (tsr_mesh){.pp = 1,
                           .dp = ranks,
                           .ep = 1,
                           .dp_rank = tsr_comm_rank(world),
                           .world = world,
                           .dense_group = world,
                           .expert_group = world};
    return TSR_OK;
}

void tsr_batch_share(int64_t global, int parts, int part, int64_t *begin, int64_t *end)
{
    const int64_t each = global / parts, rest = global % parts;

    *begin = part * each + (part < rest ? part : rest);
    *end = *begin + each + (part < rest ? 1 : 0);
}
