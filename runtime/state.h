/* Plain structs that launch hands from one folder to another: who owns which rows of what. */
#ifndef TSR_RUNTIME_STATE_H
#define TSR_RUNTIME_STATE_H

#include "runtime/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Rows of one parameter owned by this rank, with their optimizer state; host memory. */
typedef struct tsr_state_slice {
    int param; /* index in the table */
    int64_t row_begin, row_end;
    float *master; /* [row_end - row_begin, width] */
    void *m, *v;   /* the same shape, moment_dtype */
    tsr_dtype moment_dtype;
} tsr_state_slice;

/** Numbers that belong to a run's state beyond the model: equal on all ranks. */
typedef struct tsr_state_array {
    const char *name; /* letters, digits, _: up to TSR_STATE_NAME_MAX - 1 of them */
    int64_t count;
    double *values;
    bool is_loaded; /* after loading: the checkpoint had it, with this length; else values are as
                       they were */
} tsr_state_array;
enum { TSR_STATE_NAME_MAX = 32 };

/** Everything a checkpoint holds, as this rank sees it. Pointers are borrowed. */
typedef struct tsr_state_view {
    const tsr_param_table *table;
    const tsr_state_slice *slices; /* this rank's share; all ranks' slices tile every parameter */
    int slice_count;
    float *router_bias; /* [layers, experts], equal on all ranks; NULL if there is none */
    int64_t layers, experts;
    tsr_state_array *arrays; /* in any order */
    int array_count;
    int64_t step, tokens, data_position; /* position: samples consumed */
    uint64_t seed;
    const char *config_text; /* resolved run file; NULL when loading */
} tsr_state_view;

#ifdef __cplusplus
}
#endif

#endif
