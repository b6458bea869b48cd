/* Grouped products: the choice of a kernel. */
#include "runtime/cuda/grouped.h"

typedef struct tsr_cuda_grouped {
    void *map_maker; /* of tensor maps; NULL: no kernel that needs them */
} tsr_cuda_grouped;

tsr_status tsr_cuda_grouped_open(tsr_cuda_device *device)
{
    void *block;

    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *device->grouped, &block));
    device->grouped = block;
    return device->architecture == 90 ? tsr_cuda_grouped_sm90_find(&device->grouped->map_maker)
                                      : TSR_OK;
}

void tsr_cuda_grouped_close(tsr_cuda_device *device)
{
    tsr_mem_free(device->grouped);
    device->grouped = NULL;
}

static tsr_grouped problem_of(const tsr_grouped_gemm_args *args)
{
    const int64_t n = args->n, k = args->k;
    tsr_grouped problem = {.offsets = args->offsets,
                           .max_rows = args->max_rows,
                           .experts = args->experts,
                           .accumulate = args->accumulate};

    switch (args->pass) {
    case TSR_GROUPED_FORWARD:
        problem.a = args->x;
        problem.b = args->w;
        problem.c = args->y;
        problem.n = n;
        problem.depth = k;
        problem.lda = problem.ldb = k;
        problem.ldc = n;
        break;
    case TSR_GROUPED_DGRAD:
        problem.a = args->y;
        problem.b = args->w;
        problem.c = args->x;
        problem.n = k;
        problem.depth = n;
        problem.lda = n;
        problem.ldb = problem.ldc = k;
        break;
    case TSR_GROUPED_WGRAD:
    default:
        problem.a = args->y;
        problem.b = args->x;
        problem.c = args->w;
        problem.m = n;
        problem.n = k;
        problem.lda = n;
        problem.ldb = problem.ldc = k;
        break;
    }
    return problem;
}

/* Do the kernels that move 16 bytes at a time apply? */
static bool is_aligned(const tsr_grouped_gemm_args *args)
{
    const uintptr_t bits = (uintptr_t)args->x | (uintptr_t)args->y | (uintptr_t)args->w;

    return bits % 16 == 0 && args->n % 8 == 0 && args->k % 8 == 0;
}

tsr_status tsr_cuda_grouped_gemm(tsr_device *device, const tsr_grouped_gemm_args *args,
                                 tsr_stream *stream)
{
    const tsr_cuda_device *const cuda = (const tsr_cuda_device *)device;
    const tsr_grouped problem = problem_of(args);
    const cudaStream_t handle = tsr_cuda_stream_of(stream);
    const int blocks = cuda->multiprocessors;

    if (args->max_rows == 0 && args->pass != TSR_GROUPED_WGRAD) {
        return TSR_OK;
    }
    if (args->dtype != TSR_BF16 || !is_aligned(args)) {
        return tsr_cuda_grouped_plain(&problem, args->pass, args->dtype, blocks, handle);
    }
    /* Coordinates in a tensor map have 32 bits, and a map has rows. */
    if (cuda->grouped->map_maker != NULL && args->max_rows > 0 && args->max_rows <= INT32_MAX) {
        return tsr_cuda_grouped_sm90(&problem, args->pass, cuda->grouped->map_maker, blocks,
                                     handle);
    }
    return tsr_cuda_grouped_mma(&problem, args->pass, blocks, handle);
}

/* The kernels need no memory and nothing is searched for. */
tsr_status tsr_cuda_grouped_gemm_reserve(tsr_device *device, const tsr_grouped_gemm_args *args)
{
    (void)device;
    (void)args;
    return TSR_OK;
}
