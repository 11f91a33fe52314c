#include "passes.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "cases.h"

namespace dgc {
namespace {

constexpr size_t kCount = 5003;

struct Fixture {
  std::vector<float> grad = test::normal(kCount, 1);
  std::vector<float> residual = test::normal(kCount, 2);
  std::vector<float> velocity = test::normal(kCount, 3);
  Update update{1.0, 0.0, 0.9};

  Arrays arrays() {
    Arrays a;
    a.n = kCount;
    a.grad = grad.data();
    a.residual = residual.data();
    a.velocity = velocity.data();
    return a;
  }
};

TEST(Pass, PreviewGivesWhatApplyWritesAndWritesNothing) {
  Fixture before;
  Fixture f = before;
  const Arrays a = f.arrays();
  const Pass pass(kernels(), a, f.update);
  std::vector<float> values(kCount);
  CandidateList seen(10, kCount, kEverything), applied(10, kCount, kEverything),
      rescanned(10, kCount, kEverything);
  EXPECT_TRUE(pass.preview(0, kCount, &seen, values.data()));
  EXPECT_TRUE(test::same_bits(f.grad, before.grad));
  EXPECT_TRUE(test::same_bits(f.residual, before.residual));
  EXPECT_TRUE(test::same_bits(f.velocity, before.velocity));
  EXPECT_TRUE(pass.apply(0, kCount, &applied, false));
  EXPECT_TRUE(test::same_bits(f.residual, values));
  EXPECT_TRUE(test::same_bits(f.grad, before.grad));
  EXPECT_TRUE(pass.rescan(0, kCount, &rescanned));
  seen.trim();
  applied.trim();
  rescanned.trim();
  const std::vector<uint32_t> indices = seen.take_indices();
  EXPECT_EQ(indices, test::best(values, 10));
  EXPECT_EQ(applied.take_indices(), indices);
  EXPECT_EQ(rescanned.take_indices(), indices);
}

TEST(Pass, TouchesItsRangeOnly) {
  Fixture before;
  Fixture f = before;
  const Arrays a = f.arrays();
  const Pass pass(kernels(), a, f.update);
  const std::vector<uint32_t> indices{3, 640, 700, 1999, 2000, 4000};
  const std::vector<float> sent{1, 2, 0, 4, 5, 6};
  pass.commit(640, 1984, indices.data(), sent.data(), indices.size(), true, true);
  for (size_t i = 0; i < kCount; ++i) {
    const bool inside = i >= 640 && i < 1984;
    EXPECT_EQ(f.grad[i], inside ? 0.0f : before.grad[i]);
    float u = before.velocity[i];
    float v = before.residual[i];
    if (inside) {
      u = 0.9f * u + before.grad[i];
      v += u;
    }
    if (i == 640) {
      v -= 2.0f;
      u = 0.0f;
    }
    EXPECT_EQ(f.velocity[i], u) << i;
    EXPECT_EQ(f.residual[i], v) << i;
  }
}

TEST(Pass, ADenseCommitTouchesItsRangeOnly) {
  Fixture before;
  Fixture f = before;
  const Arrays a = f.arrays();
  const Pass pass(kernels(), a, f.update);
  const std::vector<float> sent = test::normal(1984 - 640, 8);
  pass.commit_dense(640, 1984, sent.data(), true);
  for (size_t i = 0; i < kCount; ++i) {
    const bool inside = i >= 640 && i < 1984;
    const float u = inside ? 0.9f * before.velocity[i] + before.grad[i] : before.velocity[i];
    EXPECT_EQ(f.grad[i], inside ? 0.0f : before.grad[i]);
    EXPECT_EQ(f.velocity[i], u) << i;
    EXPECT_EQ(f.residual[i], inside ? before.residual[i] + u - sent[i - 640] : before.residual[i]) << i;
  }
}

TEST(Pass, ApplyFinishesTheRangeThoughNotFinite) {
  Fixture f;
  f.grad[100] = std::numeric_limits<float>::infinity();
  const Arrays a = f.arrays();
  const Pass pass(kernels(), a, f.update);
  EXPECT_FALSE(pass.preview(0, kCount, nullptr, nullptr));
  EXPECT_FALSE(pass.apply(0, kCount, nullptr, true));
  EXPECT_EQ(f.grad[kCount - 1], 0.0f);
}

}  // namespace
}  // namespace dgc
