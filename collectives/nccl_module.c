/* Opens the module in which the NCCL communicator lives, as runtime opens the device's own. */
#include "collectives/comm_impl.h"

#include <dlfcn.h>
#include <string.h>

typedef tsr_status create_function(tsr_comm *, tsr_device *, const tsr_nccl_options *, tsr_comm **);

static tsr_status find_entry(const tsr_device *device, create_function **entry_out)
{
    const char *name = tsr_device_name(device);
    const bool is_emulated = strcmp(name, "cuda:emulated") == 0;
    void *module = NULL;

    TSR_CHECK(strncmp(name, "cuda", 4) == 0, TSR_ERR_UNSUPPORTED,
              "collectives by nccl need device = cuda, this one is %s: use mpi", name);
    if (is_emulated) {
        TSR_TRY(tsr_cuda_module_load(name, "libtessera_nccl_emulated.so",
                                     "-DTSR_CUDA=ON -DTSR_TESTS=ON where NCCL's header is",
                                     &module));
    } else {
        TSR_TRY(tsr_cuda_module_load(name, "libtessera_nccl.so",
                                     "-DTSR_CUDA=ON where NCCL is, or use collectives by mpi",
                                     &module));
    }
    void *const entry = dlsym(module, "tsr_nccl_comm_create");
    TSR_CHECK(entry != NULL, TSR_ERR_UNSUPPORTED,
              "collectives by nccl: the module found is of another version, it has no entry");
    memcpy(entry_out, &entry, sizeof entry);
    return TSR_OK;
}

tsr_status tsr_comm_create_nccl(tsr_comm *host, tsr_device *device, const tsr_nccl_options *options,
                                tsr_comm **comm_out)
{
    create_function *create = NULL;

    *comm_out = NULL;
    /* A module that one rank lacks must not leave the others waiting for it. */
    TSR_TRY(tsr_comm_agree(host, find_entry(device, &create)));
    TSR_CHECK(create != NULL, TSR_ERR_INTERNAL, "the entry of the nccl module got lost");
    return create(host, device, options, comm_out);
}
