#include "commit.h"

#include "coded_values.h"
#include "elements.h"
#include "launch.h"

namespace dgc::cuda {
namespace {

__global__ void __launch_bounds__(kThreads) apply(Batch batch) {
  const uint32_t stripe = blockIdx.x;
  const Slot slot = batch.slots[batch.stripe_slot[stripe]];
  if (!slot.residual && !slot.velocity && !slot.zero_grad) return;
  const uint32_t n = slot.format.n;
  visit_stripe(slot, (stripe - slot.first_stripe) * kStripe, [&](uint32_t i, bool vector, Four v, const Four& velocity) {
    if (slot.format.dense() && slot.residual) {
      for (uint32_t c = 0; c < 4; ++c) {
        if (i + c < n) v.x[c] -= decoded_value(slot.format, slot.payload, i + c);
      }
    }
    if (slot.memory != Memory::plain) store_four(slot.velocity, i, n, vector, velocity);
    if (slot.residual) store_four(slot.residual, i, n, vector, v);
    if (slot.zero_grad) store_zeros(slot.grad, slot.grad_type, i, n, vector);
  });
}

__global__ void __launch_bounds__(kGroup) take_off(Batch batch) {
  const Slot slot = batch.slots[batch.group_slot[blockIdx.x]];
  const uint32_t j = (blockIdx.x - slot.first_group) * kGroup + threadIdx.x;
  if (j >= slot.format.k) return;
  const uint32_t i = slot.indices[j];
  const float sent = slot.sent[j];
  if (slot.residual) slot.residual[i] -= sent;
  if (slot.mask && slot.memory != Memory::plain && sent != 0.0f) slot.velocity[i] = 0.0f;
}

__global__ void __launch_bounds__(kGroup) scatter(Batch batch, uint32_t first_group, float* out) {
  const uint32_t number = first_group + blockIdx.x;
  const Slot slot = batch.slots[batch.group_slot[number]];
  const uint32_t j = (number - slot.first_group) * kGroup + threadIdx.x;
  if (j < slot.format.k) out[slot.indices[j]] = slot.sent[j];
}

}  // namespace

void commit(const Batch& batch, void* stream) {
  launch("apply", apply, batch.stripes, kThreads, stream, batch);
  launch("take_off", take_off, batch.groups, kGroup, stream, batch);
}

void scatter_sent(const Batch& batch, uint32_t first_group, uint32_t groups, float* out, void* stream) {
  launch("scatter", scatter, groups, kGroup, stream, batch, first_group, out);
}

}  // namespace dgc::cuda
