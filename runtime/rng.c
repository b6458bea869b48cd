#include "runtime/rng.h"

#include <math.h>

void tsr_rng_words(uint64_t key, uint64_t counter, uint32_t out[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32), c2 = 0, c3 = 0;

    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;

        c0 = n0;
        c1 = (uint32_t)p1;
        c2 = n2;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

static double unit(uint32_t high, uint32_t low)
{
    return (double)(((uint64_t)high << 32 | low) >> 11) * 0x1p-53;
}

double tsr_rng_uniform(uint64_t key, uint64_t counter)
{
    uint32_t w[4];

    tsr_rng_words(key, counter, w);
    return unit(w[0], w[1]);
}

void tsr_rng_normal(uint64_t key, uint64_t first, int64_t count, float *out)
{
    const double two_pi = 6.283185307179586476925;

    /* Number 2j and 2j + 1 come from one Box-Muller pair at counter j. */
    for (int64_t i = 0; i < count;) {
        const uint64_t number = first + (uint64_t)i;
        uint32_t w[4];

        tsr_rng_words(key, number / 2, w);
        const double radius = sqrt(-2.0 * log(1.0 - unit(w[0], w[1])));
        const double angle = two_pi * unit(w[2], w[3]);
        if (number % 2 == 0) {
            out[i++] = (float)(radius * cos(angle));
            if (i < count) {
                out[i++] = (float)(radius * sin(angle));
            }
        } else {
            out[i++] = (float)(radius * sin(angle));
        }
    }
}

uint64_t tsr_rng_key(uint64_t seed, const char *name)
{
    uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a, then mixed with the seed by Philox */
    uint32_t w[4];

    for (const char *c = name; *c != '\0'; ++c) {
        hash = (hash ^ (unsigned char)*c) * 0x100000001B3u;
    }
    tsr_rng_words(seed, hash, w);
    return (uint64_t)w[0] << 32 | w[1];
}

uint64_t tsr_rng_permute(uint64_t key, uint64_t index, uint64_t count)
{
    unsigned half_bits = 1;

    while (half_bits < 32 && (uint64_t)1 << (2 * half_bits) < count) {
        ++half_bits;
    }
    const uint64_t mask = ((uint64_t)1 << half_bits) - 1;

    /* A Feistel network permutes [0, 4^half_bits); walking its cycle until the value falls below
     * count gives a permutation of [0, count). The walk takes fewer than 4 rounds on average. */
    do {
        uint64_t left = index >> half_bits, right = index & mask;
        for (uint64_t round = 0; round < 4; ++round) {
            uint32_t w[4];

            tsr_rng_words(key + round, right, w);
            const uint64_t next = left ^ (w[0] & mask);
            left = right;
            right = next;
        }
        index = left << half_bits | right;
    } while (index >= count);
    return index;
}
