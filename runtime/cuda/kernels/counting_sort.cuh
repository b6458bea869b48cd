/* A stable counting sort of integer keys: same input, same order, on every run.
 *
 * Each warp owns a contiguous share of the keys. (1) Every warp counts its keys:
 * counts[share][bin]. (2) For each bin these become the number of equal keys in earlier shares, and
 * their total. (3) offsets[bin] is the first row of the bin, bins padded to a multiple of `align`.
 * (4) Every warp walks its share again, 32 keys at a time: a key's row is the bin's offset, plus
 * the equal keys in earlier shares, earlier steps and lower lanes. Integer atomics in (1) only,
 * where order does not matter. */
#ifndef TSR_RUNTIME_CUDA_COUNTING_SORT_CUH
#define TSR_RUNTIME_CUDA_COUNTING_SORT_CUH

#include "runtime/cuda/kernels/kernel.cuh"

#define TSR_SORT_BINS_MAX 1024
#define TSR_SORT_SHARE    256 /* keys of a warp */
#define TSR_SORT_WARPS    4   /* of a block */
#define TSR_SCAN_WARPS    32

typedef struct tsr_sort_keys {
    const int32_t *keys;
    int64_t count;
    int shift, mask; /* a key's bin is (key >> shift) & mask, below bins */
    int bins;
} tsr_sort_keys;

typedef struct tsr_sort_tables { /* device memory */
    int32_t *counts;             /* [shares, bins] */
    int32_t *totals;             /* [bins] */
    int64_t *offsets;            /* [bins + 1] */
} tsr_sort_tables;

__device__ __forceinline__ int tsr_sort_bin(const tsr_sort_keys &keys, int64_t i)
{
    const int bin = (keys.keys[i] >> keys.shift) & keys.mask;

    if (bin >= keys.bins) { /* writing beyond the tables would be worse */
        __trap();
    }
    return bin;
}

/* (1): a warp a share, its counts in 4 * bins bytes of shared memory. Traffic 4 bytes a key. */
static __global__ void __launch_bounds__(TSR_SORT_WARPS *TSR_WARP)
    tsr_sort_count_kernel(tsr_sort_keys keys, tsr_sort_tables tables)
{
    TSR_DYN_SHARED(int32_t, all);
    const int lane = (int)threadIdx.x % TSR_WARP, warp = (int)threadIdx.x / TSR_WARP;
    const int64_t share = (int64_t)blockIdx.x * TSR_SORT_WARPS + warp;
    const int64_t begin = share * TSR_SORT_SHARE;
    int32_t *counts = all + warp * keys.bins;

    for (int bin = lane; bin < keys.bins; bin += TSR_WARP) {
        counts[bin] = 0;
    }
    __syncwarp();
    for (int64_t i = begin + lane; i < begin + TSR_SORT_SHARE && i < keys.count; i += TSR_WARP) {
        atomicAdd(&counts[tsr_sort_bin(keys, i)], 1);
    }
    __syncwarp();
    for (int bin = lane; bin < keys.bins && begin < keys.count; bin += TSR_WARP) {
        tables.counts[share * keys.bins + bin] = counts[bin];
    }
}

/* (2): a block 32 bins, a lane a bin; each warp sums a range of shares, then writes running sums
 * from where the earlier warps end. Traffic 12 bytes a count. Shared memory 4 KiB. */
