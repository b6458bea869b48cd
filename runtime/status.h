/* Status codes and the per-thread error message.
 *
 * The function that first knows what went wrong calls TSR_FAIL with the value, the limit and the
 * remedy; callers pass the code up unchanged. Nothing here prints: `launch` reports once, on the
 * rank that owns the cause. */
#ifndef TSR_RUNTIME_STATUS_H
#define TSR_RUNTIME_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#define TSR_NODISCARD           __attribute__((warn_unused_result))
#define TSR_PRINTF(fmt_, args_) __attribute__((format(printf, fmt_, args_)))

typedef enum tsr_status {
    TSR_OK = 0,          /* must stay zero */
    TSR_ERR_ARG,         /* the caller or the user broke the documented contract */
    TSR_ERR_STATE,       /* the call does not fit the object's state */
    TSR_ERR_RANGE,       /* a number is outside what can be represented or handled */
    TSR_ERR_NOMEM,       /* host or device memory ran out */
    TSR_ERR_IO,          /* the operating system refused a file or folder */
    TSR_ERR_FORMAT,      /* data or a checkpoint is not what it claims to be */
    TSR_ERR_UNSUPPORTED, /* known, but not built or not possible here */
    TSR_ERR_DEVICE,      /* the compute library or the device reported a failure */
    TSR_ERR_COMM,        /* the transport failed; the communicator is dead */
    TSR_ERR_TIMEOUT,     /* peers did not answer; the communicator is dead */
    TSR_ERR_PEER,        /* this rank is fine, another one failed first */
    TSR_ERR_INTERNAL     /* an invariant of ours does not hold */
} tsr_status;

/** Store a message for this thread and return code; called through TSR_FAIL. */
tsr_status tsr_fail(tsr_status code, const char *file, int line, const char *fmt, ...)
    TSR_PRINTF(4, 5);

/** Last failure of this thread, without the place in the source. Borrowed until the next one. */
const char *tsr_error_message(void);

/** "file:line" of the last failure of this thread, for debug logs. Borrowed as above. */
const char *tsr_error_place(void);

/** Lower-case name of a code, such as "timeout". Static. */
const char *tsr_status_name(tsr_status code);

/** The value is `code` itself, so that compilers and analyzers see that it is not TSR_OK. */
#define TSR_FAIL(code, ...) (tsr_fail((code), __FILE__, __LINE__, __VA_ARGS__), (tsr_status)(code))

/** Callers' mistakes and the outside world; always on. */
#define TSR_CHECK(cond, code, ...)                                                                 \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            return TSR_FAIL(code, __VA_ARGS__);                                                    \
        }                                                                                          \
    } while (0)

#define TSR_TRY(call)                                                                              \
    do {                                                                                           \
        const tsr_status tsr_st_ = (call);                                                         \
        if (tsr_st_ != TSR_OK) {                                                                   \
            return tsr_st_;                                                                        \
        }                                                                                          \
    } while (0)

/** As TSR_TRY, for functions that undo work at a label; needs a local `tsr_status st`. */
#define TSR_TRY_GOTO(call, label)                                                                  \
    do {                                                                                           \
        st = (call);                                                                               \
        if (st != TSR_OK) {                                                                        \
            goto label;                                                                            \
        }                                                                                          \
    } while (0)

#ifdef __cplusplus
}
#endif

#endif
