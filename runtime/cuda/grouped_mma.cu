/* Grouped products of bf16 by mma.sync: every architecture from sm_80 on. */
#include "runtime/cuda/grouped.h"
#include "runtime/cuda/mma_sm80.h"

namespace
{

enum {
    TILE = 128, /* rows and columns of c */
    DEPTH = 64, /* of one stage */
    STAGES = 3,
    THREADS = 256, /* 8 warps: 2 down, 4 across, 64 x 32 each */
    PANEL_BYTES = TILE * DEPTH * 2,
    SHARED_BYTES = STAGES * 2 * PANEL_BYTES
};

/* An operand's panel keeps its stored direction: 128 rows of 64 along depth (8 pieces of 16 bytes
 * each), or 64 rows of 128 along the index (16 pieces). Piece p of row r lies at p ^ (r % 8), so
 * that the 8 rows of a matrix load, and 8 neighbouring pieces of a copy, touch all banks once. */
template <bool DEPTH_FIRST> __device__ __forceinline__ int place(int row, int piece)
{
    return (row * (DEPTH_FIRST ? DEPTH : TILE) + (piece ^ (row & 7)) * 8) * 2;
}

/* Queue the copy of the panel at (i0, l0); zero beyond i_end or l_end. */
template <bool DEPTH_FIRST>
__device__ __forceinline__ void load(const __nv_bfloat16 *from, int64_t stride, int64_t i0,
                                     int64_t i_end, int64_t l0, int64_t l_end, char *panel)
{
    constexpr int pieces = (DEPTH_FIRST ? DEPTH : TILE) / 8;
    const int piece = (int)threadIdx.x % pieces;
    const int64_t row0 = DEPTH_FIRST ? i0 : l0, row_end = DEPTH_FIRST ? i_end : l_end;
    const int64_t at = (DEPTH_FIRST ? l0 : i0) + piece * 8;
    const bool within = at < (DEPTH_FIRST ? l_end : i_end);

#pragma unroll
    for (int i = 0; i < PANEL_BYTES / 16 / THREADS; ++i) {
        const int row = (int)threadIdx.x / pieces + i * (THREADS / pieces);
        const bool inside = within && row0 + row < row_end;

        tsr_copy_async(panel + place<DEPTH_FIRST>(row, piece),
                       inside ? from + (row0 + row) * stride + at : from, inside);
    }
}

/* The 16 x 16 piece of a at (i, l) of the panel, as a of tsr_mma_bf16(). */
template <bool DEPTH_FIRST>
__device__ __forceinline__ void load_a(unsigned out[4], const char *panel, int i, int l, int lane)
{
    if (DEPTH_FIRST) {
        tsr_load_matrices(out, panel + place<true>(i + lane % 16, l / 8 + lane / 16));
    } else {
        tsr_load_transposed(
            out, panel + place<false>(l + lane % 8 + lane / 16 * 8, i / 8 + lane / 8 % 2));
    }
}

/* The 16 x 16 piece of b at (l, i) of the panel: b of two products, columns i and i + 8. */
template <bool DEPTH_FIRST>
__device__ __forceinline__ void load_b(unsigned out[4], const char *panel, int i, int l, int lane)
{
    if (DEPTH_FIRST) {
        tsr_load_matrices(out,
                          panel + place<true>(i + lane % 8 + lane / 16 * 8, l / 8 + lane / 8 % 2));
    } else {
        tsr_load_transposed(out, panel + place<false>(l + lane % 16, i / 8 + lane / 16));
    }
}

/* Add the products of one stage to the 64 x 32 sums of this warp. */
template <tsr_grouped_pass PASS>
__device__ __forceinline__ void multiply(const char *a_panel, const char *b_panel,
                                         float sum[4][4][4])
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int down = warp / 4 * 64, across = warp % 4 * 32;

#pragma unroll
    for (int l = 0; l < DEPTH; l += 16) {
        unsigned a[4][4], b[2][4];

#pragma unroll
        for (int i = 0; i < 4; ++i) {
            load_a<PASS != TSR_GROUPED_WGRAD>(a[i], a_panel, down + 16 * i, l, lane);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            load_b<PASS == TSR_GROUPED_FORWARD>(b[j], b_panel, across + 16 * j, l, lane);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                tsr_mma_bf16(sum[i][j], a[i], b[j / 2] + j % 2 * 2);
            }
        }
    }
}

/* Two neighbouring results. */
template <tsr_grouped_pass PASS>
__device__ __forceinline__ void store(const tsr_grouped &g, int64_t row, int64_t col, float first,
                                      float second)
{
    const int64_t at = row * g.ldc + col;

    if (PASS == TSR_GROUPED_WGRAD) {
        float2 *to = (float2 *)((float *)g.c + at);
        const float2 old = g.accumulate ? *to : make_float2(0.0f, 0.0f);

        *to = make_float2(old.x + first, old.y + second);
    } else {
        *(__nv_bfloat162 *)((__nv_bfloat16 *)g.c + at) = __floats2bfloat162_rn(first, second);
    }
}

