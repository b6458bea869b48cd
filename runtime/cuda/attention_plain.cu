/* Attention by plain kernels: every shape and type, one order of summation, f32 arithmetic.
 *
 * The fall-back where cuDNN has no plan, and what its results are compared with. Tiles of TILE rows
 * lie in shared memory as f32, head_dim rounded up to whole lanes with zeros. A block has 16 x 8
 * threads: thread (y, x) owns rows 2y and 2y + 1 of a tile and the columns x, x + 8, x + 16, ...
 * Bound: f32 multiply-adds, 4 (forward) and 14 (backward) a visible pair and head_dim element.
 * Source: Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691 (loop order of
 * backward). */
#include "runtime/cuda/kernels/kernel.cuh"

enum {
    TILE = 32,
    ROWS = 2,            /* of a thread in a tile */
    LANES = 8,           /* threads that share these rows */
    KEYS = TILE / LANES, /* columns of a thread in a tile of scores */
    THREADS = TILE / ROWS * LANES,
    SCORE_PITCH = TILE + 1 /* odd pitches: rows start in different banks */
};

/* Where sequence `batch`, head `head` starts, and how far its rows are apart. */
template <class T> struct rows_of {
    T *base;
    int64_t stride, count;
};

template <class T>
__device__ rows_of<T> query_rows(const tsr_attention_args &a, void *base, int head)
{
    return {(T *)base + blockIdx.z * a.q_batch_stride + head * a.head_dim, a.q_stride, a.q_len};
}

template <class T> __device__ rows_of<T> key_rows(const tsr_attention_args &a, void *base, int head)
{
    return {(T *)base + blockIdx.z * a.kv_batch_stride + head * a.head_dim, a.kv_stride, a.kv_len};
}

template <class T> __device__ rows_of<T> out_rows(const tsr_attention_args &a, void *base, int head)
{
    return {(T *)base + blockIdx.z * a.out_batch_stride + head * a.head_dim, a.out_stride, a.q_len};
}

__host__ __device__ inline int pitch_of(int head_dim)
{
    return (head_dim + LANES - 1) / LANES * LANES + 1;
}

/* Rows first .. first + TILE - 1 into shared memory; zeros past the last row and past head_dim. A
 * warp takes a row, its lanes neighbouring elements. */
template <class T>
__device__ void load_tile(float *tile, const rows_of<T> &from, int64_t first, int head_dim)
{
    const int pitch = pitch_of(head_dim);

    for (int row = (int)threadIdx.x / TSR_WARP; row < TILE; row += THREADS / TSR_WARP) {
        for (int d = (int)threadIdx.x % TSR_WARP; d < pitch - 1; d += TSR_WARP) {
            const bool is_there = first + row < from.count && d < head_dim;

            tile[row * pitch + d] =
                is_there ? tsr_widen(from.base[(first + row) * from.stride + d]) : 0.0f;
        }
    }
}

/* out[r][c] = row 2y + r of left . row x + 8c of right */
__device__ inline void multiply(const float *left, const float *right, int head_dim,
                                float (&out)[ROWS][KEYS])
{
    const int pitch = pitch_of(head_dim);
    const int y = (int)threadIdx.x / LANES, x = (int)threadIdx.x % LANES;

    for (int r = 0; r < ROWS; ++r) {
        for (int c = 0; c < KEYS; ++c) {
            out[r][c] = 0.0f;
        }
    }
    for (int d = 0; d < head_dim; ++d) {
        float l[ROWS], right_value[KEYS];

#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            l[r] = left[(y * ROWS + r) * pitch + d];
        }
#pragma unroll
        for (int c = 0; c < KEYS; ++c) {
            right_value[c] = right[(x + c * LANES) * pitch + d];
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int c = 0; c < KEYS; ++c) {
                out[r][c] += l[r] * right_value[c];
            }
        }
    }
}

/* sum[r][c] += sum over j of weight(2y + r, j) * tile[j][x + 8c]. weights is [TILE][TILE];
 * weight(i, j) is its element [i][j], or [j][i] if transposed. C: columns of a thread at most. */
