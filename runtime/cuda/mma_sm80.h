/* Tensor core steps of sm_80 and later, one instruction each: asynchronous copies of 16 bytes into
 * shared memory, loads of 8 x 8 matrices, and the bf16 product 16 x 8 x 16. Emulated builds take
 * the same functions, with the register layouts written out, from tests/emulation/cuemu_mma.h. */
#ifndef TSR_RUNTIME_CUDA_MMA_SM80_H
#define TSR_RUNTIME_CUDA_MMA_SM80_H

#include "runtime/cuda/port.h"

#ifdef TSR_EMULATED
#include "tests/emulation/cuemu_mma.h"
#else

/* Copy 16 bytes, or write 16 zero bytes where `inside` is false (from is not read then). */
__device__ __forceinline__ void tsr_copy_async(void *to, const void *from, bool inside)
{
    const unsigned address = (unsigned)__cvta_generic_to_shared(to);

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(inside ? 16 : 0)
                 : "memory");
}

/* Close the group of the copies issued so far by this thread. */
__device__ __forceinline__ void tsr_copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Wait for all groups of this thread but the youngest PENDING. */
template <int PENDING> __device__ __forceinline__ void tsr_copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* Four 8 x 8 matrices of 16-bit elements; lane 8 j + r gives the address of row r of matrix j.
 * Lane l gets in out[j] the elements (l / 4, 2 (l % 4)) and the next of matrix j. */
__device__ __forceinline__ void tsr_load_matrices(unsigned out[4], const void *row)
{
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

/* The same with each matrix transposed: lane l gets (2 (l % 4), l / 4) and the one below it. */
__device__ __forceinline__ void tsr_load_transposed(unsigned out[4], const void *row)
{
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

/* c[16,8] += a[16,16] b[16,8]. With g = lane / 4, t = 2 (lane % 4), and pairs along k:
 * a = {(g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8)}, b = {(t, g), (t + 8, g)},
 * c = {(g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)}. */
__device__ __forceinline__ void tsr_mma_bf16(float c[4], const unsigned a[4], const unsigned b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif

#endif
