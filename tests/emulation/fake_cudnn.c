/* cuDNN's graph API on the emulated GPU: what runtime/cuda uses of it.
 *
 * Refuses what cuDNN 9.19 was seen to refuse, by the same codes: attributes of a wrong type, count
 * or owner, attributes missing at the end, changes after it. And what it documents: pointers that
 * are missing, misaligned or not the device's. Any graph of its operations runs (fake_cudnn_run.c),
 * so a wrong edge shows as a wrong number. */
#include "tests/emulation/fake_cudnn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The attributes of each descriptor, and whether finalizing needs them. */
typedef struct rule {
    cudnnBackendDescriptorType_t owner;
    cudnnBackendAttributeName_t name;
    cudnnBackendAttributeType_t type;
    int64_t count_max;
    bool is_needed;
    cudnnBackendDescriptorType_t part; /* if type is a descriptor: which */
} rule;

#define TENSOR    CUDNN_BACKEND_TENSOR_DESCRIPTOR
#define MATMUL    CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR
#define POINTWISE CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR
#define REDUCTION CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR
#define RESHAPE   CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR
#define GRAPH     CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR
#define HEURISTIC CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR
#define ENGINE    CUDNN_BACKEND_ENGINECFG_DESCRIPTOR
#define PLAN      CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR
#define PACK      CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR
#define ANY       ((cudnnBackendDescriptorType_t)-1)
#define PART      CUDNN_TYPE_BACKEND_DESCRIPTOR

static const rule rules[] = {
    {TENSOR, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, true, ANY},
    {TENSOR, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, true, ANY},
    {TENSOR, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, true, ANY},
    {TENSOR, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 8, true, ANY},
    {TENSOR, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 8, true, ANY},
    {TENSOR, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, false, ANY},
    {TENSOR, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, false, ANY},
    {CUDNN_BACKEND_MATMUL_DESCRIPTOR, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, true,
     ANY},
    {MATMUL, CUDNN_ATTR_OPERATION_MATMUL_DESC, PART, 1, true, CUDNN_BACKEND_MATMUL_DESCRIPTOR},
    {MATMUL, CUDNN_ATTR_OPERATION_MATMUL_ADESC, PART, 1, true, TENSOR},
    {MATMUL, CUDNN_ATTR_OPERATION_MATMUL_BDESC, PART, 1, true, TENSOR},
    {MATMUL, CUDNN_ATTR_OPERATION_MATMUL_CDESC, PART, 1, true, TENSOR},
    {CUDNN_BACKEND_POINTWISE_DESCRIPTOR, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1,
     true, ANY},
    {CUDNN_BACKEND_POINTWISE_DESCRIPTOR, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1,
     true, ANY},
    {CUDNN_BACKEND_POINTWISE_DESCRIPTOR, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, false,
     ANY},
    {POINTWISE, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, PART, 1, true,
     CUDNN_BACKEND_POINTWISE_DESCRIPTOR},
    {POINTWISE, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, PART, 1, true, TENSOR},
    {POINTWISE, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, PART, 1, false, TENSOR},
    {POINTWISE, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, PART, 1, false, TENSOR},
    {POINTWISE, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, PART, 1, true, TENSOR},
    {CUDNN_BACKEND_REDUCTION_DESCRIPTOR, CUDNN_ATTR_REDUCTION_OPERATOR,
     CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, true, ANY},
    {CUDNN_BACKEND_REDUCTION_DESCRIPTOR, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1,
     true, ANY},
    {REDUCTION, CUDNN_ATTR_OPERATION_REDUCTION_DESC, PART, 1, true,
     CUDNN_BACKEND_REDUCTION_DESCRIPTOR},
    {REDUCTION, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, PART, 1, true, TENSOR},
    {REDUCTION, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, PART, 1, true, TENSOR},
    {RESHAPE, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, PART, 1, true, TENSOR},
    {RESHAPE, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, PART, 1, true, TENSOR},
    {GRAPH, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, false, ANY},
    {GRAPH, CUDNN_ATTR_OPERATIONGRAPH_OPS, PART, FAKE_OPERATIONS, true, ANY},
    {HEURISTIC, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, PART, 1, true, GRAPH},
    {HEURISTIC, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, true, ANY},
    {PLAN, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, true, ANY},
    {PLAN, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, PART, 1, true, ENGINE},
    {PACK, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, FAKE_TENSORS, true, ANY},
    {PACK, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, FAKE_TENSORS, true, ANY},
    {PACK, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, false, ANY},
};

enum { RULES = sizeof rules / sizeof rules[0] };

static fake_descriptor *alive;
static _Thread_local char last_error[256];

/* ---- handle and messages
 * ---------------------------------------------------------------------- */

