#include "kernels.h"

#include <gtest/gtest.h>

#include <vector>

#include "cases.h"

namespace dgc {
namespace {

constexpr Memory kMemories[] = {Memory::plain, Memory::momentum, Memory::nesterov};

struct Result {
  std::vector<float> velocity, residual, values;
  std::vector<int32_t> maxima;
};

Result run(const Kernels& set, Memory memory, bool weights, bool apply, size_t count) {
  const std::vector<float> g = test::normal(count, 1);
  const std::vector<float> w = test::normal(count, 2);
  Result r{test::normal(count, 3), test::normal(count, 4), std::vector<float>(count),
           std::vector<int32_t>(kTileBlocks, -7)};
  const Coefficients c(Update(0.3, weights ? 0.01 : 0.0, 0.9, 0.1, memory == Memory::nesterov));
  const auto& table = apply ? set.apply : set.preview;
  table[static_cast<int>(memory)][weights](
      c, g.data(), weights ? w.data() : nullptr, memory == Memory::plain ? nullptr : r.velocity.data(),
      r.residual.data(), apply ? nullptr : r.values.data(), r.maxima.data(), count);
  return r;
}

void reference(Memory memory, bool weights, size_t count, std::vector<float>* u, std::vector<float>* v) {
  const std::vector<float> g = test::normal(count, 1);
  const std::vector<float> w = test::normal(count, 2);
  *u = test::normal(count, 3);
  *v = test::normal(count, 4);
  const float gain = static_cast<float>(1.0 - 0.1);
  for (size_t i = 0; i < count; ++i) {
    float ghat = 0.3f * g[i];
    if (weights) {
      const float decay = 0.01f * w[i];
      ghat = ghat + decay;
    }
    if (memory == Memory::plain) {
      (*v)[i] = (*v)[i] + ghat;
      continue;
    }
    (*u)[i] = 0.9f * (*u)[i] + gain * ghat;
    const float step = memory == Memory::nesterov ? ghat + 0.9f * (*u)[i] : (*u)[i];
    (*v)[i] = (*v)[i] + step;
  }
}

TEST(Kernels, UpdateIsTheScalarReferenceBitForBitOnEverySet) {
  for (const Kernels* set : available_kernels()) {
    for (const Memory memory : kMemories) {
      for (const bool weights : {false, true}) {
        for (const size_t count : {1u, 2u, 15u, 16u, 63u, 64u, 65u, 130u, 1000u, 1023u, 1024u}) {
          SCOPED_TRACE(std::string(set->name) + " " + std::to_string(static_cast<int>(memory)) + " " +
                       std::to_string(weights) + " " + std::to_string(count));
          std::vector<float> u, v;
          reference(memory, weights, count, &u, &v);
          const Result preview = run(*set, memory, weights, false, count);
          const Result apply = run(*set, memory, weights, true, count);
          EXPECT_TRUE(test::same_bits(preview.values, v));
          EXPECT_TRUE(test::same_bits(preview.velocity, test::normal(count, 3)));
          EXPECT_TRUE(test::same_bits(preview.residual, test::normal(count, 4)));
          EXPECT_TRUE(test::same_bits(apply.velocity, u));
          EXPECT_TRUE(test::same_bits(apply.residual, v));
          EXPECT_EQ(preview.maxima, apply.maxima);
          for (size_t b = 0; b < kTileBlocks; ++b) {
            int32_t largest = -7;
            for (size_t i = b * kBlock; i < std::min(count, (b + 1) * kBlock); ++i) {
              largest = std::max(largest, magnitude(v[i]));
            }
            EXPECT_EQ(apply.maxima[b], largest) << b;
          }
        }
      }
    }
  }
}

TEST(Kernels, ReductionsAgreeOnEverySet) {
  std::vector<float> x = test::normal(1024, 5);
  x[700] = -1e20f;
  for (const size_t count : {0u, 1u, 31u, 33u, 64u, 1000u, 1024u}) {
    double squares = 0.0;
    int32_t largest = 0;
    for (size_t i = 0; i < count; ++i) {
      squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      largest = std::max(largest, magnitude(x[i]));
    }
    const double portable = available_kernels().front()->sum_squares(x.data(), count);
    EXPECT_NEAR(portable, squares, 1e-12 * squares);
    for (const Kernels* set : available_kernels()) {
      EXPECT_EQ(set->sum_squares(x.data(), count), portable) << set->name;
      EXPECT_EQ(set->max_magnitude(x.data(), count), largest) << set->name;
      std::vector<int32_t> maxima(kTileBlocks, 0);
      set->block_maxima(x.data(), maxima.data(), count);
      EXPECT_EQ(*std::max_element(maxima.begin(), maxima.end()), largest) << set->name;
    }
  }
}

TEST(Kernels, HitsAreTheMagnitudesStrictlyAbove) {
  const std::vector<float> x = test::normal(kBlock, 6);
  for (const Kernels* set : available_kernels()) {
    for (const int32_t threshold : {-1, 0, magnitude(x[10]), magnitude(1.0f), kInfinityBits}) {
      uint8_t hits[kBlock];
      set->find_hits(x.data(), threshold, hits);
      for (size_t i = 0; i < kBlock; ++i)
        EXPECT_EQ(hits[i], magnitude(x[i]) > threshold ? 1 : 0) << set->name;
    }
  }
}

TEST(Kernels, WidenEveryHalfOnEverySet) {
  std::vector<uint16_t> halves(65536);
  std::iota(halves.begin(), halves.end(), uint16_t{0});
  for (const Kernels* set : available_kernels()) {
    std::vector<float> float16(halves.size()), bfloat16(halves.size());
    set->from_float16(halves.data(), float16.data(), halves.size());
    set->from_bfloat16(halves.data(), bfloat16.data(), halves.size());
    for (size_t i = 0; i < halves.size(); ++i) {
      ASSERT_EQ(float_bits(float16[i]), float_bits(half_to_float(halves[i]))) << set->name;
      ASSERT_EQ(float_bits(bfloat16[i]), float_bits(bfloat16_to_float(halves[i]))) << set->name;
    }
  }
}

TEST(Kernels, ForcedSetIsTheOneGiven) {
  for (const Kernels* set : available_kernels()) {
    const test::ForcedKernels forced(set);
    EXPECT_EQ(&kernels(), set);
  }
  EXPECT_EQ(&kernels(), available_kernels().back());
}

}  // namespace
}  // namespace dgc
