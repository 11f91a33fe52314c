// What the kernels are written in: CUDA, or its emulation on the processor (tests/cuda_emulation.h), which has
// the few operations that are used here. Sums and scans over the threads of a block.
#pragma once

#include <cstdint>

#if defined(DGC_EMULATE_CUDA)
#include "cuda_emulation.h"
#else
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#define DGC_SHARED(TYPE, NAME) __shared__ TYPE NAME

namespace dgc::cuda {

// Waits for all threads of all blocks of a kernel that was launched with launch_together().
__device__ inline void grid_barrier() { cooperative_groups::this_grid().sync(); }

}  // namespace dgc::cuda
#endif

namespace dgc::cuda {

constexpr uint32_t kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ inline uint32_t lane() { return threadIdx.x % kWarp; }

// The sum of the values of all lanes before this one, and, in *total, of all of them.
__device__ inline uint32_t sum_of_lanes_before(uint32_t value, uint32_t* total) {
  uint32_t through = value;
  for (uint32_t step = 1; step < kWarp; step *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, through, step);
    through += lane() >= step ? other : 0;
  }
  *total = __shfl_sync(kAllLanes, through, kWarp - 1);
  return through - value;
}

__device__ inline uint32_t sum_of_lanes(uint32_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_add_sync(kAllLanes, value);
#endif
  for (uint32_t step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Scratch in shared memory for the operations below. They may follow each other at once.
struct BlockScratch {
  uint32_t warps[kWarp];
};

// The sum of the values of all threads before this one, and, in *total, of all of them.
template <uint32_t kThreads>
__device__ inline uint32_t sum_before(uint32_t value, BlockScratch* scratch, uint32_t* total) {
  constexpr uint32_t kWarps = kThreads / kWarp;
  const uint32_t warp = threadIdx.x / kWarp;
  uint32_t of_warp;
  const uint32_t before = sum_of_lanes_before(value, &of_warp);
  if (lane() == 0) scratch->warps[warp] = of_warp;
  __syncthreads();
  uint32_t earlier = 0, all = 0;
#pragma unroll
  for (uint32_t w = 0; w < kWarps; ++w) {
    if (w == warp) earlier = all;
    all += scratch->warps[w];
  }
  *total = all;
  __syncthreads();
  return earlier + before;
}

template <uint32_t kThreads>
__device__ inline uint32_t sum_of_block(uint32_t value, BlockScratch* scratch) {
  const uint32_t of_warp = sum_of_lanes(value);
  if (lane() == 0) scratch->warps[threadIdx.x / kWarp] = of_warp;
  __syncthreads();
  uint32_t all = 0;
#pragma unroll
  for (uint32_t w = 0; w < kThreads / kWarp; ++w) all += scratch->warps[w];
  __syncthreads();
  return all;
}

template <uint32_t kThreads>
__device__ inline int32_t max_of_block(int32_t value, BlockScratch* scratch) {
  constexpr uint32_t kWarps = kThreads / kWarp;
  for (uint32_t step = kWarp / 2; step > 0; step /= 2) {
    const int32_t other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  if (lane() == 0) scratch->warps[threadIdx.x / kWarp] = static_cast<uint32_t>(value);
  __syncthreads();
  int32_t largest = static_cast<int32_t>(scratch->warps[0]);
  for (uint32_t warp = 1; warp < kWarps; ++warp) {
    const int32_t other = static_cast<int32_t>(scratch->warps[warp]);
    largest = other > largest ? other : largest;
  }
  __syncthreads();
  return largest;
}

}  // namespace dgc::cuda
