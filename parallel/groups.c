/* The communicators of one group of the mesh. */
#include "parallel/mesh_impl.h"

tsr_status mesh_group_open(tsr_group *group, bool *is_irregular_out)
{
    const int size = tsr_comm_size(group->flat), rank = tsr_comm_rank(group->flat);
    const tsr_seat *seats = tsr_comm_seats(group->flat);
    const int nodes = tsr_comm_nodes(group->flat);

    group->host.all = group->flat;
    *is_irregular_out = nodes > 1 && tsr_comm_check_regular(group->flat) != TSR_OK;
    if (nodes > 1 && size > nodes && !*is_irregular_out) {
        TSR_TRY(
            tsr_comm_split(group->flat, seats[rank].node, seats[rank].local, &group->host.node));
        TSR_TRY(
            tsr_comm_split(group->flat, seats[rank].local, seats[rank].node, &group->host.rail));
        TSR_TRY(tsr_comm_create_planes(group->flat, group->host.node, group->host.rail,
                                       &group->host.all));
    }
    group->device = group->host;
    return TSR_OK;
}

tsr_status mesh_group_use_nccl(tsr_group *group, tsr_device *device,
                               const tsr_nccl_options *options)
{
    if (tsr_comm_size(group->flat) == 1) {
        return TSR_OK;
    }
    group->device = (tsr_routes){0};
    if (group->host.rail == NULL) {
        return tsr_comm_create_nccl(group->flat, device, options, &group->device.all);
    }
    /* a node or rail that fails must not leave the others alone with what comes next */
    TSR_TRY(tsr_comm_agree(
        group->flat, tsr_comm_create_nccl(group->host.node, device, options, &group->device.node)));
    TSR_TRY(tsr_comm_agree(
        group->flat, tsr_comm_create_nccl(group->host.rail, device, options, &group->device.rail)));
    return tsr_comm_create_planes(group->flat, group->device.node, group->device.rail,
                                  &group->device.all);
}

static void destroy_routes(tsr_routes *routes, const tsr_comm *flat)
{
    if (routes->all != flat) {
        tsr_comm_destroy(&routes->all);
    }
    tsr_comm_destroy(&routes->rail);
    tsr_comm_destroy(&routes->node);
}

static bool is_dead(const tsr_comm *comm)
{
    return comm != NULL && tsr_comm_is_dead(comm);
}

static bool has_dead_route(const tsr_routes *routes)
{
    return is_dead(routes->all) || is_dead(routes->node) || is_dead(routes->rail);
}

bool mesh_group_is_dead(const tsr_group *group)
{
    return is_dead(group->flat) || has_dead_route(&group->host) || has_dead_route(&group->device);
}

void mesh_group_close(tsr_group *group, bool owns_flat)
{
    if (group->device.all != group->host.all) {
        destroy_routes(&group->device, group->flat);
    }
    destroy_routes(&group->host, group->flat);
    if (owns_flat) {
        tsr_comm_destroy(&group->flat);
    }
    *group = (tsr_group){0};
}

tsr_dispatch_options tsr_group_dispatch(const tsr_group *group, bool in_stages)
{
    return (tsr_dispatch_options){.all = group->host.all,
                                  .flat = group->flat,
                                  .node = in_stages ? group->host.node : NULL,
                                  .rail = in_stages ? group->host.rail : NULL,
                                  .flat_rows =
                                      group->host.rail == NULL ? group->device.all : group->flat,
                                  .node_rows = group->device.node,
                                  .rail_rows = group->device.rail};
}
