/* Where amx_gemm.c puts a block of 32 x 32 sums: as it is or transposed, in f32 or bf16. */
#ifndef TSR_RUNTIME_CPU_AMX_TARGET_H
#define TSR_RUNTIME_CPU_AMX_TARGET_H

#include "runtime/cpu/simd/amx_pack.h"

#if defined(__AMX_BF16__) /* compiled for nothing else; so that the header still stands alone */

/* Where a block of sums goes: rows x columns of c, or less than a block at its edges. */
typedef struct target {
    char *c; /* of element (0, 0) */
    size_t element;
    int64_t row, column; /* bytes from row to row and from column to column */
    int64_t rows, columns;
    bool accumulate, is_far;
} target;

VEC_INLINE vec narrow(vec low, vec high)
{
    return (vec)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

VEC_INLINE bool is_far(const target *t, const char *to, int64_t wide)
{
    return t->is_far && wide >= BLOCK && (uintptr_t)to % LINE == 0;
}

VEC_INLINE void put_f32(const target *t, float *to, vec low, vec high, int64_t wide)
{
    const __mmask16 first = first_lanes(wide), last = first_lanes(wide - VEC_N);

    if (t->accumulate) {
        low += load_lanes(to, first);
        high += load_lanes(to + VEC_N, last);
    } else if (is_far(t, (const char *)to, wide)) {
        store_past_caches(to, low);
        store_past_caches(to + VEC_N, high);
        return;
    }
    store_lanes(to, low, first);
    store_lanes(to + VEC_N, high, last);
}

VEC_INLINE void put_bf16(const target *t, char *to, vec both, int64_t wide)
{
    if (is_far(t, to, wide)) {
        store_past_caches((float *)(void *)to, both);
    } else {
        _mm512_mask_storeu_epi16(to, first_halves(wide), (__m512i)both);
    }
}

/* A block as it is: its rows are rows of c. */
VEC_INLINE void put_rows(const float *sums, const target *t)
{
    for (int64_t i = 0; i < least(t->rows, BLOCK); ++i, sums += BLOCK) {
        char *to = t->c + i * t->row;
        const vec low = vec_load(sums), high = vec_load(sums + VEC_N);

        if (t->element == sizeof(float)) {
            put_f32(t, (float *)(void *)to, low, high, t->columns);
        } else {
            put_bf16(t, to, narrow(low, high), t->columns);
        }
    }
}

/* A block transposed: its columns are rows of c. Of bf16 words are turned, two rows in one. */
VEC_INLINE void put_columns(const float *sums, const target *t)
{
    for (int64_t j = 0; j < least(t->columns, BLOCK); j += VEC_N) {
        vec v[2][VEC_N];

#pragma GCC unroll 16
        for (int i = 0; i < VEC_N; ++i) {
            if (t->element == sizeof(float)) {
                v[0][i] = vec_load(sums + i * BLOCK + j);
                v[1][i] = vec_load(sums + (VEC_N + i) * BLOCK + j);
            } else {
                v[0][i] = vec_pair_bf16(vec_to_bf16(vec_load(sums + 2 * i * BLOCK + j)),
                                        vec_to_bf16(vec_load(sums + (2 * i + 1) * BLOCK + j)));
            }
        }
        transpose(v[0]);
        if (t->element == sizeof(float)) {
            transpose(v[1]);
        }
        for (int64_t i = 0; i < least(t->columns - j, VEC_N); ++i) {
            char *to = t->c + (j + i) * t->column;

            if (t->element == sizeof(float)) {
                put_f32(t, (float *)(void *)to, v[0][i], v[1][i], t->rows);
            } else {
                put_bf16(t, to, v[0][i], t->rows);
            }
        }
    }
}

#endif

#endif
