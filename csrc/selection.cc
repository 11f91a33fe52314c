#include "selection.h"

#include <algorithm>
#include <utility>

#include "half.h"

namespace dgc {

int32_t kth_magnitude(const float* values, size_t count, size_t rank) {
  constexpr int kShifts[] = {20, 9, 0};
  constexpr int kWidths[] = {11, 11, 9};
  uint32_t prefix = 0;
  uint32_t mask = 0;
  for (int level = 0; level < 3; ++level) {
    const int shift = kShifts[level];
    const uint32_t digits = 1u << kWidths[level];
    size_t histogram[1u << 11] = {};
    for (size_t i = 0; i < count; ++i) {
      const uint32_t m = static_cast<uint32_t>(magnitude(values[i]));
      histogram[(m >> shift) & (digits - 1)] += (m & mask) == prefix ? 1 : 0;
    }
    uint32_t digit = digits - 1;
    while (histogram[digit] < rank) rank -= histogram[digit--];
    prefix |= digit << shift;
    mask |= (digits - 1) << shift;
  }
  return static_cast<int32_t>(prefix);
}

void find_larger(const Kernels& kernels, const float* block, size_t count, int32_t threshold, uint8_t* hits) {
  if (count == kBlock) {
    kernels.find_hits(block, threshold, hits);
  } else {
    for (size_t i = 0; i < count; ++i) hits[i] = magnitude(block[i]) > threshold ? 1 : 0;
  }
}

CandidateList::CandidateList(size_t k, size_t offered, int32_t threshold)
    : k_(k), capacity_(std::min(4 * k + 16 * kBlock, offered + kBlock)), threshold_(threshold) {}

void CandidateList::make_room() {
  if (size_ + kBlock > capacity_) trim();
  if (size_ + kBlock > indices_.size()) {
    const size_t grown = std::min(capacity_, std::max<size_t>(2 * indices_.size(), 16 * kBlock));
    indices_.resize(grown);
    values_.resize(grown);
  }
}

bool CandidateList::offer(const Kernels& kernels, const float* values, const int32_t* maxima, size_t first,
                          size_t count) {
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const int32_t largest = maxima[begin / kBlock];
    if (largest <= threshold_) continue;
    if (largest >= kInfinityBits) return false;
    make_room();
    if (largest <= threshold_) continue;
    const float* const block = values + begin;
    const size_t length = std::min(kBlock, count - begin);
    uint8_t hits[kBlock];
    find_larger(kernels, block, length, threshold_, hits);
    for_hits(hits, length, [&](size_t i) {
      indices_[size_] = static_cast<uint32_t>(first + begin + i);
      values_[size_] = block[i];
      ++size_;
    });
  }
  return true;
}

void CandidateList::append(const CandidateList& other) {
  indices_.resize(size_);
  values_.resize(size_);
  indices_.insert(indices_.end(), other.indices(), other.indices() + other.size());
  values_.insert(values_.end(), other.values(), other.values() + other.size());
  size_ = indices_.size();
}

void CandidateList::trim() {
  if (size_ <= k_) return;
  const int32_t smallest = kth_magnitude(values_.data(), size_, k_);
  size_t ties = k_;
  for (size_t i = 0; i < size_; ++i) ties -= magnitude(values_[i]) > smallest ? 1 : 0;
  size_t kept = 0;
  for (size_t i = 0; i < size_; ++i) {
    const int32_t m = magnitude(values_[i]);
    const bool tie = m == smallest && ties > 0;
    indices_[kept] = indices_[i];
    values_[kept] = values_[i];
    ties -= tie ? 1 : 0;
    kept += m > smallest || tie ? 1 : 0;
  }
  size_ = kept;
  threshold_ = smallest;
}

std::vector<uint32_t> CandidateList::take_indices() {
  indices_.resize(size_);
  return std::move(indices_);
}

std::vector<float> CandidateList::take_values() {
  values_.resize(size_);
  return std::move(values_);
}

}  // namespace dgc
