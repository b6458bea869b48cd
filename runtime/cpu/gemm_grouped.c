#include "runtime/cpu/gemm_cache.h"

#include <omp.h>
#include <string.h>

/* Most rows of an expert multiplied at once. Larger ones gain nothing; each multiple of ROW_ALIGN
 * up to it is a primitive made in advance. */
enum { PIECE_ROWS = 512, LEAST_PIECE_ROWS = 64, SLICE_ALIGN = 64 };

/* Rows of this many bytes together leave the caches before the next operator reads them. */
enum { FAR_BYTES = 16 << 20 };

/* ---- one product per expert -------------------------------------------------------------------
 *
 * The work is cut into tasks that threads take one by one, largest first, each running serial
 * products: no barrier between experts. An output row does not depend on how rows are cut (our
 * kernels, and oneDNN's but those for AMX, add along k in one order whatever m is), so forward and
 * dgrad may be cut to fit the threads. Weight gradients add up row pieces, which therefore do not
 * depend on the threads; an expert with more than half a thread's share of all rows is cut along n
 * instead. */

typedef struct task {
    int expert;
    int64_t row, rows;    /* of this expert, all of them for a weight gradient */
    int64_t column, span; /* weight gradient: rows of w */
    int64_t piece;        /* rows of one product */
    const tsr_matmul *first, *middle, *last;
} task;

/* rows cut evenly into as few pieces of at most `most` rows as possible */
static int64_t even_piece(int64_t rows, int64_t most)
{
    const int64_t pieces = (rows + most - 1) / most;

    return tsr_round_up((rows + pieces - 1) / pieces, TSR_ROW_ALIGN);
}

static tsr_matmul_shape expert_shape(const tsr_grouped_gemm_args *args, int64_t rows, int64_t span,
                                     bool accumulate)
{
    const int64_t n = args->n, k = args->k;
    const int64_t flags = TSR_MATMUL_SERIAL | (args->dtype == TSR_BF16 ? TSR_MATMUL_BF16 : 0);
    const int64_t result = args->dtype == TSR_BF16 ? TSR_MATMUL_C_BF16 : 0;

    switch (args->pass) {
    case TSR_GROUPED_FORWARD:
        return (tsr_matmul_shape){rows, n, k, k, k, n, flags | result | TSR_MATMUL_TRANS_B};
    case TSR_GROUPED_DGRAD:
        return (tsr_matmul_shape){rows, k, n, n, k, k, flags | result};
    case TSR_GROUPED_WGRAD:
    default:
        return (tsr_matmul_shape){
            span,
            k,
            rows,
            n,
            k,
            k,
            flags | TSR_MATMUL_TRANS_A | (accumulate ? TSR_MATMUL_ACCUMULATE : 0)};
    }
}

/* Rows of w that one task of a sliced weight gradient computes. */
static int64_t slice_span(const tsr_grouped_gemm_args *args, int threads)
{
    const int64_t even = tsr_round_up((args->n + threads - 1) / threads, SLICE_ALIGN);

    return even < args->n ? even : args->n;
}

static tsr_status reserve_rows(tsr_gemm_cache *cache, const tsr_grouped_gemm_args *args,
                               int64_t rows, int64_t span)
{
    const tsr_matmul *matmul = NULL;

    for (int accumulate = args->accumulate ? 1 : 0; accumulate < 2; ++accumulate) {
        const tsr_matmul_shape shape = expert_shape(args, rows, span, accumulate != 0);
        TSR_TRY(tsr_gemm_cache_find(cache, &shape, &matmul));
        if (args->pass != TSR_GROUPED_WGRAD) {
            break;
        }
    }
    return TSR_OK;
}

/* Tasks of one call at most: each expert is cut into pieces of LEAST_PIECE_ROWS or slices. */
static size_t plan_bytes(const tsr_grouped_gemm_args *args, int threads)
{
    const int64_t pieces = args->max_rows / LEAST_PIECE_ROWS;
    const int64_t slices = args->pass == TSR_GROUPED_WGRAD ? (int64_t)2 * threads * threads : 0;

    return (size_t)(args->experts + pieces + slices) * sizeof(task);
}

