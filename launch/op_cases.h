/* Cases of `tessera bench ops`: how to fill the arguments of one operator and how to call it.
 *
 * A job is one set of arguments on one device, whose memory the host may not be able to touch. Its
 * blocks are freed by the main program; outputs are what the check compares with the plain twin.
 * Random data depend on a block's number only, so two jobs of one case start from the same. */
#ifndef TSR_LAUNCH_OP_CASES_H
#define TSR_LAUNCH_OP_CASES_H

#include "runtime/runtime.h"

enum { JOB_BLOCKS = 24, JOB_OUTPUTS = 4 };

/* The model whose operators are timed: what a device has to do in one pass over `tokens`. */
typedef struct op_sizes {
    int64_t batch, seq_len, width, vocab, entropy_rows, expert_width;
    int experts, top_k, heads, kv_heads, head_dim;
    int64_t vector, parameters; /* elements of long vectors, of one step of the optimizer */
} op_sizes;

typedef struct job {
    tsr_device *device;
    tsr_stream *stream;
    tsr_dtype dtype;
    bool is_toy;
    const op_sizes *sizes;
    void *blocks[JOB_BLOCKS];
    int block_count, output_count;
    struct {
        const void *at;
        tsr_dtype dtype;
        bool is_f64; /* then dtype says nothing */
        int64_t count;
    } outputs[JOB_OUTPUTS];
    union {
        tsr_gemm_args gemm;
        tsr_grouped_gemm_args grouped;
        tsr_rmsnorm_args rmsnorm;
        tsr_rope_args rope;
        tsr_swiglu_args swiglu;
        tsr_attention_args attention;
        tsr_route_args route;
        tsr_sort_args sort;
        tsr_permute_args permute;
        tsr_unpermute_args unpermute;
        tsr_embedding_args embedding;
        tsr_cross_entropy_args cross_entropy;
        tsr_adamw_args adamw;
        struct {
            float *x, *y;
            double *sum;
            int64_t count;
        } vector;
    } args;
} job;

typedef struct op_case {
    const char *name; /* of the case */
    const char *op;   /* in the profile, which knows its flops and bytes */
    bool is_f32_only;
    tsr_status (*setup)(job *);
    tsr_status (*run)(job *);
} op_case;

/** A block of count normal numbers times scale, or of zeros if scale is 0; freed with the job. */
TSR_NODISCARD tsr_status job_block(job *j, tsr_dtype dtype, int64_t count, float scale, void *out);

/** A block that holds `bytes` of host memory; freed with the job. */
TSR_NODISCARD tsr_status job_copy(job *j, const void *from, size_t bytes, void *out);

/** Name an output to be checked. */
void job_output(job *j, const void *at, tsr_dtype dtype, int64_t count);
void job_output_f64(job *j, const double *at, int64_t count);

/** full, or a size for the check and the toy run. */
int64_t job_size(const job *j, int64_t full, int64_t toy);

/** Tokens of one pass. */
int64_t job_tokens(const job *j, int64_t toy);

/** Tables of cases; *count_out entries. */
const op_case *op_cases_gemm(int *count_out);
const op_case *op_cases_layers(int *count_out);
const op_case *op_cases_route(int *count_out);
const op_case *op_cases_vectors(int *count_out);

#endif
