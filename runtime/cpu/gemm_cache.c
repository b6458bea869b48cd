#include "runtime/cpu/gemm_cache.h"

#include <dnnl.h>
#include <dnnl_debug.h>
#include <omp.h>
#include <string.h>

/* The one place where oneDNN's codes become ours. */
#define DNNL_TRY(call_)              TSR_TRY(tsr_matmul_status((int)(call_)))
#define DNNL_TRY_GOTO(call_, label_) TSR_TRY_GOTO(tsr_matmul_status((int)(call_)), label_)

enum { SOURCE, WEIGHTS, RESULT, SCRATCH, ROLES };

typedef dnnl_memory_t memory_set[ROLES];

struct tsr_matmul {
    tsr_matmul_shape shape;
    dnnl_primitive_t primitive;
    bool is_widened;
    size_t scratch_bytes; /* of oneDNN; the widened operands lie behind it */
    int sets;             /* one a thread for a serial product, so that threads do not share */
    memory_set memory[];
};

struct tsr_gemm_cache {
    int threads;
    dnnl_engine_t engine;
    dnnl_stream_t *streams; /* [threads] */
    tsr_matmul **slots;     /* open addressing; a power of two, at most half full */
    int64_t slot_count, used;
    char *scratch; /* all of it for a shared product, an equal part each for serial ones */
    size_t scratch_bytes, part_bytes;
    void *plan;
    size_t plan_bytes;
};

tsr_status tsr_matmul_status(int dnnl_status)
{
    TSR_CHECK(dnnl_status != dnnl_out_of_memory, TSR_ERR_NOMEM, "oneDNN: out of memory");
    TSR_CHECK(dnnl_status == dnnl_success, TSR_ERR_DEVICE, "oneDNN: %s",
              dnnl_status2str((dnnl_status_t)dnnl_status));
    return TSR_OK;
}

tsr_status tsr_gemm_cache_create(int threads, tsr_gemm_cache **out)
{
    tsr_gemm_cache *cache = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *cache, (void **)&cache));
    cache->threads = threads;
    cache->slot_count = 64;
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, cache->slot_count, sizeof *cache->slots,
                                     (void **)&cache->slots),
                 err_destroy);
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, threads, sizeof *cache->streams,
                                     (void **)&cache->streams),
                 err_destroy);
    DNNL_TRY_GOTO(dnnl_engine_create(&cache->engine, dnnl_cpu, 0), err_destroy);
    for (int i = 0; i < threads; ++i) {
        DNNL_TRY_GOTO(
            dnnl_stream_create(&cache->streams[i], cache->engine, dnnl_stream_default_flags),
            err_destroy);
    }
    *out = cache;
    return TSR_OK;

err_destroy:
    tsr_gemm_cache_destroy(&cache);
    return st;
}

static void destroy_matmul(tsr_matmul *matmul)
{
    for (int set = 0; set < matmul->sets; ++set) {
        for (int role = 0; role < ROLES; ++role) {
            if (matmul->memory[set][role] != NULL) {
                (void)dnnl_memory_destroy(matmul->memory[set][role]);
            }
        }
    }
    if (matmul->primitive != NULL) {
        (void)dnnl_primitive_destroy(matmul->primitive);
    }
    tsr_mem_free(matmul);
}

void tsr_gemm_cache_destroy(tsr_gemm_cache **cache_p)
{
    tsr_gemm_cache *cache = *cache_p;

    if (cache == NULL) {
        return;
    }
    for (int64_t i = 0; cache->slots != NULL && i < cache->slot_count; ++i) {
        if (cache->slots[i] != NULL) {
            destroy_matmul(cache->slots[i]);
        }
    }
    for (int i = 0; cache->streams != NULL && i < cache->threads; ++i) {
        if (cache->streams[i] != NULL) {
            (void)dnnl_stream_destroy(cache->streams[i]);
        }
    }
    if (cache->engine != NULL) {
        (void)dnnl_engine_destroy(cache->engine);
    }
    tsr_mem_free(cache->slots);
    tsr_mem_free(cache->streams);
    tsr_mem_free(cache->scratch);
    tsr_mem_free(cache->plan);
    tsr_mem_free(cache);
    *cache_p = NULL;
}

