/* Cross-entropy and its gradient. */
#include "runtime/cuda/kernels/kernel.cuh"

#include <float.h>

enum {
    THREADS = 1024,
    GROUP = 4 /* packs of a thread on their way at once */
};

/* A block a row, twice over it. First every thread keeps the maximum so far and the sum of
 * exponentials relative to it, over groups of packs blockDim apart; these are joined lanes first,
 * then warps in order. Then the gradient, from the end of the row to its beginning: what was read
 * last is still in the L2 cache, which holds the rows of all resident blocks (one for each
 * multiprocessor) up to a vocabulary of 90,000. Traffic 6 bytes an element with a bf16 gradient, 10
 * past that size; bound by it. The gradient may take the logits' place: a thread writes what it
 * alone reads. Shared memory 256 bytes. Twin: tsr_plain_cross_entropy(). */
template <class T, int V>
static __global__ void __launch_bounds__(THREADS) cross_entropy_kernel(tsr_cross_entropy_args a)
{
    const float *logits = a.logits + (int64_t)blockIdx.x * a.vocab;
    const int32_t target = a.target[blockIdx.x];
    const float target_logit = logits[target];
    const int64_t step = (int64_t)blockDim.x * V, group = GROUP * step;
    const int64_t begin = (int64_t)threadIdx.x * V;
    float top = -FLT_MAX, sum = 0.0f; /* not -inf: the difference of two of these is no number */
    int64_t first = begin;

    for (; first < a.vocab; first += group) {
        float x[GROUP][V], old_top = top;

#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
#pragma unroll
            for (int v = 0; v < V; ++v) {
                x[i][v] = -INFINITY;
            }
            if (first + i * step < a.vocab) {
                tsr_load<V>(logits + first + i * step, x[i]);
            }
#pragma unroll
            for (int v = 0; v < V; ++v) {
                top = fmaxf(top, x[i][v]);
            }
        }
        sum *= expf(old_top - top);
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
#pragma unroll
            for (int v = 0; v < V; ++v) {
                sum += expf(x[i][v] - top);
            }
        }
    }
    const float row_top = tsr_block_max(top);
    const float row_sum = tsr_block_sum(sum * expf(top - row_top));

    if (threadIdx.x == 0) {
        a.loss[blockIdx.x] = row_top - target_logit + logf(row_sum);
    }
    if (a.dlogits == NULL) {
        return;
    }
    T *dlogits = (T *)a.dlogits + (int64_t)blockIdx.x * a.vocab;
    const float factor = a.grad_scale / row_sum;

    for (first -= group; first >= begin; first -= group) {
        float x[GROUP][V];

#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            if (first + i * step < a.vocab) {
                tsr_load<V>(logits + first + i * step, x[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
            const int64_t at = first + i * step;

            if (at < a.vocab) {
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    x[i][v] = expf(x[i][v] - row_top) * factor;
                    x[i][v] -= at + v == target ? a.grad_scale : 0.0f;
                }
                tsr_store<V>(dlogits + at, x[i]);
            }
        }
    }
}

template <class T>
static tsr_status cross_entropy(const tsr_cross_entropy_args *args, tsr_stream *stream)
{
    constexpr int V = tsr_pack_width<T, float>();
    const bool is_aligned = tsr_packable(V, args->vocab, args->logits, args->dlogits);
    const dim3 block(tsr_block_for(args->vocab / (is_aligned ? V : 1), GROUP, THREADS));
    dim3 grid;

    TSR_TRY(tsr_grid_for("cross_entropy", args->rows, &grid));
    if (is_aligned) {
        TSR_LAUNCH(cross_entropy_kernel<T, V>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    } else {
        TSR_LAUNCH(cross_entropy_kernel<T, 1>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    }
    return TSR_OK;
}

tsr_status tsr_cuda_cross_entropy(tsr_device *device, const tsr_cross_entropy_args *args,
                                  tsr_stream *stream)
{
    (void)device;
    return args->dtype == TSR_F32 ? cross_entropy<float>(args, stream)
                                  : cross_entropy<tsr_device_bf16>(args, stream);
}