tsr_status tsr_cpu_grouped_gemm_reserve(tsr_device *device, const tsr_grouped_gemm_args *args)
{
    tsr_gemm_cache *cache = tsr_gemm_cache_of(device);
    const tsr_own_gemm *own = tsr_own_gemm_of(device, args->dtype);
    const int64_t span = slice_span(args, device->threads), rest = args->n % span;
    void *plan = NULL;

    TSR_TRY(tsr_gemm_cache_plan(cache, plan_bytes(args, device->threads), &plan));
    if (own != NULL) {
        return tsr_gemm_cache_reserve_parts(cache, own->scratch_bytes);
    }
    for (int64_t rows = TSR_ROW_ALIGN; rows <= PIECE_ROWS && rows <= args->max_rows;
         rows += TSR_ROW_ALIGN) {
        TSR_TRY(reserve_rows(cache, args, rows, args->n));
        if (args->pass == TSR_GROUPED_WGRAD && span < args->n) {
            TSR_TRY(reserve_rows(cache, args, rows, span));
            if (rest != 0) {
                TSR_TRY(reserve_rows(cache, args, rows, rest));
            }
        }
    }
    return TSR_OK;
}

static tsr_status find_products(tsr_gemm_cache *cache, const tsr_grouped_gemm_args *args, task *t)
{
    if (t->rows == 0) {
        return TSR_OK; /* a weight gradient to be cleared */
    }
    const int64_t left = (t->rows - 1) % t->piece + 1; /* rows of the last piece */
    const tsr_matmul_shape first = expert_shape(args, t->piece, t->span, args->accumulate);
    const tsr_matmul_shape middle = expert_shape(args, t->piece, t->span, true);
    const tsr_matmul_shape last = expert_shape(args, left, t->span, true);

    TSR_TRY(tsr_gemm_cache_find(cache, &first, &t->first));
    if (t->rows > t->piece) {
        TSR_TRY(tsr_gemm_cache_find(cache, &last, &t->last));
    }
    if (t->rows > 2 * t->piece) {
        TSR_TRY(tsr_gemm_cache_find(cache, &middle, &t->middle));
    }
    return TSR_OK;
}

/* Largest first, so that the threads end together. */
static void insert_task(task *tasks, int64_t count, task t)
{
    int64_t at = count;

    while (at > 0 && tasks[at - 1].rows * tasks[at - 1].span < t.rows * t.span) {
        tasks[at] = tasks[at - 1];
        --at;
    }
    tasks[at] = t;
}

static int64_t plan_rows(const tsr_grouped_gemm_args *args, int threads, int expert, int64_t count,
                         task *tasks)
{
    const int64_t rows = args->offsets[expert + 1] - args->offsets[expert];
    const int64_t share =
        tsr_round_up(args->offsets[args->experts] / ((int64_t)2 * threads), TSR_ROW_ALIGN);
    const int64_t least = share < LEAST_PIECE_ROWS ? LEAST_PIECE_ROWS : share;
    const int64_t piece = rows == 0 ? 1 : even_piece(rows, least < PIECE_ROWS ? least : PIECE_ROWS);

    for (int64_t row = 0; row < rows; row += piece) {
        const int64_t left = rows - row < piece ? rows - row : piece;
        insert_task(tasks, count++,
                    (task){.expert = expert, .row = row, .rows = left, .span = 1, .piece = left});
    }
    return count;
}

