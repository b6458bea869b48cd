/* Products of bf16 matrices by the tile registers of AMX (Intel 64 manual, volume 1, chapter 18).
 *
 * A tile is 16 rows of 64 bytes. Factors are made of 32-bit words, each a pair of bf16 along the
 * summed index, as in attention_tile.h: a left factor is packed by rows, a right one by columns.
 * Sums are f32: of 16 words in the instruction's own order, then one 16 after the other. Numbers
 * below 2^-126 count as zeros. */
#ifndef TSR_RUNTIME_CPU_AMX_H
#define TSR_RUNTIME_CPU_AMX_H

#include "runtime/cpu/simd/vec.h"

#if defined(__AMX_BF16__) /* compiled for nothing else; so that the header still stands alone */

enum { AMX_ROWS = 16, AMX_WORDS = 16, AMX_BLOCK = 2 * AMX_ROWS };

/* Before tiles are loaded: to the compiler the instructions read registers only, and stores of what
 * they load might be put behind them. */
VEC_INLINE void amx_after_stores(void)
{
    __asm__ volatile("" ::: "memory");
}

/* All eight tiles of the calling thread are full ones. oneDNN sets its own in the same thread. */
VEC_INLINE void amx_begin(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};

    for (int i = 0; i < 8; ++i) {
        config.row_bytes[i] = AMX_WORDS * sizeof(float);
        config.rows[i] = AMX_ROWS;
    }
    amx_after_stores();
    _tile_loadconfig(&config);
}

VEC_INLINE void amx_end(void)
{
    _tile_release();
}

/* The four tiles of a block of 32 x 32 sums, `row` sums from row to row. */
VEC_INLINE void amx_zero(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

VEC_INLINE void amx_load(const float *c, int64_t row)
{
    const size_t bytes = (size_t)row * sizeof *c;

    amx_after_stores();
    _tile_loadd(0, c, bytes);
    _tile_loadd(1, c + AMX_WORDS, bytes);
    _tile_loadd(2, c + AMX_ROWS * row, bytes);
    _tile_loadd(3, c + AMX_ROWS * row + AMX_WORDS, bytes);
}

VEC_INLINE void amx_store(float *c, int64_t row)
{
    const size_t bytes = (size_t)row * sizeof *c;

    _tile_stored(0, c, bytes);
    _tile_stored(1, c + AMX_WORDS, bytes);
    _tile_stored(2, c + AMX_ROWS * row, bytes);
    _tile_stored(3, c + AMX_ROWS * row + AMX_WORDS, bytes);
}

/* Where a factor lies: `row` words from row to row, and `next` to the next 16 words along the
 * sum. */
typedef struct amx_factor {
    const float *at;
    int64_t row, next;
} amx_factor;

VEC_INLINE void amx_load_a(const float *a, int64_t row)
{
    amx_after_stores();
    _tile_loadd(4, a, (size_t)row * sizeof *a);
    _tile_loadd(5, a + AMX_ROWS * row, (size_t)row * sizeof *a);
}

VEC_INLINE void amx_load_b(const float *b, int64_t row)
{
    amx_after_stores();
    _tile_loadd(6, b, (size_t)row * sizeof *b);
    _tile_loadd(7, b + AMX_WORDS, (size_t)row * sizeof *b);
}

/* The same, past the first-level cache. */
VEC_INLINE void amx_stream_b(const float *b, int64_t row)
{
    amx_after_stores();
    _tile_stream_loadd(6, b, (size_t)row * sizeof *b);
    _tile_stream_loadd(7, b + AMX_WORDS, (size_t)row * sizeof *b);
}

VEC_INLINE void amx_multiply(void)
{
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

/* The block += a[32, steps x 16 words] b[steps x 16 words, 32]. */
VEC_INLINE void amx_add(amx_factor a, amx_factor b, int64_t steps)
{
    for (int64_t i = 0; i < steps; ++i, a.at += a.next, b.at += b.next) {
        amx_load_a(a.at, a.row);
        amx_load_b(b.at, b.row);
        amx_multiply();
    }
}

#endif

#endif
