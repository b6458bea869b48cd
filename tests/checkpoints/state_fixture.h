/* A made-up state over a small table, cut into the parts of any layout. */
#ifndef TSR_STATE_FIXTURE_H
#define TSR_STATE_FIXTURE_H

#include "checkpoints/checkpoints.h"

enum { FIXTURE_PARAMS = 6, FIXTURE_LAYERS = 2, FIXTURE_EXPERTS = 5, FIXTURE_SLICES = 24 };

/** How rows are dealt out. */
typedef enum fixture_cut {
    CUT_EVEN,    /* all rows of all tensors in one line: cuts fall inside experts */
    CUT_LAST,    /* the last part has everything, the others nothing */
    CUT_STRIPED, /* each tensor in 2 * parts stripes, two to a part: several slices a tensor */
    CUT_SPREAD,  /* as on dp 1 x ep parts, experts dealt out in turn: a slice for each of them */
    CUT_MESH,    /* as on dp x ep 2 where parts is even, else on dp 1 x ep parts: in order */
    CUTS
} fixture_cut;

typedef struct fixture {
    tsr_param params[FIXTURE_PARAMS];
    tsr_param_table table;
    tsr_state_slice slices[FIXTURE_SLICES];
    float bias[FIXTURE_LAYERS * FIXTURE_EXPERTS];
    tsr_state_view view;
} fixture;

/** Part `part` of `parts`, its values those of `step`; moments are exact in bf16. False: no memory.
 *  scale >= 1 multiplies the sizes. */
bool fixture_make(fixture *out, fixture_cut cut, int part, int parts, tsr_dtype moments,
                  int64_t step, int64_t scale);
void fixture_free(fixture *self);

/** Set everything that a load must fill to other values. */
void fixture_wipe(fixture *self);
/** Give all values those of another step. */
void fixture_set_step(fixture *self, int64_t step);
/** True if all values are those of `step`; names the first that is not. */
bool fixture_holds(const fixture *self, int64_t step);

/** Writer, one save, published, writer gone. Collective. */
tsr_status fixture_save(tsr_comm *comm, const char *run_dir, const fixture *self,
                        const tsr_checkpoint_config *config, tsr_ckpt_result *result_out);

/** A fresh empty folder below `parent` (NULL: /tmp). */
bool fixture_folder(const char *parent, char out[TSR_TEXT_MAX]);
/** Remove a folder with all it holds. */
void fixture_remove(const char *path);
/** Change one byte of a file, at offset from its end when negative. */
bool fixture_flip(const char *path, int64_t offset);
int64_t fixture_file_size(const char *path);

#endif
