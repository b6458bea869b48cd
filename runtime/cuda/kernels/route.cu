/* The router: scores, choice, weights and balancing sums of each token, and their gradient. */
#include "runtime/cuda/kernels/kernel.cuh"

#include <limits.h>

enum {
    WARPS = 8,
    SHARE_TOKENS = 32 /* of one block: a part of one sequence */
};

#define TINY 1e-20f /* keeps quotients finite where all sigmoids underflow */

/* What a block adds up over its tokens, one entry an expert and share: in device memory. */
typedef struct route_sums {
    float *scores;  /* [shares, E] of normalised scores */
    int32_t *first; /* [shares, E] assignments that count for the balance */
    int shares;     /* of one sequence */
} route_sums;

/* A warp's view of one token: lane l owns experts l, l + 32, ... */
template <int OWN> struct token_scores {
    float score[OWN];
    float z;   /* logsumexp of the logits */
    float sum; /* what makes the scores sum to one */
};

template <int OWN>
static __device__ __forceinline__ token_scores<OWN> score_token(const tsr_route_args &a,
                                                                int64_t token, int lane)
{
    const float *logits = a.logits + token * a.experts;
    token_scores<OWN> t;
    float logit[OWN], top = -INFINITY, sum = 0.0f;

#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int e = lane + i * TSR_WARP;

        logit[i] = e < a.experts ? logits[e] : -INFINITY;
        top = fmaxf(top, logit[i]);
    }
    top = tsr_warp_max(top);
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        t.score[i] = lane + i * TSR_WARP < a.experts ? expf(logit[i] - top) : 0.0f;
        sum += t.score[i];
    }
    sum = tsr_warp_sum(sum);
    t.z = top + logf(sum);
    t.sum = 1.0f;
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        t.score[i] /= sum;
    }
    if (a.gate == TSR_GATE_SIGMOID) {
        t.sum = 0.0f;
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            t.score[i] = lane + i * TSR_WARP < a.experts ? 1.0f / (1.0f + expf(-logit[i])) : 0.0f;
            t.sum += t.score[i];
        }
        t.sum = tsr_warp_sum(t.sum) + TINY;
    }
    return t;
}

/* The best expert not in `taken` (a bit for each that this lane owns), the same in every lane; NaN
 * ranks below all, ties go to the lower expert. Its score comes from the lane that owns it. */
template <int OWN>
static __device__ __forceinline__ int take_best(const float (&key)[OWN], const float (&score)[OWN],
                                                int experts, int lane, unsigned *taken,
                                                float *score_out)
{
    float best_key = -INFINITY, mine = 0.0f;
    int best = INT_MAX;

#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int e = lane + i * TSR_WARP;
        const bool is_free = e < experts && (*taken >> i & 1) == 0;

        if (is_free && (best == INT_MAX || key[i] > best_key)) {
            best = e;
            best_key = key[i];
        }
    }
#pragma unroll
    for (int distance = TSR_WARP / 2; distance > 0; distance /= 2) {
        const float other_key = __shfl_xor_sync(TSR_ALL_LANES, best_key, distance);
        const int other = __shfl_xor_sync(TSR_ALL_LANES, best, distance);

        if (other_key > best_key || (other_key == best_key && other < best)) {
            best = other;
            best_key = other_key;
        }
    }
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        if (best == lane + i * TSR_WARP) {
            mine = score[i];
            *taken |= 1u << i;
        }
    }
    *score_out = __shfl_sync(TSR_ALL_LANES, mine, best % TSR_WARP);
    return best;
}

/* Put out the experts that lie in none of the best groups, as bits of `taken`: lane l weighs groups
 * l, l + 32, ..., whose keys it reads from `scratch` [E]; bank conflicts do not matter here. */