static int64_t plan_slices(const tsr_grouped_gemm_args *args, int threads, int expert,
                           int64_t count, task *tasks)
{
    const int64_t rows = args->offsets[expert + 1] - args->offsets[expert];
    const bool is_hot = threads > 1 && rows * threads * 2 > args->offsets[args->experts];
    const int64_t span = is_hot ? slice_span(args, threads) : args->n;

    if (rows == 0 && args->accumulate) {
        return count;
    }
    for (int64_t column = 0; column < args->n; column += span) {
        const int64_t left = args->n - column < span ? args->n - column : span;
        insert_task(tasks, count++,
                    (task){.expert = expert,
                           .rows = rows,
                           .column = column,
                           .span = left,
                           .piece = rows == 0 ? 1 : even_piece(rows, PIECE_ROWS)});
    }
    return count;
}

static bool is_far(const tsr_grouped_gemm_args *args, int64_t width)
{
    return args->offsets[args->experts] * width > FAR_BYTES / (int64_t)tsr_dtype_bytes(args->dtype);
}

/* Rows up to the last that is not all zeros, at least one: padding adds nothing to a gradient. */
static int64_t filled_rows(const char *x, int64_t rows, size_t row_bytes)
{
    const char *row = x + (size_t)rows * row_bytes;

    while (rows > 1) {
        row -= row_bytes;
        if (row[0] != 0 || memcmp(row, row + 1, row_bytes - 1) != 0) {
            break;
        }
        --rows;
    }
    return rows;
}

/* Forward and input gradient: a task's rows times the expert's weights, to rows. Tokens are the
 * packed side, so that weights pass once; but where packing turns words, the weights of an input
 * gradient need none and are packed. */
static tsr_own_gemm_args product_of_rows(const tsr_grouped_gemm_args *args, const task *t,
                                         const tsr_own_gemm *own)
{
    const bool is_forward = args->pass == TSR_GROUPED_FORWARD;
    const int64_t n = args->n, k = args->k, row = args->offsets[t->expert] + t->row;
    const int64_t deep = is_forward ? k : n, wide = is_forward ? n : k;
    const size_t element = tsr_dtype_bytes(args->dtype);
    char *x = (char *)args->x + (size_t)(row * k) * element;
    char *y = (char *)args->y + (size_t)(row * n) * element;
    const char *w = (const char *)args->w + (size_t)(t->expert * n * k) * element;
    const tsr_own_gemm_args product = {
        .a = {w, is_forward ? k : 1, is_forward ? 1 : k},
        .b = {is_forward ? x : y, deep, 1},
        .c = is_forward ? y : x,
        .c_outer_a = 1,
        .c_outer_b = wide,
        .m = wide,
        .n = t->rows,
        .k = deep,
        .is_far = is_far(args, wide),
        .dtype = args->dtype,
        .c_dtype = args->dtype,
    };

    return !is_forward && own->turns_words ? tsr_own_gemm_exchanged(product) : product;
}

/* Weight gradient: a task's columns of dw, from all rows of the expert. */
static tsr_own_gemm_args product_of_weights(const tsr_grouped_gemm_args *args, const task *t,
                                            float *dw)
{
    const int64_t n = args->n, k = args->k, row = args->offsets[t->expert];
    const size_t element = tsr_dtype_bytes(args->dtype);
    const char *x = (const char *)args->x + (size_t)(row * k) * element;
    const char *y = (const char *)args->y + (size_t)(row * n + t->column) * element;

    return (tsr_own_gemm_args){
        .a = {y, 1, n},
        .b = {x, 1, k},
        .c = dw,
        .c_outer_a = k,
        .c_outer_b = 1,
        .m = t->span,
        .n = k,
        .k = filled_rows(x, t->rows, (size_t)k * element),
        .accumulate = args->accumulate,
        .is_far = true,
        .dtype = args->dtype,
        .c_dtype = TSR_F32,
    };
}

static void run_task_own(const tsr_grouped_gemm_args *args, const task *t, const tsr_own_gemm *own,
                         void *scratch)
{
    tsr_own_gemm_args product;

    if (args->pass != TSR_GROUPED_WGRAD) {
        product = product_of_rows(args, t, own);
    } else {
        float *dw = (float *)args->w + (t->expert * args->n + t->column) * args->k;

        if (t->rows == 0) {
            memset(dw, 0, (size_t)(t->span * args->k) * sizeof *dw);
            return;
        }
        product = product_of_weights(args, t, dw);
    }
    own->run(&product, scratch);
}

