/* `tessera bench ops`: the rate of each operator against what the machine allows.
 *
 * Each case is first checked against its twin on cpu:plain at a toy size, then timed, a wait for
 * the stream included. The bound of a case is the larger of flops / GEMM peak and bytes / copy
 * bandwidth, both measured first in the same run; `share` is bound over median. Operators whose
 * data stay in a cache may exceed it. */
#include "launch/bench.h"
#include "launch/devices.h"
#include "launch/figure.h"
#include "launch/op_cases.h"
#include "launch/peak.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

enum {
    MAX_ROUNDS = 1000,
    PATTERN = 1 << 16 /* random numbers: equal ones would draw less power on a GPU */
};

/* The benchmark model for processors: width 512, 16 experts of 1024, top-2. */
static const op_sizes cpu_sizes = {.batch = 4,
                                   .seq_len = 512,
                                   .width = 512,
                                   .vocab = 256,
                                   .entropy_rows = 2048,
                                   .expert_width = 1024,
                                   .experts = 16,
                                   .top_k = 2,
                                   .heads = 8,
                                   .kv_heads = 4,
                                   .head_dim = 64,
                                   .vector = 1 << 24,
                                   .parameters = 1 << 23};

/* The one for GPUs: width 2048, 64 experts of 1024, top-8; vectors far longer than their cache. */
static const op_sizes gpu_sizes = {.batch = 4,
                                   .seq_len = 4096,
                                   .width = 2048,
                                   .vocab = 50304,
                                   .entropy_rows = 2048,
                                   .expert_width = 1024,
                                   .experts = 64,
                                   .top_k = 8,
                                   .heads = 16,
                                   .kv_heads = 16,
                                   .head_dim = 128,
                                   .vector = 1 << 26,
                                   .parameters = 1 << 27};

typedef struct bench {
    const char *only, *name;
    int threads, rounds;
    bool is_toy;
    tsr_device *device, *plain;
    tsr_stream *stream, *plain_stream;
    double peak[2], bandwidth; /* flops/s by type, bytes/s */
    json_t *cases;
} bench;

static tsr_status new_block(job *j, size_t bytes, void **out)
{
    TSR_CHECK(j->block_count < JOB_BLOCKS, TSR_ERR_INTERNAL, "a case takes more than %d blocks",
              JOB_BLOCKS);
    TSR_TRY(tsr_device_alloc(j->device, TSR_MEM_OTHER, bytes, out));
    j->blocks[j->block_count++] = *out;
    return TSR_OK;
}

static tsr_status copy_in(job *j, void *to, const void *from, size_t bytes)
{
    TSR_TRY(tsr_device_copy(j->device, to, from, bytes, TSR_COPY_HOST_TO_DEVICE, j->stream));
    return tsr_stream_wait(j->stream);
}

/* Some random numbers, repeated: making them all would take longer than the operators. */
static tsr_status fill(job *j, tsr_dtype dtype, int64_t count, float scale, char *block)
{
    const int64_t period = count < PATTERN ? count : PATTERN;
    const size_t bytes = (size_t)period * sizeof(float);
    float *numbers = NULL;
    void *pattern = NULL;

    tsr_status st = tsr_device_alloc(j->device, TSR_MEM_OTHER, bytes, &pattern);
    TSR_TRY(st);
    TSR_TRY_GOTO(tsr_mem_alloc(TSR_MEM_OTHER, bytes, (void **)&numbers), out);
    tsr_rng_normal((uint64_t)j->block_count, 0, period, numbers);
    for (int64_t i = 0; i < period; ++i) {
        numbers[i] *= scale;
    }
    TSR_TRY_GOTO(copy_in(j, pattern, numbers, bytes), out);
    for (int64_t at = 0; at < count; at += period) {
        const int64_t piece = count - at < period ? count - at : period;

        TSR_TRY_GOTO(tsr_op_convert(j->device, pattern, TSR_F32,
                                    block + (size_t)at * tsr_dtype_bytes(dtype), dtype, piece,
                                    j->stream),
                     out);
    }
    st = tsr_stream_wait(j->stream);
out:
    tsr_mem_free(numbers);
    tsr_device_free(j->device, pattern);
    return st;
}

tsr_status job_block(job *j, tsr_dtype dtype, int64_t count, float scale, void *out)
{
    void *block = NULL;

    TSR_TRY(new_block(j, (size_t)count * tsr_dtype_bytes(dtype), &block));
    *(void **)out = block;
    return scale == 0.0f ? TSR_OK : fill(j, dtype, count, scale, block);
}

