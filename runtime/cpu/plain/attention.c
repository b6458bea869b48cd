/* Causal softmax attention, a query at a time; scores are computed anew wherever they are needed.
 */
#include "runtime/cpu/plain/plain.h"

#include <math.h>

/* Where head `head` of one token starts in q, or (with its key-value head) in k and v. */
static int64_t query_at(const tsr_attention_args *args, int64_t batch, int64_t i, int64_t head)
{
    return batch * args->q_batch_stride + i * args->q_stride + head * args->head_dim;
}

static int64_t key_at(const tsr_attention_args *args, int64_t batch, int64_t j, int64_t head)
{
    const int64_t kv_head = head / (args->heads / args->kv_heads);

    return batch * args->kv_batch_stride + j * args->kv_stride + kv_head * args->head_dim;
}

static int64_t out_at(const tsr_attention_args *args, int64_t batch, int64_t i, int64_t head)
{
    return batch * args->out_batch_stride + i * args->out_stride + head * args->head_dim;
}

static double dot(const tsr_attention_args *args, const void *a, int64_t at_a, const void *b,
                  int64_t at_b)
{
    double sum = 0.0;

    for (int64_t d = 0; d < args->head_dim; ++d) {
        sum += (double)tsr_plain_get(args->dtype, a, at_a + d) *
               (double)tsr_plain_get(args->dtype, b, at_b + d);
    }
    return sum;
}

static double score(const tsr_attention_args *args, int64_t batch, int64_t i, int64_t j,
                    int64_t head)
{
    return (double)args->scale * dot(args, args->q, query_at(args, batch, i, head), args->k,
                                     key_at(args, batch, j, head));
}

static void add_row(const tsr_attention_args *args, double factor, const void *from, int64_t at,
                    double *sum)
{
    for (int64_t d = 0; d < args->head_dim; ++d) {
        sum[d] += factor * (double)tsr_plain_get(args->dtype, from, at + d);
    }
}

static void put_row(const tsr_attention_args *args, void *to, int64_t at, const double *row)
{
    for (int64_t d = 0; d < args->head_dim; ++d) {
        tsr_plain_set(args->dtype, to, at + d, (float)row[d]);
    }
}

static void attend(const tsr_attention_args *args, int64_t batch, int64_t i, int64_t head)
{
    const int64_t seen = args->kv_len - args->q_len + i + 1;
    double out[TSR_HEAD_DIM_MAX] = {0}, top = -INFINITY, sum = 0.0;

    for (int64_t j = 0; j < seen; ++j) {
        top = fmax(top, score(args, batch, i, j, head));
    }
    for (int64_t j = 0; j < seen; ++j) {
        sum += exp(score(args, batch, i, j, head) - top);
    }
    const double lse = top + log(sum);
    for (int64_t j = 0; j < seen; ++j) {
        add_row(args, exp(score(args, batch, i, j, head) - lse), args->v,
                key_at(args, batch, j, head), out);
    }
    put_row(args, args->out, out_at(args, batch, i, head), out);
    if (args->lse != NULL) {
        args->lse[(batch * args->heads + head) * args->q_len + i] = (float)lse;
    }
}

tsr_status tsr_plain_attention_forward(tsr_device *device, const tsr_attention_args *args,
                                       tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t batch = 0; batch < args->batch; ++batch) {
        for (int64_t head = 0; head < args->heads; ++head) {
            for (int64_t i = 0; i < args->q_len; ++i) {
                attend(args, batch, i, head);
            }
        }
    }
    return TSR_OK;
}

/* Probability of pair (i, j) and the gradient of its unscaled score:
 * dp = dout_i . v_j, and softmax gives ds = p (dp - sum_j p dp), where the sum is dout_i . out_i.
 */
static double pair_gradient(const tsr_attention_args *args, int64_t batch, int64_t i, int64_t j,
                            int64_t head, double *p_out)
{
    const int64_t at_out = out_at(args, batch, i, head);
    const double lse = (double)args->lse[(batch * args->heads + head) * args->q_len + i];
    const double p = exp(score(args, batch, i, j, head) - lse);
    const double dp = dot(args, args->dout, at_out, args->v, key_at(args, batch, j, head));

    *p_out = p;
    return p * (dp - dot(args, args->dout, at_out, args->out, at_out)) * (double)args->scale;
}

static void query_gradient(const tsr_attention_args *args, int64_t batch, int64_t i, int64_t head)
{
    double dq[TSR_HEAD_DIM_MAX] = {0}, p;

    for (int64_t j = 0; j <= i; ++j) {
        add_row(args, pair_gradient(args, batch, i, j, head, &p), args->k,
                key_at(args, batch, j, head), dq);
    }
    put_row(args, args->dq, query_at(args, batch, i, head), dq);
}

static void key_gradient(const tsr_attention_args *args, int64_t batch, int64_t j, int64_t kv_head)
{
    const int64_t group = args->heads / args->kv_heads, first = kv_head * group;
    double dk[TSR_HEAD_DIM_MAX] = {0}, dv[TSR_HEAD_DIM_MAX] = {0};

    for (int64_t head = first; head < first + group; ++head) {
        for (int64_t i = j; i < args->q_len; ++i) {
            double p;
            const double ds = pair_gradient(args, batch, i, j, head, &p);

            add_row(args, ds, args->q, query_at(args, batch, i, head), dk);
            add_row(args, p, args->dout, out_at(args, batch, i, head), dv);
        }
    }
    put_row(args, args->dk, key_at(args, batch, j, first), dk);
    put_row(args, args->dv, key_at(args, batch, j, first), dv);
}

tsr_status tsr_plain_attention_backward(tsr_device *device, const tsr_attention_args *args,
                                        tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t batch = 0; batch < args->batch; ++batch) {
        for (int64_t i = 0; i < args->q_len; ++i) {
            for (int64_t head = 0; head < args->heads; ++head) {
                query_gradient(args, batch, i, head);
            }
            for (int64_t kv_head = 0; kv_head < args->kv_heads; ++kv_head) {
                key_gradient(args, batch, i, kv_head);
            }
        }
    }
    return TSR_OK;
}
