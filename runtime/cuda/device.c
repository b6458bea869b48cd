/* The cuda device: open and close, memory, streams, events, copies, and the table of operators. */
#include "runtime/cuda/cuda_impl.h"

#include "runtime/log.h"

#include <stdio.h>
#include <string.h>

enum { WORKSPACE_ALIGN = 1 << 20 };

tsr_status tsr_cuda_check(cudaError_t code, const char *call, const char *file, int line)
{
    if (code == cudaSuccess) {
        return TSR_OK;
    }
    (void)cudaGetLastError(); /* it is reported here, not once more by the next check */
    const tsr_status status = code == cudaErrorMemoryAllocation ? TSR_ERR_NOMEM : TSR_ERR_DEVICE;

    (void)tsr_fail(status, file, line, "%.80s: %s (%s)", call, cudaGetErrorString(code),
                   cudaGetErrorName(code));
    return status;
}

/* Calls of the runtime go to the thread's current GPU. */
static tsr_status make_current(const tsr_device *device)
{
    TSR_CUDA_TRY(cudaSetDevice(((const tsr_cuda_device *)device)->index));
    return TSR_OK;
}

/* ---- memory --------------------------------------------------------------------------------- */

/* A block of GPU memory or of pinned host memory: the record that counts it. */
struct tsr_cuda_block {
    tsr_cuda_block *next;
    void *at;
    size_t bytes;
    tsr_mem_tag tag;
    bool is_staging; /* pinned host memory */
};

static tsr_status record_block(tsr_cuda_device *self, tsr_mem_tag tag, size_t bytes, void *at,
                               bool is_staging)
{
    tsr_cuda_block *record = NULL;

    TSR_TRY(tsr_mem_alloc(tag, sizeof *record, (void **)&record));
    *record = (tsr_cuda_block){
        .next = self->blocks, .at = at, .bytes = bytes, .tag = tag, .is_staging = is_staging};
    self->blocks = record;
    tsr_mem_count_bytes(tag, (int64_t)bytes);
    self->live_bytes += is_staging ? 0 : bytes;
    if (self->live_bytes > self->base.peak_bytes) {
        self->base.peak_bytes = self->live_bytes;
    }
    return TSR_OK;
}

static void forget_block(tsr_cuda_device *self, const void *at)
{
    for (tsr_cuda_block **link = &self->blocks; *link != NULL; link = &(*link)->next) {
        if ((*link)->at == at) {
            tsr_cuda_block *const record = *link;

            *link = record->next;
            self->live_bytes -= record->is_staging ? 0 : record->bytes;
            tsr_mem_count_bytes(record->tag, -(int64_t)record->bytes);
            tsr_mem_free(record);
            return;
        }
    }
}

static tsr_status out_of_memory(const tsr_device *device, tsr_mem_tag tag, size_t bytes)
{
    size_t free_bytes = 0, total_bytes = 0;

    (void)cudaGetLastError();
    (void)cudaMemGetInfo(&free_bytes, &total_bytes);
    return TSR_FAIL(TSR_ERR_NOMEM,
                    "device %s: cannot allocate %.2f MiB for %s, %.2f of %.2f MiB are free",
                    device->name, (double)bytes / 1048576.0, tsr_mem_tag_name(tag),
                    (double)free_bytes / 1048576.0, (double)total_bytes / 1048576.0);
}

static tsr_status cuda_alloc(tsr_device *device, tsr_mem_tag tag, size_t bytes, void **out)
{
    tsr_cuda_device *self = (tsr_cuda_device *)device;
    const size_t taken = bytes == 0 ? 1 : bytes; /* an empty block is a valid one */
    void *block = NULL;
    tsr_status st = TSR_OK;

    *out = NULL;
    TSR_TRY(make_current(device));
    const cudaError_t code = cudaMalloc(&block, taken);
    if (code == cudaErrorMemoryAllocation) {
        return out_of_memory(device, tag, bytes);
    }
    TSR_TRY(tsr_cuda_check(code, "cudaMalloc", __FILE__, __LINE__));
    TSR_CUDA_TRY_GOTO(cudaMemsetAsync(block, 0, taken, self->own_stream), err_free);
    TSR_CUDA_TRY_GOTO(cudaStreamSynchronize(self->own_stream), err_free);
    TSR_TRY_GOTO(record_block(self, tag, bytes, block, false), err_free);
    *out = block;
    return TSR_OK;

err_free:
    (void)cudaFree(block);
    return st;
}

static void cuda_free(tsr_device *device, void *block)
{
    forget_block((tsr_cuda_device *)device, block);
    if (make_current(device) != TSR_OK ||
        tsr_cuda_check(cudaFree(block), "cudaFree", __FILE__, __LINE__) != TSR_OK) {
        tsr_log(TSR_LOG_WARN, "device %s: %s", device->name, tsr_error_message());
    }
}

