#include "threshold.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "cases.h"
#include "selection.h"

namespace dgc {
namespace {

Arrays plain_arrays(std::vector<float>* grad, std::vector<float>* residual) {
  Arrays a;
  a.n = grad->size();
  a.grad = grad->data();
  a.residual = residual->data();
  return a;
}

TEST(SampleSize, IsBounded) {
  EXPECT_EQ(sample_size(1000, 1.0), 0u);
  EXPECT_EQ(sample_size(1 << 20, 1e-9), 4096u);
  EXPECT_EQ(sample_size(25600000, 0.01), 65536u);
  EXPECT_EQ(sample_size(25600000, 1.0), 65536u);
  EXPECT_EQ(sample_size(1000000, 0.01), 9984u);  // 10000 in whole runs of 32
}

TEST(GuessThreshold, LetsSomewhatMoreThanKPass) {
  const size_t n = 2000000;
  std::vector<float> grad = test::normal(n, 1);
  std::vector<float> residual(n, 0.0f);
  const Arrays a = plain_arrays(&grad, &residual);
  const Coefficients c{Update()};
  for (const size_t k : {2000u, 20000u, 500000u}) {
    const int32_t threshold = guess_threshold(kernels(), a, c, Memory::plain, k, 0.01);
    size_t above = 0;
    for (const float x : grad) above += magnitude(x) > threshold ? 1 : 0;
    EXPECT_GT(above, k);
    EXPECT_LT(above, 4 * k);
  }
}

TEST(GuessThreshold, NeverHidesWhatIsNotFinite) {
  const size_t n = 100000;
  std::vector<float> grad(n, std::numeric_limits<float>::infinity());
  std::vector<float> residual(n, 0.0f);
  const Arrays a = plain_arrays(&grad, &residual);
  const Coefficients c{Update()};
  EXPECT_LT(guess_threshold(kernels(), a, c, Memory::plain, 100, 0.01), kInfinityBits);
}

TEST(GuessThreshold, TakesEverythingWhereSamplingDoesNotPay) {
  std::vector<float> grad = test::normal(5000, 1);
  std::vector<float> residual(5000, 0.0f);
  const Arrays a = plain_arrays(&grad, &residual);
  const Coefficients c{Update()};
  EXPECT_EQ(guess_threshold(kernels(), a, c, Memory::plain, 5, 0.01), kEverything);
}

TEST(GuessThreshold, WritesNothingAndReadsEveryElementType) {
  const size_t n = 100003;
  const std::vector<float> grad = test::normal(n, 1);
  std::vector<float> residual = test::normal(n, 2), velocity = test::normal(n, 3),
                     weights = test::normal(n, 4);
  const std::vector<float> r = residual, u = velocity, w = weights;
  std::vector<uint16_t> halves(n), decay(n);
  for (size_t i = 0; i < n; ++i) {
    halves[i] = float_to_half(grad[i]);
    decay[i] = float_to_bfloat16(w[i]);
  }
  std::vector<float> rounded(n), rounded_weights(n);
  for (size_t i = 0; i < n; ++i) {
    rounded[i] = half_to_float(halves[i]);
    rounded_weights[i] = bfloat16_to_float(decay[i]);
  }
  const Coefficients c(Update(0.5, 0.1, 0.9));
  Arrays a = plain_arrays(&rounded, &residual);
  a.velocity = velocity.data();
  a.weights = rounded_weights.data();
  const int32_t full = guess_threshold(kernels(), a, c, Memory::momentum, 100, 0.01);
  a.grad = halves.data();
  a.grad_type = Scalar::float16;
  a.weights = decay.data();
  a.weights_type = Scalar::bfloat16;
  EXPECT_EQ(guess_threshold(kernels(), a, c, Memory::momentum, 100, 0.01), full);
  EXPECT_TRUE(test::same_bits(residual, r));
  EXPECT_TRUE(test::same_bits(velocity, u));
  EXPECT_TRUE(test::same_bits(weights, w));
}

}  // namespace
}  // namespace dgc
