/* What Hopper (sm_90a) adds, one instruction each: barriers in shared memory that count bytes,
 * boxes of a matrix copied by the tensor memory accelerator, products of a whole warp group.
 *
 * Everything asynchronous here goes through shared memory: a box lands with its 128-byte rows
 * swizzled (piece p of 16 bytes of row r at p ^ (r % 8), rows counted from a multiple of 1024
 * bytes), and a descriptor tells the product where its operand lies. Emulated builds take the same
 * functions, with those layouts written out, from tests/emulation/cuemu_wgmma.h.
 * Source: PTX ISA 9.0, sections 9.7.13.15 (mbarrier), 9.7.9.27 (tensor copies), 9.7.15 (wgmma). */
#ifndef TSR_RUNTIME_CUDA_WGMMA_SM90_H
#define TSR_RUNTIME_CUDA_WGMMA_SM90_H

#include "runtime/cuda/port.h"

enum { TSR_BOX_COLUMNS = 64 /* 128 bytes of bf16: a swizzled row */ };

/* An operand of tsr_wgmma() in shared memory. Groups of 8 rows of 128 bytes lie `stride` bytes
 * apart; where the rows run along the depth, 64 indices wide, the next 64 lie `leading` bytes
 * on. */
__device__ __forceinline__ uint64_t tsr_wgmma_operand(unsigned address, unsigned leading,
                                                      unsigned stride)
{
    const uint64_t swizzle_128_bytes = 1;

    return (uint64_t)((address & 0x3ffffu) >> 4) | (uint64_t)(leading >> 4) << 16 |
           (uint64_t)(stride >> 4) << 32 | swizzle_128_bytes << 62;
}

#ifdef TSR_EMULATED
#include "tests/emulation/cuemu_wgmma.h"
#else

#include <cuda.h>
#include <cudaTypedefs.h>

enum { TSR_SM90_STAGES = 4 /* of 48 KiB, of 227 */ };

/* ---- on the host
 * ------------------------------------------------------------------------------ */

typedef CUtensorMap tsr_tensor_map;

/* The driver's function that makes maps, or NULL: asked for by name, so that this module needs no
 * library of the driver to be loaded. */
static inline tsr_status tsr_tensor_map_find_maker(void **out)
{
    cudaDriverEntryPointQueryResult found;
    void *maker = nullptr;

    TSR_CUDA_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &maker, 12000,
                                                  cudaEnableDefault, &found));
    *out = found == cudaDriverEntryPointSuccess ? maker : nullptr;
    return TSR_OK;
}

/* A map of bf16 [matrices, rows, columns] read in boxes of [1, box_rows, 64]; zero outside of
 * it. */