template <int C, bool transposed>
__device__ void accumulate(const float *weights, const float *tile, int head_dim,
                           float (&sum)[ROWS][C])
{
    const int pitch = pitch_of(head_dim);
    const int y = (int)threadIdx.x / LANES, x = (int)threadIdx.x % LANES;

    for (int j = 0; j < TILE; ++j) {
        float w[ROWS];

#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int i = y * ROWS + r;

            w[r] = weights[transposed ? j * SCORE_PITCH + i : i * SCORE_PITCH + j];
        }
#pragma unroll
        for (int c = 0; c < C; ++c) {
            if (c * LANES < head_dim) {
                const float value = tile[j * pitch + x + c * LANES];

#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    sum[r][c] += w[r] * value;
                }
            }
        }
    }
}

template <class T, int C>
__device__ void store_rows(const rows_of<T> &to, int64_t first, int head_dim,
                           const float (&sum)[ROWS][C], const float (&factor)[ROWS])
{
    const int y = (int)threadIdx.x / LANES, x = (int)threadIdx.x % LANES;

#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int64_t row = first + y * ROWS + r;

#pragma unroll
        for (int c = 0; c < C; ++c) {
            const int d = x + c * LANES;

            if (row < to.count && d < head_dim) {
                tsr_narrow(sum[r][c] * factor[r], &to.base[row * to.stride + d]);
            }
        }
    }
}

template <int C> __device__ void clear(float (&sum)[ROWS][C])
{
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int c = 0; c < C; ++c) {
            sum[r][c] = 0.0f;
        }
    }
}

/* Maximum, or sum, over the threads that share rows: neighbouring lanes of one warp. */
__device__ inline float max_of_row(float value)
{
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(TSR_ALL_LANES, value, distance));
    }
    return value;
}

__device__ inline float sum_of_row(float value)
{
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(TSR_ALL_LANES, value, distance);
    }
    return value;
}

/* May query i see key j? Rows past the last query are computed like others and never stored. */
__device__ inline bool sees(const tsr_attention_args &a, int64_t i, int64_t j)
{
    return j < a.kv_len && j <= a.kv_len - a.q_len + i;
}

/* Replaces the scores of this thread by exp(score - top), and raises top, the running maximum.
 * Returns in shrink by how much what was summed under the old maximum becomes smaller. */
__device__ inline void online_softmax(const tsr_attention_args &a, int64_t query, int64_t key,
                                      float (&p)[ROWS][KEYS], float (&top)[ROWS],
                                      float (&sum)[ROWS], float (&shrink)[ROWS])
{
    const int y = (int)threadIdx.x / LANES, x = (int)threadIdx.x % LANES;

#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        float highest = top[r], added = 0.0f;

#pragma unroll
        for (int c = 0; c < KEYS; ++c) {
            const bool is_seen = sees(a, query + y * ROWS + r, key + x + c * LANES);

            p[r][c] = is_seen ? p[r][c] * a.scale : -INFINITY;
            highest = fmaxf(highest, p[r][c]);
        }
        highest = max_of_row(highest); /* finite: every query sees key 0, in the first tile */
        shrink[r] = expf(top[r] - highest);
#pragma unroll
        for (int c = 0; c < KEYS; ++c) {
            p[r][c] = expf(p[r][c] - highest);
            added += p[r][c];
        }
        sum[r] = sum[r] * shrink[r] + sum_of_row(added);
        top[r] = highest;
    }
}

__device__ inline void put_scores(float *tile, const float (&p)[ROWS][KEYS])
{
    const int y = (int)threadIdx.x / LANES, x = (int)threadIdx.x % LANES;

#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int c = 0; c < KEYS; ++c) {
            tile[(y * ROWS + r) * SCORE_PITCH + x + c * LANES] = p[r][c];
        }
    }
}

/* Block (x, y, z): query tile x of head y of sequence z; keys in order. Shared memory: the queries,
 * one tile of keys and then of values, the probabilities. Reads each key and value once a query
 * tile. No atomics. CPU twin: tsr_plain_attention_forward(). */