static tsr_status cuda_alloc_staging(tsr_device *device, tsr_mem_tag tag, size_t bytes, void **out)
{
    const size_t taken = bytes == 0 ? 1 : bytes;
    void *block = NULL;
    tsr_status st = TSR_OK;

    *out = NULL;
    TSR_TRY(make_current(device));
    TSR_CUDA_TRY(cudaHostAlloc(&block, taken, cudaHostAllocDefault));
    memset(block, 0, taken);
    TSR_TRY_GOTO(record_block((tsr_cuda_device *)device, tag, bytes, block, true), err_free);
    *out = block;
    return TSR_OK;

err_free:
    (void)cudaFreeHost(block);
    return st;
}

static void cuda_free_staging(tsr_device *device, void *block)
{
    forget_block((tsr_cuda_device *)device, block);
    if (make_current(device) != TSR_OK ||
        tsr_cuda_check(cudaFreeHost(block), "cudaFreeHost", __FILE__, __LINE__) != TSR_OK) {
        tsr_log(TSR_LOG_WARN, "device %s: %s", device->name, tsr_error_message());
    }
}

/* Nobody uses the workspace while it is replaced: whoever did has been waited for. */
tsr_status tsr_cuda_workspace_reserve(tsr_device *device, size_t bytes)
{
    tsr_cuda_device *self = (tsr_cuda_device *)device;
    void *larger = NULL;

    if (bytes <= self->workspace_bytes) {
        return TSR_OK;
    }
    bytes = (bytes + WORKSPACE_ALIGN - 1) / WORKSPACE_ALIGN * WORKSPACE_ALIGN;
    if (self->workspace_stream != NULL) {
        TSR_CUDA_TRY(cudaStreamSynchronize(self->workspace_stream));
    }
    TSR_TRY(cuda_alloc(device, TSR_MEM_WORKSPACE, bytes, &larger));
    if (self->workspace != NULL) {
        cuda_free(device, self->workspace);
    }
    self->workspace = larger;
    self->workspace_bytes = bytes;
    return TSR_OK;
}

tsr_status tsr_cuda_workspace(tsr_device *device, size_t bytes, tsr_stream *stream, void **out)
{
    tsr_cuda_device *self = (tsr_cuda_device *)device;
    const cudaStream_t handle = tsr_cuda_stream_of(stream);

    TSR_TRY(tsr_cuda_workspace_reserve(device, bytes));
    if (self->workspace_stream != NULL && self->workspace_stream != handle) {
        TSR_CUDA_TRY(cudaEventRecord(self->workspace_event, self->workspace_stream));
        TSR_CUDA_TRY(cudaStreamWaitEvent(handle, self->workspace_event, 0));
    }
    self->workspace_stream = handle;
    *out = self->workspace;
    return TSR_OK;
}

/* ---- streams and events --------------------------------------------------------------------- */

typedef struct cuda_event {
    tsr_event base;
    cudaEvent_t handle;
} cuda_event;

static tsr_status cuda_stream_create(tsr_device *device, tsr_stream **out)
{
    tsr_cuda_stream *stream = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY(make_current(device));
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *stream, (void **)&stream));
    TSR_CUDA_TRY_GOTO(cudaStreamCreateWithFlags(&stream->handle, cudaStreamNonBlocking), err_free);
    stream->base.device = device;
    *out = &stream->base;
    return TSR_OK;

err_free:
    tsr_mem_free(stream);
    return st;
}

static void cuda_stream_destroy(tsr_stream *stream)
{
    tsr_cuda_stream *self = (tsr_cuda_stream *)stream;
    tsr_cuda_device *device = (tsr_cuda_device *)stream->device;

    (void)make_current(stream->device);
    if (device->workspace_stream == self->handle) { /* nothing may be left to order behind it */
        (void)cudaStreamSynchronize(self->handle);
        device->workspace_stream = NULL;
    }
    (void)cudaStreamDestroy(self->handle);
    tsr_mem_free(self);
}

static tsr_status cuda_stream_wait(tsr_stream *stream)
{
    TSR_CUDA_TRY(cudaStreamSynchronize(tsr_cuda_stream_of(stream)));
    return TSR_OK;
}

static void *cuda_stream_handle(const tsr_stream *stream)
{
    return ((const tsr_cuda_stream *)stream)->handle;
}