static void run_tasks_own(tsr_device *device, const tsr_grouped_gemm_args *args,
                          const tsr_own_gemm *own, const task *tasks, int64_t count)
{
    const tsr_gemm_cache *cache = tsr_gemm_cache_of(device);

#pragma omp parallel for schedule(dynamic, 1) num_threads(device->threads)
    for (int64_t i = 0; i < count; ++i) {
        run_task_own(args, &tasks[i], own, tsr_gemm_cache_part(cache, omp_get_thread_num()));
    }
}

static int run_rows(const tsr_gemm_cache *cache, const tsr_grouped_gemm_args *args, const task *t,
                    int thread)
{
    const size_t element = tsr_dtype_bytes(args->dtype);
    const size_t row = (size_t)(args->offsets[t->expert] + t->row);
    char *x = (char *)args->x + row * (size_t)args->k * element;
    char *y = (char *)args->y + row * (size_t)args->n * element;
    char *w = (char *)args->w + (size_t)t->expert * (size_t)(args->n * args->k) * element;

    return args->pass == TSR_GROUPED_FORWARD ? tsr_matmul_run(cache, t->first, thread, x, w, y)
                                             : tsr_matmul_run(cache, t->first, thread, y, w, x);
}

static int run_slice(const tsr_gemm_cache *cache, const tsr_grouped_gemm_args *args, const task *t,
                     int thread)
{
    const size_t element = tsr_dtype_bytes(args->dtype);
    float *w = (float *)args->w + (t->expert * args->n + t->column) * args->k;
    int st = 0;

    if (t->rows == 0) {
        memset(w, 0, (size_t)(t->span * args->k) * sizeof *w);
    }
    for (int64_t row = 0; row < t->rows && st == 0; row += t->piece) {
        const size_t at = (size_t)(args->offsets[t->expert] + row);
        const char *x = (const char *)args->x + at * (size_t)args->k * element;
        const char *y =
            (const char *)args->y + (at * (size_t)args->n + (size_t)t->column) * element;
        const tsr_matmul *matmul = row == 0                    ? t->first
                                   : row + t->piece >= t->rows ? t->last
                                                               : t->middle;
        st = tsr_matmul_run(cache, matmul, thread, y, x, w);
    }
    return st;
}

tsr_status tsr_cpu_grouped_gemm(tsr_device *device, const tsr_grouped_gemm_args *args,
                                tsr_stream *stream)
{
    tsr_gemm_cache *cache = tsr_gemm_cache_of(device);
    const tsr_own_gemm *own = tsr_own_gemm_of(device, args->dtype);
    const bool is_wgrad = args->pass == TSR_GROUPED_WGRAD;
    void *memory = NULL;
    int64_t count = 0;
    int failed = 0;

    (void)stream;
    TSR_TRY(tsr_gemm_cache_plan(cache, plan_bytes(args, device->threads), &memory));
    task *tasks = memory;
    for (int expert = 0; expert < args->experts; ++expert) {
        count = (is_wgrad ? plan_slices : plan_rows)(args, device->threads, expert, count, tasks);
    }
    if (own != NULL) {
        TSR_TRY(tsr_gemm_cache_reserve_parts(cache, own->scratch_bytes));
        run_tasks_own(device, args, own, tasks, count);
        return TSR_OK;
    }
    for (int64_t i = 0; i < count; ++i) {
        TSR_TRY(find_products(cache, args, &tasks[i]));
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(device->threads)
    for (int64_t i = 0; i < count; ++i) {
        const int st =
            (is_wgrad ? run_slice : run_rows)(cache, args, &tasks[i], omp_get_thread_num());
        if (st != 0) {
#pragma omp atomic write
            failed = st;
        }
    }
    return tsr_matmul_status(failed);
}