template <class T, int C>
static __global__ void __launch_bounds__(THREADS) attention_forward(tsr_attention_args a)
{
    TSR_DYN_SHARED(float, shared);
    const int tile = TILE * pitch_of(a.head_dim), head = (int)blockIdx.y;
    const int kv_head = head / (a.heads / a.kv_heads);
    float *const q = shared, *const kv = q + tile, *const p_tile = kv + tile;
    const int64_t first = (int64_t)blockIdx.x * TILE;
    const int64_t end = min(a.kv_len, a.kv_len - a.q_len + first + TILE);
    float out[ROWS][C], top[ROWS], sum[ROWS], shrink[ROWS];

    clear(out);
    for (int r = 0; r < ROWS; ++r) {
        top[r] = -INFINITY;
        sum[r] = 0.0f;
    }
    load_tile(q, query_rows<const T>(a, (void *)a.q, head), first, a.head_dim);
    for (int64_t key = 0; key < end; key += TILE) {
        float p[ROWS][KEYS];

        __syncthreads(); /* the last values have been read */
        load_tile(kv, key_rows<const T>(a, (void *)a.k, kv_head), key, a.head_dim);
        __syncthreads();
        multiply(q, kv, a.head_dim, p);
        online_softmax(a, first, key, p, top, sum, shrink);
        put_scores(p_tile, p);
        __syncthreads();
        load_tile(kv, key_rows<const T>(a, (void *)a.v, kv_head), key, a.head_dim);
        __syncthreads();
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int c = 0; c < C; ++c) {
                out[r][c] *= shrink[r];
            }
        }
        accumulate<C, false>(p_tile, kv, a.head_dim, out);
    }
    for (int r = 0; r < ROWS; ++r) {
        const int64_t row = first + threadIdx.x / LANES * ROWS + r;

        if (a.lse != NULL && threadIdx.x % LANES == 0 && row < a.q_len) {
            a.lse[((int64_t)blockIdx.z * a.heads + head) * a.q_len + row] = top[r] + logf(sum[r]);
        }
        shrink[r] = 1.0f / sum[r];
    }
    store_rows(out_rows<T>(a, a.out, head), first, a.head_dim, out, shrink);
}

/* row_sum[b, head, i] = dout . out. A warp a row, lanes stride over head_dim. */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    attention_row_sums(tsr_attention_args a, float *row_sum)
{
    const int64_t i = (int64_t)blockIdx.x * (THREADS / TSR_WARP) + threadIdx.x / TSR_WARP;
    const int head = (int)blockIdx.y;
    const rows_of<const T> dout = out_rows<const T>(a, (void *)a.dout, head);
    const rows_of<const T> out = out_rows<const T>(a, a.out, head);
    float sum = 0.0f;

    if (i < a.q_len) { /* the same for all lanes of the warp */
        for (int d = (int)threadIdx.x % TSR_WARP; d < a.head_dim; d += TSR_WARP) {
            sum +=
                tsr_widen(dout.base[i * dout.stride + d]) * tsr_widen(out.base[i * out.stride + d]);
        }
    }
    sum = tsr_warp_sum(sum);
    if (i < a.q_len && threadIdx.x % TSR_WARP == 0) {
        row_sum[((int64_t)blockIdx.z * a.heads + head) * a.q_len + i] = sum;
    }
}

/* From q . k in p and dout . v in ds: the probabilities, and the gradients of the raw scores. */
__device__ inline void differentiate(const tsr_attention_args &a, const float *row_sum, int head,
                                     int64_t query, int64_t key, float (&p)[ROWS][KEYS],
                                     float (&ds)[ROWS][KEYS])
{
    const int y = (int)threadIdx.x / LANES, x = (int)threadIdx.x % LANES;
    const int64_t head_at = ((int64_t)blockIdx.z * a.heads + head) * a.q_len;

#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int64_t i = query + y * ROWS + r;

#pragma unroll
        for (int c = 0; c < KEYS; ++c) {
            const bool is_seen = i < a.q_len && sees(a, i, key + x + c * LANES);

            p[r][c] = is_seen ? expf(p[r][c] * a.scale - a.lse[head_at + i]) : 0.0f;
            ds[r][c] = is_seen ? p[r][c] * (ds[r][c] - row_sum[head_at + i]) * a.scale : 0.0f;
        }
    }
}

/* Block (x, y, z): key tile x of key-value head y of sequence z. Heads of the group in order, for
 * each the query tiles in order. Shared memory: keys, values, one tile of queries and dout, p and
 * ds. Reads each query and dout once a key tile. No atomics. CPU twin:
 * tsr_plain_attention_backward(). */
