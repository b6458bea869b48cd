/* Grouped products by plain fused multiply-adds: f32, and bf16 of any size and alignment. */
#include "runtime/cuda/grouped.h"
#include "runtime/cuda/port.h"

namespace
{

enum { TILE = 64, DEPTH = 16, THREADS = 256, SIDE = TILE / 16 };

/* Columns of a panel: one more than the tile, so that walking down it changes the bank. */
typedef float panel[DEPTH][TILE + 1];

__device__ __forceinline__ float widen(float value)
{
    return value;
}

__device__ __forceinline__ float widen(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}

__device__ __forceinline__ void store(float *to, float value)
{
    *to = value;
}

__device__ __forceinline__ void store(__nv_bfloat16 *to, float value)
{
    *to = __float2bfloat16(value);
}

/* to[l][i] = the operand at depth l0 + l, index i0 + i; zero beyond either end. Neighbouring
 * threads read neighbouring elements whichever way the operand is stored. */
template <bool DEPTH_FIRST, class T>
__device__ __forceinline__ void load(const T *from, int64_t stride, int64_t i0, int64_t i_end,
                                     int64_t l0, int64_t l_end, panel to)
{
    for (int at = (int)threadIdx.x; at < TILE * DEPTH; at += THREADS) {
        const int i = DEPTH_FIRST ? at / DEPTH : at % TILE;
        const int l = DEPTH_FIRST ? at % DEPTH : at / TILE;
        const bool inside = i0 + i < i_end && l0 + l < l_end;
        const int64_t place = DEPTH_FIRST ? (i0 + i) * stride + l0 + l : (l0 + l) * stride + i0 + i;

        to[l][i] = inside ? widen(from[place]) : 0.0f;
    }
}

/* A block of 256 threads computes 64 x 64 tiles, 16 deep at a time through 8.3 KiB of shared
 * memory; a thread holds 4 x 4 sums, each added in ascending order of depth by one thread: no
 * atomics. Bound by the multiply-adds: 16 of them for 8 reads of shared memory.
 * CPU twin: tsr_plain_grouped_gemm(). */
template <tsr_grouped_pass PASS, class T, class C>
__global__ void __launch_bounds__(THREADS, 2) grouped_plain_kernel(tsr_grouped g)
{
    constexpr bool wgrad = PASS == TSR_GROUPED_WGRAD;
    TSR_SHARED(a, panel);
    TSR_SHARED(b, panel);
    const int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16;
    tsr_grouped_walk walk = tsr_grouped_start(g);
    tsr_grouped_tile tile;

    for (int64_t index = blockIdx.x; tsr_grouped_find<PASS, TILE, TILE>(g, index, &walk, &tile);
         index += gridDim.x) {
        const int64_t skipped = wgrad ? tile.first_row : 0;
        const T *b_matrix = (const T *)g.b + (wgrad ? 0 : tile.expert * g.n * g.depth);
        float sum[SIDE][SIDE] = {};

        for (int64_t l0 = tile.depth_begin; l0 < tile.depth_end; l0 += DEPTH) {
            load<!wgrad>((const T *)g.a, g.lda, tile.row - skipped, tile.row_end - skipped, l0,
                         tile.depth_end, a);
            load<PASS == TSR_GROUPED_FORWARD>(b_matrix, g.ldb, tile.col, g.n, l0, tile.depth_end,
                                              b);
            __syncthreads();
            for (int l = 0; l < DEPTH; ++l) {
                for (int i = 0; i < SIDE; ++i) {
                    for (int j = 0; j < SIDE; ++j) {
                        sum[i][j] = fmaf(a[l][y + 16 * i], b[l][x + 16 * j], sum[i][j]);
                    }
                }
            }
            __syncthreads();
        }
        for (int i = 0; i < SIDE; ++i) {
            for (int j = 0; j < SIDE; ++j) {
                const int64_t row = tile.row + y + 16 * i, col = tile.col + x + 16 * j;

                if (row < tile.row_end && col < g.n) {
                    C *to = (C *)g.c + row * g.ldc + col;
                    store(to, wgrad && g.accumulate ? widen(*to) + sum[i][j] : sum[i][j]);
                }
            }
        }
    }
}

template <tsr_grouped_pass PASS, class T, class C>
tsr_status run(const tsr_grouped *problem, int multiprocessors, cudaStream_t stream)
{
    const int64_t tiles = tsr_grouped_tiles_at_most(problem, TILE, TILE);
    const int64_t most = (int64_t)multiprocessors * 2;
    const unsigned blocks = (unsigned)(tiles < most ? tiles : most);

    TSR_LAUNCH(grouped_plain_kernel<PASS, T, C>, dim3(blocks), dim3(THREADS), (size_t)0, stream,
               *problem);
    return TSR_OK;
}

template <class T>
tsr_status run_pass(const tsr_grouped *problem, tsr_grouped_pass pass, int multiprocessors,
                    cudaStream_t stream)
{
    switch (pass) {
    case TSR_GROUPED_FORWARD:
        return run<TSR_GROUPED_FORWARD, T, T>(problem, multiprocessors, stream);
    case TSR_GROUPED_DGRAD:
        return run<TSR_GROUPED_DGRAD, T, T>(problem, multiprocessors, stream);
    case TSR_GROUPED_WGRAD:
    default:
        return run<TSR_GROUPED_WGRAD, T, float>(problem, multiprocessors, stream);
    }
}

} // namespace

tsr_status tsr_cuda_grouped_plain(const tsr_grouped *problem, tsr_grouped_pass pass,
                                  tsr_dtype dtype, int multiprocessors, cudaStream_t stream)
{
    return dtype == TSR_F32 ? run_pass<float>(problem, pass, multiprocessors, stream)
                            : run_pass<__nv_bfloat16>(problem, pass, multiprocessors, stream);
}
