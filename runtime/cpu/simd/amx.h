/* Products of bf16 matrices by the tile registers of AMX (Intel 64 manual, volume 1, chapter 18).
 *
 * A tile is 16 rows of 64 bytes. Factors are made of 32-bit words, each a pair of bf16 along the
 * summed index, as in attention_tile.h: a left factor is packed by rows, a right one by columns.
 * Sums are f32, and taken in the order of the words. */
#ifndef TSR_RUNTIME_CPU_AMX_H
#define TSR_RUNTIME_CPU_AMX_H

#include "runtime/cpu/simd/vec.h"

#include <stdbool.h>

#if defined(__AMX_BF16__) /* compiled for nothing else; so that the header still stands alone */

enum { AMX_ROWS = 16, AMX_WORDS = 16, AMX_BLOCK = 2 * AMX_ROWS };

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
    _tile_loadconfig(&config);
}

VEC_INLINE void amx_end(void)
{
    _tile_release();
}

/* c[32, 32] (+)= a[32, words] b[words, 32]; words a multiple of 16. Rows lie a_row, b_row and c_row
 * words or sums apart, and 16 words of a row of a lie a_next from the 16 before. */
VEC_INLINE void amx_block(const float *a, int64_t a_row, int64_t a_next, const float *b,
                          int64_t b_row, int64_t words, float *c, int64_t c_row, bool add)
{
    const size_t a_bytes = (size_t)a_row * sizeof *a, b_bytes = (size_t)b_row * sizeof *b;
    const size_t c_bytes = (size_t)c_row * sizeof *c;
    const float *a_low = a + AMX_ROWS * a_row;
    float *c_low = c + AMX_ROWS * c_row;

    if (add) {
        _tile_loadd(0, c, c_bytes);
        _tile_loadd(1, c + AMX_WORDS, c_bytes);
        _tile_loadd(2, c_low, c_bytes);
        _tile_loadd(3, c_low + AMX_WORDS, c_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < words; i += AMX_WORDS) {
        _tile_loadd(4, a, a_bytes);
        _tile_loadd(6, b, b_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + AMX_WORDS, b_bytes);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a_low, a_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        a += a_next;
        a_low += a_next;
        b += AMX_WORDS * b_row;
    }
    _tile_stored(0, c, c_bytes);
    _tile_stored(1, c + AMX_WORDS, c_bytes);
    _tile_stored(2, c_low, c_bytes);
    _tile_stored(3, c_low + AMX_WORDS, c_bytes);
}

#endif

#endif