/* Descriptors of a, b, c; a widened product reads and writes dense f32 copies. */
static tsr_status describe(const tsr_matmul_shape *shape, bool is_widened,
                           dnnl_memory_desc_t out[SCRATCH])
{
    const bool ta = (shape->flags & TSR_MATMUL_TRANS_A) != 0;
    const bool tb = (shape->flags & TSR_MATMUL_TRANS_B) != 0;
    const bool c_bf16 = (shape->flags & TSR_MATMUL_C_BF16) != 0;
    const dnnl_data_type_t type =
        (shape->flags & TSR_MATMUL_BF16) != 0 && !is_widened ? dnnl_bf16 : dnnl_f32;
    const int64_t lda = is_widened ? (ta ? shape->m : shape->k) : shape->lda;
    const int64_t ldb = is_widened ? (tb ? shape->k : shape->n) : shape->ldb;
    const int64_t ldc = is_widened && c_bf16 ? shape->n : shape->ldc;
    const dnnl_dims_t a = {shape->m, shape->k}, a_strides = {ta ? 1 : lda, ta ? lda : 1};
    const dnnl_dims_t b = {shape->k, shape->n}, b_strides = {tb ? 1 : ldb, tb ? ldb : 1};
    const dnnl_dims_t c = {shape->m, shape->n}, c_strides = {ldc, 1};

    DNNL_TRY(dnnl_memory_desc_init_by_strides(&out[SOURCE], 2, a, type, a_strides));
    DNNL_TRY(dnnl_memory_desc_init_by_strides(&out[WEIGHTS], 2, b, type, b_strides));
    DNNL_TRY(dnnl_memory_desc_init_by_strides(
        &out[RESULT], 2, c, c_bf16 && !is_widened ? dnnl_bf16 : dnnl_f32, c_strides));
    return TSR_OK;
}

static tsr_status set_attributes(dnnl_primitive_attr_t attr, dnnl_post_ops_t sum, bool accumulate)
{
    DNNL_TRY(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user));
    if (accumulate) {
        DNNL_TRY(dnnl_post_ops_append_sum(sum, 1.0f));
        DNNL_TRY(dnnl_primitive_attr_set_post_ops(attr, sum));
    }
    return TSR_OK;
}

/* oneDNN's plan for this shape. *is_widened_out: bf16 was refused and f32 taken instead. */
static tsr_status choose_primitive(const tsr_gemm_cache *cache, const tsr_matmul_shape *shape,
                                   bool *is_widened_out, dnnl_memory_desc_t desc[SCRATCH],
                                   dnnl_primitive_desc_t *out)
{
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t sum = NULL;
    dnnl_matmul_desc_t matmul;
    tsr_status st = TSR_OK;

    DNNL_TRY(dnnl_primitive_attr_create(&attr));
    DNNL_TRY_GOTO(dnnl_post_ops_create(&sum), err_attr);
    TSR_TRY_GOTO(set_attributes(attr, sum, (shape->flags & TSR_MATMUL_ACCUMULATE) != 0), err_sum);
    for (int widen = 0; widen < 2; ++widen) {
        TSR_TRY_GOTO(describe(shape, widen != 0, desc), err_sum);
        DNNL_TRY_GOTO(
            dnnl_matmul_desc_init(&matmul, &desc[SOURCE], &desc[WEIGHTS], NULL, &desc[RESULT]),
            err_sum);
        const dnnl_status_t created =
            dnnl_primitive_desc_create(out, &matmul, attr, cache->engine, NULL);
        *is_widened_out = widen != 0;
        if (created != dnnl_unimplemented || (shape->flags & TSR_MATMUL_BF16) == 0) {
            st = tsr_matmul_status((int)created);
            break;
        }
        st = tsr_matmul_status((int)created);
    }
err_sum:
    (void)dnnl_post_ops_destroy(sum);
err_attr:
    (void)dnnl_primitive_attr_destroy(attr);
    return st;
}

static size_t widened_floats(const tsr_matmul_shape *shape)
{
    return (size_t)(shape->m * shape->k + shape->k * shape->n + shape->m * shape->n);
}

static tsr_status fill_matmul(const tsr_gemm_cache *cache, tsr_matmul *matmul)
{
    dnnl_memory_desc_t desc[SCRATCH];
    dnnl_primitive_desc_t plan = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY(choose_primitive(cache, &matmul->shape, &matmul->is_widened, desc, &plan));
    DNNL_TRY_GOTO(dnnl_primitive_create(&matmul->primitive, plan), out);
    const dnnl_memory_desc_t *scratch =
        dnnl_primitive_desc_query_md(plan, dnnl_query_scratchpad_md, 0);
    matmul->scratch_bytes = (dnnl_memory_desc_get_size(scratch) + 63) / 64 * 64;
    for (int set = 0; set < matmul->sets; ++set) {
        for (int role = 0; role < ROLES; ++role) {
            DNNL_TRY_GOTO(dnnl_memory_create(&matmul->memory[set][role],
                                             role == SCRATCH ? scratch : &desc[role], cache->engine,
                                             DNNL_MEMORY_NONE),
                          out);
        }
    }
out:
    (void)dnnl_primitive_desc_destroy(plan);
    return st;
}