template <class T, int C>
static __global__ void __launch_bounds__(THREADS)
    attention_backward_keys(tsr_attention_args a, const float *row_sum)
{
    TSR_DYN_SHARED(float, shared);
    const int tile = TILE * pitch_of(a.head_dim), kv_head = (int)blockIdx.y;
    const int group = a.heads / a.kv_heads;
    float *const k = shared, *const v = k + tile, *const q = v + tile, *const dout = q + tile;
    float *const p_tile = dout + tile, *const ds_tile = p_tile + TILE * SCORE_PITCH;
    const int64_t first = (int64_t)blockIdx.x * TILE;
    const int64_t begin = max((int64_t)0, first - (a.kv_len - a.q_len)) / TILE * TILE;
    const float one[ROWS] = {1.0f, 1.0f};
    float dk[ROWS][C], dv[ROWS][C];

    clear(dk);
    clear(dv);
    load_tile(k, key_rows<const T>(a, (void *)a.k, kv_head), first, a.head_dim);
    load_tile(v, key_rows<const T>(a, (void *)a.v, kv_head), first, a.head_dim);
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int64_t query = begin; query < a.q_len; query += TILE) {
            float p[ROWS][KEYS], ds[ROWS][KEYS];

            __syncthreads(); /* the last tiles have been read */
            load_tile(q, query_rows<const T>(a, (void *)a.q, head), query, a.head_dim);
            load_tile(dout, out_rows<const T>(a, (void *)a.dout, head), query, a.head_dim);
            __syncthreads();
            multiply(q, k, a.head_dim, p);
            multiply(dout, v, a.head_dim, ds);
            differentiate(a, row_sum, head, query, first, p, ds);
            put_scores(p_tile, p);
            put_scores(ds_tile, ds);
            __syncthreads();
            accumulate<C, true>(p_tile, dout, a.head_dim, dv);
            accumulate<C, true>(ds_tile, q, a.head_dim, dk);
        }
    }
    store_rows(key_rows<T>(a, a.dk, kv_head), first, a.head_dim, dk, one);
    store_rows(key_rows<T>(a, a.dv, kv_head), first, a.head_dim, dv, one);
}

/* Block (x, y, z): query tile x of head y of sequence z; keys in order. Shared memory: queries,
 * dout, one tile of keys and values, ds. No atomics. CPU twin: tsr_plain_attention_backward(). */
template <class T, int C>
static __global__ void __launch_bounds__(THREADS)
    attention_backward_queries(tsr_attention_args a, const float *row_sum)
{
    TSR_DYN_SHARED(float, shared);
    const int tile = TILE * pitch_of(a.head_dim), head = (int)blockIdx.y;
    const int kv_head = head / (a.heads / a.kv_heads);
    float *const k = shared, *const v = k + tile, *const q = v + tile, *const dout = q + tile;
    float *const ds_tile = dout + tile;
    const int64_t first = (int64_t)blockIdx.x * TILE;
    const int64_t end = min(a.kv_len, a.kv_len - a.q_len + first + TILE);
    const float one[ROWS] = {1.0f, 1.0f};
    float dq[ROWS][C];

    clear(dq);
    load_tile(q, query_rows<const T>(a, (void *)a.q, head), first, a.head_dim);
    load_tile(dout, out_rows<const T>(a, (void *)a.dout, head), first, a.head_dim);
    for (int64_t key = 0; key < end; key += TILE) {
        float p[ROWS][KEYS], ds[ROWS][KEYS];

        __syncthreads(); /* the last tiles have been read */
        load_tile(k, key_rows<const T>(a, (void *)a.k, kv_head), key, a.head_dim);
        load_tile(v, key_rows<const T>(a, (void *)a.v, kv_head), key, a.head_dim);
        __syncthreads();
        multiply(q, k, a.head_dim, p);
        multiply(dout, v, a.head_dim, ds);
        differentiate(a, row_sum, head, first, key, p, ds);
        put_scores(ds_tile, ds);
        __syncthreads();
        accumulate<C, false>(ds_tile, k, a.head_dim, dq);
    }
    store_rows(query_rows<T>(a, a.dq, head), first, a.head_dim, dq, one);
}

/* ---- launches ------------------------------------------------------------------------------- */

