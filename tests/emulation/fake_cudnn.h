/* What the two files of the fake cuDNN share: descriptors, and programs made of them. */
#ifndef TSR_FAKE_CUDNN_H
#define TSR_FAKE_CUDNN_H

#include "tests/emulation/fake_cudart.h"

#include <cudnn_graph.h>

enum {
    FAKE_RANK = 4,
    FAKE_ATTRIBUTES = 8, /* of one descriptor */
    FAKE_TENSORS = 64,   /* of one graph */
    FAKE_OPERATIONS = 32
};

typedef struct fake_attribute {
    cudnnBackendAttributeName_t name;
    int64_t count; /* 0: not set */
    void *values;
} fake_attribute;

typedef struct fake_descriptor {
    struct fake_descriptor *next; /* of all that are alive */
    cudnnBackendDescriptorType_t type;
    bool is_final;
    fake_attribute attributes[FAKE_ATTRIBUTES];
} fake_descriptor;

struct cudnnContext {
    cudaStream_t stream;
};

/** The values of an attribute; NULL if it was not set. */
const fake_attribute *fake_attribute_of(const fake_descriptor *of, cudnnBackendAttributeName_t);
/** The descriptor that an attribute refers to; NULL if it was not set. */
const fake_descriptor *fake_part_of(const fake_descriptor *of, cudnnBackendAttributeName_t name);
int64_t fake_integer_of(const fake_descriptor *of, cudnnBackendAttributeName_t name);

/** Keep why for cudnnGetLastErrorString(); returns code. */
cudnnStatus_t fake_refuse(cudnnStatus_t code, const char *why);

typedef struct fake_tensor {
    int64_t uid, size[FAKE_RANK], stride[FAKE_RANK];
    cudnnDataType_t type;
    bool is_virtual, is_by_value;
    float value; /* if by value */
    void *memory;
} fake_tensor;

typedef struct fake_operation {
    cudnnBackendDescriptorType_t kind;
    int mode; /* of a pointwise operation or a reduction */
    int64_t axis;
    int x, second, choice, y; /* which tensors; -1: none */
} fake_operation;

typedef struct fake_program {
    int tensor_count, operation_count;
    fake_tensor tensors[FAKE_TENSORS];
    fake_operation operations[FAKE_OPERATIONS];
    void *workspace;
    int64_t workspace_bytes;
} fake_program;

/** Translate a graph; refuses double names, shapes that do not fit, virtual tensors read before
 *  they are written or written twice. */
cudnnStatus_t fake_translate(const fake_descriptor *graph, fake_program *out);
/** What the plan of this program needs, as the library's deterministic plans do. */
int64_t fake_workspace_bytes(const fake_program *program);
/** Does an engine take it: attention of bf16 heads that an A100's can hold? */
bool fake_is_supported(const fake_program *program);
/** Run it with device memory open; for fake_enqueue(). */
cudaError_t fake_run_program(const void *program);

#endif
