/* The functions of runtime/cuda/wgmma_sm90.h on the host, with the layouts that the PTX manual
 * gives.
 *
 * Boxes land at once or at the first wait for their barrier, by chance; products run at the wait
 * for their group, as late as the GPU may: a stage that is filled or given away too early shows as
 * a wrong result. Threads that wait for ever end the program with a message. */
#ifndef TSR_CUEMU_WGMMA_H
#define TSR_CUEMU_WGMMA_H

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <vector>

enum { TSR_SM90_STAGES = 3 /* emulated blocks have the 163 KiB of sm_80 */ };

struct tsr_tensor_map {
    const char *base;
    int64_t sizes[3]; /* columns, rows, matrices */
    int64_t box_rows;
};

struct tsr_mbarrier {
    uint8_t parity; /* of the phase that runs */
    uint8_t expected, pending;
    uint8_t unused;
    int32_t bytes; /* announced and not yet there */
};

namespace cuemu
{
struct box {
    char *to;
    tsr_tensor_map map; /* a copy: a thread's own parameters end with it */
    int64_t at[3];      /* column, row, matrix */
    tsr_mbarrier *barrier;
};

struct product {
    float *sum;
    uint64_t a, b;
    bool a_along_depth, b_along_depth;
};

struct products { /* of one thread */
    std::vector<product> open;
    std::deque<std::vector<product>> groups;
};

inline std::vector<box> boxes;
inline products thread_products[1024];
inline long polls;

[[noreturn]] inline void stop(const char *what)
{
    std::fprintf(stderr, "wgmma: block %u thread %u: %s\n", blockIdx.x, threadIdx.x, what);
    std::abort();
}

/* The 16-byte piece of an address within 128 bytes is exchanged by the number of its row. */
inline uintptr_t swizzle(uintptr_t address)
{
    return address ^ (address >> 7 & 7) << 4;
}

inline void end_phase(tsr_mbarrier *barrier)
{
    if (barrier->pending == 0 && barrier->bytes == 0) {
        barrier->parity ^= 1;
        barrier->pending = barrier->expected;
        polls = 0;
    }
}

inline void land(const box &b)
{
    const tsr_tensor_map &map = b.map;

    for (int64_t row = 0; row < map.box_rows; ++row) {
        for (int64_t column = 0; column < TSR_BOX_COLUMNS; ++column) {
            const int64_t at[3] = {b.at[0] + column, b.at[1] + row, b.at[2]};
            uint16_t value = 0;
            bool inside = true;

            for (int d = 0; d < 3; ++d) {
                inside = inside && at[d] >= 0 && at[d] < map.sizes[d];
            }
            if (inside) {
                const int64_t element = (at[2] * map.sizes[1] + at[1]) * map.sizes[0] + at[0];
                std::memcpy(&value, map.base + element * 2, 2);
            }
            std::memcpy((void *)swizzle((uintptr_t)b.to + (uintptr_t)(row * 128 + column * 2)),
                        &value, 2);
        }
    }
    b.barrier->bytes -= (int32_t)map.box_rows * 128;
    end_phase(b.barrier);
}

/* Element (i, l) of an operand: index i, depth l. Shared memory is less than the 256 KiB that the
 * address in a descriptor can tell apart. */
inline float operand_element(uint64_t descriptor, bool along_depth, int i, int l)
{
    const uintptr_t shared = (uintptr_t)cuemu_dynamic_shared();
    const uintptr_t start = (descriptor & 0x3fff) << 4;
    const uintptr_t leading = (descriptor >> 16 & 0x3fff) << 4;
    const uintptr_t stride = (descriptor >> 32 & 0x3fff) << 4;
    const uintptr_t from = shared + ((start - shared) & 0x3ffff);
    const uintptr_t row = (uintptr_t)(along_depth ? l : i),
                    column = (uintptr_t)(along_depth ? i : l);
    const uintptr_t place =
        from + row / 8 * stride + row % 8 * 128 + column / 64 * leading + column % 64 * 2;
    uint16_t bits;

    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) {
        stop("a descriptor without the 128-byte swizzle");
    }
    std::memcpy(&bits, (const void *)swizzle(place), 2);
    return __uint_as_float((unsigned)bits << 16);
}

/* This thread's share of one product. */
inline void multiply(const product &p)
{
    const int thread = (int)threadIdx.x % 128;
    float a[2][16];

    for (int h = 0; h < 2; ++h) {
        for (int l = 0; l < 16; ++l) {
            const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * h;
            a[h][l] = operand_element(p.a, p.a_along_depth, row, l);
        }
    }
    for (int j = 0; j < 32; ++j) {
        for (int q = 0; q < 2; ++q) {
            for (int l = 0; l < 16; ++l) {
                const float b =
                    operand_element(p.b, p.b_along_depth, 8 * j + thread % 4 * 2 + q, l);

                p.sum[4 * j + q] += a[0][l] * b;
                p.sum[4 * j + 2 + q] += a[1][l] * b;
            }
        }
    }
}