template <tsr_grouped_pass PASS>
__device__ __forceinline__ void store_tile(const tsr_grouped &g, const tsr_grouped_tile &tile,
                                           const float sum[4][4][4])
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int64_t row0 = tile.row + warp / 4 * 64 + lane / 4;
    const int64_t col0 = tile.col + warp % 4 * 32 + lane % 4 * 2;

#pragma unroll
    for (int i = 0; i < 8; ++i) { /* 8 rows each */
        const int64_t row = row0 + 8 * i;

#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (row < tile.row_end && col0 + 8 * j < g.n) {
                store<PASS>(g, row, col0 + 8 * j, sum[i / 2][j][i % 2 * 2],
                            sum[i / 2][j][i % 2 * 2 + 1]);
            }
        }
    }
}

/* A block of 8 warps computes 128 x 128 tiles. Stages of 64 along depth (16 KiB of a, 16 KiB of b)
 * are copied two ahead of the one that is multiplied; one barrier a stage both publishes the stage
 * and frees the one before. Each result is summed in ascending order of depth by one warp, no
 * atomics. Traffic: every row panel once per 128 columns and back, from L2 mostly.
 * Bound by the tensor cores. CPU twin: tsr_plain_grouped_gemm(). */
template <tsr_grouped_pass PASS>
__global__ void __launch_bounds__(THREADS, 2) grouped_mma_kernel(tsr_grouped g)
{
    constexpr bool wgrad = PASS == TSR_GROUPED_WGRAD;
    TSR_DYN_SHARED(char, shared);
    tsr_grouped_walk walk = tsr_grouped_start(g);
    tsr_grouped_tile tile;

    for (int64_t index = blockIdx.x; tsr_grouped_find<PASS, TILE, TILE>(g, index, &walk, &tile);
         index += gridDim.x) {
        const int64_t skipped = wgrad ? tile.first_row : 0;
        const __nv_bfloat16 *b_matrix =
            (const __nv_bfloat16 *)g.b + (wgrad ? 0 : tile.expert * g.n * g.depth);
        const int64_t stages = tsr_ceil_div(tile.depth_end - tile.depth_begin, DEPTH);
        const auto fetch = [&](int64_t stage) {
            char *panels = shared + stage % STAGES * 2 * PANEL_BYTES;
            const int64_t l0 = tile.depth_begin + stage * DEPTH;

            if (stage < stages) {
                load<!wgrad>((const __nv_bfloat16 *)g.a, g.lda, tile.row - skipped,
                             tile.row_end - skipped, l0, tile.depth_end, panels);
                load<PASS == TSR_GROUPED_FORWARD>(b_matrix, g.ldb, tile.col, g.n, l0,
                                                  tile.depth_end, panels + PANEL_BYTES);
            }
            tsr_copy_commit(); /* an empty group keeps the count of groups per stage */
        };
        float sum[4][4][4] = {};

        for (int stage = 0; stage < STAGES - 1; ++stage) {
            fetch(stage);
        }
        for (int64_t stage = 0; stage < stages; ++stage) {
            const char *panels = shared + stage % STAGES * 2 * PANEL_BYTES;

            tsr_copy_wait<STAGES - 2>();
            __syncthreads();
            fetch(stage + STAGES - 1);
            multiply<PASS>(panels, panels + PANEL_BYTES, sum);
        }
        __syncthreads(); /* the next tile's first copies overwrite what slow warps still read */
        store_tile<PASS>(g, tile, sum);
    }
}

template <tsr_grouped_pass PASS>
tsr_status run(const tsr_grouped *problem, int multiprocessors, cudaStream_t stream)
{
    const int64_t tiles = tsr_grouped_tiles_at_most(problem, TILE, TILE);
    const int64_t most = (int64_t)multiprocessors * 2;
    const unsigned blocks = (unsigned)(tiles < most ? tiles : most);

    TSR_LAUNCH(grouped_mma_kernel<PASS>, dim3(blocks), dim3(THREADS), (size_t)SHARED_BYTES, stream,
               *problem);
    return TSR_OK;
}

} // namespace

tsr_status tsr_cuda_grouped_mma(const tsr_grouped *problem, tsr_grouped_pass pass,
                                int multiprocessors, cudaStream_t stream)
{
    switch (pass) {
    case TSR_GROUPED_FORWARD:
        return run<TSR_GROUPED_FORWARD>(problem, multiprocessors, stream);
    case TSR_GROUPED_DGRAD:
        return run<TSR_GROUPED_DGRAD>(problem, multiprocessors, stream);
    case TSR_GROUPED_WGRAD:
    default:
        return run<TSR_GROUPED_WGRAD>(problem, multiprocessors, stream);
    }
}
