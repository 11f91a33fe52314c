#include "proposal.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "cases.h"
#include "coordinates.h"
#include "decode.h"

namespace dgc {
namespace {

constexpr IndexCoder kIndexCoders[] = {IndexCoder::elias_fano, IndexCoder::runlength16, IndexCoder::int32};
const ValueCoder kValueCoders[] = {ValueCoder::float32, ValueCoder::float16, ValueCoder::bfloat16,
                                   ValueCoder::int8, ValueCoder::int4};

// The arrays of a step; g and w are kept in the element type asked for.
struct State {
  std::vector<float> grad, residual, velocity, weights;
  std::vector<uint16_t> grad_bits, weight_bits;
  Scalar type = Scalar::float32;
  bool use_velocity = true;
  bool use_weights = false;

  explicit State(size_t n)
      : grad(test::normal(n, 1)), residual(test::normal(n, 2)), velocity(test::normal(n, 3)) {}

  void store_as(Scalar scalar) {
    type = scalar;
    const auto narrow = [&](std::vector<float>* x, std::vector<uint16_t>* bits) {
      for (float& value : *x) {
        bits->push_back(scalar == Scalar::float16 ? float_to_half(value) : float_to_bfloat16(value));
        value = scalar == Scalar::float16 ? half_to_float(bits->back()) : bfloat16_to_float(bits->back());
      }
    };
    if (scalar == Scalar::float32) return;
    narrow(&grad, &grad_bits);
    narrow(&weights, &weight_bits);
  }

  Arrays arrays() {
    Arrays a;
    a.n = grad.size();
    const bool full = type == Scalar::float32;
    a.grad = full ? static_cast<void*>(grad.data()) : grad_bits.data();
    a.grad_type = a.weights_type = type;
    if (use_weights) a.weights = full ? static_cast<void*>(weights.data()) : weight_bits.data();
    a.residual = residual.data();
    if (use_velocity) a.velocity = velocity.data();
    return a;
  }