static inline tsr_status tsr_tensor_map_make(void *maker, const void *base, int64_t matrices,
                                             int64_t rows, int64_t columns, int box_rows,
                                             tsr_tensor_map *out)
{
    const cuuint64_t sizes[3] = {(cuuint64_t)columns, (cuuint64_t)rows, (cuuint64_t)matrices};
    const cuuint64_t strides[2] = {(cuuint64_t)columns * 2, (cuuint64_t)(columns * rows) * 2};
    const cuuint32_t box[3] = {TSR_BOX_COLUMNS, (cuuint32_t)box_rows, 1}, steps[3] = {1, 1, 1};
    const CUresult code = ((PFN_cuTensorMapEncodeTiled_v12000)maker)(
        out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, (void *)base, sizes, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    TSR_CHECK(code == CUDA_SUCCESS, TSR_ERR_DEVICE,
              "cuTensorMapEncodeTiled: code %d for [%lld, %lld, %lld] at %p", (int)code,
              (long long)matrices, (long long)rows, (long long)columns, base);
    return TSR_OK;
}

/* ---- on the GPU
 * ------------------------------------------------------------------------------- */

struct tsr_mbarrier {
    uint64_t word;
};

__device__ __forceinline__ unsigned tsr_shared_address(const void *at)
{
    return (unsigned)__cvta_generic_to_shared(at);
}

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* A phase of the barrier ends after `arrivals` arrivals and all bytes announced to it. */
__device__ __forceinline__ void tsr_mbarrier_init(tsr_mbarrier *barrier, unsigned arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(tsr_shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

/* Make initialised barriers known to the accelerator; before the block's barrier. */
__device__ __forceinline__ void tsr_mbarrier_publish()
{
    asm volatile("fence.mbarrier_init.release.cluster;\n fence.proxy.async.shared::cta;" ::
                     : "memory");
}

__device__ __forceinline__ void tsr_mbarrier_arrive(tsr_mbarrier *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(tsr_shared_address(barrier))
                 : "memory");
}

/* Arrive, and announce bytes that tsr_copy_box() will bring. */
__device__ __forceinline__ void tsr_mbarrier_expect(tsr_mbarrier *barrier, unsigned bytes)
{
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(tsr_shared_address(barrier)),
        "r"(bytes)
        : "memory");
}

/* Wait for the end of the phase of this parity: 0 is the first; 1 is past on a new barrier. */
__device__ __forceinline__ void tsr_mbarrier_wait(tsr_mbarrier *barrier, unsigned parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(tsr_shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

/* Queue the copy of the box at (matrix, row, column) to `to`; its bytes, zeros outside of the
 * matrix included, count for the barrier. */
__device__ __forceinline__ void tsr_copy_box(void *to, const tsr_tensor_map *map, int64_t matrix,
                                             int64_t row, int64_t column, tsr_mbarrier *barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(tsr_shared_address(to)),
                 "l"(map), "r"((int)column), "r"((int)row), "r"((int)matrix),
                 "r"(tsr_shared_address(barrier))
                 : "memory");
}

/* The sums as operands of asm. */
#define TSR_SUM_4(i)  "+f"(sum[i]), "+f"(sum[(i) + 1]), "+f"(sum[(i) + 2]), "+f"(sum[(i) + 3])
#define TSR_SUM_16(i) TSR_SUM_4(i), TSR_SUM_4((i) + 4), TSR_SUM_4((i) + 8), TSR_SUM_4((i) + 12)
#define TSR_SUM_ALL                                                                                \
    TSR_SUM_16(0), TSR_SUM_16(16), TSR_SUM_16(32), TSR_SUM_16(48), TSR_SUM_16(64), TSR_SUM_16(80), \
        TSR_SUM_16(96), TSR_SUM_16(112)

/* The products issued from here on may touch the sums. */
__device__ __forceinline__ void tsr_wgmma_begin(float sum[128])
{
    asm volatile("wgmma.fence.sync.aligned;" : TSR_SUM_ALL : : "memory");
}

/* Close the group of the products issued so far. */
__device__ __forceinline__ void tsr_wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Wait for all groups but the youngest PENDING. */
template <int PENDING> __device__ __forceinline__ void tsr_wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* Wait for all groups: the sums may be read. They are operands so that no read moves before. */
__device__ __forceinline__ void tsr_wgmma_finish(float sum[128])
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" : TSR_SUM_ALL : : "memory");
}

/* sum[64,256] += a[64,16] b[16,256] of bf16, by the 128 threads of a warp group together. An
 * operand is stored with its rows along the index (depth contiguous) unless ALONG_DEPTH.
 * Thread t holds of row 16 (t / 32) + t % 32 / 4 + 8 h the columns 8 j + 2 (t % 4) and the next in
 * sum[4 j + 2 h] and the next, for j < 32, h < 2. */
template <bool A_ALONG_DEPTH, bool B_ALONG_DEPTH>
__device__ __forceinline__ void tsr_wgmma(float sum[128], uint64_t a, uint64_t b)
{
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
        "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "
        "%125, %126, %127}, %128, %129, add, 1, 1, %131, %132;\n"
        "}"
        : TSR_SUM_ALL
        : "l"(a), "l"(b), "r"(1), "n"((int)A_ALONG_DEPTH), "n"((int)B_ALONG_DEPTH));
}

/* Move registers between the warp groups of a block; by all threads of a group. */
template <int REGISTERS> __device__ __forceinline__ void tsr_registers_give()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void tsr_registers_take()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

#else /* another architecture: grouped.c never launches these kernels there */

__device__ __forceinline__ void tsr_mbarrier_init(tsr_mbarrier *, unsigned)
{
    __trap();
}
__device__ __forceinline__ void tsr_mbarrier_publish()
{
}
__device__ __forceinline__ void tsr_mbarrier_arrive(tsr_mbarrier *)
{
}
__device__ __forceinline__ void tsr_mbarrier_expect(tsr_mbarrier *, unsigned)
{
}
__device__ __forceinline__ void tsr_mbarrier_wait(tsr_mbarrier *, unsigned)
{
}
__device__ __forceinline__ void tsr_copy_box(void *, const tsr_tensor_map *, int64_t, int64_t,
                                             int64_t, tsr_mbarrier *)
{
}
__device__ __forceinline__ void tsr_wgmma_begin(float *)
{
}
__device__ __forceinline__ void tsr_wgmma_finish(float *)
{
}
__device__ __forceinline__ void tsr_wgmma_commit()
{
}
template <int PENDING> __device__ __forceinline__ void tsr_wgmma_wait()
{
}
template <bool A_ALONG_DEPTH, bool B_ALONG_DEPTH>
__device__ __forceinline__ void tsr_wgmma(float *, uint64_t, uint64_t)
{
}
template <int REGISTERS> __device__ __forceinline__ void tsr_registers_give()
{
}
template <int REGISTERS> __device__ __forceinline__ void tsr_registers_take()
{
}

#endif
#endif

#endif