template <int OWN>
static __device__ __forceinline__ void limit_groups(const tsr_route_args &a,
                                                    const float (&key)[OWN], int lane,
                                                    float *scratch, unsigned *taken)
{
    const int size = a.experts / a.groups;
    float group_key[OWN], unused;
    unsigned kept = 0;

#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        if (lane + i * TSR_WARP < a.experts) {
            scratch[lane + i * TSR_WARP] = key[i];
        }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int g = lane + i * TSR_WARP;
        float first = -INFINITY, second = -INFINITY;

        for (int e = g * size; g < a.groups && e < (g + 1) * size; ++e) {
            second = fmaxf(second, fminf(first, scratch[e]));
            first = fmaxf(first, scratch[e]);
        }
        const float sum = a.gate == TSR_GATE_SOFTMAX || size == 1 ? first : first + second;
        group_key[i] = sum == sum ? sum : -INFINITY;
    }
    for (int k = 0; k < a.kept_groups; ++k) {
        (void)take_best<OWN>(group_key, group_key, a.groups, lane, &kept, &unused);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        if (lane + i * TSR_WARP < a.groups) {
            scratch[lane + i * TSR_WARP] = (kept >> i & 1) != 0 ? 1.0f : 0.0f;
        }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int e = lane + i * TSR_WARP;

        if (e < a.experts && scratch[e / size] == 0.0f) {
            *taken |= 1u << i;
        }
    }
    __syncwarp(); /* before the next token's keys */
}

/* Choose and write the outputs of one token; lane k keeps choice k and returns it (-1 past K). */
template <int OWN>
static __device__ __forceinline__ int choose(const tsr_route_args &a, int64_t token, int lane,
                                             const token_scores<OWN> &t, float *scratch)
{
    float key[OWN], my_score = 0.0f, sum = 0.0f;
    unsigned taken = 0;
    int my_choice = -1;

#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int e = lane + i * TSR_WARP;

        key[i] = -INFINITY;
        if (e < a.experts) {
            const float biased = t.score[i] + (a.bias != NULL ? a.bias[e] : 0.0f);

            key[i] = biased == biased ? biased : -INFINITY;
            a.scores[token * a.experts + e] = t.score[i];
        }
    }
    if (a.groups > 1) {
        limit_groups<OWN>(a, key, lane, scratch, &taken);
    }
    for (int k = 0; k < a.top_k; ++k) {
        float score;
        const int best = take_best<OWN>(key, t.score, a.experts, lane, &taken, &score);

        sum += score;
        my_choice = lane == k ? best : my_choice;
        my_score = lane == k ? score : my_score;
    }
    if (lane < a.top_k) {
        a.index[token * a.top_k + lane] = my_choice;
        a.weight[token * a.top_k + lane] = a.scale * my_score / (a.renormalize ? sum + TINY : 1.0f);
    }
    if (lane == 0 && a.z != NULL) {
        a.z[token] = t.z;
    }
    return my_choice;
}

/* A warp a token, a block one share of a sequence: a lane sums the normalised scores of its experts
 * over the warp's tokens, warps are added in order through shared memory (40 bytes an expert);
 * assignments are counted there by integer atomics, whose order does not matter. Traffic 8 bytes a
 * score, but the shuffles of K searches take longer. Twin: tsr_plain_route_forward(). */
template <int OWN>
static __global__ void __launch_bounds__(WARPS *TSR_WARP)
    forward_kernel(tsr_route_args a, route_sums sums)
{
    TSR_DYN_SHARED(float, totals); /* [WARPS, E], scratch until the end; then the counts [2, E] */
    int *counts = (int *)(totals + WARPS * a.experts), *first_counts = counts + a.experts;
    const int lane = (int)threadIdx.x % TSR_WARP, warp = (int)threadIdx.x / TSR_WARP;
    const int64_t sequence = blockIdx.x / sums.shares, share = blockIdx.x % sums.shares;
    const int64_t begin = sequence * a.seq_len + share * SHARE_TOKENS;
    const int64_t sequence_end = (sequence + 1) * a.seq_len;
    const int64_t end = begin + SHARE_TOKENS < sequence_end ? begin + SHARE_TOKENS : sequence_end;
    const int counted = a.aux == TSR_AUX_SWITCH ? a.top_k : 1;
    float total[OWN] = {0.0f};

    for (int e = (int)threadIdx.x; e < a.experts; e += WARPS * TSR_WARP) {
        counts[e] = first_counts[e] = 0;
    }
    __syncthreads();
    for (int64_t token = begin + warp; token < end; token += WARPS) {
        const token_scores<OWN> t = score_token<OWN>(a, token, lane);
        const int choice = choose<OWN>(a, token, lane, t, totals + warp * a.experts);

        if (lane < a.top_k) {
            atomicAdd(&counts[choice], 1);
        }
        if (lane < counted) {
            atomicAdd(&first_counts[choice], 1);
        }
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            total[i] += t.score[i] / t.sum;
        }
    }
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        if (lane + i * TSR_WARP < a.experts) {
            totals[warp * a.experts + lane + i * TSR_WARP] = total[i];
        }
    }
    __syncthreads();
    for (int e = (int)threadIdx.x; e < a.experts; e += WARPS * TSR_WARP) {
        float sum = totals[e];

        for (int w = 1; w < WARPS; ++w) {
            sum += totals[w * a.experts + e];
        }
        sums.scores[(int64_t)blockIdx.x * a.experts + e] = sum;
        sums.first[(int64_t)blockIdx.x * a.experts + e] = first_counts[e];
        if (counts[e] > 0) {
            atomicAdd((unsigned long long *)&a.counts[e], (unsigned long long)counts[e]);
        }
    }
}

