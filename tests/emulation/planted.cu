#include "tests/emulation/planted.h"

#include "runtime/cuda/port.h"

static __global__ void rotate_kernel(const float *x, float *y, bool has_barrier)
{
    TSR_SHARED(row, float[PLANTED_THREADS]);

    row[threadIdx.x] = x[threadIdx.x];
    if (has_barrier) {
        __syncthreads();
    }
    y[threadIdx.x] = row[(threadIdx.x + 1) % PLANTED_THREADS];
}

cudaError_t planted_rotate(const float *x, float *y, bool has_barrier, cudaStream_t stream)
{
    return tsr_launch(rotate_kernel, 1, PLANTED_THREADS, 0, stream, x, y, has_barrier);
}

/* Tiles through a ring in shared memory: while one is used, the next is stored. What is used first
 * has another warp stored; then the warps are busy for a while, each for itself. */
static __global__ void ring_kernel(const float *x, float *y, int slots)
{
    TSR_SHARED(ring, float[3][PLANTED_THREADS]);
    const int me = (int)threadIdx.x, neighbour = (me + 32) % PLANTED_THREADS;
    float sum = 0.0f;

    ring[0][me] = x[me];
    for (int tile = 0; tile < PLANTED_TILES; ++tile) {
        if (tile + 1 < PLANTED_TILES) {
            ring[(tile + 1) % slots][me] = x[(tile + 1) * PLANTED_THREADS + me];
        }
        __syncthreads();
        float seen = ring[tile % slots][neighbour];
        for (int i = 0; i < 40; ++i) {
            seen = __shfl_xor_sync(~0u, seen, 1);
        }
        sum += seen;
    }
    y[me] = sum;
}

cudaError_t planted_ring(const float *x, float *y, int slots, cudaStream_t stream)
{
    return tsr_launch(ring_kernel, 1, PLANTED_THREADS, 0, stream, x, y, slots);
}

static __global__ void count_kernel(float *y, int64_t count)
{
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
        y[i] = (float)i;
    }
}

cudaError_t planted_count(float *y, int64_t count, cudaStream_t stream)
{
    return tsr_launch(count_kernel, 1, PLANTED_THREADS, 0, stream, y, count);
}

static __global__ void write_kernel(float *at, int64_t index, float value)
{
    at[index] = value;
}

cudaError_t planted_write(float *at, int64_t index, float value, cudaStream_t stream)
{
    return tsr_launch(write_kernel, 1, 1, 0, stream, at, index, value);
}

static __global__ void read_kernel(const float *x, int64_t index, float *y)
{
    y[0] = x[index];
}

cudaError_t planted_read(const float *x, int64_t index, float *y, cudaStream_t stream)
{
    return tsr_launch(read_kernel, 1, 1, 0, stream, x, index, y);
}

static __global__ void read4_kernel(const float *x, int64_t offset, float *y)
{
    const float4 four = *(const float4 *)(x + offset);

    y[0] = four.x + four.y + four.z + four.w;
}

cudaError_t planted_read4(const float *x, int64_t offset, float *y, cudaStream_t stream)
{
    return tsr_launch(read4_kernel, 1, 1, 0, stream, x, offset, y);
}

static __global__ void shared_write_kernel(int at, float *y)
{
    TSR_SHARED(few, float[8]);

    if (threadIdx.x == 0) {
        few[at] = 1.0f;
        y[0] = few[at];
    }
}

cudaError_t planted_shared_write(int at, float *y, cudaStream_t stream)
{
    return tsr_launch(shared_write_kernel, 1, PLANTED_THREADS, 0, stream, at, y);
}

