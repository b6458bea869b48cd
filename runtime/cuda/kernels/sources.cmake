# Own kernels of the cuda device. Paths are relative to runtime/cuda/.
list(APPEND TSR_CUDA_KERNELS
  kernels/adamw.cu
  kernels/cross_entropy.cu
  kernels/embedding.cu
  kernels/norm.cu
  kernels/permute.cu
  kernels/rope.cu
  kernels/route.cu
  kernels/sort.cu
  kernels/sums.cu
  kernels/swiglu.cu
  kernels/vectors.cu)
