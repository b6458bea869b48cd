/* Who owns which rows: checks of the view, the slices of all ranks, and boxes of logical tensors.
 */
#include "checkpoints/checkpoints_impl.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const int64_t max_elements = (int64_t)1 << 48;

int tsr_ckpt_boxes(const tsr_ckpt_tensor *tensor, int64_t row_begin, int64_t row_end,
                   tsr_ckpt_box boxes_out[3])
{
    int count = 0;

    while (row_begin < row_end) {
        tsr_ckpt_box *box = &boxes_out[count++];
        int64_t rows = row_end - row_begin;
        if (tensor->dims == 1) {
            *box = (tsr_ckpt_box){.count = {tensor->width}};
        } else if (tensor->dims == 2) {
            *box = (tsr_ckpt_box){.start = {row_begin}, .count = {rows, tensor->width}};
        } else {
            const int64_t height = tensor->shape[1], into = row_begin % height;
            const bool is_whole = into == 0 && rows >= height;
            if (is_whole) {
                rows -= rows % height;
            } else if (rows > height - into) {
                rows = height - into;
            }
            *box = (tsr_ckpt_box){
                .start = {row_begin / height, into, 0},
                .count = {is_whole ? rows / height : 1, is_whole ? height : rows, tensor->width}};
        }
        box->row_begin = row_begin;
        box->rows = rows;
        row_begin += rows;
    }
    return count;
}

tsr_status tsr_ckpt_tensor_matrix(tsr_ckpt_tensor *tensor)
{
    int64_t elements = 1;

    TSR_CHECK(tensor->dims >= 1 && tensor->dims <= 3, TSR_ERR_ARG,
              "%s has %d dimensions, must have 1 to 3", tensor->name, tensor->dims);
    for (int axis = 0; axis < tensor->dims; ++axis) {
        TSR_CHECK(tensor->shape[axis] > 0 && tensor->shape[axis] <= max_elements / elements,
                  TSR_ERR_ARG,
                  "%s: dimension %d is %" PRId64 ", must be positive and all below 2^48",
                  tensor->name, axis, tensor->shape[axis]);
        elements *= tensor->shape[axis];
    }
    tensor->width = tensor->shape[tensor->dims - 1];
    tensor->rows = elements / tensor->width;
    return TSR_OK;
}

tsr_status tsr_ckpt_tensor_of(const tsr_param *param, tsr_ckpt_tensor *out)
{
    *out = (tsr_ckpt_tensor){.dims = param->dims};
    memcpy(out->shape, param->shape, sizeof out->shape);
    const size_t length = strnlen(param->name, sizeof param->name);
    TSR_CHECK(length > 0 && length < sizeof out->name, TSR_ERR_ARG,
              "parameter name of %zu bytes, must have 1 to %zu", length, sizeof out->name - 1);
    memcpy(out->name, param->name, length);
    for (size_t i = 0; i < length; ++i) {
        const unsigned char c = (unsigned char)param->name[i];
        TSR_CHECK(isalnum(c) || c == '.' || c == '_' || c == '-', TSR_ERR_ARG,
                  "parameter %s: byte %zu is none of a-z A-Z 0-9 . _ -", out->name, i);
    }
    for (int axis = param->dims; axis >= 0 && axis < 3; ++axis) {
        out->shape[axis] = 0;
    }
    TSR_TRY(tsr_ckpt_tensor_matrix(out));
    TSR_CHECK(out->rows == param->rows && out->width == param->width, TSR_ERR_ARG,
              "%s is %" PRId64 " x %" PRId64 " by its shape, %" PRId64 " x %" PRId64
              " by rows and width",
              out->name, out->rows, out->width, param->rows, param->width);
    return TSR_OK;
}