tsr_status job_copy(job *j, const void *from, size_t bytes, void *out)
{
    void *block = NULL;

    TSR_TRY(new_block(j, bytes, &block));
    *(void **)out = block;
    return copy_in(j, block, from, bytes);
}

void job_output(job *j, const void *at, tsr_dtype dtype, int64_t count)
{
    j->outputs[j->output_count].at = at;
    j->outputs[j->output_count].dtype = dtype;
    j->outputs[j->output_count].is_f64 = false;
    j->outputs[j->output_count].count = count;
    ++j->output_count;
}

void job_output_f64(job *j, const double *at, int64_t count)
{
    job_output(j, at, TSR_F32, count);
    j->outputs[j->output_count - 1].is_f64 = true;
}

int64_t job_size(const job *j, int64_t full, int64_t toy)
{
    return j->is_toy ? toy : full;
}

int64_t job_tokens(const job *j, int64_t toy)
{
    return job_size(j, j->sizes->batch * j->sizes->seq_len, toy);
}

static job new_job(const bench *b, tsr_dtype dtype, bool is_toy)
{
    return (job){.device = b->device,
                 .stream = b->stream,
                 .dtype = dtype,
                 .is_toy = is_toy,
                 .sizes = tsr_device_is_host(b->device) ? &cpu_sizes : &gpu_sizes};
}

static void free_job(job *j)
{
    for (int i = 0; i < j->block_count; ++i) {
        tsr_device_free(j->device, j->blocks[i]);
    }
    j->block_count = j->output_count = 0;
}

/* An output as host numbers, freed by the caller. */
static tsr_status fetch(const job *j, int which, double **out)
{
    const int64_t count = j->outputs[which].count;
    const bool is_f64 = j->outputs[which].is_f64;
    const tsr_dtype dtype = j->outputs[which].dtype;
    const size_t bytes = (size_t)count * (is_f64 ? sizeof(double) : tsr_dtype_bytes(dtype));
    double *numbers = NULL;
    void *raw = NULL;

    tsr_status st = tsr_device_alloc_staging(j->device, TSR_MEM_OTHER, bytes, &raw);
    TSR_TRY(st);
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, count, sizeof *numbers, (void **)&numbers),
                 out);
    TSR_TRY_GOTO(tsr_device_copy(j->device, raw, j->outputs[which].at, bytes,
                                 TSR_COPY_DEVICE_TO_HOST, j->stream),
                 out);
    TSR_TRY_GOTO(tsr_stream_wait(j->stream), out);
    for (int64_t i = 0; i < count; ++i) {
        numbers[i] = is_f64             ? ((const double *)raw)[i]
                     : dtype == TSR_F32 ? (double)((const float *)raw)[i]
                                        : (double)tsr_bf16_to_f32(((const tsr_bf16 *)raw)[i]);
    }
    *out = numbers;
    numbers = NULL;
out:
    tsr_mem_free(numbers);
    tsr_device_free_staging(j->device, raw);
    return st;
}

/* Difference of one output of two jobs, relative to its largest value; a NaN is kept. */
static tsr_status output_error(const job *got, const job *expected, int which, double *error_out)
{
    double *g = NULL, *e = NULL, error = 0.0, largest = 1e-30;
    tsr_status st = fetch(got, which, &g);

    TSR_TRY_GOTO(st, out);
    TSR_TRY_GOTO(fetch(expected, which, &e), out);
    for (int64_t i = 0; i < got->outputs[which].count; ++i) {
        error = fabs(g[i] - e[i]) <= error ? error : fabs(g[i] - e[i]);
        largest = fmax(largest, fabs(e[i]));
    }
    *error_out = error / largest;
out:
    tsr_mem_free(g);
    tsr_mem_free(e);
    return st;
}

/* The unit tests are exact about rounding; this only tells a rate of right results from one of
 * wrong ones. */
static tsr_status check(const bench *b, const op_case *c, tsr_dtype dtype)
{
    const double limit = dtype == TSR_F32 ? 1e-4 : 1e-2; /* 800 roundings of f32, 1.3 of bf16 */
    job got = new_job(b, dtype, true), expected = got;
    tsr_status st = TSR_OK;

    expected.device = b->plain;
    expected.stream = b->plain_stream;
    TSR_TRY_GOTO(c->setup(&got), out);
    TSR_TRY_GOTO(c->setup(&expected), out);
    TSR_TRY_GOTO(c->run(&got), out);
    TSR_TRY_GOTO(c->run(&expected), out);
    for (int which = 0; which < got.output_count; ++which) {
        double error = NAN;

        TSR_TRY_GOTO(output_error(&got, &expected, which, &error), out);
        if (!(error <= limit)) {
            st = TSR_FAIL(TSR_ERR_INTERNAL, "%s in %s is off by %g of its largest value", c->name,
                          tsr_dtype_name(dtype), error);
            break;
        }
    }
out:
    free_job(&got);
    free_job(&expected);
    return st;
}

