/* `tessera bench ops`: the rate of each operator against what the machine allows.
 *
 * Each case is first checked against its plain twin at a toy size, then timed. The bound of a case
 * is the larger of flops / GEMM peak and bytes / copy bandwidth, both measured first in the same
 * run; `share` is bound over median. Operators whose data stay in a cache may exceed it. */
#include "launch/bench.h"
#include "launch/op_cases.h"

#include <jansson.h>
#include <math.h>
#include <string.h>
#include <time.h>

enum { MAX_ROUNDS = 1000 };

typedef struct bench {
    const char *only;
    int threads, rounds;
    bool is_toy;
    tsr_device *device, *plain;
    tsr_stream *stream, *plain_stream;
    double peak[2], bandwidth; /* flops/s by type, bytes/s */
    json_t *cases;
} bench;

tsr_status job_block(job *j, tsr_dtype dtype, int64_t count, float scale, void *out)
{
    void *block = NULL;
    float *numbers = NULL;
    tsr_status st = TSR_OK;

    TSR_CHECK(j->block_count < JOB_BLOCKS, TSR_ERR_INTERNAL, "a case takes more than %d blocks",
              JOB_BLOCKS);
    TSR_TRY(
        tsr_device_alloc(j->device, TSR_MEM_OTHER, (size_t)count * tsr_dtype_bytes(dtype), &block));
    j->blocks[j->block_count++] = block;
    *(void **)out = block;
    if (scale == 0.0f) {
        return TSR_OK;
    }
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, count, sizeof *numbers, (void **)&numbers));
    tsr_rng_normal((uint64_t)j->block_count, 0, count, numbers);
    for (int64_t i = 0; i < count; ++i) {
        numbers[i] *= scale;
    }
    st = tsr_op_convert(j->device, numbers, TSR_F32, block, dtype, count, j->stream);
    tsr_mem_free(numbers);
    return st;
}

void job_output(job *j, const void *at, tsr_dtype dtype, int64_t count)
{
    j->outputs[j->output_count].at = at;
    j->outputs[j->output_count].dtype = dtype;
    j->outputs[j->output_count].count = count;
    ++j->output_count;
}

int64_t job_size(const job *j, int64_t full, int64_t toy)
{
    return j->is_toy ? toy : full;
}

static void free_job(job *j)
{
    for (int i = 0; i < j->block_count; ++i) {
        tsr_device_free(j->device, j->blocks[i]);
    }
    j->block_count = j->output_count = 0;
}

static double element(tsr_dtype dtype, const void *base, int64_t at)
{
    return dtype == TSR_F32 ? (double)((const float *)base)[at]
                            : (double)tsr_bf16_to_f32(((const tsr_bf16 *)base)[at]);
}

/* Largest difference of two jobs' outputs, relative to the largest value of each. The unit tests
 * are exact about rounding; this only tells a rate of right results from one of wrong ones. */
static double largest_error(const job *got, const job *expected)
{
    double worst = 0.0;

    for (int o = 0; o < got->output_count; ++o) {
        const tsr_dtype dtype = got->outputs[o].dtype;
        double error = 0.0, largest = 1e-30;

        for (int64_t i = 0; i < got->outputs[o].count; ++i) {
            const double g = element(dtype, got->outputs[o].at, i);
            const double e = element(dtype, expected->outputs[o].at, i);

            error = fabs(g - e) <= error ? error : fabs(g - e); /* so that NaN is kept */
            largest = fmax(largest, fabs(e));
        }
        worst = error / largest <= worst ? worst : error / largest;
    }
    return worst;
}

static tsr_status check(const bench *b, const op_case *c, tsr_dtype dtype)
{
    const double limit = dtype == TSR_F32 ? 1e-4 : 1e-2; /* 800 roundings of f32, 1.3 of bf16 */
    job got = {.device = b->device, .stream = b->stream, .dtype = dtype, .is_toy = true};
    job expected = {.device = b->plain, .stream = b->plain_stream, .dtype = dtype, .is_toy = true};
    tsr_status st = TSR_OK;

    TSR_TRY_GOTO(c->setup(&got), out);
    TSR_TRY_GOTO(c->setup(&expected), out);
    TSR_TRY_GOTO(c->run(&got), out);
    TSR_TRY_GOTO(c->run(&expected), out);
    const double error = largest_error(&got, &expected);
    if (!(error <= limit)) {
        st = TSR_FAIL(TSR_ERR_INTERNAL, "%s in %s is off by %g of its largest value", c->name,
                      tsr_dtype_name(dtype), error);
    }
out:
    free_job(&got);
    free_job(&expected);
    return st;
}