inline void run_products(size_t pending)
{
    products &mine = thread_products[threadIdx.x];

    while (mine.groups.size() > pending) {
        for (const product &p : mine.groups.front()) {
            multiply(p);
        }
        mine.groups.pop_front();
    }
}
} // namespace cuemu

/* ---- on the host
 * ------------------------------------------------------------------------------ */

static inline tsr_status tsr_tensor_map_find_maker(void **out)
{
    static char maker;

    *out = &maker;
    return TSR_OK;
}

/* Refuses what cuTensorMapEncodeTiled() refuses. */
static inline tsr_status tsr_tensor_map_make(void *maker, const void *base, int64_t matrices,
                                             int64_t rows, int64_t columns, int box_rows,
                                             tsr_tensor_map *out)
{
    TSR_CHECK(maker != nullptr && (uintptr_t)base % 16 == 0 && columns * 2 % 16 == 0 &&
                  matrices > 0 && rows > 0 && columns > 0 && matrices <= UINT32_MAX &&
                  rows <= UINT32_MAX && columns <= UINT32_MAX && box_rows > 0 && box_rows <= 256,
              TSR_ERR_DEVICE, "emulated tensor map: [%lld, %lld, %lld] at %p, boxes of %d rows",
              (long long)matrices, (long long)rows, (long long)columns, base, box_rows);
    *out = tsr_tensor_map{(const char *)base, {columns, rows, matrices}, box_rows};
    return TSR_OK;
}

/* ---- on the GPU
 * ------------------------------------------------------------------------------- */

#undef __grid_constant__
#define __grid_constant__

inline unsigned tsr_shared_address(const void *at)
{
    return (unsigned)(uintptr_t)at;
}

inline void tsr_mbarrier_init(tsr_mbarrier *barrier, unsigned arrivals)
{
    *barrier = tsr_mbarrier{0, (uint8_t)arrivals, (uint8_t)arrivals, 0, 0};
}

inline void tsr_mbarrier_publish()
{
}

inline void tsr_mbarrier_arrive(tsr_mbarrier *barrier)
{
    if (barrier->pending == 0) {
        cuemu::stop("more arrivals at a barrier than its phase has");
    }
    --barrier->pending;
    cuemu::end_phase(barrier);
}

inline void tsr_mbarrier_expect(tsr_mbarrier *barrier, unsigned bytes)
{
    barrier->bytes += (int32_t)bytes;
    tsr_mbarrier_arrive(barrier);
}

inline void tsr_mbarrier_wait(tsr_mbarrier *barrier, unsigned parity)
{
    while (barrier->parity == parity) { /* that phase still runs */
        std::vector<cuemu::box> rest;

        for (const cuemu::box &b : cuemu::boxes) {
            if (b.barrier == barrier) {
                cuemu::land(b);
            } else {
                rest.push_back(b);
            }
        }
        cuemu::boxes.swap(rest);
        if (++cuemu::polls > 100000000) {
            cuemu::stop("all threads wait for barriers in shared memory");
        }
        cuemu_spin();
    }
}

inline void tsr_copy_box(void *to, const tsr_tensor_map *map, int64_t matrix, int64_t row,
                         int64_t column, tsr_mbarrier *barrier)
{
    const cuemu::box b = {(char *)to, *map, {column, row, matrix}, barrier};

    if ((uintptr_t)to % 1024 != 0) {
        cuemu::stop("a box does not begin where its swizzle does");
    }
    if (fake_random(2) == 0) {
        cuemu::land(b);
    } else {
        cuemu::boxes.push_back(b);
    }
}

inline void tsr_wgmma_begin(float *)
{
}

template <bool A_ALONG_DEPTH, bool B_ALONG_DEPTH>
void tsr_wgmma(float sum[128], uint64_t a, uint64_t b)
{
    cuemu::thread_products[threadIdx.x].open.push_back(
        cuemu::product{sum, a, b, A_ALONG_DEPTH, B_ALONG_DEPTH});
}

inline void tsr_wgmma_commit()
{
    cuemu::products &mine = cuemu::thread_products[threadIdx.x];

    mine.groups.push_back(std::move(mine.open));
    mine.open.clear();
}

template <int PENDING> void tsr_wgmma_wait()
{
    cuemu::run_products(PENDING);
}

inline void tsr_wgmma_finish(float *)
{
    cuemu::run_products(0);
}

template <int REGISTERS> void tsr_registers_give()
{
}

template <int REGISTERS> void tsr_registers_take()
{
}

#endif