/* Sorted times of b->rounds runs after two to warm up; flops and bytes are the profile's. */
static tsr_status time_job(const bench *b, const op_case *c, job *j, double *seconds,
                           tsr_op_profile *work_out)
{
    int count = 0;
    const tsr_op_profile *profile = tsr_op_profile_get(&count);

    TSR_TRY(c->run(j));
    TSR_TRY(tsr_stream_wait(j->stream));
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
        const double start = peak_clock_s();

        TSR_TRY(c->run(j));
        TSR_TRY(tsr_stream_wait(j->stream));
        seconds[round] = peak_clock_s() - start;
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
        b->cases,
        json_pack("{s:s,s:s,s:i,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "case", c->name, "dtype",
                  tsr_dtype_name(dtype), "rounds", b->rounds, "us_min",
                  figure_json(seconds[0] * 1e6), "us_median", figure_json(median * 1e6), "us_p90",
                  figure_json(p90 * 1e6), "gflop_per_s", figure_json(work->flops / median * 1e-9),
                  "gb_per_s", figure_json(work->bytes / median * 1e-9), "us_bound",
                  figure_json(bound * 1e6), "share", figure_json(bound / median)));
}

static tsr_status measure(const bench *b, const op_case *c, tsr_dtype dtype)
{
    static double seconds[MAX_ROUNDS];
    job j = new_job(b, dtype, b->is_toy);
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

static tsr_status setup_copy(job *j)
{
    j->args.vector.count = job_size(j, j->sizes->vector, 5000);
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
    static const op_case copy = {"copy", "convert", true, setup_copy, run_copy};
    static double seconds[MAX_ROUNDS];
    job j = new_job(b, TSR_F32, b->is_toy);
    tsr_op_profile work = {0};

    for (int dtype = TSR_F32; dtype <= TSR_BF16; ++dtype) {
        TSR_TRY(peak_measure(b->device, b->stream, (tsr_dtype)dtype, &b->peak[dtype]));
    }
    tsr_status st = copy.setup(&j);
    if (st == TSR_OK) {
        st = time_job(b, &copy, &j, seconds, &work);
    }
    free_job(&j);
    TSR_TRY(st);
    b->bandwidth = work.bytes / seconds[0];
    tsr_log(TSR_LOG_INFO, "%s: GEMM peak f32 %.1f, bf16 %.1f GFLOP/s, copy %.1f GB/s",
            tsr_device_name(b->device), b->peak[TSR_F32] * 1e-9, b->peak[TSR_BF16] * 1e-9,
            b->bandwidth * 1e-9);
    return TSR_OK;
}

/* Any device by its name, or the choice of a run file. */
static tsr_status open_device(bench *b, const world *w)
{
    device_choice choice = DEVICE_AUTO;

    if (b->name == NULL || devices_parse(b->name, &choice) == TSR_OK) {
        return devices_open(choice, w, b->threads, &b->device);
    }
    return tsr_device_open(b->name, b->threads, &b->device);
}

static tsr_status run_all(bench *b, const world *w)
{
    typedef const op_case *case_table(int *count_out);
    static case_table *const tables[] = {op_cases_gemm, op_cases_layers, op_cases_route,
                                         op_cases_vectors};

    TSR_TRY(tsr_device_open("cpu:plain", 1, &b->plain));
    TSR_TRY(tsr_stream_create(b->plain, &b->plain_stream));
    TSR_TRY(open_device(b, w));
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
        "{s:s,s:s,s:s,s:s,s:i,s:o,s:o,s:o,s:O}", "device", tsr_device_name(b->device), "processor",
        tsr_device_description(b->device), "revision", TSR_REVISION, "build", TSR_BUILD_TYPE,
        "threads", b->threads, "peak_gflops_f32", figure_json(b->peak[TSR_F32] * 1e-9),
        "peak_gflops_bf16", figure_json(b->peak[TSR_BF16] * 1e-9), "copy_gb_per_s",
        figure_json(b->bandwidth * 1e-9), "cases", b->cases);

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
               .name = cli_get(&cli_bench, values, "device"),
               .threads = (int)threads,
               .rounds = (int)rounds,
               .is_toy = cli_get(&cli_bench, values, "toy") != NULL,
               .cases = json_array()};

    const tsr_status st = run_all(&b, w);
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
