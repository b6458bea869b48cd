# Attention. Paths are relative to runtime/cuda/, those of fakes to tests/emulation/.
list(APPEND TSR_CUDA_SOURCES attention.c attention_cudnn.c attention_graph.c)
list(APPEND TSR_CUDA_KERNELS attention_plain.cu)
list(APPEND TSR_CUDA_FAKES fake_cudnn.c fake_cudnn_run.c)
