// Marks a function that CUDA kernels share with the processor's loops, so that both compute the same bits.
#pragma once

#if defined(__CUDACC__)
#define DGC_HOST_DEVICE __host__ __device__
#else
#define DGC_HOST_DEVICE
#endif
