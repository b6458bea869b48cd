/* One pass over master, moments, gradient and working copy; bound by memory. */
#include "runtime/cpu/simd/simd.h"
#include "runtime/cpu/simd/vec.h"

enum {
    BLOCK = 4096 /* elements a thread takes at a time */
};

typedef struct factors {
    float correct_m, correct_v; /* 1 / (1 - beta^t) */
    float keep;                 /* 1 - lr * decay */
} factors;

static factors make_factors(const tsr_adamw_args *args)
{
    const double t = (double)args->step;

    return (factors){
        .correct_m = (float)(1.0 / (1.0 - pow((double)args->beta1, t))),
        .correct_v = (float)(1.0 / (1.0 - pow((double)args->beta2, t))),
        .keep = (float)(1.0 - (double)args->lr * (double)args->decay),
    };
}

/* New master of VEC_N elements; m and v are updated in place. */
VEC_INLINE vec update(const tsr_adamw_args *args, const factors *f, vec master, vec grad, vec *m,
                      vec *v)
{
    const vec g = grad * args->grad_scale;

    *m = args->beta1 * *m + (1.0f - args->beta1) * g;
    *v = args->beta2 * *v + (1.0f - args->beta2) * (g * g);
    const vec step = *m * f->correct_m / (vec_sqrt(*v * f->correct_v) + args->eps);
    return master * f->keep - args->lr * step;
}

VEC_INLINE void update_block(const tsr_adamw_args *args, const factors *f, int64_t begin,
                             int64_t end, tsr_dtype moment, tsr_dtype work)
{
    const bool has_copy = args->work != args->master;
    int64_t i = begin;

    for (; i + VEC_N <= end; i += VEC_N) {
        vec m = vec_load_as(moment, args->m, i), v = vec_load_as(moment, args->v, i);
        const vec master =
            update(args, f, vec_load(args->master + i), vec_load(args->grad + i), &m, &v);

        vec_store_as(moment, args->m, i, m);
        vec_store_as(moment, args->v, i, v);
        vec_store(args->master + i, master);
        if (has_copy) {
            vec_store_as(work, args->work, i, master);
        }
    }
    if (i < end) {
        const int64_t rest = end - i;
        vec m = vec_load_as_part(moment, args->m, i, rest);
        vec v = vec_load_as_part(moment, args->v, i, rest);
        const vec master = update(args, f, vec_load_part(args->master + i, rest),
                                  vec_load_part(args->grad + i, rest), &m, &v);

        vec_store_as_part(moment, args->m, i, m, rest);
        vec_store_as_part(moment, args->v, i, v, rest);
        vec_store_part(args->master + i, master, rest);
        if (has_copy) {
            vec_store_as_part(work, args->work, i, master, rest);
        }
    }
}

tsr_status TSR_SIMD(adamw)(tsr_device *device, const tsr_adamw_args *args, tsr_stream *stream)
{
    const factors f = make_factors(args);

    (void)stream;
#pragma omp parallel for num_threads(device->threads) if (args->count > 4 * BLOCK)
    for (int64_t begin = 0; begin < args->count; begin += BLOCK) {
        const int64_t end = args->count - begin < BLOCK ? args->count : begin + BLOCK;

        if (args->moment_dtype == TSR_F32 && args->work_dtype == TSR_F32) {
            update_block(args, &f, begin, end, TSR_F32, TSR_F32);
        } else if (args->moment_dtype == TSR_F32) {
            update_block(args, &f, begin, end, TSR_F32, TSR_BF16);
        } else if (args->work_dtype == TSR_F32) {
            update_block(args, &f, begin, end, TSR_BF16, TSR_F32);
        } else {
            update_block(args, &f, begin, end, TSR_BF16, TSR_BF16);
        }
    }
    return TSR_OK;
}
