/* The real cuDNN on our graphs, without a GPU: it is told to be on an H100, an A100 or a B200, and
 * must find an engine for each pass. Skipped where cuDNN or a libcuda (the toolkit's stub will do)
 * is missing. What these engines compute is a matter for a GPU. */
#include "tests/support/unit_test.h"

#include "runtime/cuda/attention_graph.h"

#include <dlfcn.h>
#include <math.h>
#include <string.h>

#define assert_cudnn(call) assert_int_equal((call), CUDNN_STATUS_SUCCESS)

/* What cuDNN asks about a device, in the form of its own device descriptions. */
static const char *const devices[] = {
#define DEVICE(version_, multiprocessors_, shared_)                                                \
    "{\"deviceName\":\"\",\"cudaDeviceId\":0,\"deviceVer\":" version_                              \
    ",\"driverVer\":13000,\"multiProcessorCount\":" multiprocessors_                               \
    ",\"maxSharedMemoryPerBlockOptin\":" shared_ ",\"maxGridSize\":[2147483647,65535,65535],"      \
    "\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,\"smClockRateKHz\":1500000,"           \
    "\"memClockRateKHz\":1500000,\"l2CacheSize\":41943040,\"warpSize\":32,"                        \
    "\"maxSharedMemoryPerBlock\":49152,\"reservedSharedMemoryPerBlock\":1024,"                     \
    "\"maxRegistersPerSM\":65536,\"pciDeviceId\":0,\"maxCtasPerSM\":32,"                           \
    "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"isTccDriver\":0,"                      \
    "\"supportCoopLaunch\":1,\"totalGlobalMem\":80000000000}"
    DEVICE("800", "108", "166912"),
    DEVICE("900", "132", "232448"),
    DEVICE("1000", "148", "232448"),
};

typedef struct shape {
    int64_t batch, length;
    int heads, kv_heads, head_dim;
} shape;

static const shape shapes[] = {
    {2, 4096, 32, 8, 128}, {4, 4096, 16, 16, 128}, {16, 1024, 8, 4, 64},
    {2, 129, 4, 2, 8},     {3, 1000, 6, 3, 96},    {1, 2, 1, 1, 64},
};

static cudnnBackendDescriptor_t create(cudnnBackendDescriptorType_t type)
{
    cudnnBackendDescriptor_t made;

    assert_cudnn(cudnnBackendCreateDescriptor(type, &made));
    return made;
}

static cudnnBackendDescriptor_t describe_device(const char *text)
{
    const cudnnBackendDescriptor_t made = create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);

    assert_cudnn(cudnnBackendSetAttribute(made, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
                                          CUDNN_TYPE_CHAR, (int64_t)strlen(text) + 1, text));
    assert_cudnn(cudnnBackendFinalize(made));
    return made;
}

/* How many engines accept the graph on this device: the library checks each. */
static int64_t engine_count(const tsr_attention_graph *graph, cudnnBackendDescriptor_t device)
{
    enum { CANDIDATES = 8 };
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    const cudnnBackendDescriptor_t heuristics = create(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    cudnnBackendDescriptor_t engines[CANDIDATES];
    int64_t count = 0;

    assert_cudnn(cudnnBackendSetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
                                          CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph->operations));
    assert_cudnn(cudnnBackendSetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE,
                                          CUDNN_TYPE_HEUR_MODE, 1, &mode));
    assert_cudnn(cudnnBackendSetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP,
                                          CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &device));
    assert_cudnn(cudnnBackendFinalize(heuristics));
    for (int i = 0; i < CANDIDATES; ++i) {
        engines[i] = create(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    }
    assert_cudnn(cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                          CUDNN_TYPE_BACKEND_DESCRIPTOR, CANDIDATES, &count,
                                          engines));
    for (int i = 0; i < CANDIDATES; ++i) {
        assert_cudnn(cudnnBackendDestroyDescriptor(engines[i]));
    }
    assert_cudnn(cudnnBackendDestroyDescriptor(heuristics));
    return count;
}

/* As the attention layer lays q, k and v out. */
static tsr_attention_args args_of(const shape *s)
{
    const int64_t out = (int64_t)s->heads * s->head_dim;
    const int64_t width = out + 2 * (int64_t)s->kv_heads * s->head_dim;

    return (tsr_attention_args){.batch = s->batch,
                                .q_len = s->length,
                                .kv_len = s->length,
                                .q_stride = width,
                                .kv_stride = width,
                                .out_stride = out,
                                .q_batch_stride = s->length * width,
                                .kv_batch_stride = s->length * width,
                                .out_batch_stride = s->length * out,
                                .heads = s->heads,
                                .kv_heads = s->kv_heads,
                                .head_dim = s->head_dim,
                                .scale = 1.0f / sqrtf((float)s->head_dim),
                                .dtype = TSR_BF16};
}

static void every_pass_has_an_engine(void **state)
{
    (void)state;
    for (size_t d = 0; d < sizeof devices / sizeof *devices; ++d) {
        const cudnnBackendDescriptor_t device = describe_device(devices[d]);

        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i) {
            const tsr_attention_args args = args_of(&shapes[i]);

            for (int pass = TSR_ATTENTION_FORWARD; pass <= TSR_ATTENTION_BACKWARD_ANY_ORDER;
                 ++pass) {
                tsr_attention_graph graph;

                assert_ok(tsr_attention_graph_create(&args, args.batch, (tsr_attention_pass)pass,
                                                     NULL, &graph));
                if (engine_count(&graph, device) < 1) {
                    fail_msg("device %d, shape %d, pass %d: no engine", (int)d, (int)i, pass);
                }
                tsr_attention_graph_destroy(&graph);
            }
        }
        assert_cudnn(cudnnBackendDestroyDescriptor(device));
    }
}

/* Head sizes that are not a multiple of 8: tsr_cudnn_attention_takes() does not even ask. */
static void odd_heads_have_none(void **state)
{
    const shape odd = {1, 64, 2, 2, 12};
    const tsr_attention_args args = args_of(&odd);
    tsr_attention_graph graph;

    (void)state;
    const cudnnBackendDescriptor_t device = describe_device(devices[1]);
    assert_ok(tsr_attention_graph_create(&args, 1, TSR_ATTENTION_FORWARD, NULL, &graph));
    assert_int_equal(engine_count(&graph, device), 0);
    tsr_attention_graph_destroy(&graph);
    assert_cudnn(cudnnBackendDestroyDescriptor(device));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pass_has_an_engine),
        cmocka_unit_test(odd_heads_have_none),
    };

    /* The engines look for it by name; the stub has the same one. */
    if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) == NULL &&
        dlopen(TSR_CUDA_STUB, RTLD_NOW | RTLD_GLOBAL) == NULL) {
        (void)printf("skipped: neither libcuda.so.1 nor %s\n", TSR_CUDA_STUB);
        return 77;
    }
    return tsr_unit_test_main("cuda.cudnn_plans", tests, sizeof tests / sizeof *tests);
}
