/* Grouped products of bf16 on Hopper: boxes by the tensor memory accelerator, products by warp
 * groups.
 *
 * One producer thread and two warp groups of consumers share STAGES stages of shared memory:
 *   producer   wait until stage is empty | announce 48 KiB, queue the boxes of a and b | next stage
 *   consumers  wait until stage is full  | queue 4 products | wait for those of the stage before,
 *              and call that one empty   | next stage
 * Stages run on from tile to tile, so the next tile's first boxes land while results are stored. */
#include "runtime/cuda/grouped.h"
#include "runtime/cuda/wgmma_sm90.h"

namespace
{

enum {
    TILE_M = 128, /* two warp groups of 64 rows */
    TILE_N = 256,
    DEPTH = 64, /* of one stage */
    STEP = 16,  /* of one product */
    GROUPS = 2,
    GROUP_THREADS = 128,
    THREADS = (1 + GROUPS) * GROUP_THREADS,
    STAGES = TSR_SM90_STAGES,
    ROW_BYTES = 2 * TSR_BOX_COLUMNS,
    A_BYTES = TILE_M * DEPTH * 2,
    B_BYTES = TILE_N * DEPTH * 2,
    STAGE_BYTES = A_BYTES + B_BYTES,
    SQUARE_BYTES = 64 * ROW_BYTES, /* a box of 64 along depth and 64 along the index */
    ATOM_BYTES = 8 * ROW_BYTES,    /* the swizzle repeats: boxes begin at multiples of this */
    SHARED_BYTES = STAGES * STAGE_BYTES + 2 * STAGES * 8 + ATOM_BYTES
};

/* Where both operands lie depends on the way they are stored:
 *   rows along the index (depth contiguous): one box of TILE rows of 64 along depth;
 *                                            a step of 16 is 32 bytes further in every row
 *   rows along depth (index contiguous):     a box of 64 rows of 64 along the index, and the next
 *                                            64 behind it; a step of 16 is 16 rows further */
template <bool ALONG_DEPTH> __device__ __forceinline__ uint64_t operand(unsigned panel, int step)
{
    return tsr_wgmma_operand(panel + (unsigned)step * (ALONG_DEPTH ? STEP * ROW_BYTES : STEP * 2),
                             ALONG_DEPTH ? SQUARE_BYTES : 16, ATOM_BYTES);
}

template <bool ALONG_DEPTH, int TILE>
__device__ __forceinline__ void copy_panel(char *to, const tsr_tensor_map *map, int64_t matrix,
                                           int64_t index, int64_t depth, tsr_mbarrier *full)
{
    constexpr int boxes = ALONG_DEPTH ? TILE / 64 : 1;

#pragma unroll
    for (int i = 0; i < boxes; ++i) {
        tsr_copy_box(to + i * SQUARE_BYTES, map, matrix, ALONG_DEPTH ? depth : index,
                     ALONG_DEPTH ? index + 64 * i : depth, full);
    }
}

struct stages { /* in shared memory */
    char *panels;
    tsr_mbarrier *full, *empty;
};

template <tsr_grouped_pass PASS>
__device__ __forceinline__ void produce(const tsr_grouped &g, const tsr_tensor_map *a,
                                        const tsr_tensor_map *b, const stages &s)
{
    constexpr bool wgrad = PASS == TSR_GROUPED_WGRAD;
    tsr_grouped_walk walk = tsr_grouped_start(g);
    tsr_grouped_tile tile;
    unsigned stage = 0, parity = 0;

    for (int64_t index = blockIdx.x; tsr_grouped_find<PASS, TILE_M, TILE_N>(g, index, &walk, &tile);
         index += gridDim.x) {
        for (int64_t l = tile.depth_begin; l < tile.depth_end; l += DEPTH) {
            char *const to = s.panels + stage * STAGE_BYTES;

            tsr_mbarrier_wait(&s.empty[stage], parity ^ 1);
            tsr_mbarrier_expect(&s.full[stage], STAGE_BYTES);
            copy_panel<wgrad, TILE_M>(to, a, 0, wgrad ? tile.row - tile.first_row : tile.row, l,
                                      &s.full[stage]);
            copy_panel<PASS != TSR_GROUPED_FORWARD, TILE_N>(
                to + A_BYTES, b, wgrad ? 0 : tile.expert, tile.col, l, &s.full[stage]);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            parity ^= stage == 0;
        }
    }
}

/* Four lanes hold two neighbours each of four groups of eight results; give each lane one group. */
__device__ __forceinline__ void transpose(unsigned word[4])
{
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;

#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const unsigned other = __shfl_xor_sync(~0u, odd ? word[i] : word[i + 1], 1);

        word[i] = odd ? other : word[i];
        word[i + 1] = odd ? word[i + 1] : other;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const unsigned other = __shfl_xor_sync(~0u, high ? word[i] : word[i + 2], 2);

        word[i] = high ? other : word[i];
        word[i + 2] = high ? word[i + 2] : other;
    }
}

