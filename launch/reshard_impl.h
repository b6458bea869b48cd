/* What the two files of resharding share: a deal under way. */
#ifndef TSR_LAUNCH_RESHARD_IMPL_H
#define TSR_LAUNCH_RESHARD_IMPL_H

#include "launch/reshard.h"

enum { RESHARD_KINDS = 3 }; /* master weights, first and second moments */

/* Rows of one parameter, as in the whole table, that one rank of the dense group holds. */
typedef struct reshard_run {
    int param, rank;
    int64_t begin, end;
} reshard_run;

typedef struct reshard_runs {
    reshard_run *runs; /* by parameter and row; they tile the experts' parameters */
    int64_t count;
} reshard_runs;

/* Elements of one run that stay on this rank, or go from one rank to another. */
typedef struct reshard_piece {
    int from, to;
    int64_t number; /* by parameter and row */
    int64_t count;
    int64_t source; /* on rank `from`: in the kept blocks */
    int64_t target; /* on rank `to`: from its first expert's first value on */
} reshard_piece;

typedef struct reshard_state {
    reshard_runs before, after;
    tsr_state_slice *kept; /* the old slices; their values fill the blocks */
    int count;
    char *block[RESHARD_KINDS];
    reshard_piece *pieces; /* those that stay here, then all ranks' that go, by length */
    int64_t piece_count, stay_count;
    int64_t moved; /* elements that change their rank, on all of them */
} reshard_state;

size_t reshard_element_bytes(const trainer *t, int kind);
char *reshard_values(const tsr_state_slice *slice, int kind);
bool reshard_is_expert(const trainer *t, const tsr_state_slice *slice);

/* ---- reshard_rows.c ---- */

/* Who holds which rows when the experts have these owners. */
TSR_NODISCARD tsr_status reshard_list_runs(const trainer *t, const int32_t *owner,
                                           reshard_runs *list);

/* From kept values to the experts' slices as they are now. Collective on the dense group. */
TSR_NODISCARD tsr_status reshard_move_rows(const trainer *t, reshard_state *d,
                                           const tsr_state_slice *slices, int count);

#endif
