/* Graphs of the fake cuDNN as programs, and the interpreter that runs them.
 *
 * Sums are f64; every result, virtual or not, is rounded to its tensor's type, as the types of the
 * graph demand of the real kernels. A size of an operand may divide that of the result: then
 * neighbours share an element (one row for all, one key-value head for a group). */
#include "runtime/dtype.h"
#include "tests/emulation/fake_cudnn.h"

#include <math.h>
#include <stdlib.h>

/* ---- translation
 * ------------------------------------------------------------------------------ */

static int tensor_at(fake_program *program, const fake_descriptor *of)
{
    fake_tensor t = {.uid = fake_integer_of(of, CUDNN_ATTR_TENSOR_UNIQUE_ID),
                     .type = (cudnnDataType_t)fake_integer_of(of, CUDNN_ATTR_TENSOR_DATA_TYPE),
                     .is_virtual = fake_integer_of(of, CUDNN_ATTR_TENSOR_IS_VIRTUAL) != 0,
                     .is_by_value = fake_integer_of(of, CUDNN_ATTR_TENSOR_IS_BY_VALUE) != 0};

    for (int d = 0; d < FAKE_RANK; ++d) {
        t.size[d] = ((int64_t *)fake_attribute_of(of, CUDNN_ATTR_TENSOR_DIMENSIONS)->values)[d];
        t.stride[d] = ((int64_t *)fake_attribute_of(of, CUDNN_ATTR_TENSOR_STRIDES)->values)[d];
    }
    for (int i = 0; i < program->tensor_count; ++i) {
        if (program->tensors[i].uid == t.uid) {
            /* memory holds the descriptor during translation: one name, one descriptor */
            return program->tensors[i].memory == of ? i : -1;
        }
    }
    if (program->tensor_count == FAKE_TENSORS) {
        return -1;
    }
    t.memory = (void *)(uintptr_t)of;
    program->tensors[program->tensor_count] = t;
    return program->tensor_count++;
}

/* Which attributes of an operation hold its tensors and its kind. */
typedef struct form {
    cudnnBackendDescriptorType_t kind;
    cudnnBackendAttributeName_t x, second, choice, y, description, mode;
} form;

#define NONE ((cudnnBackendAttributeName_t)-1)

static const form forms[] = {
    {CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, CUDNN_ATTR_OPERATION_MATMUL_ADESC,
     CUDNN_ATTR_OPERATION_MATMUL_BDESC, NONE, CUDNN_ATTR_OPERATION_MATMUL_CDESC, NONE, NONE},
    {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
     CUDNN_ATTR_OPERATION_POINTWISE_BDESC, CUDNN_ATTR_OPERATION_POINTWISE_TDESC,
     CUDNN_ATTR_OPERATION_POINTWISE_YDESC, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR,
     CUDNN_ATTR_POINTWISE_MODE},
    {CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, NONE, NONE,
     CUDNN_ATTR_OPERATION_REDUCTION_YDESC, CUDNN_ATTR_OPERATION_REDUCTION_DESC,
     CUDNN_ATTR_REDUCTION_OPERATOR},
    {CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, NONE, NONE,
     CUDNN_ATTR_OPERATION_RESHAPE_YDESC, NONE, NONE},
};

static bool take(fake_program *program, const fake_descriptor *of, cudnnBackendAttributeName_t name,
                 int *index_out)
{
    const fake_descriptor *const tensor = name == NONE ? NULL : fake_part_of(of, name);

    *index_out = -1;
    if (tensor == NULL) {
        return true;
    }
    *index_out = tensor_at(program, tensor);
    return *index_out >= 0;
}

static bool divide(const fake_tensor *part, const fake_tensor *whole)
{
    for (int d = 0; d < FAKE_RANK; ++d) {
        if (whole->size[d] % part->size[d] != 0) {
            return false;
        }
    }
    return true;
}

static bool product_fits(const fake_tensor *a, const fake_tensor *b, const fake_tensor *y)
{
    return a->size[2] == y->size[2] && a->size[3] == b->size[2] && b->size[3] == y->size[3] &&
           y->size[0] % a->size[0] == 0 && y->size[0] % b->size[0] == 0 &&
           y->size[1] % a->size[1] == 0 && y->size[1] % b->size[1] == 0;
}

