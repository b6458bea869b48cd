/* The emulated GPU itself: its properties, the error state, the lock, and the order in which things
 * run. Memory is in fake_memory.c, streams and copies in fake_stream.c, kernels in cuemu.cpp. */
#include "tests/emulation/fake_impl.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- lock, order ---------------------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

void fake_lock(void)
{
    (void)pthread_mutex_lock(&lock);
}

void fake_unlock(void)
{
    (void)pthread_mutex_unlock(&lock);
}

static fake_order order = FAKE_FORWARD;
static uint64_t random_state;

void fake_set_order(fake_order new_order, uint64_t seed)
{
    order = new_order;
    random_state = seed;
}

fake_order fake_get_order(void)
{
    return order;
}

/* splitmix64 (Steele, Lea, Flood 2014) */
uint32_t fake_random(uint32_t below)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (uint32_t)((z >> 32) * below >> 32);
}

/* Whole programs choose by their environment: EMULATED_ORDER=forward, reverse, or random:SEED. */
__attribute__((constructor)) static void read_order(void)
{
    const char *const text = getenv("EMULATED_ORDER");

    if (text == NULL || strcmp(text, "forward") == 0) {
        return;
    }
    if (strcmp(text, "reverse") == 0) {
        fake_set_order(FAKE_REVERSE, 0);
    } else if (strncmp(text, "random:", 7) == 0) {
        fake_set_order(FAKE_RANDOM, strtoull(text + 7, NULL, 10));
    } else {
        (void)fprintf(stderr, "EMULATED_ORDER = %s, must be forward, reverse or random:SEED\n",
                      text);
        exit(2);
    }
}

/* ---- errors --------------------------------------------------------------------------------- */

static cudaError_t context_fault = cudaSuccess;
static _Thread_local cudaError_t last_error = cudaSuccess;

cudaError_t fake_fault(void)
{
    return context_fault;
}

cudaError_t fake_set_fault(cudaError_t code, const char *text)
{
    if (text != NULL) {
        (void)fprintf(stderr, "emulated GPU: %s\n", text);
    }
    if (context_fault == cudaSuccess) {
        context_fault = code;
    }
    return code;
}

void fake_clear_fault(void)
{
    context_fault = cudaSuccess;
    last_error = cudaSuccess;
}

cudaError_t fake_error(cudaError_t code)
{
    if (code != cudaSuccess) {
        last_error = code;
    }
    return code;
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t code = context_fault != cudaSuccess ? context_fault : last_error;

    last_error = cudaSuccess;
    return code;
}

cudaError_t cudaPeekAtLastError(void)
{
    return context_fault != cudaSuccess ? context_fault : last_error;
}

static const struct error_text {
    cudaError_t code;
    const char *name, *text;
} error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
};

static const struct error_text *error_text_of(cudaError_t code)
{
    static const struct error_text unknown = {cudaErrorUnknown, "cudaErrorUnknown",
                                              "unrecognized error code"};

    for (size_t i = 0; i < sizeof error_texts / sizeof *error_texts; ++i) {
        if (error_texts[i].code == code) {
            return &error_texts[i];
        }
    }
    return &unknown;
}

const char *cudaGetErrorName(cudaError_t code)
{
    return error_text_of(code)->name;
}

const char *cudaGetErrorString(cudaError_t code)
{
    return error_text_of(code)->text;
}

/* ---- the device ----------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *count_out)
{
    *count_out = 1;
    return fake_error(fake_fault());
}

cudaError_t cudaSetDevice(int device)
{
    return fake_error(device == 0 ? fake_fault() : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDevice(int *device_out)
{
    *device_out = 0;
    return fake_error(fake_fault());
}

cudaError_t cudaDriverGetVersion(int *version_out)
{
    *version_out = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version_out)
{
    *version_out = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int device)
{
    if (device != 0) {
        return fake_error(cudaErrorInvalidDevice);
    }
    memset(out, 0, sizeof *out);
    (void)snprintf(out->name, sizeof out->name, "emulated on the CPU");
    out->major = 8;
    out->minor = 0;
    out->multiProcessorCount = 4; /* few, so that kernels sized by it get several rounds */
    out->warpSize = 32;
    out->maxThreadsPerBlock = 1024;
    out->sharedMemPerBlock = 48 << 10;
    out->sharedMemPerBlockOptin = 163 << 10;
    out->totalGlobalMem = (size_t)16 << 30;
    return fake_error(fake_fault());
}

cudaError_t cudaDeviceGetAttribute(int *out, enum cudaDeviceAttr attribute, int device)
{
    struct cudaDeviceProp about;
    const cudaError_t code = cudaGetDeviceProperties(&about, device);

    if (code != cudaSuccess) {
        return code;
    }
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
        *out = about.major;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *out = about.minor;
        return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
        *out = about.multiProcessorCount;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *out = (int)about.sharedMemPerBlockOptin;
        return cudaSuccess;
    default:
        return fake_error(cudaErrorInvalidValue);
    }
}
