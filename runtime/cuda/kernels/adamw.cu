/* The optimizer's step. */
#include "runtime/cuda/kernels/kernel.cuh"

#include <math.h>

enum { THREADS = 256 };

/* The arguments, with what is the same for all elements computed once in f64. */
typedef struct adamw_step {
    float *master;
    void *m, *v, *work; /* work: NULL where master is all there is */
    const float *grad;
    int64_t count;
    float lr, beta1, beta2, rest1, rest2; /* rest: 1 - beta */
    float unbias_m, unbias_v;             /* 1 / (1 - beta^t) */
    float eps, decay, grad_scale;
} adamw_step;

template <class Moment, class Work, int V>
static __device__ __forceinline__ void update(const adamw_step &s, int64_t at)
{
    float master[V], m[V], v[V], grad[V];

    tsr_load<V>(s.grad + at, grad);
    tsr_load<V>((const Moment *)s.m + at, m);
    tsr_load<V>((const Moment *)s.v + at, v);
    tsr_load<V>(s.master + at, master);
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const float g = grad[i] * s.grad_scale;

        m[i] = s.beta1 * m[i] + s.rest1 * g;
        v[i] = s.beta2 * v[i] + s.rest2 * g * g;
        const float step = m[i] * s.unbias_m / (sqrtf(v[i] * s.unbias_v) + s.eps);
        master[i] -= s.lr * (step + s.decay * master[i]);
    }
    tsr_store<V>((Moment *)s.m + at, m);
    tsr_store<V>((Moment *)s.v + at, v);
    tsr_store<V>(s.master + at, master);
    if (s.work != NULL) {
        tsr_store<V>((Work *)s.work + at, master);
    }
}

/* A thread does one pack of four, with four loads of 16 bytes on their way (8 for bf16 moments);
 * the elements after the last whole pack go one at a time. One pass: 30 bytes an element with f32
 * moments and a bf16 copy, bound by that. No shared memory, no sums. Twin: tsr_plain_adamw(). */
template <class Moment, class Work, int V>
static __global__ void __launch_bounds__(THREADS) adamw_kernel(adamw_step s)
{
    const int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V;

    if (at + V <= s.count) {
        update<Moment, Work, V>(s, at);
    } else {
#pragma unroll 1
        for (int64_t rest = at; rest < s.count; ++rest) {
            update<Moment, Work, 1>(s, rest);
        }
    }
}

template <class Moment, class Work>
static tsr_status launch(const adamw_step *s, bool is_aligned, tsr_stream *stream)
{
    constexpr int V = tsr_pack_width<float>();
    dim3 grid;

    TSR_TRY(tsr_grid_for("adamw", tsr_divide_up(s->count, THREADS * (is_aligned ? V : 1)), &grid));
    if (is_aligned) {
        TSR_LAUNCH(adamw_kernel<Moment, Work, V>, grid, dim3(THREADS), 0,
                   tsr_cuda_stream_of(stream), *s);
    } else {
        TSR_LAUNCH(adamw_kernel<Moment, Work, 1>, grid, dim3(THREADS), 0,
                   tsr_cuda_stream_of(stream), *s);
    }
    return TSR_OK;
}

tsr_status tsr_cuda_adamw(tsr_device *device, const tsr_adamw_args *args, tsr_stream *stream)
{
    const double b1 = (double)args->beta1, b2 = (double)args->beta2, t = (double)args->step;
    const bool is_aligned =
        tsr_packable(1, 1, args->master, args->m, args->v, args->grad, args->work);
    adamw_step s;

    (void)device;
    s.master = args->master;
    s.m = args->m;
    s.v = args->v;
    s.work = args->work == (void *)args->master ? NULL : args->work;
    s.grad = args->grad;
    s.count = args->count;
    s.lr = args->lr;
    s.beta1 = args->beta1;
    s.beta2 = args->beta2;
    s.rest1 = (float)(1.0 - b1);
    s.rest2 = (float)(1.0 - b2);
    s.unbias_m = (float)(1.0 / (1.0 - pow(b1, t)));
    s.unbias_v = (float)(1.0 / (1.0 - pow(b2, t)));
    s.eps = args->eps;
    s.decay = args->decay;
    s.grad_scale = args->grad_scale;
    if (args->moment_dtype == TSR_F32) {
        return args->work_dtype == TSR_F32 ? launch<float, float>(&s, is_aligned, stream)
                                           : launch<float, tsr_device_bf16>(&s, is_aligned, stream);
    }
    return args->work_dtype == TSR_F32
               ? launch<tsr_device_bf16, float>(&s, is_aligned, stream)
               : launch<tsr_device_bf16, tsr_device_bf16>(&s, is_aligned, stream);
}