static bool shapes_fit(const fake_program *program, const fake_operation *o)
{
    const fake_tensor *const x = &program->tensors[o->x], *const y = &program->tensors[o->y];
    const fake_tensor *const second = o->second < 0 ? y : &program->tensors[o->second];
    const fake_tensor *const choice = o->choice < 0 ? y : &program->tensors[o->choice];

    switch (o->kind) {
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
        return product_fits(x, second, y);
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
        return divide(y, x);
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR: /* here: the last two axes exchanged */
        return x->size[0] == y->size[0] && x->size[1] == y->size[1] && x->size[2] == y->size[3] &&
               x->size[3] == y->size[2];
    default:
        return divide(x, y) && divide(second, y) && divide(choice, y);
    }
}

/* Inputs were written before, outputs not yet. `written` has a place for each tensor. */
static bool is_in_order(const fake_program *program, const fake_operation *o, bool *written)
{
    const int inputs[] = {o->x, o->second, o->choice};

    for (int i = 0; i < 3; ++i) {
        if (inputs[i] >= 0 && program->tensors[inputs[i]].is_virtual && !written[inputs[i]]) {
            return false;
        }
    }
    if (written[o->y] || program->tensors[o->y].is_by_value) {
        return false;
    }
    written[o->y] = true;
    return true;
}

static cudnnStatus_t translate_operation(fake_program *program, const fake_descriptor *of,
                                         bool *written)
{
    const form *f = forms;
    fake_operation o = {.kind = of->type};

    while (f < forms + sizeof forms / sizeof *forms && f->kind != of->type) {
        ++f;
    }
    if (f == forms + sizeof forms / sizeof *forms) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "not an operation");
    }
    if (!take(program, of, f->x, &o.x) || !take(program, of, f->second, &o.second) ||
        !take(program, of, f->choice, &o.choice) || !take(program, of, f->y, &o.y)) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "two tensors have one name");
    }
    if (f->description != NONE) {
        const fake_descriptor *const description = fake_part_of(of, f->description);

        o.mode = (int)fake_integer_of(description, f->mode);
        o.axis = fake_integer_of(description, CUDNN_ATTR_POINTWISE_AXIS);
    }
    if (!shapes_fit(program, &o)) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "the shapes of an operation do not fit");
    }
    if (!is_in_order(program, &o, written)) {
        return fake_refuse(CUDNN_STATUS_BAD_PARAM, "read before written, or written twice");
    }
    program->operations[program->operation_count++] = o;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t fake_translate(const fake_descriptor *graph, fake_program *out)
{
    const fake_attribute *const operations =
        fake_attribute_of(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS);
    bool written[FAKE_TENSORS] = {false};

    *out = (fake_program){0};
    for (int64_t i = 0; i < operations->count; ++i) {
        const cudnnStatus_t status =
            translate_operation(out, ((fake_descriptor *const *)operations->values)[i], written);

        if (status != CUDNN_STATUS_SUCCESS) {
            return status;
        }
    }
    return CUDNN_STATUS_SUCCESS;
}

/* ---- what the engine takes
 * -------------------------------------------------------------------- */

/* The first product is that of the queries, or of their gradients: its operands tell the shape. */
static const fake_operation *first_product(const fake_program *program)
{
    for (int i = 0; i < program->operation_count; ++i) {
        if (program->operations[i].kind == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR) {
            return &program->operations[i];
        }
    }
    return NULL;
}

static int products(const fake_program *program)
{
    int count = 0;

    for (int i = 0; i < program->operation_count; ++i) {
        count += program->operations[i].kind == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR;
    }
    return count;
}