static double now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Sorted times of b->rounds runs after two to warm up; flops and bytes are the profile's. */
static tsr_status time_job(const bench *b, const op_case *c, job *j, double *seconds,
                           tsr_op_profile *work_out)
{
    int count = 0;
    const tsr_op_profile *profile = tsr_op_profile_get(&count);

    TSR_TRY(c->run(j));
    tsr_op_profile_reset();
    tsr_op_profile_enable(true);
    const tsr_status st = c->run(j);
    tsr_op_profile_enable(false);
    TSR_TRY(st);
    for (int i = 0; i < count; ++i) {
        if (strcmp(profile[i].name, c->op) == 0) {
            *work_out = profile[i];
        }
    }
    for (int round = 0; round < b->rounds; ++round) {
        const double start = now();

        TSR_TRY(c->run(j));
        TSR_TRY(tsr_stream_wait(j->stream));
        seconds[round] = now() - start;
    }
    (void)bench_median(seconds, b->rounds); /* sorts */
    return TSR_OK;
}

static void report_case(const bench *b, const op_case *c, tsr_dtype dtype, const double *seconds,
                        const tsr_op_profile *work)
{
    const double median = seconds[b->rounds / 2], p90 = seconds[b->rounds * 9 / 10];
    const double bound = fmax(work->flops / b->peak[dtype], work->bytes / b->bandwidth);

    tsr_log(TSR_LOG_INFO, "%-32s %-4s %10.1f us  %8.1f GFLOP/s  %7.1f GB/s  %5.0f%% of the bound",
            c->name, tsr_dtype_name(dtype), median * 1e6, work->flops / median * 1e-9,
            work->bytes / median * 1e-9, 100.0 * bound / median);
    (void)json_array_append_new(
        b->cases, json_pack("{s:s,s:s,s:i,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "case", c->name, "dtype",
                            tsr_dtype_name(dtype), "rounds", b->rounds, "us_min", seconds[0] * 1e6,
                            "us_median", median * 1e6, "us_p90", p90 * 1e6, "gflop_per_s",
                            work->flops / median * 1e-9, "gb_per_s", work->bytes / median * 1e-9,
                            "us_bound", bound * 1e6, "share", bound / median));
}

static tsr_status measure(const bench *b, const op_case *c, tsr_dtype dtype)
{
    static double seconds[MAX_ROUNDS];
    job j = {.device = b->device, .stream = b->stream, .dtype = dtype, .is_toy = b->is_toy};
    tsr_op_profile work = {0};
    tsr_status st = TSR_OK;

    TSR_TRY(check(b, c, dtype));
    TSR_TRY_GOTO(c->setup(&j), out);
    TSR_TRY_GOTO(time_job(b, c, &j, seconds, &work), out);
    report_case(b, c, dtype, seconds, &work);
out:
    free_job(&j);
    return st;
}

/* ---- what the machine allows ---------------------------------------------------------------- */

static tsr_status setup_peak(job *j)
{
    const int64_t n = job_size(j, 1536, 64);
    tsr_gemm_args *g = &j->args.gemm;
    void *a = NULL, *b = NULL;

    *g = (tsr_gemm_args){.m = n, .n = n, .k = n, .lda = n, .ldb = n, .ldc = n, .dtype = j->dtype};
    TSR_TRY(job_block(j, j->dtype, n * n, 1.0f, &a));
    TSR_TRY(job_block(j, j->dtype, n * n, 1.0f, &b));
    TSR_TRY(job_block(j, TSR_F32, n * n, 0.0f, &g->c));
    g->a = a;
    g->b = b;
    return TSR_OK;
}

static tsr_status run_peak(job *j)
{
    return tsr_op_gemm(j->device, &j->args.gemm, j->stream);
}

static tsr_status setup_copy(job *j)
{
    j->args.vector.count = job_size(j, (int64_t)1 << 24, 5000);
    TSR_TRY(job_block(j, TSR_F32, j->args.vector.count, 1.0f, &j->args.vector.x));
    return job_block(j, TSR_F32, j->args.vector.count, 1.0f, &j->args.vector.y);
}

static tsr_status run_copy(job *j)
{
    return tsr_op_convert(j->device, j->args.vector.x, TSR_F32, j->args.vector.y, TSR_F32,
                          j->args.vector.count, j->stream);
}