/* Blocks of `each` rows of every head of every sequence. */
static tsr_status grid_of(const tsr_attention_args *args, int64_t rows, int64_t each, int heads,
                          dim3 *out)
{
    enum { GRID_MAX = 65535 };

    TSR_CHECK(args->batch <= GRID_MAX && heads <= GRID_MAX, TSR_ERR_RANGE,
              "attention: batch = %lld, heads = %d, a launch takes %d of each",
              (long long)args->batch, heads, GRID_MAX);
    TSR_CHECK(tsr_divide_up(rows, each) <= INT32_MAX, TSR_ERR_RANGE,
              "attention: length %lld needs more blocks than a launch takes", (long long)rows);
    *out = dim3((unsigned)tsr_divide_up(rows, each), (unsigned)heads, (unsigned)args->batch);
    return TSR_OK;
}

static size_t shared_bytes(const tsr_attention_args *args, int tiles, int score_tiles)
{
    const size_t row = (size_t)tiles * (size_t)pitch_of(args->head_dim);

    return TILE * (row + (size_t)score_tiles * SCORE_PITCH) * sizeof(float);
}

template <class T, int C>
static tsr_status forward(const tsr_attention_args *args, cudaStream_t stream)
{
    dim3 grid;

    TSR_TRY(grid_of(args, args->q_len, TILE, args->heads, &grid));
    TSR_LAUNCH(attention_forward<T, C>, grid, dim3(THREADS), shared_bytes(args, 2, 1), stream,
               *args);
    return TSR_OK;
}

template <class T, int C>
static tsr_status backward(const tsr_attention_args *args, float *row_sum, cudaStream_t stream)
{
    dim3 rows, keys, queries;

    TSR_TRY(grid_of(args, args->q_len, THREADS / TSR_WARP, args->heads, &rows));
    TSR_TRY(grid_of(args, args->kv_len, TILE, args->kv_heads, &keys));
    TSR_TRY(grid_of(args, args->q_len, TILE, args->heads, &queries));
    TSR_LAUNCH(attention_row_sums<T>, rows, dim3(THREADS), 0, stream, *args, row_sum);
    TSR_LAUNCH(attention_backward_keys<T, C>, keys, dim3(THREADS), shared_bytes(args, 4, 2), stream,
               *args, row_sum);
    TSR_LAUNCH(attention_backward_queries<T, C>, queries, dim3(THREADS), shared_bytes(args, 4, 1),
               stream, *args, row_sum);
    return TSR_OK;
}

/* Registers hold head_dim / LANES columns: three sizes of kernels. */
template <class T> static tsr_status forward_of(const tsr_attention_args *args, cudaStream_t stream)
{
    return args->head_dim <= 64    ? forward<T, 64 / LANES>(args, stream)
           : args->head_dim <= 128 ? forward<T, 128 / LANES>(args, stream)
                                   : forward<T, TSR_HEAD_DIM_MAX / LANES>(args, stream);
}

template <class T>
static tsr_status backward_of(const tsr_attention_args *args, float *row_sum, cudaStream_t stream)
{
    return args->head_dim <= 64    ? backward<T, 64 / LANES>(args, row_sum, stream)
           : args->head_dim <= 128 ? backward<T, 128 / LANES>(args, row_sum, stream)
                                   : backward<T, TSR_HEAD_DIM_MAX / LANES>(args, row_sum, stream);
}

tsr_status tsr_cuda_attention_plain_forward(tsr_device *device, const tsr_attention_args *args,
                                            tsr_stream *stream)
{
    (void)device;
    return args->dtype == TSR_BF16 ? forward_of<tsr_device_bf16>(args, tsr_cuda_stream_of(stream))
                                   : forward_of<float>(args, tsr_cuda_stream_of(stream));
}

tsr_status tsr_cuda_attention_plain_backward(tsr_device *device, const tsr_attention_args *args,
                                             tsr_stream *stream)
{
    const size_t rows = (size_t)args->batch * (size_t)args->heads * (size_t)args->q_len;
    void *row_sum;

    TSR_TRY(tsr_cuda_workspace(device, rows * sizeof(float), stream, &row_sum));
    return args->dtype == TSR_BF16
               ? backward_of<tsr_device_bf16>(args, (float *)row_sum, tsr_cuda_stream_of(stream))
               : backward_of<float>(args, (float *)row_sum, tsr_cuda_stream_of(stream));
}