bool fake_is_supported(const fake_program *program)
{
    enum { HEAD_DIM_STEP = 8, BACKWARD_HEAD_DIM_MAX = 128, FORWARD_PRODUCTS = 2 };
    const fake_operation *const product = first_product(program);
    const fake_tensor *const q = product == NULL ? NULL : &program->tensors[product->x];

    return q != NULL && q->type == CUDNN_DATA_BFLOAT16 && q->size[3] % HEAD_DIM_STEP == 0 &&
           (products(program) == FORWARD_PRODUCTS || q->size[3] <= BACKWARD_HEAD_DIM_MAX);
}

int64_t fake_workspace_bytes(const fake_program *program)
{
    /* Scores' gradients in bf16, unless the last product writes f32 (dq added up as it comes). */
    const fake_operation *const product = first_product(program);
    const fake_tensor *const scores = &program->tensors[product->y];
    bool keeps_scores = products(program) == 5;

    for (int i = 0; i < program->operation_count; ++i) {
        const fake_operation *const o = &program->operations[i];

        if (o->kind == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR &&
            !program->tensors[o->y].is_virtual && program->tensors[o->y].type == CUDNN_DATA_FLOAT) {
            keeps_scores = false;
        }
    }
    return keeps_scores ? 2 * scores->size[0] * scores->size[1] * scores->size[2] * scores->size[3]
                        : 0;
}

/* ---- interpretation
 * --------------------------------------------------------------------------- */

typedef struct place {
    int64_t at[FAKE_RANK];
} place;

static int64_t count_of(const fake_tensor *t)
{
    return t->size[0] * t->size[1] * t->size[2] * t->size[3];
}

static place place_of(const fake_tensor *t, int64_t index)
{
    place p;

    for (int d = FAKE_RANK - 1; d >= 0; --d) {
        p.at[d] = index % t->size[d];
        index /= t->size[d];
    }
    return p;
}

/* Where t has what belongs to place p of a tensor of these sizes. Virtual tensors are packed
 * f32. */
static int64_t offset(const fake_tensor *t, const place *p, const int64_t *sizes)
{
    int64_t at = 0;

    for (int d = 0; d < FAKE_RANK; ++d) {
        const int64_t mine = p->at[d] * t->size[d] / sizes[d];

        at = t->is_virtual ? at * t->size[d] + mine : at + mine * t->stride[d];
    }
    return at;
}

static double get(const fake_tensor *t, const place *p, const int64_t *sizes)
{
    if (t->is_by_value) {
        return (double)t->value;
    }
    const int64_t at = offset(t, p, sizes);
    return !t->is_virtual && t->type == CUDNN_DATA_BFLOAT16
               ? (double)tsr_bf16_to_f32(((const tsr_bf16 *)t->memory)[at])
               : (double)((const float *)t->memory)[at];
}

static void put(const fake_tensor *t, const place *p, double value)
{
    const int64_t at = offset(t, p, t->size);
    const tsr_bf16 rounded = tsr_f32_to_bf16((float)value);

    if (t->type != CUDNN_DATA_BFLOAT16) {
        ((float *)t->memory)[at] = (float)value;
    } else if (t->is_virtual) {
        ((float *)t->memory)[at] = tsr_bf16_to_f32(rounded);
    } else {
        ((tsr_bf16 *)t->memory)[at] = rounded;
    }
}

static void multiply(const fake_tensor *a, const fake_tensor *b, const fake_tensor *y)
{
    const int64_t inner = a->size[3];
    const int64_t a_sizes[] = {y->size[0], y->size[1], a->size[2], a->size[3]};
    const int64_t b_sizes[] = {y->size[0], y->size[1], b->size[2], b->size[3]};

    for (int64_t i = 0; i < count_of(y); ++i) {
        const place p = place_of(y, i);
        double sum = 0.0;

        for (int64_t j = 0; j < inner; ++j) {
            const place left = {{p.at[0], p.at[1], p.at[2], j}};
            const place right = {{p.at[0], p.at[1], j, p.at[3]}};

            sum += get(a, &left, a_sizes) * get(b, &right, b_sizes);
        }
        put(y, &p, sum);
    }
}

