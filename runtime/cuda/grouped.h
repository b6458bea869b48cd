/* Grouped products: one form for the three passes, and the scheduler that all their kernels share.
 *
 * Every pass is c[m,n] = a[m,depth] b[depth,n] once per expert:
 *   FORWARD  a = x [R,K]        b = w[e], stored [n,depth]   c = y     rows m from the offsets
 *   DGRAD    a = y [R,N]        b = w[e], stored [depth,n]   c = x     rows m from the offsets
 *   WGRAD    a = y, stored      b = x, stored                c = w[e]  depth from the offsets
 *            [depth,m]          [depth,n]
 * Kernels are persistent: block i computes tiles i, i + blocks, ... and finds each one by reading
 * the offsets on the device, so the host never learns the counts. This folder's only. */
#ifndef TSR_RUNTIME_CUDA_GROUPED_H
#define TSR_RUNTIME_CUDA_GROUPED_H

#include "runtime/cuda/cuda_impl.h"

typedef struct tsr_grouped {
    const void *a, *b;
    void *c;
    const int64_t *offsets; /* [experts + 1], device memory */
    int64_t max_rows;
    int64_t m, n, depth; /* of one expert; m = 0 (WGRAD: depth = 0): the rows that offsets give */
    int64_t lda, ldb, ldc;
    int experts;
    bool accumulate;
} tsr_grouped;

#ifdef __cplusplus
extern "C" {
#endif

/* Each queues one product of `pass` on `blocks` persistent blocks at most. */

/** Any sizes and alignment, f32 or bf16; fused multiply-adds of f32. */
TSR_NODISCARD tsr_status tsr_cuda_grouped_plain(const tsr_grouped *problem, tsr_grouped_pass pass,
                                                tsr_dtype dtype, int multiprocessors,
                                                cudaStream_t stream);

/** bf16, all leading dimensions multiples of 8, pointers of 16 bytes; sm_80 and later. */
TSR_NODISCARD tsr_status tsr_cuda_grouped_mma(const tsr_grouped *problem, tsr_grouped_pass pass,
                                              int multiprocessors, cudaStream_t stream);

/** The driver's maker of tensor maps, which the next one needs; NULL from too old a driver. */
TSR_NODISCARD tsr_status tsr_cuda_grouped_sm90_find(void **map_maker_out);

/** As tsr_cuda_grouped_mma(), by TMA and wgmma: sm_90a only, and max_rows > 0. */
TSR_NODISCARD tsr_status tsr_cuda_grouped_sm90(const tsr_grouped *problem, tsr_grouped_pass pass,
                                               void *map_maker, int multiprocessors,
                                               cudaStream_t stream);

#ifdef __cplusplus
}

/* One tile of c. Rows are rows of the whole of c: of R, or for WGRAD of all experts' [E * N]. */
struct tsr_grouped_tile {
    int expert;
    int64_t row, row_end, col;
    int64_t first_row;              /* of this expert */
    int64_t depth_begin, depth_end; /* in rows of R for WGRAD */
};

/* Where a block stands: tiles before `expert`, and the rows of that expert. */
struct tsr_grouped_walk {
    int expert;
    int64_t tiles_before, begin, end;
};

__device__ __forceinline__ int64_t tsr_ceil_div(int64_t value, int64_t by)
{
    return (value + by - 1) / by;
}

__device__ __forceinline__ tsr_grouped_walk tsr_grouped_start(const tsr_grouped &g)
{
    return {0, 0, g.offsets[0], g.offsets[1]};
}

/* Tile `index` of TILE_M x TILE_N; false past the last one. Indices must not fall from call to
 * call. Within an expert the rows go first: blocks that run together share columns of b. */
template <tsr_grouped_pass PASS, int TILE_M, int TILE_N>
__device__ __forceinline__ bool tsr_grouped_find(const tsr_grouped &g, int64_t index,
                                                 tsr_grouped_walk *walk, tsr_grouped_tile *tile)
{
    constexpr bool wgrad = PASS == TSR_GROUPED_WGRAD;
    const int64_t across = tsr_ceil_div(g.n, TILE_N);
    int64_t down = tsr_ceil_div(wgrad ? g.m : walk->end - walk->begin, TILE_M);

    while (index >= walk->tiles_before + down * across) {
        if (++walk->expert >= g.experts) {
            return false;
        }
        walk->tiles_before += down * across;
        walk->begin = walk->end;
        walk->end = g.offsets[walk->expert + 1];
        down = tsr_ceil_div(wgrad ? g.m : walk->end - walk->begin, TILE_M);
    }
    const int64_t within = index - walk->tiles_before;

    tile->expert = walk->expert;
    tile->first_row = wgrad ? walk->expert * g.m : walk->begin;
    tile->row = tile->first_row + within % down * TILE_M;
    tile->row_end = wgrad ? tile->first_row + g.m : walk->end;
    tile->col = within / down * TILE_N;
    tile->depth_begin = wgrad ? walk->begin : 0;
    tile->depth_end = wgrad ? walk->end : g.depth;
    return true;
}

/* Tiles at most, for the size of the grid: every expert may end in a part of a tile. */
static inline int64_t tsr_grouped_tiles_at_most(const tsr_grouped *g, int tile_m, int tile_n)
{
    const int64_t across = (g->n + tile_n - 1) / tile_n;

    if (g->m > 0) {
        return g->experts * ((g->m + tile_m - 1) / tile_m) * across;
    }
    return (g->max_rows / tile_m + g->experts) * across;
}
#endif

#endif
