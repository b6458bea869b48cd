/* By how much two ways of computing attention may differ, for the tests of all devices.
 *
 * Inputs are normal numbers, below 5. A score is scale times a sum of head_dim products, so its
 * error is below scale 25 (hd + 2) eps, and a probability (with exp's two units) errs by this share
 * of itself. Out is a mean of numbers below 5. In the gradients, terms are p dout with sum of p
 * below the queries of a group, and ds = p (dp - d) with |dp - d| some 5 sqrt(hd). */
#ifndef TSR_TESTS_ATTENTION_BOUNDS_H
#define TSR_TESTS_ATTENTION_BOUNDS_H

#include "tests/runtime/op_test.h"

/* group_queries: of all the heads that share a key-value head. */
static inline double attention_tolerance(int head_dim, int64_t kv_len, double group_queries,
                                         bool is_gradient)
{
    const double score_error = 25.0 * (head_dim + 2) * F32_EPS / sqrt(head_dim);
    const double p_error = score_error + (4.0 + (double)kv_len) * F32_EPS;

    return is_gradient ? 5.0 * sqrt(head_dim) * (p_error + group_queries * F32_EPS) : 5.0 * p_error;
}

/* Where bf16 is multiplied, p and ds are rounded to it, by BF16_ULP / 2 of themselves at most and
 * with random sign. Six standard deviations of the sum: the squares of the terms p v add up to 1 at
 * most, those of a gradient (|dp - d| scale some 2^(1/2)) to twice the sum of p over the queries of
 * the group, which is about 1 + log S for each head. */
static inline double attention_rounding(int group, int64_t kv_len, bool is_gradient)
{
    const double deviation = BF16_ULP / 2.0 / sqrt(3.0);
    const double sum = group * (1.0 + log((double)kv_len));

    return 6.0 * deviation * (is_gradient ? sqrt(2.0 * sum) : 1.0);
}

#endif