/* A block a sequence and 32 experts, a lane an expert: warps take every eighth share and are added
 * in order. Traffic 8 bytes an expert and share. Shared memory 2 KiB. */
static __global__ void __launch_bounds__(WARPS *TSR_WARP)
    sequence_kernel(tsr_route_args a, route_sums sums)
{
    TSR_SHARED(scores, float[WARPS][TSR_WARP]);
    TSR_SHARED(firsts, int[WARPS][TSR_WARP]);
    const int lane = (int)threadIdx.x % TSR_WARP, warp = (int)threadIdx.x / TSR_WARP;
    const int e = (int)blockIdx.y * TSR_WARP + lane;
    const int64_t sequence = blockIdx.x;
    const int counted = a.aux == TSR_AUX_SWITCH ? a.top_k : 1;
    float score = 0.0f;
    int first = 0;

    for (int share = warp; share < sums.shares && e < a.experts; share += WARPS) {
        const int64_t at = (sequence * sums.shares + share) * a.experts + e;

        score += sums.scores[at];
        first += sums.first[at];
    }
    scores[warp][lane] = score;
    firsts[warp][lane] = first;
    __syncthreads();
    if (warp == 0 && e < a.experts) {
        for (int w = 1; w < WARPS; ++w) {
            score += scores[w][lane];
            first += firsts[w][lane];
        }
        const float tokens = (float)a.seq_len;

        a.score_means[sequence * a.experts + e] = score / tokens;
        a.balance[sequence * a.experts + e] =
            (float)((double)first / ((double)a.seq_len * counted));
    }
}

template <int OWN>
static tsr_status forward(const tsr_route_args *args, const route_sums &sums, int64_t sequences,
                          cudaStream_t queue)
{
    const size_t shared = (size_t)args->experts * (WARPS + 2) * sizeof(float);
    dim3 grid;

    TSR_TRY(tsr_grid_for("route_forward", sequences * sums.shares, &grid));
    TSR_LAUNCH(forward_kernel<OWN>, grid, dim3(WARPS * TSR_WARP), shared, queue, *args, sums);
    return TSR_OK;
}

tsr_status tsr_cuda_route_forward(tsr_device *device, const tsr_route_args *args,
                                  tsr_stream *stream)
{
    const cudaStream_t queue = tsr_cuda_stream_of(stream);
    const int64_t sequences = args->tokens / args->seq_len;
    const int64_t shares = tsr_divide_up(args->seq_len, SHARE_TOKENS);
    const size_t cells = (size_t)(sequences * shares * args->experts);
    void *scratch = NULL;
    dim3 grid;

    TSR_TRY(
        tsr_cuda_workspace(device, cells * (sizeof(float) + sizeof(int32_t)), stream, &scratch));
    const route_sums sums = {(float *)scratch, (int32_t *)scratch + cells, (int)shares};

    TSR_CUDA_TRY(
        cudaMemsetAsync(args->counts, 0, (size_t)args->experts * sizeof *args->counts, queue));
    if (args->experts <= 2 * TSR_WARP) {
        TSR_TRY(forward<2>(args, sums, sequences, queue));
    } else if (args->experts <= 8 * TSR_WARP) {
        TSR_TRY(forward<8>(args, sums, sequences, queue));
    } else {
        TSR_TRY(forward<TSR_EXPERTS_MAX / TSR_WARP>(args, sums, sequences, queue));
    }
    TSR_TRY(tsr_grid_for("route_forward", sequences, &grid));
    grid.y = (unsigned)tsr_divide_up(args->experts, TSR_WARP);
    TSR_LAUNCH(sequence_kernel, grid, dim3(WARPS * TSR_WARP), 0, queue, *args, sums);
    return TSR_OK;
}