static tsr_status grow_scratch(tsr_gemm_cache *cache, size_t need)
{
    void *larger = NULL;

    if (need <= cache->scratch_bytes) {
        return TSR_OK;
    }
    TSR_TRY(tsr_mem_alloc(TSR_MEM_WORKSPACE, need, &larger));
    tsr_mem_free(cache->scratch);
    cache->scratch = larger;
    cache->scratch_bytes = need;
    return TSR_OK;
}

tsr_status tsr_gemm_cache_reserve_parts(tsr_gemm_cache *cache, size_t bytes)
{
    const size_t need = bytes > cache->part_bytes ? (bytes + 63) / 64 * 64 : cache->part_bytes;

    TSR_TRY(grow_scratch(cache, need * (size_t)cache->threads));
    cache->part_bytes = need;
    return TSR_OK;
}

void *tsr_gemm_cache_part(const tsr_gemm_cache *cache, int thread)
{
    return cache->scratch + (size_t)thread * cache->part_bytes;
}

static tsr_status reserve_scratch(tsr_gemm_cache *cache, const tsr_matmul *matmul)
{
    size_t need = matmul->scratch_bytes;

    if (matmul->is_widened) {
        need += (widened_floats(&matmul->shape) * sizeof(float) + 63) / 64 * 64;
    }
    return (matmul->shape.flags & TSR_MATMUL_SERIAL) != 0
               ? tsr_gemm_cache_reserve_parts(cache, need)
               : grow_scratch(cache, need);
}

static tsr_status make_matmul(tsr_gemm_cache *cache, const tsr_matmul_shape *shape,
                              tsr_matmul **out)
{
    const bool is_serial = (shape->flags & TSR_MATMUL_SERIAL) != 0;
    const int sets = is_serial ? cache->threads : 1;
    tsr_matmul *matmul = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *matmul + (size_t)sets * sizeof(memory_set),
                          (void **)&matmul));
    matmul->shape = *shape;
    matmul->sets = sets;
    /* oneDNN plans for as many threads as OpenMP offers at this moment. */
    omp_set_num_threads(is_serial ? 1 : cache->threads);
    st = fill_matmul(cache, matmul);
    omp_set_num_threads(cache->threads);
    if (st == TSR_OK) {
        st = reserve_scratch(cache, matmul);
    }
    if (st != TSR_OK) {
        destroy_matmul(matmul);
        return st;
    }
    *out = matmul;
    return TSR_OK;
}

/* The slot of this shape, or the empty one where it belongs. */
static int64_t find_slot(tsr_matmul *const *slots, int64_t slot_count,
                         const tsr_matmul_shape *shape)
{
    uint64_t words[sizeof *shape / sizeof(uint64_t)], hash = 0;

    memcpy(words, shape, sizeof words);
    for (size_t i = 0; i < sizeof words / sizeof *words; ++i) {
        hash = (hash ^ words[i]) * 0x9E3779B97F4A7C15u; /* Knuth's golden ratio */
        hash ^= hash >> 32;
    }
    int64_t at = (int64_t)(hash & (uint64_t)(slot_count - 1));
    while (slots[at] != NULL && memcmp(&slots[at]->shape, shape, sizeof *shape) != 0) {
        at = (at + 1) & (slot_count - 1);
    }
    return at;
}

static tsr_status grow_slots(tsr_gemm_cache *cache)
{
    const int64_t count = 2 * cache->slot_count;
    tsr_matmul **slots = NULL;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, count, sizeof *slots, (void **)&slots));
    for (int64_t i = 0; i < cache->slot_count; ++i) {
        if (cache->slots[i] != NULL) {
            slots[find_slot(slots, count, &cache->slots[i]->shape)] = cache->slots[i];
        }
    }
    tsr_mem_free(cache->slots);
    cache->slots = slots;
    cache->slot_count = count;
    return TSR_OK;
}

