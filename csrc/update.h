// The arithmetic of one step: unscaling, local weight decay, momentum correction, accumulation.
// "Deep Gradient Compression", Lin et al., ICLR 2018 (arXiv 1712.01887), section 3, with torch's momentum
// buffer:
//
//   ghat = unscale * g + weight_decay * w
//   u'   = momentum * velocity_scale * u + (1 - dampening) * ghat       subnormal u' becomes 0
//   v'   = v + u'                                      with velocity
//   v'   = v + (ghat + momentum * u')                  with velocity, Nesterov
//   v'   = v + ghat                                    without velocity
//
// Every pass over the arrays calls these inline functions, so that all passes compute the same bits. That
// needs -ffp-contract=off: with contraction, each call site could round differently.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstddef>

#include "host_device.h"

namespace dgc {

// What varies from step to step. All finite as float32; momentum and velocity_scale not negative. A negative
// weight decay is what an optimizer that maximises needs: its step is minus the gradient plus the decay.
struct Update {
  // Throws std::invalid_argument naming the argument, its value and what is allowed.
  explicit Update(double unscale = 1.0, double weight_decay = 0.0, double momentum = 0.0,
                  double dampening = 0.0, bool nesterov = false, double velocity_scale = 1.0);

  double unscale;
  double weight_decay;
  double momentum;
  double dampening;
  bool nesterov;
  // Brings the velocity into today's units: an optimizer whose momentum holds steps already multiplied by the
  // learning rate sees it change with the rate, at the ratio of the rate before to that of today.
  double velocity_scale;
};

// How a gradient reaches the residual.
enum class Memory { plain, momentum, nesterov };

struct Coefficients {
  explicit Coefficients(const Update& update)
      : unscale(static_cast<float>(update.unscale)),
        weight_decay(static_cast<float>(update.weight_decay)),
        momentum(static_cast<float>(update.momentum)),
        decay(static_cast<float>(update.momentum * update.velocity_scale)),
        gain(static_cast<float>(1.0 - update.dampening)) {}

  float unscale;
  float weight_decay;
  float momentum;
  float decay;  // momentum * velocity_scale
  float gain;   // 1 - dampening
};

// A velocity that receives no gradient decays geometrically into the subnormal range, where arithmetic is
// slow.
DGC_HOST_DEVICE inline float flush_subnormal(float x) {
  const float absolute = fabsf(x);
  return absolute < FLT_MIN ? 0.0f : x;
}

DGC_HOST_DEVICE inline float next_velocity(const Coefficients& c, float ghat, float u) {
  return flush_subnormal(c.decay * u + c.gain * ghat);
}

// What is added to the residual, from ghat and the new velocity.
template <Memory kMemory>
DGC_HOST_DEVICE inline float step_of(const Coefficients& c, float ghat, float u) {
  if (kMemory == Memory::plain) return ghat;
  if (kMemory == Memory::nesterov) return ghat + c.momentum * u;
  return u;
}

// Momentum for a tensor that is not sparsified, on its aggregated gradient, in place:
// velocity = u', aggregated = the step (u', or g + momentum * u' with Nesterov). n elements each.
// Ignores update.unscale and update.weight_decay: both were applied before aggregation.
void apply_momentum(float* aggregated, float* velocity, size_t n, const Update& update);

}  // namespace dgc
