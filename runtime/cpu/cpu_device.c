#include "runtime/cpu/gemm_cache.h"

#include <stdio.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static bool always(void)
{
    return true;
}

#if defined(__x86_64__)
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static bool has_bf16(void)
{
    return __builtin_cpu_supports("avx512bf16");
}

static bool has_avx512bf16(void)
{
    return has_avx512() && has_bf16();
}

/* Asked of the processor itself: not all compilers know the names. And Linux (5.16) lets a process
 * use the large registers only after it has asked for them. */
static bool has_amx(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
    unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;

    return has_avx512bf16() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 &&
           (edx & AMX_BF16) != 0 && (edx & AMX_TILE) != 0 &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#else
static bool has_bf16(void)
{
    return false;
}
#endif

static const struct variant {
    const char *name;
    bool (*is_supported)(void);
    const tsr_device_ops *(*table)(void);
    const tsr_own_gemm *own_gemm[2]; /* f32, bf16 */
} variants[] = {
/* best first: the alias "cpu" takes the first that runs here */
#if defined(__x86_64__)
    {"cpu:amx", has_amx, tsr_amx_table, {&tsr_amx_gemm_f32, &tsr_amx_gemm_bf16}},
    {"cpu:avx512bf16", has_avx512bf16, tsr_avx512bf16_table, {&tsr_avx512_gemm_f32, NULL}},
    {"cpu:avx512", has_avx512, tsr_avx512_table, {&tsr_avx512_gemm_f32, NULL}},
    {"cpu:avx2", has_avx2, tsr_avx2_table, {NULL, NULL}},
#endif
    {"cpu:generic", always, tsr_generic_table, {NULL, NULL}},
    {"cpu:plain", always, tsr_plain_table, {NULL, NULL}},
};

static tsr_status find_variant(const char *name, const struct variant **out)
{
    const bool is_alias = strcmp(name, "cpu") == 0;

    for (size_t i = 0; i < sizeof variants / sizeof *variants; ++i) {
        if (is_alias || strcmp(name, variants[i].name) == 0) {
            if (variants[i].is_supported()) {
                *out = &variants[i];
                return TSR_OK;
            }
            TSR_CHECK(is_alias, TSR_ERR_UNSUPPORTED,
                      "device = %s: this processor or kernel lacks the instructions, use cpu",
                      name);
        }
    }
    TSR_CHECK(strcmp(name, "cpu:avx2") != 0 && strncmp(name, "cpu:avx512", 10) != 0 &&
                  strcmp(name, "cpu:amx") != 0,
              TSR_ERR_UNSUPPORTED, "device = %s is built for x86-64 only, use cpu", name);
    return TSR_FAIL(
        TSR_ERR_ARG,
        "device = %s, must be cpu, cpu:generic, cpu:avx2, cpu:avx512, cpu:avx512bf16, cpu:amx or "
        "cpu:plain",
        name);
}

/* The processor's name as the kernel knows it; where it says nothing, the device's name stays. */
static void describe(tsr_device *device)
{
    char line[256];
    FILE *info = fopen("/proc/cpuinfo", "r");

    (void)snprintf(device->description, sizeof device->description, "%s", device->name);
    while (info != NULL && fgets(line, sizeof line, info) != NULL) {
        const char *value = strchr(line, ':');

        if (strncmp(line, "model name", 10) == 0 && value != NULL) {
            (void)snprintf(device->description, sizeof device->description, "%.*s",
                           (int)strcspn(value + 2, "\n"), value + 2);
            break;
        }
    }
    if (info != NULL) {
        (void)fclose(info);
    }
}

tsr_status tsr_cpu_open(const char *name, int threads, tsr_device **out)
{
    const struct variant *variant = NULL;
    tsr_cpu_device *self = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY(find_variant(name, &variant));
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *self, (void **)&self));
    self->base.ops = variant->table();
    self->own_gemm[TSR_F32] = variant->own_gemm[TSR_F32];
    self->own_gemm[TSR_BF16] = variant->own_gemm[TSR_BF16];
    self->base.threads = threads;
    self->base.has_fast_bf16 = has_bf16();
    self->base.is_host = true;
    (void)snprintf(self->base.name, sizeof self->base.name, "%s", variant->name);
    describe(&self->base);
    TSR_TRY_GOTO(tsr_device_check_table(self->base.ops, self->base.name), err_close);
    TSR_TRY_GOTO(tsr_gemm_cache_create(threads, &self->gemms), err_close);
    *out = &self->base;
    return TSR_OK;

