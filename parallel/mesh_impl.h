/* What makes a mesh: the communicators of one group. */
#ifndef TSR_PARALLEL_MESH_IMPL_H
#define TSR_PARALLEL_MESH_IMPL_H

#include "parallel/parallel.h"

/* Fill in what is to be had from flat. is_irregular_out: several nodes, but no rails. Collective on
 * flat; after an error close the group. */
TSR_NODISCARD tsr_status mesh_group_open(tsr_group *group, bool *is_irregular_out);

/* Replace group->device. Collective on flat. */
TSR_NODISCARD tsr_status mesh_group_use_nccl(tsr_group *group, tsr_device *device,
                                             const tsr_nccl_options *options);

/* Has any of its communicators failed? */
bool mesh_group_is_dead(const tsr_group *group);

/* Collective. */
void mesh_group_close(tsr_group *group, bool owns_flat);

#endif
