# Matrix products. Paths are relative to runtime/cuda/, those of fakes to tests/emulation/.
list(APPEND TSR_CUDA_SOURCES gemm_cublaslt.c gemm_tune.c grouped.c)
list(APPEND TSR_CUDA_KERNELS grouped_plain.cu grouped_mma.cu grouped_sm90.cu)
list(APPEND TSR_CUDA_FAKES fake_cublaslt.c)
