#include "passes.h"

#include <algorithm>
#include <cstring>

#include "half.h"

namespace dgc {
namespace {

Memory memory_of(const Arrays& arrays, const Update& update) {
  if (arrays.velocity == nullptr) return Memory::plain;
  return update.nesterov ? Memory::nesterov : Memory::momentum;
}

bool finite(const int32_t* maxima, size_t count) {
  int32_t largest = 0;
  for (size_t b = 0; b * kBlock < count; ++b) largest = std::max(largest, maxima[b]);
  return largest < kInfinityBits;
}

}  // namespace

Pass::Pass(const Kernels& kernels_, const Arrays& arrays_, const Update& update)
    : kernels(kernels_), arrays(arrays_), coefficients(update), memory(memory_of(arrays_, update)) {}

// values null: apply, else preview.
void Pass::update_tile(size_t first, size_t count, float* values, int32_t* maxima) const {
  float grad_buffer[kTile];
  float weights_buffer[kTile];
  const Arrays& a = arrays;
  const float* grad = as_float32(kernels, a.grad, a.grad_type, first, count, grad_buffer);
  const float* weights = as_float32(kernels, a.weights, a.weights_type, first, count, weights_buffer);
  float* velocity = a.velocity ? a.velocity + first : nullptr;
  float nothing[kTile];  // stands in for the residual of a method that keeps none
  if (!a.residual) std::fill(nothing, nothing + count, 0.0f);
  float* residual = a.residual ? a.residual + first : nothing;
  const auto& table = values ? kernels.preview : kernels.apply;
  table[static_cast<int>(memory)][weights != nullptr](coefficients, grad, weights, velocity, residual, values,
                                                      maxima, count);
}

void Pass::zero(size_t first, size_t count) const {
  const size_t size = scalar_size(arrays.grad_type);
  std::memset(static_cast<char*>(arrays.grad) + first * size, 0, count * size);
}

bool Pass::preview(size_t begin, size_t end, CandidateList* list, float* values) const {
  int32_t maxima[kTileBlocks];
  float buffer[kTile];
  for (size_t first = begin; first < end; first += kTile) {
    const size_t count = std::min(kTile, end - first);
    float* tile = values ? values + first : buffer;
    update_tile(first, count, tile, maxima);
    if (list ? !list->offer(kernels, tile, maxima, first, count) : !finite(maxima, count)) return false;
  }
  return true;
}

bool Pass::apply(size_t begin, size_t end, CandidateList* list, bool zero_grad) const {
  int32_t maxima[kTileBlocks];
  bool all_finite = true;
  for (size_t first = begin; first < end; first += kTile) {
    const size_t count = std::min(kTile, end - first);
    update_tile(first, count, nullptr, maxima);
    if (zero_grad) zero(first, count);
    if (!all_finite) continue;
    all_finite =
        list ? list->offer(kernels, arrays.residual + first, maxima, first, count) : finite(maxima, count);
  }
  return all_finite;
}

bool Pass::rescan(size_t begin, size_t end, CandidateList* list) const {
  int32_t maxima[kTileBlocks];
  for (size_t first = begin; first < end; first += kTile) {
    const size_t count = std::min(kTile, end - first);
    const float* tile = arrays.residual + first;
    kernels.block_maxima(tile, maxima, count);
    if (!list->offer(kernels, tile, maxima, first, count)) return false;
  }
  return true;
}

void Pass::commit(size_t begin, size_t end, const uint32_t* indices, const float* sent, size_t k, bool mask,
                  bool zero_grad) const {
  int32_t maxima[kTileBlocks];
  size_t j = indices ? static_cast<size_t>(std::lower_bound(indices, indices + k, begin) - indices) : begin;
  for (size_t first = begin; first < end; first += kTile) {
    const size_t count = std::min(kTile, end - first);
    update_tile(first, count, nullptr, maxima);
    if (zero_grad) zero(first, count);
    // Done per tile, while it is in the cache.
    for (; j < k && (indices ? indices[j] : j) < first + count; ++j) {
      const size_t i = indices ? indices[j] : j;
      if (arrays.residual) arrays.residual[i] -= sent[j];
      if (mask && arrays.velocity && sent[j] != 0.0f) arrays.velocity[i] = 0.0f;
    }
  }
}

}  // namespace dgc
