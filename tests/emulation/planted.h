/* Kernels of the emulator's own tests: right ones, and ones with a planted fault. */
#ifndef TSR_PLANTED_H
#define TSR_PLANTED_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { PLANTED_THREADS = 96 };

/* One block of PLANTED_THREADS: y[t] = x[t + 1] (around), exchanged through shared memory. */
cudaError_t planted_rotate(const float *x, float *y, bool has_barrier, cudaStream_t stream);
/* One block of PLANTED_THREADS: y[t] = sum over tiles of x[tile, t + 32] (around), through a ring
 * of 3 slots of shared memory with one barrier a tile; 2 slots would need two barriers. */
enum { PLANTED_TILES = 6 };
cudaError_t planted_ring(const float *x, float *y, int slots, cudaStream_t stream);
/* y[i] = i for i < count, for a block that is smaller: writes past it. */
cudaError_t planted_count(float *y, int64_t count, cudaStream_t stream);
cudaError_t planted_write(float *at, int64_t index, float value, cudaStream_t stream);
/* y[0] = x[index] */
cudaError_t planted_read(const float *x, int64_t index, float *y, cudaStream_t stream);
/* Reads four floats at once from x + offset. */
cudaError_t planted_read4(const float *x, int64_t offset, float *y, cudaStream_t stream);
/* Writes index `at` of 8 floats of shared memory. */
cudaError_t planted_shared_write(int at, float *y, cudaStream_t stream);

typedef enum planted_meeting {
    PLANTED_BRANCHES,   /* even and odd threads wait at two barriers */
    PLANTED_EARLY_EXIT, /* half of the threads leave, the others wait */
    PLANTED_LATE_EXIT,  /* the same, the other way round in time */
    PLANTED_WAIT_WARP,  /* half of a warp waits for all lanes, half at the barrier */
    PLANTED_TWO_CALLS,  /* lanes of one warp meet in a shuffle and in a vote */
    PLANTED_WRONG_MASK  /* a lane that is not in its mask */
} planted_meeting;
cudaError_t planted_meet(planted_meeting how, float *y, cudaStream_t stream);

/* Every thread writes its number to y[0], without any order. */
cudaError_t planted_race(float *y, cudaStream_t stream);

/* Results of all warp operations, PLANTED_RESULTS a thread, one block of PLANTED_THREADS. */
enum { PLANTED_RESULTS = 12 };
cudaError_t planted_warp(int *out, cudaStream_t stream);
/* counts[0] = threads of all `blocks` blocks, counts[1] = largest, [2] = smallest thread number +
 * 1 */
cudaError_t planted_atomics(int *counts, unsigned blocks, cudaStream_t stream);
/* sums[b] = sum of the numbers of block b's threads, by a tree through shared memory */
cudaError_t planted_tree(int *sums, unsigned blocks, unsigned threads, cudaStream_t stream);
/* A launch of this shape that does nothing. */
cudaError_t planted_shape(dim3 *grid, dim3 *block, size_t shared_bytes, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