cudnnStatus_t fake_refuse(cudnnStatus_t code, const char *why)
{
    (void)snprintf(last_error, sizeof last_error, "fake cuDNN: %s", why);
    return code;
}

const char *cudnnGetErrorString(cudnnStatus_t status)
{
    switch (status) {
    case CUDNN_STATUS_SUCCESS:
        return "CUDNN_STATUS_SUCCESS";
    case CUDNN_STATUS_BAD_PARAM:
        return "CUDNN_STATUS_BAD_PARAM";
    case CUDNN_STATUS_NOT_SUPPORTED:
        return "CUDNN_STATUS_NOT_SUPPORTED";
    default:
        return "another cuDNN status";
    }
}

void cudnnGetLastErrorString(char *message, size_t max_size)
{
    (void)snprintf(message, max_size, "%s", last_error);
    last_error[0] = '\0'; /* read once, as in the library */
}

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle)
{
    *handle = calloc(1, sizeof **handle);
    return *handle == NULL ? CUDNN_STATUS_ALLOC_FAILED : CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t handle)
{
    free(handle);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream)
{
    handle->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}

/* ---- descriptors
 * ------------------------------------------------------------------------------ */

static bool is_alive(const void *descriptor)
{
    const fake_descriptor *at = alive;

    while (at != NULL && at != descriptor) {
        at = at->next;
    }
    return at != NULL;
}

const fake_attribute *fake_attribute_of(const fake_descriptor *of, cudnnBackendAttributeName_t name)
{
    for (int i = 0; i < FAKE_ATTRIBUTES; ++i) {
        if (of->attributes[i].count > 0 && of->attributes[i].name == name) {
            return &of->attributes[i];
        }
    }
    return NULL;
}

const fake_descriptor *fake_part_of(const fake_descriptor *of, cudnnBackendAttributeName_t name)
{
    const fake_attribute *found = fake_attribute_of(of, name);

    return found == NULL ? NULL : *(fake_descriptor *const *)found->values;
}

/* Of an attribute that is an integer, an enumeration or a truth value. */
int64_t fake_integer_of(const fake_descriptor *of, cudnnBackendAttributeName_t name)
{
    const fake_attribute *found = fake_attribute_of(of, name);

    for (int i = 0; found != NULL && i < RULES; ++i) {
        if (rules[i].name == name) {
            return rules[i].type == CUDNN_TYPE_INT64     ? *(const int64_t *)found->values
                   : rules[i].type == CUDNN_TYPE_BOOLEAN ? *(const bool *)found->values
                                                         : *(const int *)found->values;
        }
    }
    return 0;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t *descriptor)
{
    bool is_known = type == ENGINE;

    for (int i = 0; i < RULES; ++i) {
        is_known = is_known || rules[i].owner == type;
    }
    if (!is_known) {
        return fake_refuse(CUDNN_STATUS_NOT_SUPPORTED, "this descriptor type is not emulated");
    }
    fake_descriptor *const made = calloc(1, sizeof *made);
    if (made == NULL) {
        return CUDNN_STATUS_ALLOC_FAILED;
    }
    made->type = type;
    made->next = alive;
    alive = made;
    *descriptor = made;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor)
{
    fake_descriptor **at = &alive;

    while (*at != NULL && *at != descriptor) {
        at = &(*at)->next;
    }
    if (*at == NULL) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "destroyed what was not created");
    }
    fake_descriptor *const gone = *at;
    *at = gone->next;
    for (int i = 0; i < FAKE_ATTRIBUTES; ++i) {
        free(gone->attributes[i].values);
    }
    free(gone);
    return CUDNN_STATUS_SUCCESS;
}

static size_t bytes_of(cudnnBackendAttributeType_t type)
{
    return type == CUDNN_TYPE_BOOLEAN ? sizeof(bool)
           : type == CUDNN_TYPE_INT64 ? sizeof(int64_t)
           : type == CUDNN_TYPE_HANDLE || type == CUDNN_TYPE_VOID_PTR || type == PART
               ? sizeof(void *)
               : sizeof(int);
}

