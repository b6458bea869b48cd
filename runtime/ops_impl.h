/* What the front ends of the operators share: checks that name the operator, and the stop-watch. */
#ifndef TSR_RUNTIME_OPS_IMPL_H
#define TSR_RUNTIME_OPS_IMPL_H

#include "runtime/device_impl.h"

typedef enum tsr_op {
    TSR_OP_GEMM,
    TSR_OP_GROUPED_GEMM,
    TSR_OP_RMSNORM_FORWARD,
    TSR_OP_RMSNORM_BACKWARD_INPUT,
    TSR_OP_RMSNORM_BACKWARD_WEIGHT,
    TSR_OP_ROPE,
    TSR_OP_SWIGLU_FORWARD,
    TSR_OP_SWIGLU_BACKWARD,
    TSR_OP_ATTENTION_FORWARD,
    TSR_OP_ATTENTION_BACKWARD,
    TSR_OP_ROUTE_FORWARD,
    TSR_OP_ROUTE_BACKWARD,
    TSR_OP_SORT_BY_EXPERT,
    TSR_OP_PERMUTE,
    TSR_OP_UNPERMUTE,
    TSR_OP_GATHER_F32,
    TSR_OP_EMBEDDING_FORWARD,
    TSR_OP_EMBEDDING_BACKWARD,
    TSR_OP_CROSS_ENTROPY,
    TSR_OP_CONVERT,
    TSR_OP_ADD_F32,
    TSR_OP_SUM,
    TSR_OP_SUM_SQUARES,
    TSR_OP_ADAMW,
    TSR_OPS
} tsr_op;

/** Time now if profiling, else 0. */
double tsr_op_profile_start(void);

/** If profiling: wait for the stream and book the time since start and the work under op. */
TSR_NODISCARD tsr_status tsr_op_profile_stop(tsr_op op, tsr_stream *stream, double start,
                                             double flops, double bytes);

/** The value at a device address if profiling, else 0: for work that depends on data. */
TSR_NODISCARD tsr_status tsr_op_profile_read(tsr_device *device, tsr_stream *stream,
                                             const int64_t *at, int64_t *out);

/* Queue one operator, and book it when profiling. Ends the function. */
#define TSR_OP_RUN(op_, stream_, flops_, bytes_, call_)                                            \
    do {                                                                                           \
        const double start_ = tsr_op_profile_start();                                              \
        TSR_TRY(call_);                                                                            \
        return tsr_op_profile_stop((op_), (stream_), start_, (flops_), (bytes_));                  \
    } while (0)

#define TSR_OP_CHECK_SIZE(args_, size_)                                                            \
    TSR_CHECK((args_)->size_ >= 0, TSR_ERR_ARG, "%s: " #size_ " = %lld, must be >= 0", __func__,   \
              (long long)(args_)->size_)

#define TSR_OP_CHECK_LEAST(args_, size_, least_)                                                   \
    TSR_CHECK((args_)->size_ >= (least_), TSR_ERR_ARG, "%s: " #size_ " = %lld, must be >= %lld",   \
              __func__, (long long)(args_)->size_, (long long)(least_))

#define TSR_OP_CHECK_POINTER(args_, pointer_)                                                      \
    TSR_CHECK((args_)->pointer_ != NULL, TSR_ERR_ARG, "%s: " #pointer_ " must not be NULL",        \
              __func__)

#define TSR_OP_CHECK_DTYPE(args_, dtype_)                                                          \
    TSR_CHECK((args_)->dtype_ == TSR_F32 || (args_)->dtype_ == TSR_BF16, TSR_ERR_ARG,              \
              "%s: " #dtype_ " = %d, must be f32 or bf16", __func__, (int)(args_)->dtype_)

#define TSR_OP_CHECK_STREAM(device_, stream_)                                                      \
    TSR_CHECK((stream_) != NULL && (stream_)->device == (device_), TSR_ERR_ARG,                    \
              "%s: the stream must be one of the device", __func__)

#endif