static tsr_status check_arrays(const tsr_state_view *view)
{
    static const char valid[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
    static const char *const taken[] = {"data_position", "seed", "router_bias"};

    for (int i = 0; i < view->array_count; ++i) {
        const tsr_state_array *array = &view->arrays[i];
        const size_t length = strlen(array->name);
        bool is_taken = false;

        for (size_t k = 0; k < sizeof taken / sizeof *taken; ++k) {
            is_taken = is_taken || strcmp(array->name, taken[k]) == 0;
        }
        for (int k = 0; k < i; ++k) {
            is_taken = is_taken || strcmp(array->name, view->arrays[k].name) == 0;
        }
        TSR_CHECK(length > 0 && length < TSR_STATE_NAME_MAX &&
                      strspn(array->name, valid) == length && !is_taken,
                  TSR_ERR_ARG, "array %d: \"%s\" is no name for one, or is taken", i, array->name);
        TSR_CHECK(array->count > 0 && array->values != NULL, TSR_ERR_ARG,
                  "array %s: %" PRId64 " values, must be at least 1, with memory", array->name,
                  array->count);
    }
    return TSR_OK;
}

tsr_status tsr_ckpt_check_view(const tsr_state_view *view)
{
    const tsr_param_table *table = view->table;

    TSR_CHECK(table != NULL && table->count > 0, TSR_ERR_ARG, "the view has no parameter table");
    for (int i = 0; i < view->slice_count; ++i) {
        const tsr_state_slice *slice = &view->slices[i];
        TSR_CHECK(slice->param >= 0 && slice->param < table->count, TSR_ERR_ARG,
                  "slice %d: param = %d, table has %d", i, slice->param, table->count);
        const tsr_param *param = &table->params[slice->param];
        TSR_CHECK(slice->row_begin >= 0 && slice->row_begin <= slice->row_end &&
                      slice->row_end <= param->rows,
                  TSR_ERR_ARG,
                  "slice %d: rows %" PRId64 " to %" PRId64 " of %s, which has %" PRId64, i,
                  slice->row_begin, slice->row_end, param->name, param->rows);
        TSR_CHECK(slice->row_begin == slice->row_end ||
                      (slice->master != NULL && slice->m != NULL && slice->v != NULL),
                  TSR_ERR_ARG, "slice %d of %s has no memory", i, param->name);
        TSR_CHECK(slice->moment_dtype == TSR_F32 || slice->moment_dtype == TSR_BF16, TSR_ERR_ARG,
                  "slice %d of %s: moment type %d", i, param->name, (int)slice->moment_dtype);
    }
    return check_arrays(view);
}

/* ---- slices of all ranks -------------------------------------------------------------------- */

static int by_param_and_row(const void *left, const void *right)
{
    const tsr_ckpt_slice *a = left, *b = right;

    if (a->param != b->param) {
        return a->param < b->param ? -1 : 1;
    }
    return (a->row_begin > b->row_begin) - (a->row_begin < b->row_begin);
}

static tsr_status check_tiling(const tsr_param_table *table, const tsr_ckpt_slice *slices,
                               int count)
{
    int at = 0;

    for (int p = 0; p < table->count; ++p) {
        const tsr_param *param = &table->params[p];
        int64_t row = 0;
        for (; at < count && slices[at].param == p; ++at) {
            TSR_CHECK(slices[at].row_begin == row, TSR_ERR_ARG,
                      "%s: rows from %" PRId64 " on belong to %s, slices must hold each row once",
                      param->name, row < slices[at].row_begin ? row : slices[at].row_begin,
                      row < slices[at].row_begin ? "no rank" : "two slices");
            row = slices[at].row_end;
        }
        TSR_CHECK(row == param->rows, TSR_ERR_ARG,
                  "%s: rows from %" PRId64 " on belong to no rank, it has %" PRId64, param->name,
                  row, param->rows);
    }
    return TSR_OK;
}

static void fill_mine(const tsr_state_view *view, int rank, tsr_ckpt_slice *mine)
{
    for (int i = 0; i < view->slice_count; ++i) {
        const tsr_state_slice *slice = &view->slices[i];
        mine[i] = (tsr_ckpt_slice){.rank = rank,
                                   .index = i,
                                   .param = slice->param,
                                   .row_begin = slice->row_begin,
                                   .row_end = slice->row_end};
    }
}

static int drop_empty(tsr_ckpt_slice *slices, int64_t count)
{
    int kept = 0;

    for (int64_t i = 0; i < count; ++i) {
        if (slices[i].row_begin < slices[i].row_end) {
            slices[kept++] = slices[i];
        }
    }
    return kept;
}

tsr_status tsr_ckpt_gather_slices(tsr_comm *comm, const tsr_state_view *view,
                                  tsr_ckpt_slice **slices_out, int *count_out)
{
    const int size = tsr_comm_size(comm);
    double most = view->slice_count;
    void *mine = NULL, *all = NULL;
    tsr_status st;

    TSR_TRY(tsr_comm_all_reduce_f64(comm, &most, 1, TSR_REDUCE_MAX));
    const int64_t each = (int64_t)most;
    st = each * size <= INT32_MAX / 2
             ? tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, each, sizeof(tsr_ckpt_slice), &mine)
             : TSR_FAIL(TSR_ERR_RANGE, "%" PRId64 " slices on each of %d ranks", each, size);
    if (st == TSR_OK) {
        st = tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, each * size, sizeof(tsr_ckpt_slice), &all);
    }
    st = tsr_comm_agree(comm, st);
    if (st != TSR_OK || mine == NULL || all == NULL) { /* agreement passes our own failure on */
        goto err_free;
    }
    fill_mine(view, tsr_comm_rank(comm), mine);
    TSR_TRY_GOTO(tsr_comm_all_gather(comm, mine, (size_t)each * sizeof(tsr_ckpt_slice), all),
                 err_free);
    const int count = drop_empty(all, each * size); /* padding is zero: empty, too */
    qsort(all, (size_t)count, sizeof(tsr_ckpt_slice), by_param_and_row);
    TSR_TRY_GOTO(check_tiling(view->table, all, count), err_free);
    tsr_mem_free(mine);
    *slices_out = all;
    *count_out = count;
    return TSR_OK;

err_free:
    tsr_mem_free(all);
    tsr_mem_free(mine);
    return st;
}

void tsr_ckpt_dataset_name(const char *tensor, const tsr_ckpt_slice *slices, int i,
                           char out[TSR_CKPT_NAME_MAX + 32])
{
    bool is_first = true;

    for (int k = i - 1; k >= 0 && slices[k].param == slices[i].param; --k) {
        is_first = is_first && slices[k].rank != slices[i].rank;
    }
    if (is_first) {
        (void)snprintf(out, TSR_CKPT_NAME_MAX + 32, "%s", tensor);
    } else {
        (void)snprintf(out, TSR_CKPT_NAME_MAX + 32, "%s@%" PRId64, tensor, slices[i].row_begin);
    }
}
