#include "elements.h"
#include "launch.h"
#include "propose.h"

namespace dgc::cuda {
namespace {

constexpr uint32_t kSampledEach = kMostSampled / kSampleThreads;
constexpr uint32_t kSampleRun = 32;  // neighbours that are sampled together

// Magnitudes of v' at this thread's places in the sample, -1 where it has none.
template <Memory kMemory>
__device__ void read_sample(const Slot& slot, int32_t (&sampled)[kSampledEach]) {
  // Run r begins at line floor(r * lines / runs), without a product that has more than 32 bits.
  const uint32_t runs = slot.sampled / kSampleRun;
  const uint32_t distance = slot.format.n / kSampleRun / runs;
  const uint32_t rest = slot.format.n / kSampleRun % runs;
  // So many are read before one is used.
  constexpr uint32_t kAtOnce = 8;
#pragma unroll
  for (uint32_t first = 0; first < kSampledEach; first += kAtOnce) {
    float grad[kAtOnce], weights[kAtOnce], velocity[kAtOnce], residual[kAtOnce];
#pragma unroll
    for (uint32_t s = 0; s < kAtOnce; ++s) {
      const uint32_t number = (first + s) * kSampleThreads + threadIdx.x;
      grad[s] = weights[s] = velocity[s] = residual[s] = 0.0f;
      if (number < slot.sampled) {
        const uint32_t run = number / kSampleRun;
        const uint32_t i = (run * distance + run * rest / runs) * kSampleRun + number % kSampleRun;
        grad[s] = element(slot.grad, slot.grad_type, i);
        if (slot.weights) weights[s] = element(slot.weights, slot.weights_type, i);
        if (kMemory != Memory::plain) velocity[s] = slot.velocity[i];
        if (slot.residual) residual[s] = slot.residual[i];
      }
    }
#pragma unroll
    for (uint32_t s = 0; s < kAtOnce; ++s) {
      const float v = next<kMemory>(slot.coefficients, slot.weights != nullptr, grad[s], weights[s], &velocity[s],
                                    residual[s]);
      sampled[first + s] = (first + s) * kSampleThreads + threadIdx.x < slot.sampled ? magnitude(v) : -1;
    }
  }
}

// A magnitude that at least slot.rank elements of the sample exceed, and hardly more. Each round tries three magnitudes
// and leaves a quarter of the range.
template <Memory kMemory>
__device__ int32_t guess(const Slot& slot) {
  struct Shared {
    uint32_t larger[3][3];
  };
  DGC_SHARED(Shared, shared);
  int32_t sampled[kSampledEach];
  read_sample<kMemory>(slot, sampled);
  if (threadIdx.x < 9) shared.larger[threadIdx.x / 3][threadIdx.x % 3] = 0;
  __syncthreads();
  // At least `rank` exceed `threshold`, fewer exceed threshold + apart. Seven bits of the mantissa will do for a guess.
  uint32_t threshold = static_cast<uint32_t>(kNoThreshold);
  uint32_t apart = 1u << 31;
  for (uint32_t round = 0; apart > 1u << 16; ++round) {
    apart /= 4;
    uint32_t larger[3] = {0, 0, 0};
#pragma unroll
    for (uint32_t s = 0; s < kSampledEach; ++s) {
#pragma unroll
      for (uint32_t t = 0; t < 3; ++t) larger[t] += sampled[s] > static_cast<int32_t>(threshold + (t + 1) * apart) ? 1 : 0;
    }
#pragma unroll
    for (uint32_t t = 0; t < 3; ++t) {
      const uint32_t of_warp = sum_of_lanes(larger[t]);
      if (lane() == 0) atomicAdd(&shared.larger[round % 3][t], of_warp);
      // Nobody counts in the next ones yet, and all have seen what they held two rounds ago.
      if (threadIdx.x == 0) shared.larger[(round + 1) % 3][t] = 0;
    }
    __syncthreads();
    uint32_t steps = 0;
#pragma unroll
    for (uint32_t t = 0; t < 3; ++t) steps += shared.larger[round % 3][t] >= slot.rank ? 1 : 0;
    threshold += steps * apart;
  }
  return static_cast<int32_t>(threshold);
}

__global__ void __launch_bounds__(kSampleThreads) sample(Batch batch) {
  const Slot slot = batch.slots[blockIdx.x];
  const uint32_t thread = threadIdx.x;
  for (uint32_t row = slot.first_row + thread; row < slot.first_row + slot.rows; row += kSampleThreads) {
    batch.row_counts.candidates[row] = batch.row_counts.larger[row] = batch.row_counts.ties[row] = 0;
  }
  if (slot.histogram) {
    for (uint32_t bin = thread; bin < kBins; bin += kSampleThreads) slot.histogram[bin] = 0;
  }
  int32_t threshold = kNoThreshold;
  if (slot.rank > 0) {
    if (slot.memory == Memory::momentum) {
      threshold = guess<Memory::momentum>(slot);
    } else if (slot.memory == Memory::nesterov) {
      threshold = guess<Memory::nesterov>(slot);
    } else {
      threshold = guess<Memory::plain>(slot);
    }
  }
  if (thread == 0) {
    if (blockIdx.x == 0) *batch.failures = 0;
    Progress progress{};
    progress.threshold = threshold < kLargestFinite ? threshold : kLargestFinite;
    *slot.progress = progress;
  }
}

}  // namespace

void guess_thresholds(const Batch& batch, void* stream) {
  launch("sample", sample, batch.count, kSampleThreads, stream, batch);
}

}  // namespace dgc::cuda