__device__ __forceinline__ unsigned pack(float low, float high)
{
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    unsigned word;

    memcpy(&word, &both, sizeof word);
    return word;
}

/* bf16, 16 bytes a lane; `row` is this lane's first, col the tile's. */
__device__ __forceinline__ void store_rows(const tsr_grouped &g, int64_t row, int64_t row_end,
                                           int64_t col, const float sum[128])
{
    const int64_t mine = col + (int)threadIdx.x % 4 * 8;

#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int j = 0; j < TILE_N / 8; j += 4) {
            unsigned word[4];

#pragma unroll
            for (int i = 0; i < 4; ++i) {
                word[i] = pack(sum[4 * (j + i) + 2 * h], sum[4 * (j + i) + 2 * h + 1]);
            }
            transpose(word);
            if (row + 8 * h < row_end && mine + 8 * j < g.n) {
                __nv_bfloat16 *const to =
                    (__nv_bfloat16 *)g.c + (row + 8 * h) * g.ldc + mine + 8 * j;
                *(uint4 *)to = make_uint4(word[0], word[1], word[2], word[3]);
            }
        }
    }
}

/* f32, overwritten or added to. */
__device__ __forceinline__ void store_gradient(const tsr_grouped &g, int64_t row, int64_t row_end,
                                               int64_t col, const float sum[128])
{
    const int64_t mine = col + (int)threadIdx.x % 4 * 2;

#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int j = 0; j < TILE_N / 8; ++j) {
            if (row + 8 * h < row_end && mine + 8 * j < g.n) {
                float2 *const to = (float2 *)((float *)g.c + (row + 8 * h) * g.ldc + mine + 8 * j);
                const float2 old = g.accumulate ? *to : make_float2(0.0f, 0.0f);

                *to = make_float2(old.x + sum[4 * j + 2 * h], old.y + sum[4 * j + 2 * h + 1]);
            }
        }
    }
}

template <tsr_grouped_pass PASS>
__device__ __forceinline__ void multiply(float sum[128], unsigned a, unsigned b, int steps)
{
    constexpr bool a_along = PASS == TSR_GROUPED_WGRAD, b_along = PASS != TSR_GROUPED_FORWARD;

#pragma unroll
    for (int step = 0; step < DEPTH / STEP; ++step) {
        if (step < steps) {
            tsr_wgmma<a_along, b_along>(sum, operand<a_along>(a, step), operand<b_along>(b, step));
        }
    }
}

template <tsr_grouped_pass PASS>
__device__ __forceinline__ void consume(const tsr_grouped &g, const stages &s, int group)
{
    constexpr bool wgrad = PASS == TSR_GROUPED_WGRAD;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x % GROUP_THREADS / 32;
    tsr_grouped_walk walk = tsr_grouped_start(g);
    tsr_grouped_tile tile;
    unsigned stage = 0, parity = 0;

    for (int64_t index = blockIdx.x; tsr_grouped_find<PASS, TILE_M, TILE_N>(g, index, &walk, &tile);
         index += gridDim.x) {
        tsr_mbarrier *before = nullptr; /* the stage whose products may still run */
        float sum[128];

#pragma unroll
        for (int i = 0; i < 128; ++i) {
            sum[i] = 0.0f;
        }
        for (int64_t l = tile.depth_begin; l < tile.depth_end; l += DEPTH) {
            const unsigned a = tsr_shared_address(s.panels + stage * STAGE_BYTES) +
                               (unsigned)group * SQUARE_BYTES; /* 64 rows, or 64 columns */
            const unsigned b = tsr_shared_address(s.panels + stage * STAGE_BYTES + A_BYTES);

            tsr_mbarrier_wait(&s.full[stage], parity);
            tsr_wgmma_begin(sum);
            if (!wgrad || l + DEPTH <= tile.depth_end) {
                multiply<PASS>(sum, a, b, DEPTH / STEP);
            } else { /* past the end lie the next expert's rows; TSR_ROW_ALIGN makes whole steps */
                multiply<PASS>(sum, a, b, (int)(tile.depth_end - l) / STEP);
            }
            tsr_wgmma_commit();
            tsr_wgmma_wait<1>();
            __syncwarp();
            if (lane == 0 && before != nullptr) {
                tsr_mbarrier_arrive(before);
            }
            before = &s.empty[stage];
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            parity ^= stage == 0;
        }
        tsr_wgmma_finish(sum);
        __syncwarp();
        if (lane == 0 && before != nullptr) {
            tsr_mbarrier_arrive(before);
        }
        const int64_t row = tile.row + group * 64 + warp * 16 + lane / 4;
        if (wgrad) {
            store_gradient(g, row, tile.row_end, tile.col, sum);
        } else {
            store_rows(g, row, tile.row_end, tile.col, sum);
        }
    }
}

