/* The functions of runtime/cuda/mma_sm80.h on the host, with the register layouts that the PTX
 * manual gives (ldmatrix, mma.m16n8k16). For blocks of one dimension.
 *
 * An asynchronous copy lands at its wait or at once, by chance: a missing wait reads old bytes, and
 * a copy into a panel that others still read spoils it. */
#ifndef TSR_CUEMU_MMA_H
#define TSR_CUEMU_MMA_H

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <vector>

namespace cuemu
{
struct copy {
    void *to;
    const void *from;
    bool inside;
};

struct copies { /* of one thread */
    std::vector<copy> open;
    std::deque<std::vector<copy>> groups;
};

struct warp_registers { /* what the lanes of one warp show each other */
    const char *row[32];
    unsigned a[32][4], b[32][2];
};

inline copies thread_copies[1024];
inline warp_registers registers[32];

inline void land(const copy &c)
{
    if (c.inside) {
        std::memcpy(c.to, c.from, 16);
    } else {
        std::memset(c.to, 0, 16);
    }
}

inline warp_registers &my_warp()
{
    return registers[threadIdx.x / 32];
}

inline void show_row(const void *row)
{
    if ((uintptr_t)row % 16 != 0) {
        std::fprintf(stderr, "ldmatrix: row address %p is not a multiple of 16\n", row);
        std::abort();
    }
    my_warp().row[threadIdx.x % 32] = (const char *)row;
    __syncwarp();
}

/* Element (i, l) of one of the lanes' registers: pairs of 16-bit elements along l. */
inline float element(unsigned pair, int l)
{
    return __uint_as_float((l % 2 == 0 ? pair : pair >> 16) << 16);
}
} // namespace cuemu

inline void tsr_copy_async(void *to, const void *from, bool inside)
{
    const cuemu::copy c = {to, from, inside};

    if (((uintptr_t)to | (inside ? (uintptr_t)from : 0)) % 16 != 0) {
        std::fprintf(stderr, "cp.async: %p or %p is not a multiple of 16\n", to, from);
        std::abort();
    }
    if (fake_random(2) == 0) {
        cuemu::land(c);
    } else {
        cuemu::thread_copies[threadIdx.x].open.push_back(c);
    }
}

inline void tsr_copy_commit()
{
    cuemu::copies &mine = cuemu::thread_copies[threadIdx.x];

    mine.groups.push_back(std::move(mine.open));
    mine.open.clear();
}

template <int PENDING> void tsr_copy_wait()
{
    cuemu::copies &mine = cuemu::thread_copies[threadIdx.x];

    while (mine.groups.size() > PENDING) {
        for (const cuemu::copy &c : mine.groups.front()) {
            cuemu::land(c);
        }
        mine.groups.pop_front();
    }
}

inline void tsr_load_matrices(unsigned out[4], const void *row)
{
    const int lane = (int)threadIdx.x % 32;

    cuemu::show_row(row);
    for (int j = 0; j < 4; ++j) {
        std::memcpy(&out[j], cuemu::my_warp().row[8 * j + lane / 4] + lane % 4 * 4, 4);
    }
    __syncwarp();
}

inline void tsr_load_transposed(unsigned out[4], const void *row)
{
    const int lane = (int)threadIdx.x % 32;

    cuemu::show_row(row);
    for (int j = 0; j < 4; ++j) {
        uint16_t pair[2];

        for (int i = 0; i < 2; ++i) {
            const char *const stored = cuemu::my_warp().row[8 * j + lane % 4 * 2 + i];
            std::memcpy(&pair[i], stored + lane / 4 * 2, 2);
        }
        out[j] = pair[0] | (unsigned)pair[1] << 16;
    }
    __syncwarp();
}

inline void tsr_mma_bf16(float c[4], const unsigned a[4], const unsigned b[2])
{
    const int lane = (int)threadIdx.x % 32;
    cuemu::warp_registers &warp = cuemu::my_warp();

    std::memcpy(warp.a[lane], a, sizeof warp.a[lane]);
    std::memcpy(warp.b[lane], b, sizeof warp.b[lane]);
    __syncwarp();
    for (int q = 0; q < 4; ++q) {
        const int i = lane / 4 + q / 2 * 8, j = lane % 4 * 2 + q % 2;

        for (int l = 0; l < 16; ++l) {
            const unsigned x = warp.a[i % 8 * 4 + l % 8 / 2][i / 8 + l / 8 * 2];
            const unsigned y = warp.b[j * 4 + l % 8 / 2][l / 8];

            c[q] += cuemu::element(x, l) * cuemu::element(y, l);
        }
    }
    __syncwarp();
}

#endif