err_close:
    tsr_cpu_close(&self->base);
    return st;
}

void tsr_cpu_close(tsr_device *device)
{
    tsr_cpu_device *self = (tsr_cpu_device *)device;

    tsr_gemm_cache_destroy(&self->gemms);
    tsr_mem_free(self->scratch);
    tsr_mem_free(self);
}

tsr_status tsr_cpu_scratch_reserve(tsr_device *device, size_t bytes)
{
    tsr_cpu_device *self = (tsr_cpu_device *)device;
    void *larger = NULL;

    if (bytes <= self->scratch_bytes) {
        return TSR_OK;
    }
    TSR_TRY(tsr_mem_alloc(TSR_MEM_WORKSPACE, bytes, &larger));
    tsr_mem_free(self->scratch);
    self->scratch = larger;
    self->scratch_bytes = bytes;
    return TSR_OK;
}

size_t tsr_cpu_scratch_bytes(const tsr_device *device)
{
    const tsr_cpu_device *self = (const tsr_cpu_device *)device;

    return self->scratch_bytes + tsr_gemm_cache_bytes(self->gemms);
}

tsr_status tsr_cpu_alloc(tsr_device *device, tsr_mem_tag tag, size_t bytes, void **out)
{
    (void)device;
    return tsr_mem_alloc(tag, bytes, out);
}

void tsr_cpu_free(tsr_device *device, void *block)
{
    (void)device;
    tsr_mem_free(block);
}

tsr_status tsr_cpu_stream_create(tsr_device *device, tsr_stream **out)
{
    tsr_stream *stream = NULL;

    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *stream, (void **)&stream));
    stream->device = device;
    *out = stream;
    return TSR_OK;
}

void tsr_cpu_stream_destroy(tsr_stream *stream)
{
    tsr_mem_free(stream);
}

tsr_status tsr_cpu_stream_wait(tsr_stream *stream)
{
    (void)stream;
    return TSR_OK;
}

tsr_status tsr_cpu_event_create(tsr_device *device, tsr_event **out)
{
    tsr_event *event = NULL;

    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *event, (void **)&event));
    event->device = device;
    *out = event;
    return TSR_OK;
}

void tsr_cpu_event_destroy(tsr_event *event)
{
    tsr_mem_free(event);
}

tsr_status tsr_cpu_event_record(tsr_event *event, tsr_stream *stream)
{
    (void)event;
    (void)stream;
    return TSR_OK;
}

tsr_status tsr_cpu_stream_wait_event(tsr_stream *stream, tsr_event *event)
{
    (void)stream;
    (void)event;
    return TSR_OK;
}

tsr_status tsr_cpu_event_wait(tsr_event *event)
{
    (void)event;
    return TSR_OK;
}

tsr_status tsr_cpu_copy(tsr_device *device, void *to, const void *from, size_t bytes,
                        tsr_copy_kind kind, tsr_stream *stream)
{
    (void)device;
    (void)kind;
    (void)stream;
    memmove(to, from, bytes);
    return TSR_OK;
}

tsr_status tsr_cpu_zero(tsr_device *device, void *block, size_t bytes, tsr_stream *stream)
{
    (void)device;
    (void)stream;
    memset(block, 0, bytes);
    return TSR_OK;
}