static double point(const fake_operation *o, const place *p, double x, double second, double choice)
{
    switch ((cudnnPointwiseMode_t)o->mode) {
    case CUDNN_POINTWISE_ADD:
        return x + second;
    case CUDNN_POINTWISE_SUB:
        return x - second;
    case CUDNN_POINTWISE_MUL:
        return x * second;
    case CUDNN_POINTWISE_DIV:
        return x / second;
    case CUDNN_POINTWISE_EXP:
        return exp(x);
    case CUDNN_POINTWISE_LOG:
        return log(x);
    case CUDNN_POINTWISE_IDENTITY:
        return x;
    case CUDNN_POINTWISE_GEN_INDEX:
        return (double)p->at[o->axis];
    case CUDNN_POINTWISE_CMP_GE:
        return x >= second ? 1.0 : 0.0;
    case CUDNN_POINTWISE_BINARY_SELECT:
        return choice != 0.0 ? x : second;
    default:
        return NAN; /* not emulated: no test can miss it */
    }
}

static void apply(const fake_program *program, const fake_operation *o)
{
    const fake_tensor *const x = &program->tensors[o->x], *const y = &program->tensors[o->y];
    const fake_tensor *const second = o->second < 0 ? x : &program->tensors[o->second];
    const fake_tensor *const choice = o->choice < 0 ? x : &program->tensors[o->choice];

    for (int64_t i = 0; i < count_of(y); ++i) {
        const place p = place_of(y, i);

        put(y, &p,
            point(o, &p, get(x, &p, y->size), get(second, &p, y->size), get(choice, &p, y->size)));
    }
}

/* Each element of y gathers its neighbours in x, in order. */
static void gather(const fake_tensor *x, const fake_tensor *y, int mode)
{
    for (int64_t i = 0; i < count_of(y); ++i) {
        const place p = place_of(y, i);
        fake_tensor box = *y; /* the part of x that belongs to p */
        double result = mode == CUDNN_REDUCE_TENSOR_MAX ? -INFINITY : 0.0;

        for (int d = 0; d < FAKE_RANK; ++d) {
            box.size[d] = x->size[d] / y->size[d];
        }
        for (int64_t j = 0; j < count_of(&box); ++j) {
            place q = place_of(&box, j);

            for (int d = 0; d < FAKE_RANK; ++d) {
                q.at[d] += p.at[d] * box.size[d];
            }
            const double value = get(x, &q, x->size);
            result = mode == CUDNN_REDUCE_TENSOR_MAX ? fmax(result, value) : result + value;
        }
        put(y, &p, result);
    }
}

static void turn(const fake_tensor *x, const fake_tensor *y)
{
    for (int64_t i = 0; i < count_of(y); ++i) {
        const place p = place_of(y, i);
        const place q = {{p.at[0], p.at[1], p.at[3], p.at[2]}};

        put(y, &p, get(x, &q, x->size));
    }
}

static void run_operation(const fake_program *program, const fake_operation *o)
{
    const fake_tensor *const x = &program->tensors[o->x], *const y = &program->tensors[o->y];

    switch (o->kind) {
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
        multiply(x, &program->tensors[o->second], y);
        break;
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
        gather(x, y, o->mode);
        break;
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
        turn(x, y);
        break;
    default:
        apply(program, o);
    }
}

cudaError_t fake_run_program(const void *arg)
{
    fake_program program = *(const fake_program *)arg;
    cudaError_t code = cudaSuccess;

    for (int64_t i = 0; i < program.workspace_bytes; ++i) {
        ((unsigned char *)program.workspace)[i] = 0xff; /* whoever shares it sees NaN */
    }
    for (int i = 0; i < program.tensor_count; ++i) {
        fake_tensor *const t = &program.tensors[i];

        if (t->is_virtual) {
            t->memory = calloc((size_t)count_of(t), sizeof(float));
            code = t->memory == NULL ? cudaErrorMemoryAllocation : code;
        }
    }
    for (int i = 0; code == cudaSuccess && i < program.operation_count; ++i) {
        run_operation(&program, &program.operations[i]);
    }
    for (int i = 0; i < program.tensor_count; ++i) {
        if (program.tensors[i].is_virtual) {
            free(program.tensors[i].memory);
        }
    }
    return code;
}
