#include "update.h"

#include <cmath>
#include <stdexcept>
#include <string>

namespace dgc {
namespace {

void check(const char* name, double value, bool negative_allowed) {
  if (std::isfinite(static_cast<float>(value)) && (negative_allowed || value >= 0.0)) return;
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                              "; allowed: a finite float32" +
                              (negative_allowed ? "" : " that is not negative"));
}

template <Memory kMemory>
void apply(float* aggregated, float* velocity, size_t n, const Coefficients& c) {
  for (size_t i = 0; i < n; ++i) {
    const float g = aggregated[i];
    velocity[i] = next_velocity(c, g, velocity[i]);
    aggregated[i] = step_of<kMemory>(c, g, velocity[i]);
  }
}

}  // namespace

Update::Update(double unscale_, double weight_decay_, double momentum_, double dampening_, bool nesterov_,
               double velocity_scale_)
    : unscale(unscale_),
      weight_decay(weight_decay_),
      momentum(momentum_),
      dampening(dampening_),
      nesterov(nesterov_),
      velocity_scale(velocity_scale_) {
  check("unscale", unscale, true);
  check("weight_decay", weight_decay, true);
  check("momentum", momentum, false);
  check("dampening", dampening, true);
  check("velocity_scale", velocity_scale, false);
}

void apply_momentum(float* aggregated, float* velocity, size_t n, const Update& update) {
  const Coefficients c(update);
  if (update.nesterov) {
    apply<Memory::nesterov>(aggregated, velocity, n, c);
  } else {
    apply<Memory::momentum>(aggregated, velocity, n, c);
  }
}

}  // namespace dgc