/* The best round, not the median: a limit is what was possible once. */
static tsr_status measure_limits(bench *b)
{
    static const op_case gemm = {"peak", "gemm", false, setup_peak, run_peak};
    static const op_case copy = {"copy", "convert", true, setup_copy, run_copy};
    static double seconds[MAX_ROUNDS];

    for (int which = 0; which < 3; ++which) {
        const op_case *c = which < 2 ? &gemm : &copy;
        job j = {.device = b->device,
                 .stream = b->stream,
                 .is_toy = b->is_toy,
                 .dtype = which == 1 ? TSR_BF16 : TSR_F32};
        tsr_op_profile work = {0};
        tsr_status st = c->setup(&j);

        if (st == TSR_OK) {
            st = time_job(b, c, &j, seconds, &work);
        }
        free_job(&j);
        TSR_TRY(st);
        if (which < 2) {
            b->peak[which] = work.flops / seconds[0];
        } else {
            b->bandwidth = work.bytes / seconds[0];
        }
    }
    tsr_log(TSR_LOG_INFO, "%s: GEMM peak f32 %.1f, bf16 %.1f GFLOP/s, copy %.1f GB/s",
            tsr_device_name(b->device), b->peak[TSR_F32] * 1e-9, b->peak[TSR_BF16] * 1e-9,
            b->bandwidth * 1e-9);
    return TSR_OK;
}

static tsr_status run_all(bench *b)
{
    typedef const op_case *case_table(int *count_out);
    static case_table *const tables[] = {op_cases_gemm, op_cases_layers, op_cases_route,
                                         op_cases_vectors};

    TSR_TRY(tsr_device_open("cpu:plain", 1, &b->plain));
    TSR_TRY(tsr_stream_create(b->plain, &b->plain_stream));
    TSR_TRY(tsr_device_open("cpu", b->threads, &b->device));
    TSR_TRY(tsr_stream_create(b->device, &b->stream));
    TSR_TRY(measure_limits(b));
    for (size_t t = 0; t < sizeof tables / sizeof *tables; ++t) {
        int count = 0;
        const op_case *cases = tables[t](&count);

        for (int i = 0; i < count; ++i) {
            if (strncmp(cases[i].name, b->only, strlen(b->only)) != 0) {
                continue;
            }
            for (int dtype = TSR_F32; dtype <= (cases[i].is_f32_only ? TSR_F32 : TSR_BF16);
                 ++dtype) {
                TSR_TRY(measure(b, &cases[i], (tsr_dtype)dtype));
            }
        }
    }
    return TSR_OK;
}

static void print_json(const bench *b)
{
    json_t *object = json_pack(
        "{s:s,s:s,s:s,s:s,s:i,s:f,s:f,s:f,s:O}", "device", tsr_device_name(b->device), "processor",
        tsr_device_description(b->device), "revision", TSR_REVISION, "build", TSR_BUILD_TYPE,
        "threads", b->threads, "peak_gflops_f32", b->peak[TSR_F32] * 1e-9, "peak_gflops_bf16",
        b->peak[TSR_BF16] * 1e-9, "copy_gb_per_s", b->bandwidth * 1e-9, "cases", b->cases);

    (void)json_dumpf(object, stdout, JSON_REAL_PRECISION(6));
    (void)fputc('\n', stdout);
    json_decref(object);
}

tsr_status bench_ops(const cli_values *values, world *w)
{
    const char *only = cli_get(&cli_bench, values, "only");
    int64_t threads = 1, rounds = 20;

    TSR_CHECK(values->positional_count == 1, TSR_ERR_ARG, "bench ops: takes no run file");
    TSR_CHECK(tsr_comm_size(w->comm) == 1, TSR_ERR_ARG,
              "bench ops: %d ranks; it measures one process", tsr_comm_size(w->comm));
    TSR_TRY(cli_get_int(&cli_bench, values, "threads", 1, 1024, world_cores(), &threads));
    TSR_TRY(cli_get_int(&cli_bench, values, "rounds", 1, MAX_ROUNDS, 20, &rounds));
    bench b = {.only = only != NULL ? only : "",
               .threads = (int)threads,
               .rounds = (int)rounds,
               .is_toy = cli_get(&cli_bench, values, "toy") != NULL,
               .cases = json_array()};

    const tsr_status st = run_all(&b);
    if (st == TSR_OK && (w->json || w->people != stdout)) {
        print_json(&b);
    }
    json_decref(b.cases);
    tsr_stream_destroy(&b.stream);
    tsr_stream_destroy(&b.plain_stream);
    tsr_device_close(&b.device);
    tsr_device_close(&b.plain);
    return st;
}