/* ---- gradient: the formulas stand at the head of runtime/cpu/plain/route.c ------------------- */

/* Lane k's share of N, the sum of the chosen scores, and of the weights' mean gradient. */
static __device__ __forceinline__ void weight_sums(const tsr_route_args &a, int64_t token, int lane,
                                                   const float *scores, float *n_out,
                                                   float *mean_out)
{
    float chosen = 0.0f, weighted = 0.0f;

    *n_out = 1.0f;
    *mean_out = 0.0f;
    if (a.renormalize) {
        if (lane < a.top_k) {
            chosen = scores[a.index[token * a.top_k + lane]];
            weighted = a.dweight[token * a.top_k + lane] * chosen;
        }
        *n_out = tsr_warp_sum(chosen) + TINY;
        *mean_out = tsr_warp_sum(weighted) / *n_out;
    }
}

/* A warp a token, lane l experts l, l + 32, ...; sums over experts go lanes first, then the
 * shuffle's tree. Traffic 12 bytes a score, bound by that. No shared memory, no atomics.
 * Twin: tsr_plain_route_backward(). */
template <int OWN>
static __global__ void __launch_bounds__(WARPS *TSR_WARP) backward_kernel(tsr_route_args a)
{
    const int lane = (int)threadIdx.x % TSR_WARP;
    const int64_t token = (int64_t)blockIdx.x * WARPS + threadIdx.x / TSR_WARP;

    if (token >= a.tokens) { /* a whole warp */
        return;
    }
    const float *scores = a.scores + token * a.experts;
    const float *balances = a.balance + token / a.seq_len * a.experts;
    const float slope = a.aux_factor * (float)a.experts / (float)a.seq_len;
    float s[OWN], g[OWN], n, weight_mean, m = 0.0f, mean = 0.0f;

    weight_sums(a, token, lane, scores, &n, &weight_mean);
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int e = lane + i * TSR_WARP;

        s[i] = e < a.experts ? scores[e] : 0.0f;
        g[i] = e < a.experts ? slope * balances[e] : 0.0f;
        m += s[i];
        mean += g[i] * s[i];
    }
    if (a.gate == TSR_GATE_SIGMOID) {
        m = tsr_warp_sum(m) + TINY;
        mean = tsr_warp_sum(mean) / m;
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            g[i] = (g[i] - mean) / m;
        }
    }
    for (int k = 0; k < a.top_k; ++k) {
        const int choice = a.index[token * a.top_k + k];
        const float dweight = a.dweight[token * a.top_k + k];
        const float more = a.scale / n * (dweight - weight_mean);

#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            g[i] += choice == lane + i * TSR_WARP ? more : 0.0f;
        }
    }
    mean = 0.0f;
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        mean += lane + i * TSR_WARP < a.experts ? g[i] * s[i] : 0.0f;
    }
    mean = tsr_warp_sum(mean);
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int e = lane + i * TSR_WARP;

        if (e < a.experts) {
            float dlogit =
                a.gate == TSR_GATE_SOFTMAX ? s[i] * (g[i] - mean) : g[i] * s[i] * (1.0f - s[i]);

            if (a.z_factor != 0.0f) {
                const float z = a.z[token];

                dlogit += 2.0f * a.z_factor * z * expf(a.logits[token * a.experts + e] - z);
            }
            a.dlogits[token * a.experts + e] = dlogit;
        }
    }
}

tsr_status tsr_cuda_route_backward(tsr_device *device, const tsr_route_args *args,
                                   tsr_stream *stream)
{
    const cudaStream_t queue = tsr_cuda_stream_of(stream);
    const dim3 block(WARPS * TSR_WARP);
    dim3 grid;

    (void)device;
    TSR_TRY(tsr_grid_for("route_backward", tsr_divide_up(args->tokens, WARPS), &grid));
    if (args->experts <= 2 * TSR_WARP) {
        TSR_LAUNCH(backward_kernel<2>, grid, block, 0, queue, *args);
    } else if (args->experts <= 8 * TSR_WARP) {
        TSR_LAUNCH(backward_kernel<8>, grid, block, 0, queue, *args);
    } else {
        TSR_LAUNCH(backward_kernel<TSR_EXPERTS_MAX / TSR_WARP>, grid, block, 0, queue, *args);
    }
    return TSR_OK;
}
