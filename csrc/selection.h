// Exact selection of the k coordinates of largest magnitude; ties go to the lower index.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace dgc {

constexpr int32_t kEverything = -1;  // the threshold that every magnitude exceeds

// The rank-th largest magnitude (half.h) of `count` values, 1 <= rank <= count. O(count), whatever the
// values.
int32_t kth_magnitude(const float* values, size_t count, size_t rank);

// hits[i] = 1 if |block[i]| > threshold, a magnitude (half.h), else 0, for i in [0, count), count <= kBlock.
void find_larger(const Kernels& kernels, const float* block, size_t count, int32_t threshold, uint8_t* hits);

// visit(i) for every i in [0, count) with hits[i] = 1, in order. hits: 0 or 1 each, with room up to the next
// multiple of 8, which is overwritten.
template <class Visit>
void for_hits(uint8_t* hits, size_t count, const Visit& visit) {
  std::memset(hits + count, 0, (8 - count % 8) % 8);
  for (size_t word = 0; word < count; word += 8) {
    uint64_t bytes;
    std::memcpy(&bytes, hits + word, 8);
    for (; bytes != 0; bytes &= bytes - 1) visit(word + static_cast<size_t>(__builtin_ctzll(bytes)) / 8);
  }
}

// Coordinates above a threshold, in index order, bounded in number.
//
// Holds every coordinate offered so far whose magnitude exceeds threshold(), or the best k of them: when the
// list is full it keeps the k best in order and raises the threshold to the k-th magnitude. What is offered
// later must have higher indices, so it loses every tie and only strictly larger magnitudes can still matter.
// Hence the best k of the list are the best k of all that was offered, provided that size() >= k.
class CandidateList {
 public:
  // `offered`: upper bound of the number of coordinates that will be offered.
  CandidateList(size_t k, size_t offered, int32_t threshold);

  int32_t threshold() const { return threshold_; }
  size_t size() const { return size_; }
  const uint32_t* indices() const { return indices_.data(); }
  const float* values() const { return values_.data(); }

  // Offers values[i] at coordinate first + i, i in [0, count); maxima as Kernels::block_maxima gives them.
  // Returns false, possibly after taking some, if a value is not finite.
  bool offer(const Kernels& kernels, const float* values, const int32_t* maxima, size_t first, size_t count);

  // Appends a list whose indices are all higher. May exceed the bound of this list.
  void append(const CandidateList& other);

  // Keeps the best k (all, if there are fewer), in index order.
  void trim();

  // Moves out the contents, `size()` elements each.
  std::vector<uint32_t> take_indices();
  std::vector<float> take_values();

 private:
  void make_room();

  size_t k_;
  size_t capacity_;
  int32_t threshold_;
  size_t size_ = 0;
  std::vector<uint32_t> indices_;  // at least size_ elements, grown on demand up to capacity_
  std::vector<float> values_;
};

}  // namespace dgc
