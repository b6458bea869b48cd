/* Sums of long vectors in f64. */
#include "runtime/cuda/kernels/kernel.cuh"

enum {
    THREADS = 256,
    BLOCK_ELEMENTS = 16384, /* of one block at least */
    PARTIALS_MAX = 65536
};

/* A block sums `share` elements: a thread keeps one f64 sum for each place in its packs, adds
 * these in order, then come lanes and warps. Reads 4 bytes an element once: bound by that.
 * Shared memory 256 bytes; no atomics. Twins: tsr_plain_sum(), tsr_plain_sum_squares(). */
template <bool SQUARES, int V>
static __global__ void __launch_bounds__(THREADS)
    partial_kernel(const float *x, int64_t count, int64_t share, double *partials)
{
    const int64_t first = (int64_t)blockIdx.x * share;
    const int64_t end = count - first < share ? count : first + share;
    const int64_t packs_end = first + (end - first) / V * V;
    double sums[V] = {0.0}, sum = 0.0;

#pragma unroll 4
    for (int64_t at = first + (int64_t)threadIdx.x * V; at < packs_end; at += THREADS * V) {
        float pack[V];

        tsr_load<V>(x + at, pack);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const double value = (double)pack[v];

            sums[v] += SQUARES ? value * value : value;
        }
    }
    for (int64_t at = packs_end + threadIdx.x; at < end; at += THREADS) { /* fewer than V */
        const double value = (double)x[at];

        sums[0] += SQUARES ? value * value : value;
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
        sum += sums[v];
    }
    sum = tsr_block_sum(sum);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = sum;
    }
}

/* One block adds the partial sums: thread i those of places i, i + 1024, ..., then as above. */
static __global__ void __launch_bounds__(TSR_BLOCK_MAX)
    total_kernel(const double *partials, int count, double *out)
{
    double sum = 0.0;

    for (int i = (int)threadIdx.x; i < count; i += (int)blockDim.x) {
        sum += partials[i];
    }
    sum = tsr_block_sum(sum);
    if (threadIdx.x == 0) {
        *out = sum;
    }
}

template <bool SQUARES>
static tsr_status sum(tsr_device *device, const float *x, int64_t count, double *out,
                      tsr_stream *stream)
{
    const int64_t least = tsr_divide_up(count, PARTIALS_MAX);
    const int64_t share = tsr_divide_up(least > 0 ? least : 1, BLOCK_ELEMENTS) * BLOCK_ELEMENTS;
    const int blocks = (int)tsr_divide_up(count, share);
    const cudaStream_t queue = tsr_cuda_stream_of(stream);
    void *partials = NULL;

    TSR_TRY(tsr_cuda_workspace(device, (size_t)(blocks + 1) * sizeof(double), stream, &partials));
    if (blocks > 0 && tsr_packable(1, 1, x)) {
        TSR_LAUNCH(partial_kernel<SQUARES, 4>, dim3((unsigned)blocks), dim3(THREADS), 0, queue, x,
                   count, share, (double *)partials);
    } else if (blocks > 0) {
        TSR_LAUNCH(partial_kernel<SQUARES, 1>, dim3((unsigned)blocks), dim3(THREADS), 0, queue, x,
                   count, share, (double *)partials);
    }
    TSR_LAUNCH(total_kernel, dim3(1), dim3(tsr_block_for(blocks + 1, 1, TSR_BLOCK_MAX)), 0, queue,
               (const double *)partials, blocks, out);
    return TSR_OK;
}

tsr_status tsr_cuda_sum(tsr_device *device, const float *x, int64_t count, double *out,
                        tsr_stream *stream)
{
    return sum<false>(device, x, count, out, stream);
}

tsr_status tsr_cuda_sum_squares(tsr_device *device, const float *x, int64_t count, double *out,
                                tsr_stream *stream)
{
    return sum<true>(device, x, count, out, stream);
}
