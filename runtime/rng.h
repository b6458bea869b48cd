/* Random numbers as a pure function of (key, counter): never of rank, thread or call order.
 *
 * Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3". */
#ifndef TSR_RUNTIME_RNG_H
#define TSR_RUNTIME_RNG_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Four 32-bit random words of (key, counter): Philox-4x32-10. */
void tsr_rng_words(uint64_t key, uint64_t counter, uint32_t out[4]);

/** Uniform in [0, 1), 53 bits, of (key, counter). */
double tsr_rng_uniform(uint64_t key, uint64_t counter);

/** Standard normals number first .. first + count - 1 of the sequence named by key. */
void tsr_rng_normal(uint64_t key, uint64_t first, int64_t count, float *out);

/** Key of a named stream under a seed; equal on every machine. */
uint64_t tsr_rng_key(uint64_t seed, const char *name);

/** Image of index under a random permutation of [0, count) named by key; 0 <= index < count. */
uint64_t tsr_rng_permute(uint64_t key, uint64_t index, uint64_t count);

#ifdef __cplusplus
}
#endif

#endif