static cudnnStatus_t check_parts(const rule *r, int64_t count, const void *values)
{
    for (int64_t i = 0; r->type == PART && i < count; ++i) {
        const fake_descriptor *const part = ((fake_descriptor *const *)values)[i];

        if (!is_alive(part) || (r->part != ANY && part->type != r->part)) {
            return fake_refuse(CUDNN_STATUS_BAD_PARAM, "not a descriptor of the kind wanted here");
        }
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count,
                                       const void *values)
{
    fake_descriptor *const of = descriptor;
    const rule *r = rules;

    if (!is_alive(of) || of->is_final || values == NULL || count < 1) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "set on a missing or finalized descriptor");
    }
    while (r < rules + RULES && (r->owner != of->type || r->name != name)) {
        ++r;
    }
    if (r == rules + RULES || count > r->count_max) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "the descriptor has no such attribute");
    }
    if (type != r->type) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE, "wrong type of an attribute");
    }
    if (check_parts(r, count, values) != CUDNN_STATUS_SUCCESS) {
        return CUDNN_STATUS_BAD_PARAM;
    }
    int at = 0;
    while (of->attributes[at].count > 0 && of->attributes[at].name != name) {
        ++at;
    }
    fake_attribute *const slot = &of->attributes[at];
    const size_t bytes = (size_t)count * bytes_of(type);
    void *const copy = malloc(bytes);
    if (copy == NULL) {
        return CUDNN_STATUS_ALLOC_FAILED;
    }
    memcpy(copy, values, bytes);
    free(slot->values);
    *slot = (fake_attribute){name, count, copy};
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t finalize_tensor(const fake_descriptor *tensor)
{
    const fake_attribute *const sizes = fake_attribute_of(tensor, CUDNN_ATTR_TENSOR_DIMENSIONS);
    const fake_attribute *const strides = fake_attribute_of(tensor, CUDNN_ATTR_TENSOR_STRIDES);

    if (sizes->count != FAKE_RANK || strides->count != sizes->count) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "a tensor needs four sizes and four strides");
    }
    for (int64_t i = 0; i < sizes->count; ++i) {
        if (((const int64_t *)sizes->values)[i] < 1) {
            return fake_refuse(CUDNN_STATUS_BAD_PARAM, "a size of a tensor is not positive");
        }
    }
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t finalize_pack(const fake_descriptor *pack)
{
    const fake_attribute *const ids = fake_attribute_of(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    const fake_attribute *const pointers =
        fake_attribute_of(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    const int64_t *const uids = ids->values;

    if (ids->count != pointers->count) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "as many names as pointers are needed");
    }
    for (int64_t i = 0; i < ids->count; ++i) {
        for (int64_t j = 0; j < i; ++j) {
            if (uids[i] == uids[j]) {
                return fake_refuse(CUDNN_STATUS_BAD_PARAM, "two pointers of one name");
            }
        }
    }
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t finalize_graph(const fake_descriptor *graph)
{
    fake_program program;

    return fake_translate(graph, &program);
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor)
{
    fake_descriptor *const of = descriptor;
    cudnnStatus_t status = CUDNN_STATUS_SUCCESS;

    if (!is_alive(of) || of->is_final) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "finalized a missing or finalized descriptor");
    }
    for (int i = 0; i < RULES; ++i) {
        const fake_attribute *const set = fake_attribute_of(of, rules[i].name);

        if (rules[i].owner != of->type) {
            continue;
        }
        if (rules[i].is_needed && set == NULL) {
            return fake_refuse(CUDNN_STATUS_BAD_PARAM, "an attribute is missing");
        }
        for (int64_t j = 0; rules[i].type == PART && set != NULL && j < set->count; ++j) {
            const fake_descriptor *const part = ((fake_descriptor *const *)set->values)[j];

            if (!is_alive(part) || !part->is_final) {
                return fake_refuse(CUDNN_STATUS_BAD_PARAM, "a part is not finalized");
            }
        }
    }
    if (of->type == TENSOR) {
        status = finalize_tensor(of);
    } else if (of->type == PACK) {
        status = finalize_pack(of);
    } else if (of->type == GRAPH) {
        status = finalize_graph(of);
    } else if (of->type == ENGINE) {
        status = fake_refuse(CUDNN_STATUS_BAD_PARAM, "configurations come from the heuristics");
    }
    of->is_final = status == CUDNN_STATUS_SUCCESS;
    return status;
}

/* ---- plans
 * ------------------------------------------------------------------------------------ */

/* The fake engine's configuration keeps its graph in this attribute. */
static cudnnStatus_t fill_configuration(fake_descriptor *engine, const fake_descriptor *graph)
{
    const fake_descriptor **const copy = malloc(sizeof *copy);

    if (copy == NULL) {
        return CUDNN_STATUS_ALLOC_FAILED;
    }
    *copy = graph;
    engine->attributes[0] = (fake_attribute){CUDNN_ATTR_ENGINECFG_ENGINE, 1, (void *)copy};
    engine->is_final = true;
    return CUDNN_STATUS_SUCCESS; /* cppcheck-suppress memleak ; the engine owns copy */
}

static cudnnStatus_t heuristic_results(const fake_descriptor *heuristic, int64_t requested,
                                       int64_t *count, void *values)
{
    const fake_descriptor *const graph =
        fake_part_of(heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
    fake_program program;

    if (fake_translate(graph, &program) != CUDNN_STATUS_SUCCESS) {
        return CUDNN_STATUS_BAD_PARAM;
    }
    *count = fake_is_supported(&program) ? 1 : 0;
    if (requested == 0 || *count == 0) {
        return CUDNN_STATUS_SUCCESS;
    }
    fake_descriptor *const engine = *(fake_descriptor **)values;
    if (!is_alive(engine) || engine->type != ENGINE || engine->is_final) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "results need created configurations");
    }
    return fill_configuration(engine, graph);
}