/* A block of 384 threads computes 128 x 256 tiles: thread 0 copies, threads 128 .. 383 multiply,
 * 128 sums each. Shared memory: STAGES of 16 KiB of a and 32 KiB of b. Each result is summed in
 * ascending order of depth, 16 at a time in the tensor core's own order, no atomics.
 * Traffic: 48 KiB of L2 a stage of 4.2 MFLOP. Bound by the tensor cores.
 * CPU twin: tsr_plain_grouped_gemm(). */
template <tsr_grouped_pass PASS>
__global__ void __launch_bounds__(THREADS, 1)
    grouped_sm90_kernel(tsr_grouped g, const __grid_constant__ tsr_tensor_map a,
                        const __grid_constant__ tsr_tensor_map b)
{
    TSR_DYN_SHARED(char, shared);
    const uintptr_t unaligned = (uintptr_t)shared % ATOM_BYTES;
    stages s;

    s.panels = shared + (unaligned == 0 ? 0 : ATOM_BYTES - unaligned);
    s.full = (tsr_mbarrier *)(s.panels + STAGES * STAGE_BYTES);
    s.empty = s.full + STAGES;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            tsr_mbarrier_init(&s.full[i], 1);
            tsr_mbarrier_init(&s.empty[i], GROUPS * GROUP_THREADS / 32); /* one of each warp */
        }
        tsr_mbarrier_publish();
    }
    __syncthreads();
    /* 384 threads begin with 168 registers each; 56 and 224 are as many in all. */
    if (threadIdx.x < GROUP_THREADS) {
        tsr_registers_give<56>();
        if (threadIdx.x == 0) {
            produce<PASS>(g, &a, &b, s);
        }
    } else {
        tsr_registers_take<224>();
        consume<PASS>(g, s, (int)threadIdx.x / GROUP_THREADS - 1);
    }
}

template <tsr_grouped_pass PASS>
tsr_status run(const tsr_grouped *problem, void *map_maker, int multiprocessors,
               cudaStream_t stream)
{
    constexpr bool wgrad = PASS == TSR_GROUPED_WGRAD, forward = PASS == TSR_GROUPED_FORWARD;
    const tsr_grouped *const p = problem;
    const int64_t tiles = tsr_grouped_tiles_at_most(p, TILE_M, TILE_N);
    const unsigned blocks = (unsigned)(tiles < multiprocessors ? tiles : multiprocessors);
    const int64_t b_rows = wgrad ? p->max_rows : forward ? p->n : p->depth;
    tsr_tensor_map a, b;

    TSR_TRY(
        tsr_tensor_map_make(map_maker, p->a, 1, p->max_rows, p->lda, wgrad ? DEPTH : TILE_M, &a));
    TSR_TRY(tsr_tensor_map_make(map_maker, p->b, wgrad ? 1 : p->experts, b_rows, p->ldb,
                                forward ? TILE_N : DEPTH, &b));
    TSR_LAUNCH(grouped_sm90_kernel<PASS>, dim3(blocks), dim3(THREADS), (size_t)SHARED_BYTES, stream,
               *problem, a, b);
    return TSR_OK;
}

} // namespace

tsr_status tsr_cuda_grouped_sm90_find(void **map_maker_out)
{
    return tsr_tensor_map_find_maker(map_maker_out);
}

tsr_status tsr_cuda_grouped_sm90(const tsr_grouped *problem, tsr_grouped_pass pass, void *map_maker,
                                 int multiprocessors, cudaStream_t stream)
{
    switch (pass) {
    case TSR_GROUPED_FORWARD:
        return run<TSR_GROUPED_FORWARD>(problem, map_maker, multiprocessors, stream);
    case TSR_GROUPED_DGRAD:
        return run<TSR_GROUPED_DGRAD>(problem, map_maker, multiprocessors, stream);
    case TSR_GROUPED_WGRAD:
    default:
        return run<TSR_GROUPED_WGRAD>(problem, map_maker, multiprocessors, stream);
    }
}
