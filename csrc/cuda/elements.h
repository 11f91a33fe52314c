// Reading the arrays of a step, and its arithmetic, as in the processor's passes.
#pragma once

#include "device.h"
#include "half.h"
#include "tables.h"

namespace dgc::cuda {

struct Four {
  float x[4];
};

__device__ inline float element(const void* data, Scalar type, uint32_t i) {
  if (type == Scalar::float32) return static_cast<const float*>(data)[i];
  const uint16_t half = static_cast<const uint16_t*>(data)[i];
  return type == Scalar::float16 ? half_to_float(half) : bfloat16_to_float(half);
}

// Elements i.. of n, those beyond the end as 0. vector: the array is aligned for it, i is a multiple of 4, and all
// four are there.
__device__ inline Four four_elements(const void* data, Scalar type, uint32_t i, uint32_t n, bool vector) {
  Four four;
  if (vector && type == Scalar::float32) {
    const float4 read = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + i);
    four.x[0] = read.x;
    four.x[1] = read.y;
    four.x[2] = read.z;
    four.x[3] = read.w;
  } else if (vector) {
    const ushort4 read = *reinterpret_cast<const ushort4*>(static_cast<const uint16_t*>(data) + i);
    const uint16_t halves[4] = {read.x, read.y, read.z, read.w};
    for (int c = 0; c < 4; ++c) {
      four.x[c] = type == Scalar::float16 ? half_to_float(halves[c]) : bfloat16_to_float(halves[c]);
    }
  } else {
    for (uint32_t c = 0; c < 4; ++c) four.x[c] = i + c < n ? element(data, type, i + c) : 0.0f;
  }
  return four;
}

__device__ inline void store_four(float* data, uint32_t i, uint32_t n, bool vector, const Four& four) {
  if (vector) {
    *reinterpret_cast<float4*>(data + i) = make_float4(four.x[0], four.x[1], four.x[2], four.x[3]);
  } else {
    for (uint32_t c = 0; c < 4; ++c) {
      if (i + c < n) data[i + c] = four.x[c];
    }
  }
}

__device__ inline void store_zeros(void* data, Scalar type, uint32_t i, uint32_t n, bool vector) {
  if (type == Scalar::float32) {
    store_four(static_cast<float*>(data), i, n, vector, Four{});
    return;
  }
  uint16_t* const halves = static_cast<uint16_t*>(data);
  if (vector) {
    *reinterpret_cast<ushort4*>(halves + i) = make_ushort4(0, 0, 0, 0);
  } else {
    for (uint32_t c = 0; c < 4; ++c) {
      if (i + c < n) halves[i + c] = 0;
    }
  }
}

// v' of elements i.., and u' in *velocity. See update.h.
template <Memory kMemory>
__device__ inline Four accumulated_four(const Slot& slot, uint32_t i, bool vector, Four* velocity) {
  const uint32_t n = slot.format.n;
  const Coefficients& c = slot.coefficients;
  const Four grad = four_elements(slot.grad, slot.grad_type, i, n, vector);
  Four weights{}, before{}, v{};
  if (slot.weights) weights = four_elements(slot.weights, slot.weights_type, i, n, vector);
  if (kMemory != Memory::plain) before = four_elements(slot.velocity, Scalar::float32, i, n, vector);
  if (slot.residual) v = four_elements(slot.residual, Scalar::float32, i, n, vector);
  for (int j = 0; j < 4; ++j) {
    float ghat = c.unscale * grad.x[j];
    if (slot.weights) ghat += c.weight_decay * weights.x[j];
    float u = 0.0f;
    if (kMemory != Memory::plain) u = next_velocity(c, ghat, before.x[j]);
    velocity->x[j] = u;
    v.x[j] = v.x[j] + step_of<kMemory>(c, ghat, u);
  }
  return v;
}

__device__ inline Four accumulated_four(const Slot& slot, uint32_t i, bool vector, Four* velocity) {
  if (slot.memory == Memory::momentum)
    return accumulated_four<Memory::momentum>(slot, i, vector, velocity);
  if (slot.memory == Memory::nesterov)
    return accumulated_four<Memory::nesterov>(slot, i, vector, velocity);
  return accumulated_four<Memory::plain>(slot, i, vector, velocity);
}

// v' of one element.
__device__ inline float accumulated(const Slot& slot, uint32_t i) {
  const Coefficients& c = slot.coefficients;
  float ghat = c.unscale * element(slot.grad, slot.grad_type, i);
  if (slot.weights) ghat += c.weight_decay * element(slot.weights, slot.weights_type, i);
  const float v = slot.residual ? slot.residual[i] : 0.0f;
  if (slot.memory == Memory::plain) return v + step_of<Memory::plain>(c, ghat, 0.0f);
  const float u = next_velocity(c, ghat, slot.velocity[i]);
  return v + (slot.memory == Memory::nesterov ? step_of<Memory::nesterov>(c, ghat, u)
                                              : step_of<Memory::momentum>(c, ghat, u));
}

}  // namespace dgc::cuda