static cudnnStatus_t translate_plan(const fake_descriptor *plan, fake_program *out)
{
    const fake_descriptor *const engine =
        fake_part_of(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);

    if (!is_alive(engine) || !is_alive(fake_part_of(engine, CUDNN_ATTR_ENGINECFG_ENGINE))) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "the graph of the plan is gone");
    }
    return fake_translate(fake_part_of(engine, CUDNN_ATTR_ENGINECFG_ENGINE), out);
}

cudnnStatus_t cudnnBackendGetAttribute(const cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t requested,
                                       int64_t *count, void *values)
{
    const fake_descriptor *const of = descriptor;
    fake_program program;

    if (!is_alive(of) || !of->is_final) {
        return fake_refuse(CUDNN_STATUS_NOT_INITIALIZED, "asked of a descriptor not finalized");
    }
    if (of->type == HEURISTIC && name == CUDNN_ATTR_ENGINEHEUR_RESULTS && type == PART) {
        return heuristic_results(of, requested, count, values);
    }
    if (of->type != PLAN || name != CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE ||
        type != CUDNN_TYPE_INT64 || requested != 1) {
        return fake_refuse(CUDNN_STATUS_NOT_SUPPORTED, "this attribute cannot be asked for here");
    }
    if (translate_plan(of, &program) != CUDNN_STATUS_SUCCESS) {
        return CUDNN_STATUS_BAD_PARAM;
    }
    *count = 1;
    *(int64_t *)values = fake_workspace_bytes(&program);
    return CUDNN_STATUS_SUCCESS;
}

static size_t span_of(const fake_tensor *t)
{
    int64_t last = 0;

    for (int d = 0; d < FAKE_RANK; ++d) {
        last += (t->size[d] - 1) * t->stride[d];
    }
    return (size_t)(last + 1) * (t->type == CUDNN_DATA_BFLOAT16 ? 2 : 4);
}

/* Give each tensor its memory, or its value now. */
static cudnnStatus_t bind(fake_program *program, const fake_descriptor *pack)
{
    const fake_attribute *const ids = fake_attribute_of(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    const fake_attribute *const pointers =
        fake_attribute_of(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);

    for (int i = 0; i < program->tensor_count; ++i) {
        fake_tensor *const t = &program->tensors[i];
        int64_t at = 0;

        if (t->is_virtual) {
            continue;
        }
        while (at < ids->count && ((const int64_t *)ids->values)[at] != t->uid) {
            ++at;
        }
        if (at == ids->count) {
            return fake_refuse(CUDNN_STATUS_BAD_PARAM, "a tensor has no pointer");
        }
        t->memory = ((void *const *)pointers->values)[at];
        if (t->is_by_value) {
            if (t->memory == NULL || fake_is_device(t->memory, sizeof(float))) {
                return fake_refuse(CUDNN_STATUS_BAD_PARAM, "a value must be in host memory");
            }
            t->value = *(const float *)t->memory;
        } else if (!fake_is_device(t->memory, span_of(t))) {
            return fake_refuse(CUDNN_STATUS_BAD_PARAM, "a tensor is not in device memory");
        } else if ((uintptr_t)t->memory % 16 != 0) {
            return fake_refuse(CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER, "not 16-byte aligned");
        }
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack)
{
    const fake_descriptor *const p = plan, *const v = pack;
    fake_program program;

    if (handle == NULL || !is_alive(p) || !is_alive(v) || p->type != PLAN || v->type != PACK ||
        !p->is_final || !v->is_final) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "execution needs a final plan and pack");
    }
    if (translate_plan(p, &program) != CUDNN_STATUS_SUCCESS) {
        return CUDNN_STATUS_BAD_PARAM;
    }
    const cudnnStatus_t status = bind(&program, v);
    if (status != CUDNN_STATUS_SUCCESS) {
        return status;
    }
    const fake_attribute *const workspace = fake_attribute_of(v, CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
    program.workspace_bytes = fake_workspace_bytes(&program);
    program.workspace = workspace == NULL ? NULL : *(void *const *)workspace->values;
    if (program.workspace_bytes > 0 &&
        !fake_is_device(program.workspace, (size_t)program.workspace_bytes)) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "the workspace is too small");
    }
    return fake_enqueue(handle->stream, fake_run_program, &program, sizeof program) == cudaSuccess
               ? CUDNN_STATUS_SUCCESS
               : CUDNN_STATUS_EXECUTION_FAILED;
}