static tsr_status cuda_event_create(tsr_device *device, tsr_event **out)
{
    cuda_event *event = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY(make_current(device));
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *event, (void **)&event));
    TSR_CUDA_TRY_GOTO(cudaEventCreateWithFlags(&event->handle, cudaEventDisableTiming), err_free);
    event->base.device = device;
    *out = &event->base;
    return TSR_OK;

err_free:
    tsr_mem_free(event);
    return st;
}

static void cuda_event_destroy(tsr_event *event)
{
    (void)cudaEventDestroy(((cuda_event *)event)->handle);
    tsr_mem_free(event);
}

static tsr_status cuda_event_record(tsr_event *event, tsr_stream *stream)
{
    TSR_CUDA_TRY(cudaEventRecord(((cuda_event *)event)->handle, tsr_cuda_stream_of(stream)));
    return TSR_OK;
}

static tsr_status cuda_stream_wait_event(tsr_stream *stream, tsr_event *event)
{
    TSR_CUDA_TRY(cudaStreamWaitEvent(tsr_cuda_stream_of(stream), ((cuda_event *)event)->handle, 0));
    return TSR_OK;
}

static tsr_status cuda_event_wait(tsr_event *event)
{
    TSR_CUDA_TRY(cudaEventSynchronize(((cuda_event *)event)->handle));
    return TSR_OK;
}

static tsr_status cuda_copy(tsr_device *device, void *to, const void *from, size_t bytes,
                            tsr_copy_kind kind, tsr_stream *stream)
{
    static const enum cudaMemcpyKind kinds[] = {
        [TSR_COPY_HOST_TO_DEVICE] = cudaMemcpyHostToDevice,
        [TSR_COPY_DEVICE_TO_HOST] = cudaMemcpyDeviceToHost,
        [TSR_COPY_ON_DEVICE] = cudaMemcpyDeviceToDevice,
    };

    (void)device;
    TSR_CUDA_TRY(cudaMemcpyAsync(to, from, bytes, kinds[kind], tsr_cuda_stream_of(stream)));
    return TSR_OK;
}

static tsr_status cuda_zero(tsr_device *device, void *block, size_t bytes, tsr_stream *stream)
{
    (void)device;
    TSR_CUDA_TRY(cudaMemsetAsync(block, 0, bytes, tsr_cuda_stream_of(stream)));
    return TSR_OK;
}

/* ---- open and close ------------------------------------------------------------------------- */

static void cuda_close(tsr_device *device)
{
    tsr_cuda_device *self = (tsr_cuda_device *)device;

    (void)make_current(device);
    tsr_cuda_attention_close(self);
    tsr_cuda_grouped_close(self);
    tsr_cuda_gemm_close(self);
    if (self->workspace != NULL) {
        cuda_free(device, self->workspace);
    }
    if (self->workspace_event != NULL) {
        (void)cudaEventDestroy(self->workspace_event);
    }
    if (self->own_stream != NULL) {
        (void)cudaStreamDestroy(self->own_stream);
    }
    tsr_mem_free(self);
}

static size_t cuda_scratch_bytes(const tsr_device *device)
{
    return ((const tsr_cuda_device *)device)->workspace_bytes;
}

static const tsr_device_ops cuda_table = {
    .close = cuda_close,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .alloc_staging = cuda_alloc_staging,
    .free_staging = cuda_free_staging,
    .stream_create = cuda_stream_create,
    .stream_destroy = cuda_stream_destroy,
    .stream_wait = cuda_stream_wait,
    .stream_handle = cuda_stream_handle,
    .event_create = cuda_event_create,
    .event_destroy = cuda_event_destroy,
    .event_record = cuda_event_record,
    .stream_wait_event = cuda_stream_wait_event,
    .event_wait = cuda_event_wait,
    .copy = cuda_copy,
    .zero = cuda_zero,
    .scratch_bytes = cuda_scratch_bytes,
    .gemm = tsr_cuda_gemm,
    .gemm_reserve = tsr_cuda_gemm_reserve,
    .grouped_gemm = tsr_cuda_grouped_gemm,
    .grouped_gemm_reserve = tsr_cuda_grouped_gemm_reserve,
    .rmsnorm_forward = tsr_cuda_rmsnorm_forward,
    .rmsnorm_backward_input = tsr_cuda_rmsnorm_backward_input,
    .rmsnorm_backward_weight = tsr_cuda_rmsnorm_backward_weight,
    .rope = tsr_cuda_rope,
    .swiglu_forward = tsr_cuda_swiglu_forward,
    .swiglu_backward = tsr_cuda_swiglu_backward,
    .attention_forward = tsr_cuda_attention_forward,
    .attention_backward = tsr_cuda_attention_backward,
    .attention_reserve = tsr_cuda_attention_reserve,
    .route_forward = tsr_cuda_route_forward,
    .route_backward = tsr_cuda_route_backward,
    .sort_by_expert = tsr_cuda_sort_by_expert,
    .permute = tsr_cuda_permute,
    .unpermute = tsr_cuda_unpermute,
    .gather_f32 = tsr_cuda_gather_f32,
    .embedding_forward = tsr_cuda_embedding_forward,
    .embedding_backward = tsr_cuda_embedding_backward,
    .cross_entropy = tsr_cuda_cross_entropy,
    .convert = tsr_cuda_convert,
    .add_f32 = tsr_cuda_add_f32,
    .sum = tsr_cuda_sum,
    .sum_squares = tsr_cuda_sum_squares,
    .adamw = tsr_cuda_adamw,
};