static __global__ void __launch_bounds__(TSR_SCAN_WARPS *TSR_WARP)
    tsr_sort_scan_kernel(tsr_sort_tables tables, int shares, int bins)
{
    TSR_SHARED(sums, int32_t[TSR_SCAN_WARPS][TSR_WARP]);
    const int lane = (int)threadIdx.x % TSR_WARP, warp = (int)threadIdx.x / TSR_WARP;
    const int bin = (int)blockIdx.x * TSR_WARP + lane;
    const int range = (shares + TSR_SCAN_WARPS - 1) / TSR_SCAN_WARPS;
    const int begin = warp * range, end = begin + range < shares ? begin + range : shares;
    int32_t sum = 0, before = 0;

    for (int share = begin; share < end && bin < bins; ++share) {
        sum += tables.counts[(int64_t)share * bins + bin];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    for (int earlier = 0; earlier < warp; ++earlier) {
        before += sums[earlier][lane];
    }
    for (int share = begin; share < end && bin < bins; ++share) {
        int32_t *at = &tables.counts[(int64_t)share * bins + bin];
        const int32_t count = *at;

        *at = before;
        before += count;
    }
    if (warp == TSR_SCAN_WARPS - 1 && bin < bins) {
        tables.totals[bin] = before;
    }
}

/* (3): one block, thread b sums the padded sizes of the bins before b (4 KiB shared memory). */
static __global__ void __launch_bounds__(TSR_SORT_BINS_MAX)
    tsr_sort_offsets_kernel(tsr_sort_tables tables, int bins, int align)
{
    TSR_SHARED(padded, int32_t[TSR_SORT_BINS_MAX]);
    const int bin = (int)threadIdx.x;
    int64_t offset = 0;

    if (bin < bins) {
        padded[bin] = (tables.totals[bin] + align - 1) / align * align;
    }
    __syncthreads();
    if (bin < bins) {
        for (int earlier = 0; earlier < bin; ++earlier) {
            offset += padded[earlier];
        }
        tables.offsets[bin] = offset;
        if (bin == bins - 1) {
            tables.offsets[bins] = offset + padded[bin];
        }
    }
}

/* The lanes of this warp in `among` whose bin is the same, found bit by bit. */
__device__ __forceinline__ unsigned tsr_sort_peers(int bin, int bins, unsigned among)
{
    unsigned peers = among;

    for (int bit = 1; bit < bins; bit *= 2) {
        const bool is_set = (bin & bit) != 0;
        const unsigned set = __ballot_sync(TSR_ALL_LANES, is_set);

        peers &= is_set ? set : ~set;
    }
    return peers;
}

/* (4): a warp a share, the next row of each bin in 4 * bins bytes of shared memory; place(i, row)
 * is called once for every key i. */
template <class Place>
static __global__ void __launch_bounds__(TSR_SORT_WARPS *TSR_WARP)
    tsr_sort_place_kernel(tsr_sort_keys keys, tsr_sort_tables tables, Place place)
{
    TSR_DYN_SHARED(int32_t, all);
    const int lane = (int)threadIdx.x % TSR_WARP, warp = (int)threadIdx.x / TSR_WARP;
    const int64_t share = (int64_t)blockIdx.x * TSR_SORT_WARPS + warp;
    const int64_t begin = share * TSR_SORT_SHARE;
    int32_t *next = all + warp * keys.bins;

    for (int bin = lane; bin < keys.bins && begin < keys.count; bin += TSR_WARP) {
        next[bin] = (int32_t)tables.offsets[bin] + tables.counts[share * keys.bins + bin];
    }
    __syncwarp();
    for (int64_t i = begin + lane; i - lane < begin + TSR_SORT_SHARE && i - lane < keys.count;
         i += TSR_WARP) {
        const bool is_key = i < keys.count;
        const int bin = is_key ? tsr_sort_bin(keys, i) : 0;
        const unsigned present = __ballot_sync(TSR_ALL_LANES, is_key);
        const unsigned peers = tsr_sort_peers(bin, keys.bins, present);
        const int before = __popc(peers & ((1u << lane) - 1));
        const int32_t row = is_key ? next[bin] + before : 0;

        __syncwarp();
        if (is_key && before + 1 == __popc(peers)) { /* the last of its peers */
            next[bin] = row + 1;
        }
        __syncwarp();
        if (is_key) {
            place(i, row);
        }
    }
}

static inline int64_t tsr_sort_shares(int64_t count)
{
    return tsr_divide_up(count, TSR_SORT_SHARE);
}

/* All four steps on tables of the caller. */
template <class Place>
static tsr_status tsr_sort(const char *name, const tsr_sort_keys &keys, int align,
                           const tsr_sort_tables &tables, const Place &place, cudaStream_t queue)
{
    const int64_t shares = tsr_sort_shares(keys.count);
    const size_t shared = (size_t)TSR_SORT_WARPS * (size_t)keys.bins * sizeof(int32_t);
    const dim3 block(TSR_SORT_WARPS * TSR_WARP);
    dim3 grid;

    TSR_CHECK(keys.bins <= TSR_SORT_BINS_MAX, TSR_ERR_ARG, "%s: experts = %d, must be at most %d",
              name, keys.bins, TSR_SORT_BINS_MAX);
    TSR_CHECK(keys.count <= INT32_MAX, TSR_ERR_RANGE,
              "%s: %lld keys, rows are numbered up to %d: use smaller batches", name,
              (long long)keys.count, INT32_MAX);
    TSR_TRY(tsr_grid_for(name, tsr_divide_up(shares, TSR_SORT_WARPS), &grid));
    TSR_LAUNCH(tsr_sort_count_kernel, grid, block, shared, queue, keys, tables);
    TSR_LAUNCH(tsr_sort_scan_kernel, dim3((unsigned)tsr_divide_up(keys.bins, TSR_WARP)),
               dim3(TSR_SCAN_WARPS * TSR_WARP), 0, queue, tables, (int)shares, keys.bins);
    TSR_LAUNCH(tsr_sort_offsets_kernel, dim3(1), dim3(tsr_block_for(keys.bins, 1, TSR_BLOCK_MAX)),
               0, queue, tables, keys.bins, align);
    TSR_LAUNCH(tsr_sort_place_kernel<Place>, grid, block, shared, queue, keys, tables, place);
    return TSR_OK;
}

#endif
