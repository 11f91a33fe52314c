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

// v' of one element, and u' in *velocity. See update.h.
template <Memory kMemory>
__device__ inline float next(const Coefficients& c, bool decay, float grad, float weight, float* velocity,
                             float residual) {
  float ghat = c.unscale * grad;
  if (decay) ghat += c.weight_decay * weight;
  if (kMemory != Memory::plain) *velocity = next_velocity(c, ghat, *velocity);
  return residual + step_of<kMemory>(c, ghat, *velocity);
}

// The arrays of four neighbours, read before anything is computed, so that several reads are under way at once.
template <Memory kMemory, bool kWeights>
struct PlainFour {
  float4 grad, weights, velocity, residual;

  __device__ void read(const Slot& slot, uint32_t i) {
    const auto at = [i](const void* data) {
      return *reinterpret_cast<const float4*>(static_cast<const float*>(data) + i);
    };
    grad = at(slot.grad);
    if (kWeights) weights = at(slot.weights);
    if (kMemory != Memory::plain) velocity = at(slot.velocity);
    residual = at(slot.residual);
  }

  __device__ Four accumulated(const Coefficients& c, Four* u) const {
    const float4 w = kWeights ? weights : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    *u = kMemory != Memory::plain ? Four{{velocity.x, velocity.y, velocity.z, velocity.w}} : Four{};
    Four v;
    v.x[0] = next<kMemory>(c, kWeights, grad.x, w.x, &u->x[0], residual.x);
    v.x[1] = next<kMemory>(c, kWeights, grad.y, w.y, &u->x[1], residual.y);
    v.x[2] = next<kMemory>(c, kWeights, grad.z, w.z, &u->x[2], residual.z);
    v.x[3] = next<kMemory>(c, kWeights, grad.w, w.w, &u->x[3], residual.w);
    return v;
  }
};

// visit(i, vector, v', u') for this thread's fours of a stripe, which together are all of it; `vector` as above.
template <Memory kMemory, bool kWeights, class Visit>
__device__ inline void visit_plain(const Slot& slot, uint32_t begin, const Visit& visit) {
  constexpr uint32_t kAtOnce = 2;
  static_assert(kStripe % (4 * kThreads * kAtOnce) == 0, "no rest");
  for (uint32_t at = 4 * threadIdx.x; at < kStripe; at += 4 * kThreads * kAtOnce) {
    PlainFour<kMemory, kWeights> fours[kAtOnce];
#pragma unroll
    for (uint32_t f = 0; f < kAtOnce; ++f) fours[f].read(slot, begin + at + 4 * kThreads * f);
#pragma unroll
    for (uint32_t f = 0; f < kAtOnce; ++f) {
      Four velocity;
      const Four v = fours[f].accumulated(slot.coefficients, &velocity);
      visit(begin + at + 4 * kThreads * f, true, v, velocity);
    }
  }
}

template <Memory kMemory, class Visit>
__device__ inline void visit_any(const Slot& slot, uint32_t begin, const Visit& visit) {
  const uint32_t n = slot.format.n;
  if (slot.plain && n - begin >= kStripe) {
    if (slot.weights) {
      visit_plain<kMemory, true>(slot, begin, visit);
    } else {
      visit_plain<kMemory, false>(slot, begin, visit);
    }
    return;
  }
  for (uint32_t at = 4 * threadIdx.x; at < kStripe && begin + at < n; at += 4 * kThreads) {
    const uint32_t i = begin + at;
    const bool vector = slot.aligned && i + 4 <= n;
    const Four grad = four_elements(slot.grad, slot.grad_type, i, n, vector);
    Four weights{}, velocity{}, v{};
    if (slot.weights) weights = four_elements(slot.weights, slot.weights_type, i, n, vector);
    if (kMemory != Memory::plain) velocity = four_elements(slot.velocity, Scalar::float32, i, n, vector);
    if (slot.residual) v = four_elements(slot.residual, Scalar::float32, i, n, vector);
    for (int c = 0; c < 4; ++c) {
      v.x[c] = next<kMemory>(slot.coefficients, slot.weights != nullptr, grad.x[c], weights.x[c], &velocity.x[c],
                             v.x[c]);
    }
    visit(i, vector, v, velocity);
  }
}

// visit(i, vector, v', u') for fours of the stripe that begins at element `begin`, kThreads threads together.
template <class Visit>
__device__ inline void visit_stripe(const Slot& slot, uint32_t begin, const Visit& visit) {
  if (slot.memory == Memory::momentum) {
    visit_any<Memory::momentum>(slot, begin, visit);
  } else if (slot.memory == Memory::nesterov) {
    visit_any<Memory::nesterov>(slot, begin, visit);
  } else {
    visit_any<Memory::plain>(slot, begin, visit);
  }
}

// v' of one element.
__device__ inline float accumulated(const Slot& slot, uint32_t i) {
  const float grad = element(slot.grad, slot.grad_type, i);
  const float weight = slot.weights ? element(slot.weights, slot.weights_type, i) : 0.0f;
  const float v = slot.residual ? slot.residual[i] : 0.0f;
  const bool decay = slot.weights != nullptr;
  float u = slot.memory == Memory::plain ? 0.0f : slot.velocity[i];
  if (slot.memory == Memory::momentum) return next<Memory::momentum>(slot.coefficients, decay, grad, weight, &u, v);
  if (slot.memory == Memory::nesterov) return next<Memory::nesterov>(slot.coefficients, decay, grad, weight, &u, v);
  return next<Memory::plain>(slot.coefficients, decay, grad, weight, &u, v);
}

}  // namespace dgc::cuda