static tsr_status check_gpu(int index, const struct cudaDeviceProp *about)
{
    /* what the module holds code for: sm_80 runs on every 8.x, sm_90a on 9.0 only, sm_100 on
     * 10.x */
    const bool is_known =
        about->major == 8 || (about->major == 9 && about->minor == 0) || about->major == 10;

    TSR_CHECK(is_known, TSR_ERR_UNSUPPORTED,
              "device = cuda:%d: %s has compute capability %d.%d, this build is for 8.x, 9.0, 10.x",
              index, about->name, about->major, about->minor);
    return TSR_OK;
}

static tsr_status find_gpu(int index, struct cudaDeviceProp *about)
{
    int count = 0, driver = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);

    (void)cudaDriverGetVersion(&driver);
    TSR_CHECK(code != cudaErrorInsufficientDriver && (code == cudaSuccess || driver != 0),
              TSR_ERR_UNSUPPORTED,
              "device = cuda:%d: %s; this build needs a driver for CUDA %d.%d, here is %s", index,
              cudaGetErrorString(code), CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10,
              driver == 0 ? "none" : "an older one");
    TSR_CHECK(code != cudaErrorNoDevice && (code != cudaSuccess || count != 0), TSR_ERR_UNSUPPORTED,
              "device = cuda:%d: the driver finds no GPU (is CUDA_VISIBLE_DEVICES set?)", index);
    TSR_TRY(tsr_cuda_check(code, "cudaGetDeviceCount", __FILE__, __LINE__));
    TSR_CHECK(index >= 0 && index < count, TSR_ERR_ARG,
              "device = cuda:%d, this process sees %d, numbered from 0", index, count);
    TSR_CUDA_TRY(cudaGetDeviceProperties(about, index));
    return check_gpu(index, about);
}

static void describe(tsr_cuda_device *self, const struct cudaDeviceProp *about)
{
    int driver = 0, runtime = 0;

    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    (void)snprintf(self->base.description, sizeof self->base.description,
                   "%.48s, sm_%d%d, %d SMs, %.1f GiB, CUDA %d.%d (driver %d.%d)", about->name,
                   about->major, about->minor, about->multiProcessorCount,
                   (double)about->totalGlobalMem / 1073741824.0, runtime / 1000,
                   runtime % 1000 / 10, driver / 1000, driver % 1000 / 10);
#ifdef TSR_EMULATED
    (void)snprintf(self->base.name, sizeof self->base.name, "cuda:emulated");
#else
    (void)snprintf(self->base.name, sizeof self->base.name, "cuda:%d", self->index);
#endif
}

static tsr_status open_parts(tsr_cuda_device *self)
{
    TSR_CUDA_TRY(cudaStreamCreateWithFlags(&self->own_stream, cudaStreamNonBlocking));
    TSR_CUDA_TRY(cudaEventCreateWithFlags(&self->workspace_event, cudaEventDisableTiming));
    TSR_TRY(tsr_cuda_gemm_open(self));
    TSR_TRY(tsr_cuda_grouped_open(self));
    return tsr_cuda_attention_open(self);
}

tsr_status tsr_cuda_device_open(int index, int threads, tsr_device **out)
{
    tsr_cuda_device *self = NULL;
    struct cudaDeviceProp about;
    tsr_status st = TSR_OK;

    TSR_TRY(find_gpu(index, &about));
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *self, (void **)&self));
    self->base.ops = &cuda_table;
    self->base.threads = threads;
    self->base.has_fast_bf16 = true;
    self->index = index;
    self->architecture = about.major * 10 + about.minor;
    self->multiprocessors = about.multiProcessorCount;
    describe(self, &about);
    TSR_TRY_GOTO(make_current(&self->base), err_close);
    TSR_TRY_GOTO(tsr_device_check_table(self->base.ops, self->base.name), err_close);
    TSR_TRY_GOTO(open_parts(self), err_close);
    *out = &self->base;
    return TSR_OK;

err_close:
    cuda_close(&self->base);
    return st;
}