static __global__ void meet_kernel(planted_meeting how, float *y)
{
    const bool is_first = threadIdx.x % 2 == 0;

    if (how == PLANTED_BRANCHES) {
        if (is_first) {
            __syncthreads();
        } else {
            __syncthreads();
        }
    } else if (how == PLANTED_EARLY_EXIT || how == PLANTED_LATE_EXIT) {
        if (is_first == (how == PLANTED_EARLY_EXIT)) {
            return;
        }
        __syncthreads();
    } else if (how == PLANTED_WAIT_WARP) {
        if (is_first) {
            __syncwarp();
        } else {
            __syncthreads();
        }
    } else if (how == PLANTED_TWO_CALLS) {
        if (is_first) {
            y[0] = __shfl_sync(~0u, 1.0f, 0);
        } else {
            y[0] = (float)__any_sync(~0u, 1);
        }
    } else {
        __syncwarp(1u);
    }
    y[threadIdx.x] = 1.0f;
}

cudaError_t planted_meet(planted_meeting how, float *y, cudaStream_t stream)
{
    return tsr_launch(meet_kernel, 1, PLANTED_THREADS, 0, stream, how, y);
}

static __global__ void race_kernel(float *y)
{
    y[0] = (float)threadIdx.x;
}

cudaError_t planted_race(float *y, cudaStream_t stream)
{
    return tsr_launch(race_kernel, 1, PLANTED_THREADS, 0, stream, y);
}

static __global__ void warp_kernel(int *out)
{
    const int lane = (int)threadIdx.x % 32, me = (int)threadIdx.x;
    int *mine = out + me * PLANTED_RESULTS;
    const unsigned half_mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;

    mine[0] = __shfl_sync(~0u, me, 3);
    mine[1] = __shfl_sync(~0u, me, lane + 1);
    mine[2] = __shfl_sync(~0u, me, 1, 8);
    mine[3] = __shfl_xor_sync(~0u, me, 5);
    mine[4] = __shfl_down_sync(~0u, me, 4, 16);
    mine[5] = __shfl_up_sync(~0u, me, 4, 16);
    mine[6] = (int)__ballot_sync(~0u, lane % 3 == 0);
    mine[7] = __any_sync(half_mask, lane == 20);
    mine[8] = __all_sync(half_mask, lane < 16);
    mine[9] = (int)__match_any_sync(~0u, lane / 4);
    mine[10] = 0;
    if (lane < 16) { /* the halves go separate ways, as often as they like */
        for (int i = 0; i < 3; ++i) {
            mine[10] += __shfl_xor_sync(0x0000ffffu, me, 1 << i);
        }
    } else {
        mine[10] = __shfl_sync(0xffff0000u, me, 17);
    }
    __syncwarp();
    mine[11] = (int)__shfl_xor_sync(~0u, (double)me, 31);
}

cudaError_t planted_warp(int *out, cudaStream_t stream)
{
    return tsr_launch(warp_kernel, 1, PLANTED_THREADS, 0, stream, out);
}

static __global__ void atomics_kernel(int *counts)
{
    const int number = (int)(blockIdx.x * blockDim.x + threadIdx.x) + 1;

    atomicAdd(&counts[0], 1);
    atomicMax(&counts[1], number);
    atomicMin(&counts[2], number);
}

cudaError_t planted_atomics(int *counts, unsigned blocks, cudaStream_t stream)
{
    return tsr_launch(atomics_kernel, blocks, PLANTED_THREADS, 0, stream, counts);
}

static __global__ void tree_kernel(int *sums)
{
    TSR_DYN_SHARED(int, part);

    part[threadIdx.x] = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    for (unsigned width = blockDim.x / 2; width != 0; width /= 2) {
        __syncthreads();
        if (threadIdx.x < width) {
            part[threadIdx.x] += part[threadIdx.x + width];
        }
    }
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = part[0];
    }
}

cudaError_t planted_tree(int *sums, unsigned blocks, unsigned threads, cudaStream_t stream)
{
    return tsr_launch(tree_kernel, blocks, threads, threads * sizeof(int), stream, sums);
}

static __global__ void shape_kernel(void)
{
}

cudaError_t planted_shape(dim3 *grid, dim3 *block, size_t shared_bytes, cudaStream_t stream)
{
    return tsr_launch(shape_kernel, *grid, *block, shared_bytes, stream);
}
