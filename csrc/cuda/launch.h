// Starting kernels.
#pragma once

#include <cstdint>

#include "device.h"

#if !defined(DGC_EMULATE_CUDA)
#include <stdexcept>
#include <string>

namespace dgc::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA kernel ") + what + ": " + cudaGetErrorString(status) +
                           " (compiled with CUDA " + std::to_string(CUDART_VERSION / 1000) + "." +
                           std::to_string(CUDART_VERSION % 1000 / 10) + ")");
}

// `blocks` blocks of `threads` threads, none of them if blocks is 0.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), uint32_t blocks, uint32_t threads, void* stream,
            const Arguments&... arguments) {
  if (blocks == 0) return;
  kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError(), name);
}

// The same, of at most `most` blocks that all run at the same time, so that they can wait for each other.
template <class... Parameters, class... Arguments>
void launch_together(const char* name, void (*kernel)(Parameters...), uint32_t most, uint32_t threads,
                     void* stream, Arguments... arguments) {
  if (most == 0) return;
  int device = 0, processors = 0;
  check(cudaGetDevice(&device), name);
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), name);
  const uint32_t blocks = most < static_cast<uint32_t>(processors) ? most : static_cast<uint32_t>(processors);
  void* pointers[] = {&arguments...};
  check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(threads), pointers, 0,
                                    static_cast<cudaStream_t>(stream)),
        name);
}

}  // namespace dgc::cuda
#endif