  bool same_as(const State& other) const {
    return test::same_bits(grad, other.grad) && test::same_bits(residual, other.residual) &&
           test::same_bits(velocity, other.velocity) && grad_bits == other.grad_bits;
  }
};

// u' and v' by the formulas of update.h, one element at a time.
void reference_update(const State& s, const Update& update, std::vector<float>* u, std::vector<float>* v) {
  const float unscale = static_cast<float>(update.unscale), decay = static_cast<float>(update.weight_decay);
  const float momentum = static_cast<float>(update.momentum),
              kept = static_cast<float>(update.momentum * update.velocity_scale),
              gain = static_cast<float>(1.0 - update.dampening);
  *u = s.velocity;
  *v = s.residual;
  for (size_t i = 0; i < s.grad.size(); ++i) {
    float ghat = unscale * s.grad[i];
    if (s.use_weights) ghat = ghat + decay * s.weights[i];
    if (!s.use_velocity) {
      (*v)[i] = (*v)[i] + ghat;
      continue;
    }
    float next = kept * (*u)[i] + gain * ghat;
    if (std::fabs(next) < FLT_MIN) next = 0.0f;
    (*u)[i] = next;
    (*v)[i] = (*v)[i] + (update.nesterov ? ghat + momentum * next : next);
  }
}

Options with_threads(int threads, bool mask = true, bool zero = false) {
  Options o;
  o.threads = threads;
  o.mask_velocity = mask;
  o.zero_grad = zero;
  return o;
}

// One step both ways, against the reference.
void check_step(const Layout& layout, const Update& update, const State& before, const Options& options) {
  std::vector<float> u, v;
  reference_update(before, update, &u, &v);
  State s = before;
  const Proposal p = propose(*largest(layout), update, s.arrays(), options);
  ASSERT_TRUE(p.finite);
  ASSERT_TRUE(s.same_as(before)) << "propose must not write";
  const std::vector<uint32_t> chosen = test::best(v, layout.k());
  if (layout.dense()) {
    ASSERT_TRUE(p.indices.empty());
  } else {
    ASSERT_EQ(p.indices, chosen);
  }
  ASSERT_EQ(p.payload.size(), layout.nbytes());

  std::vector<float> decoded(layout.n(), 0.0f), masked(layout.n(), 7.0f);
  decode_add(layout, p.payload.data(), 1, decoded.data(), 1.0f, 1);
  p.masked(masked.data());
  ASSERT_EQ(decoded, masked);

  commit(*largest(layout), p, update, s.arrays(), options);
  const Floats sent = p.values();
  for (size_t j = 0; j < layout.k(); ++j) {
    const uint32_t i = chosen[j];
    ASSERT_EQ(sent[j], decoded[i]);
    v[i] = v[i] - sent[j];
    if (before.use_velocity && options.mask_velocity && !layout.dense() && sent[j] != 0.0f) u[i] = 0.0f;
    if (layout.values() == ValueCoder::float32 && layout.indices() != IndexCoder::runlength16) {
      ASSERT_EQ(v[i], 0.0f);
    }
  }
  ASSERT_TRUE(test::same_bits(s.residual, v));
  ASSERT_TRUE(test::same_bits(s.velocity, u));
  const std::vector<float> grad(layout.n(), 0.0f);
  if (options.zero_grad && before.type == Scalar::float32) {
    ASSERT_TRUE(test::same_bits(s.grad, grad));
  } else if (options.zero_grad) {
    ASSERT_EQ(s.grad_bits, std::vector<uint16_t>(layout.n(), 0));
  } else {
    ASSERT_TRUE(test::same_bits(s.grad, before.grad));
    ASSERT_EQ(s.grad_bits, before.grad_bits);
  }

  State one_pass = before;
  const Proposal e = encode(*largest(layout), update, one_pass.arrays(), options);
  ASSERT_EQ(e.payload, p.payload);
  ASSERT_EQ(e.indices, p.indices);
  ASSERT_TRUE(test::same_bits(e.values(), p.values()));
  ASSERT_TRUE(one_pass.same_as(s)) << "encode must be propose + commit";
}

TEST(Proposal, EveryUpdateOnEveryInstructionSet) {
  const size_t n = 40009;
  const Layout layout(n, 400, IndexCoder::elias_fano, ValueCoder::float16);
  for (const Kernels* set : available_kernels()) {
    const test::ForcedKernels forced(set);
    for (const Scalar type : {Scalar::float32, Scalar::float16, Scalar::bfloat16}) {
      for (const bool velocity : {true, false}) {
        for (const bool weights : {true, false}) {
          State s(n);
          s.use_velocity = velocity;
          s.use_weights = weights;
          if (weights) s.weights = test::normal(n, 4);
          s.store_as(type);
          const double decay = weights ? 1e-2 : 0.0;
          for (const Update& update : {Update(1.0, decay, 0.9), Update(0.25, decay, 0.9, 0.1),
                                       Update(1.0 / 3, decay, 0.9, 0.0, true, 0.7), Update(2.0, decay)}) {
            check_step(layout, update, s, with_threads(1, true, type == Scalar::float16));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(Proposal, SelectionIsExactOnHardArraysForEveryThreadCount) {
  for (const size_t n : {1u, 2u, 3u, 63u, 64u, 65u, 997u, 16411u, 66000u}) {
    for (const test::Named& c : test::hard_arrays(n)) {
      State s(n);
      s.use_velocity = false;
      s.grad.assign(n, 0.0f);
      s.residual = c.values;
      for (const size_t k : {size_t{1}, n / 1000 + 1, n / 4, n > 1 ? n - 1 : 1, n}) {
        if (k < 1 || k > n) continue;
        for (const int threads : {1, 2, 3, 4}) {
          if (n < 16384 && threads > 1) continue;
          SCOPED_TRACE(c.name + " n=" + std::to_string(n) + " k=" + std::to_string(k) +
                       " threads=" + std::to_string(threads));
          check_step(Layout(n, k, IndexCoder::elias_fano, ValueCoder::float32), Update(), s,
                     with_threads(threads));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(Proposal, EveryCoderKeepsWhatItDoesNotSend) {
  for (const size_t n : {65537u, 150001u}) {
    for (const size_t k : {size_t{6}, n / 1000, n / 4, n - 1, n}) {
      for (const IndexCoder indices : kIndexCoders) {
        for (const ValueCoder& values : kValueCoders) {
          const State s(n);
          check_step(Layout(n, k, indices, values), Update(1.0, 0.0, 0.9), s,
                     with_threads(2, k % 2 == 0, true));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(Proposal, ASampleThatMisleadsCostsOnlyTime) {
  // The sample sees large values at its own positions and nothing elsewhere, or the opposite.
  const size_t n = 1 << 18, k = 2000;
  for (const bool sampled_large : {true, false}) {
    State s(n);
    s.use_velocity = false;
    for (size_t i = 0; i < n; ++i) {
      const bool sampled = i % (n / 128) < 32;
      if (sampled == sampled_large) s.residual[i] *= 1e6f;
      s.grad[i] = 0.0f;
    }
    check_step(Layout(n, k, IndexCoder::elias_fano, ValueCoder::float32), Update(), s, with_threads(1));
  }
}

TEST(Proposal, ClusteredDataWithRunLengthsArrivesInTheEnd) {
  const size_t n = 1 << 19, k = 9;
  const Layout layout(n, k, IndexCoder::runlength16, ValueCoder::float32);
  State s(n);
  s.use_velocity = false;
  s.residual.assign(n, 0.0f);
  s.grad.assign(n, 0.0f);
  for (size_t i = n - 30; i < n; ++i) s.residual[i] = static_cast<float>(i - n + 31);
  const std::vector<float> wanted = s.residual;
  std::vector<float> received(n, 0.0f);
  for (int step = 0; step < 40; ++step) {
    const Proposal p = encode(*largest(layout), Update(), s.arrays(), Options());
    decode_add(layout, p.payload.data(), 1, received.data(), 1.0f, 1);
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(received[i] + s.residual[i], wanted[i]);
  }
  EXPECT_EQ(received, wanted);
}

TEST(Proposal, NothingIsLostOverManySteps) {
  const size_t n = 4096;
  for (const ValueCoder& values : kValueCoders) {
    const Layout layout(n, 40, IndexCoder::elias_fano, values);
    State s(n);
    s.use_velocity = false;
    std::vector<double> wanted(s.residual.begin(), s.residual.end()), received(n, 0.0);
    for (unsigned step = 0; step < 50; ++step) {
      s.grad = test::normal(n, 100 + step);
      for (size_t i = 0; i < n; ++i) wanted[i] += static_cast<double>(s.grad[i]);
      const Proposal p = encode(*largest(layout), Update(), s.arrays(), Options());
      for (size_t j = 0; j < p.sent.size(); ++j) received[p.indices[j]] += static_cast<double>(p.sent[j]);
    }
    for (size_t i = 0; i < n; ++i)
      EXPECT_NEAR(received[i] + static_cast<double>(s.residual[i]), wanted[i], 1e-4);
  }
}

TEST(Proposal, WhatIsNotFiniteChangesNothing) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const size_t n = 50021;
  for (const size_t k : {size_t{50}, n}) {
    for (const IndexCoder indices : kIndexCoders) {
      const Layout layout(n, k, indices, ValueCoder::int8);
      for (const size_t place : {size_t{0}, size_t{17}, size_t{64}, size_t{1023}, n / 2, n - 1}) {
        for (const float bad : {infinity, -infinity, nan}) {
          for (const int where : {0, 1}) {
            State s(n);
            s.use_weights = where == 1;
            s.weights = test::normal(n, 4);
            (where == 0 ? s.grad : s.weights)[place] = bad;
            const State before = s;
            const Update update(1.0, where == 1 ? 1e-4 : 0.0, 0.9);
            const Proposal p = propose(*largest(layout), update, s.arrays(), with_threads(2));
            EXPECT_FALSE(p.finite);
            EXPECT_TRUE(test::same_bytes(p.payload, layout.poison()));
            EXPECT_TRUE(std::isnan(p.sent[0]));
            EXPECT_TRUE(s.same_as(before));
            const Proposal e = encode(*largest(layout), update, s.arrays(), with_threads(2, true, true));
            EXPECT_FALSE(e.finite);
            EXPECT_TRUE(test::same_bytes(e.payload, layout.poison()));
            ASSERT_TRUE(s.same_as(before));
          }
        }
      }
    }
  }
}

TEST(Proposal, StateThatIsNotFiniteIsSeen) {
  const Layout layout(30000, 30, IndexCoder::elias_fano, ValueCoder::float32);
  for (const bool in_velocity : {false, true}) {
    State s(30000);
    (in_velocity ? s.velocity : s.residual)[29999] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_FALSE(propose(*largest(layout), Update(1.0, 0.0, 0.9), s.arrays(), Options()).finite);
    EXPECT_FALSE(encode(*largest(layout), Update(1.0, 0.0, 0.9), s.arrays(), Options()).finite);
  }
}

TEST(Proposal, OverflowOfLargeGradientsChangesNothing) {
  const Layout layout(30000, 30, IndexCoder::elias_fano, ValueCoder::float32);
  State s(30000);
  s.grad[777] = 3e38f;
  s.residual[777] = 3e38f;
  const State before = s;
  EXPECT_FALSE(encode(*largest(layout), Update(1.0, 0.0, 0.9), s.arrays(), Options()).finite);
  EXPECT_TRUE(s.same_as(before));
  s.residual[777] = -3e38f;
  const State huge = s;
  check_step(layout, Update(1.0, 0.0, 0.9), huge, Options());
}

TEST(Proposal, EmptyTensor) {
  const Layout layout(0, 0, IndexCoder::elias_fano, ValueCoder::float16);
  Arrays a;
  const Proposal p = propose(*largest(layout), Update(), a, Options());
  EXPECT_TRUE(p.finite);
  EXPECT_TRUE(p.payload.empty());
  commit(*largest(layout), p, Update(), a, Options());
  EXPECT_TRUE(encode(*largest(layout), Update(), a, Options()).finite);
}

}  // namespace
}  // namespace dgc
