#include "selection.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "cases.h"

namespace dgc {
namespace {

// Offers all of v in tiles.
bool offer_all(CandidateList* list, const std::vector<float>& v) {
  const Kernels& set = kernels();
  int32_t maxima[kTileBlocks];
  for (size_t first = 0; first < v.size(); first += kTile) {
    const size_t count = std::min(kTile, v.size() - first);
    set.block_maxima(v.data() + first, maxima, count);
    if (!list->offer(set, v.data() + first, maxima, first, count)) return false;
  }
  return true;
}

TEST(KthMagnitude, IsTheSortedOne) {
  for (const size_t n : {1u, 2u, 1000u, 4099u}) {
    for (const test::Named& c : test::hard_arrays(n)) {
      std::vector<int32_t> sorted;
      for (const float x : c.values) sorted.push_back(magnitude(x));
      std::sort(sorted.rbegin(), sorted.rend());
      for (const size_t rank : {size_t{1}, n / 3 + 1, n}) {
        EXPECT_EQ(kth_magnitude(c.values.data(), n, rank), sorted[rank - 1]) << c.name << " " << rank;
      }
    }
  }
}

TEST(CandidateList, KeepsTheBestOfEverythingOffered) {
  for (const size_t n : {1u, 2u, 63u, 64u, 65u, 997u, 20011u}) {
    for (const test::Named& c : test::hard_arrays(n)) {
      for (const size_t k : {size_t{1}, n / 1000 + 1, n / 10 + 1, n / 2 + 1, n}) {
        if (k > n) continue;
        CandidateList list(k, n, kEverything);
        ASSERT_TRUE(offer_all(&list, c.values));
        EXPECT_LE(list.size(), std::min(4 * k + 16 * kBlock, n + kBlock));
        list.trim();
        const std::vector<uint32_t> indices = list.take_indices();
        const std::vector<float> values = list.take_values();
        ASSERT_EQ(indices, test::best(c.values, k)) << c.name << " n=" << n << " k=" << k;
        for (size_t j = 0; j < k; ++j) ASSERT_EQ(float_bits(values[j]), float_bits(c.values[indices[j]]));
      }
    }
  }
}

TEST(CandidateList, HoldsExactlyWhatExceedsTheThresholdWhileThereIsRoom) {
  const std::vector<float> v = test::normal(5000, 3);
  const int32_t threshold = magnitude(2.0f);
  CandidateList list(400, v.size(), threshold);
  ASSERT_TRUE(offer_all(&list, v));
  size_t count = 0;
  for (uint32_t i = 0; i < v.size(); ++i) {
    if (std::fabs(v[i]) > 2.0f) {
      EXPECT_EQ(list.indices()[count++], i);
    }
  }
  EXPECT_EQ(list.size(), count);
  EXPECT_EQ(list.threshold(), threshold);
}

TEST(CandidateList, AppendedListsGiveTheSame) {
  const std::vector<float> v = test::normal(8192, 4);
  const std::vector<float> low(v.begin(), v.begin() + 4096), high(v.begin() + 4096, v.end());
  CandidateList a(100, low.size(), kEverything), b(100, high.size(), kEverything);
  ASSERT_TRUE(offer_all(&a, low));
  const Kernels& set = kernels();
  int32_t maxima[kTileBlocks];
  for (size_t first = 0; first < high.size(); first += kTile) {
    set.block_maxima(high.data() + first, maxima, kTile);
    ASSERT_TRUE(b.offer(set, high.data() + first, maxima, 4096 + first, kTile));
  }
  a.append(b);
  a.trim();
  EXPECT_EQ(a.take_indices(), test::best(v, 100));
}

TEST(CandidateList, RefusesWhatIsNotFiniteWhateverTheThreshold) {
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    for (const size_t place : {0u, 63u, 64u, 1500u, 1999u}) {
      std::vector<float> v = test::normal(2000, 5);
      v[place] = bad;
      for (const int32_t threshold : {kEverything, 0, magnitude(1.0f), kInfinityBits - 1}) {
        CandidateList list(5, v.size(), threshold);
        EXPECT_FALSE(offer_all(&list, v));
      }
    }
  }
}

}  // namespace
}  // namespace dgc
