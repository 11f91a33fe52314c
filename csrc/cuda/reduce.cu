#include "reduce.h"

#include "elements.h"
#include "launch.h"

namespace dgc::cuda {
namespace {

__global__ void __launch_bounds__(kThreads) squares_of_stripe(const Squared* arrays, const uint32_t* stripe_array,
                                                              double* sums) {
  struct Shared {
    double partial[kThreads];
  };
  DGC_SHARED(Shared, shared);
  const Squared array = arrays[stripe_array[blockIdx.x]];
  const uint32_t begin = (blockIdx.x - array.first_stripe) * kStripe;
  double sum = 0.0;
  for (uint32_t at = threadIdx.x; at < kStripe && begin + at < array.n; at += kThreads) {
    const double x = static_cast<double>(element(array.data, array.type, begin + at));
    sum += x * x;
  }
  shared.partial[threadIdx.x] = sum;
  __syncthreads();
  for (uint32_t half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared.partial[threadIdx.x] += shared.partial[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = shared.partial[0];
}

__global__ void __launch_bounds__(kThreads) finish_stripe(const Reduced* tensors, const uint32_t* stripe_tensor) {
  const Reduced t = tensors[stripe_tensor[blockIdx.x]];
  const uint32_t begin = (blockIdx.x - t.first_stripe) * kStripe;
  for (uint32_t at = threadIdx.x; at < kStripe && begin + at < t.n; at += kThreads) {
    const uint32_t i = begin + at;
    float step = element(t.in, t.in_type, i) * t.factor;
    if (t.memory != Memory::plain) {
      const float u = next_velocity(t.coefficients, step, t.velocity[i]);
      t.velocity[i] = u;
      step = t.memory == Memory::nesterov ? step_of<Memory::nesterov>(t.coefficients, step, u) : u;
    }
    t.out[i] = step * t.after;
  }
}

}  // namespace

void sum_squares(const Squared* arrays, const uint32_t* stripe_array, uint32_t stripes, double* sums, void* stream) {
  launch("sum_squares", squares_of_stripe, stripes, kThreads, stream, arrays, stripe_array, sums);
}

void finish_reduced(const Reduced* tensors, const uint32_t* stripe_tensor, uint32_t stripes, void* stream) {
  launch("finish_reduced", finish_stripe, stripes, kThreads, stream, tensors, stripe_tensor);
}

}  // namespace dgc::cuda