tsr_status tsr_gemm_cache_find(tsr_gemm_cache *cache, const tsr_matmul_shape *shape,
                               const tsr_matmul **out)
{
    int64_t at = find_slot(cache->slots, cache->slot_count, shape);

    if (cache->slots[at] == NULL) {
        if (2 * (cache->used + 1) > cache->slot_count) {
            TSR_TRY(grow_slots(cache));
            at = find_slot(cache->slots, cache->slot_count, shape);
        }
        TSR_TRY(make_matmul(cache, shape, &cache->slots[at]));
        ++cache->used;
    }
    *out = cache->slots[at];
    return TSR_OK;
}

/* Rows of bf16, `stride` apart, to dense f32, and back. */
static void widen(const tsr_bf16 *from, int64_t rows, int64_t columns, int64_t stride, float *to)
{
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
            to[i * columns + j] = tsr_bf16_to_f32(from[i * stride + j]);
        }
    }
}

static void narrow(const float *from, int64_t rows, int64_t columns, int64_t stride, tsr_bf16 *to)
{
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
            to[i * stride + j] = tsr_f32_to_bf16(from[i * columns + j]);
        }
    }
}

static dnnl_status_t execute(const tsr_matmul *matmul, dnnl_stream_t stream,
                             const memory_set memory, void *const handles[ROLES])
{
    const dnnl_exec_arg_t args[ROLES] = {{DNNL_ARG_SRC, memory[SOURCE]},
                                         {DNNL_ARG_WEIGHTS, memory[WEIGHTS]},
                                         {DNNL_ARG_DST, memory[RESULT]},
                                         {DNNL_ARG_SCRATCHPAD, memory[SCRATCH]}};

    for (int role = 0; role < ROLES; ++role) {
        const dnnl_status_t st = dnnl_memory_set_data_handle(memory[role], handles[role]);
        if (st != dnnl_success) {
            return st;
        }
    }
    return dnnl_primitive_execute(matmul->primitive, stream, ROLES, args);
}

static dnnl_status_t execute_widened(const tsr_matmul *matmul, dnnl_stream_t stream,
                                     const memory_set memory, void *const handles[ROLES])
{
    const tsr_matmul_shape *s = &matmul->shape;
    const bool ta = (s->flags & TSR_MATMUL_TRANS_A) != 0;
    const bool tb = (s->flags & TSR_MATMUL_TRANS_B) != 0;
    const bool c_bf16 = (s->flags & TSR_MATMUL_C_BF16) != 0;
    float *a = (float *)(void *)((char *)handles[SCRATCH] + matmul->scratch_bytes);
    float *b = a + s->m * s->k, *c = b + s->k * s->n;

    widen(handles[SOURCE], ta ? s->k : s->m, ta ? s->m : s->k, s->lda, a);
    widen(handles[WEIGHTS], tb ? s->n : s->k, tb ? s->k : s->n, s->ldb, b);
    void *const wide[ROLES] = {a, b, c_bf16 ? c : handles[RESULT], handles[SCRATCH]};
    const dnnl_status_t st = execute(matmul, stream, memory, wide);
    if (st == dnnl_success && c_bf16) {
        narrow(c, s->m, s->n, s->ldc, handles[RESULT]);
    }
    return st;
}

int tsr_matmul_run(const tsr_gemm_cache *cache, const tsr_matmul *matmul, int thread, const void *a,
                   const void *b, void *c)
{
    void *const handles[ROLES] = {(void *)a, (void *)b, c, tsr_gemm_cache_part(cache, thread)};
    const memory_set *memory = &matmul->memory[matmul->sets == 1 ? 0 : thread];

    return (int)(matmul->is_widened ? execute_widened : execute)(matmul, cache->streams[thread],
                                                                 *memory, handles);
}

tsr_status tsr_gemm_cache_plan(tsr_gemm_cache *cache, size_t bytes, void **out)
{
    if (bytes > cache->plan_bytes) {
        void *larger = NULL;

        TSR_TRY(tsr_mem_alloc(TSR_MEM_WORKSPACE, bytes, &larger));
        tsr_mem_free(cache->plan);
        cache->plan = larger;
        cache->plan_bytes = bytes;
    }
    *out = cache->plan;
    return TSR_OK;
}

size_t tsr_gemm_cache_bytes(const tsr_gemm_cache *cache)
{
    return cache->scratch_bytes + cache->plan_bytes;
}

int64_t tsr_gemm_cache_created(const tsr_gemm_cache *cache)
{
    return cache->used;
}
