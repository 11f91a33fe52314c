// The kernels of csrc/cuda, emulated on the processor, against the processor's own passes: the same bits.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "cases.h"
#include "coordinates.h"
#include "cuda/add.h"
#include "cuda/builders.h"
#include "cuda/commit.h"
#include "cuda/propose.h"
#include "cuda/reduce.h"
#include "decode.h"
#include "norms.h"
#include "proposal.h"

namespace dgc::cuda {
namespace {

// Room for arrays that kernels read 16 bytes at a time, filled with what nobody should read.
class Room {
 public:
  explicit Room(size_t bytes) : words_(bytes / 16 + 2, Word{{0xdeadbeefdeadbeefu, 0xdeadbeefdeadbeefu}}) {}
  uint8_t* data() { return reinterpret_cast<uint8_t*>(words_.data()); }
  Address address() { return reinterpret_cast<Address>(words_.data()); }

 private:
  struct alignas(16) Word {
    uint64_t halves[2];
  };
  std::vector<Word> words_;
};

struct Tensor {
  Layout layout;
  Update update;
  std::vector<float> grad, residual, velocity, weights;
  bool momentum = true;
  bool decay = false;
  size_t shifted = 0;  // elements by which the arrays miss their alignment

  Tensor(const Layout& layout_, const Update& update_, uint64_t seed)
      : layout(layout_),
        update(update_),
        grad(test::normal(layout_.n() + 4, seed)),
        residual(test::normal(layout_.n() + 4, seed + 1)),
        velocity(test::normal(layout_.n() + 4, seed + 2)),
        weights(test::normal(layout_.n() + 4, seed + 3)) {}

  Arrays arrays() {
    Arrays a;
    a.n = layout.n();
    a.grad = grad.data() + shifted;
    a.residual = residual.data() + shifted;
    if (momentum) a.velocity = velocity.data() + shifted;
    if (decay) a.weights = weights.data() + shifted;
    return a;
  }
};

void expect_same(const std::vector<float>& a, const std::vector<float>& b, const std::string& what) {
  EXPECT_TRUE(test::same_bits(a, b)) << what;
}

// All tensors in one batch, and each of them alone on the processor.
void check_batch(std::vector<Tensor> tensors, bool mask = true, bool zero_grad = true) {
  Options options;
  options.mask_velocity = mask;
  options.zero_grad = zero_grad;
  std::vector<Tensor> expected = tensors;
  BatchBuilder builder;
  for (Tensor& t : tensors) builder.add(t.layout, t.update, t.arrays(), mask, zero_grad);
  Room table(builder.table_bytes()), payloads(builder.payload_bytes()), kept(builder.kept_bytes()),
      progress(tensors.size() * sizeof(Progress)), scratch(builder.scratch_bytes());
  builder.write(table.address(), payloads.address(), kept.address(), progress.address(), scratch.address(),
                table.data());
  const Batch batch = builder.batch(table.address(), scratch.address());
  propose(batch, nullptr);

  bool all_finite = true;
  std::vector<Proposal> proposals;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Layout& layout = tensors[i].layout;
    const std::string what = "tensor " + std::to_string(i) + " of " + std::to_string(layout.n()) + ", k " +
                             std::to_string(layout.k()) + ", " + layout.values().name();
    proposals.push_back(dgc::propose(*largest(layout), expected[i].update, expected[i].arrays(), options));
    const Proposal& p = proposals.back();
    const uint8_t* const payload = payloads.data() + builder.payload_offset(i);
    ASSERT_EQ(builder.payload_nbytes(i), p.payload.size()) << what;
    ASSERT_EQ(layout.check(payload), "") << what;
    EXPECT_TRUE(std::equal(p.payload.begin(), p.payload.end(), payload)) << what;
    const Progress& seen = *batch.slots[i].progress;
    EXPECT_EQ(seen.nonfinite == 0, p.finite) << what;
    all_finite = all_finite && p.finite;
    if (!layout.dense()) {
      const std::vector<float> sent(batch.slots[i].sent, batch.slots[i].sent + layout.k());
      if (p.finite) expect_same(sent, std::vector<float>(p.sent.begin(), p.sent.end()), what);
      size_t nonzero = 0;
      for (const float x : sent) nonzero += x != 0.0f ? 1 : 0;
      EXPECT_EQ(seen.nonzero, nonzero) << what;
    }
    expect_same(tensors[i].residual, expected[i].residual, what + ": propose must not write");
  }
  if (!all_finite) return;

  commit(batch, nullptr);
  for (size_t i = 0; i < tensors.size(); ++i) {
    dgc::commit(*largest(expected[i].layout), proposals[i], expected[i].update, expected[i].arrays(), options);
    const std::string what = "tensor " + std::to_string(i);
    expect_same(tensors[i].grad, expected[i].grad, what + " grad");
    expect_same(tensors[i].residual, expected[i].residual, what + " residual");
    expect_same(tensors[i].velocity, expected[i].velocity, what + " velocity");
    if (tensors[i].layout.dense()) continue;
    std::vector<float> out(tensors[i].layout.n()), masked(tensors[i].layout.n());
    proposals[i].masked(masked.data());
    scatter_sent(batch, builder.first_group(i), builder.groups(i), out.data(), nullptr);
    expect_same(out, masked, what + " masked");
  }
}

const ValueCoder kCoders[] = {ValueCoder::float32, ValueCoder::float16, ValueCoder::bfloat16, ValueCoder::int8,
                              ValueCoder::int4};
constexpr IndexCoder kIndices[] = {IndexCoder::elias_fano, IndexCoder::int32};

TEST(CudaPropose, EveryCodingAndUpdate) {
  for (const ValueCoder& values : kCoders) {
    std::vector<Tensor> tensors;
    uint64_t seed = 1;
    for (const IndexCoder indices : kIndices) {
      for (const auto& [n, k] : std::vector<std::pair<size_t, size_t>>{
               {1, 1}, {5, 2}, {300, 299}, {1000, 1}, {8192, 9}, {9000, 700}, {20011, 40}, {700, 700}, {8200, 8200}}) {
        const bool nesterov = seed % 2 == 0;
        tensors.emplace_back(Layout(n, k, indices, values), Update(0.5, seed % 3 ? 0.0 : 0.01, 0.9, 0.1, nesterov),
                             100 * seed);
        tensors.back().decay = seed % 3 == 0;
        tensors.back().momentum = seed % 5 != 0;
        tensors.back().shifted = seed % 4 == 1 ? 1 : 0;
        ++seed;
      }
    }
    check_batch(tensors);
    check_batch(tensors, false, false);
  }
}

TEST(CudaPropose, HardArrays) {
  for (const size_t n : {1000, 40000}) {
    std::vector<Tensor> tensors;
    for (const test::Named& hard : test::hard_arrays(n)) {
      for (const size_t k : {size_t{1}, n / 1000, n / 3}) {
        tensors.emplace_back(Layout(n, k, IndexCoder::elias_fano, ValueCoder::int4), Update(), 5);
        std::copy(hard.values.begin(), hard.values.end(), tensors.back().grad.begin());
        std::fill(tensors.back().residual.begin(), tensors.back().residual.end(), 0.0f);
        tensors.back().momentum = false;
      }
    }
    check_batch(tensors);
  }
}

TEST(CudaPropose, NoCoordinateLooksTheSampleOver) {
  // The sample meets none of the large values, or nothing but them.
  for (const bool sampled_are_large : {false, true}) {
    const size_t n = 100000;
    Tensor t(Layout(n, 200, IndexCoder::elias_fano, ValueCoder::float16), Update(), 3);
    t.momentum = false;
    std::fill(t.residual.begin(), t.residual.end(), 0.0f);
    const size_t lines = n / 32, runs = kMostSampled / 32;
    std::vector<bool> sampled(lines, false);
    for (size_t r = 0; r < runs; ++r) sampled[r * lines / runs] = true;
    for (size_t i = 0; i < n; ++i) {
      const bool hit = i / 32 < lines && sampled[i / 32];
      t.grad[i] *= hit == sampled_are_large ? 1.0f : 1e-6f;
    }
    check_batch({t});
  }
}

TEST(CudaPropose, NonFiniteValuesPoisonTheirPayloadAlone) {
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity()};
  for (const ValueCoder& values : kCoders) {
    std::vector<Tensor> tensors;
    for (const auto& [n, k] : std::vector<std::pair<size_t, size_t>>{{9000, 700}, {20011, 40}, {8301, 8301}}) {
      for (size_t b = 0; b < 4; ++b) {
        tensors.emplace_back(Layout(n, k, IndexCoder::elias_fano, values), Update(1.0, 0.0, 0.9), n + b);
        if (b < 3) tensors.back().grad[n - 1 - 7 * b] = bad[b];
      }
    }
    check_batch(tensors);
  }
}

TEST(CudaPropose, HalfGradients) {
  for (const Scalar type : {Scalar::float16, Scalar::bfloat16}) {
    const size_t n = 20000;
    const Layout layout(n, 100, IndexCoder::elias_fano, ValueCoder::float16);
    Tensor t(layout, Update(0.25, 0.0, 0.9), 9), other = t;
    std::vector<uint16_t> halves(n);
    for (size_t i = 0; i < n; ++i) {
      halves[i] = type == Scalar::float16 ? float_to_half(t.grad[i]) : float_to_bfloat16(t.grad[i]);
    }
    std::vector<uint16_t> others = halves;
    Arrays a = t.arrays(), b = other.arrays();
    a.grad = halves.data();
    b.grad = others.data();
    a.grad_type = b.grad_type = type;
    BatchBuilder builder;
    builder.add(layout, t.update, a, true, true);
    Room table(builder.table_bytes()), payloads(builder.payload_bytes()), kept(builder.kept_bytes()),
        progress(sizeof(Progress)), scratch(builder.scratch_bytes());
    builder.write(table.address(), payloads.address(), kept.address(), progress.address(), scratch.address(),
                table.data());
    const Batch batch = builder.batch(table.address(), scratch.address());
    propose(batch, nullptr);
    Options options;
    options.zero_grad = true;
    const Proposal p = dgc::propose(*largest(layout), t.update, b, options);
    EXPECT_TRUE(std::equal(p.payload.begin(), p.payload.end(), payloads.data()));
    commit(batch, nullptr);
    dgc::commit(*largest(layout), p, t.update, b, options);
    expect_same(t.velocity, other.velocity, "velocity");
    expect_same(t.residual, other.residual, "residual");
    EXPECT_EQ(halves, others);
  }
}

struct Arrived {
  Layout layout;
  std::vector<uint8_t> payloads;
  size_t count;
  std::vector<float> out;
};

Arrived arrived(const Layout& layout, size_t count, uint64_t seed) {
  Arrived a{layout, std::vector<uint8_t>(layout.nbytes() * count), count, test::normal(layout.n(), seed)};
  for (size_t p = 0; p < count; ++p) {
    const std::vector<uint32_t> indices = test::random_coordinates(layout.n(), layout.k(), seed + p);
    std::vector<float> values = test::normal(layout.k(), seed + 50 + p);
    layout.pack(indices.data(), values.data(), a.payloads.data() + p * layout.nbytes(), values.data());
  }
  return a;
}

uint32_t add_all(std::vector<Arrived>* all, float scale) {
  SumsBuilder builder;
  for (Arrived& a : *all) {
    builder.add(a.layout, reinterpret_cast<Address>(a.payloads.data()), a.count, reinterpret_cast<Address>(a.out.data()),
                scale);
  }
  Room table(builder.table_bytes()), scratch(builder.scratch_bytes());
  uint32_t malformed = 0;
  builder.write(scratch.address(), table.data());
  add(builder.sums(table.address(), reinterpret_cast<Address>(&malformed)), nullptr);
  return malformed;
}

TEST(CudaAdd, EqualsTheProcessorsSums) {
  for (const ValueCoder& values : kCoders) {
    std::vector<Arrived> all;
    for (const IndexCoder indices : kIndices) {
      for (const size_t count : {1, 3, 300}) {
        all.push_back(arrived(Layout(1000, 7, indices, values), count, count));
      }
      all.push_back(arrived(Layout(70000, 5000, indices, values), 3, 7));
      all.push_back(arrived(Layout(513, 513, indices, values), 4, 8));
      all.push_back(arrived(Layout(400, 399, indices, values), 2, 9));
    }
    std::vector<std::vector<float>> expected;
    for (const Arrived& a : all) {
      expected.push_back(a.out);
      decode_add(a.layout, a.payloads.data(), a.count, expected.back().data(), 0.3f, 1);
    }
    EXPECT_EQ(add_all(&all, 0.3f), 0u);
    for (size_t i = 0; i < all.size(); ++i) expect_same(all[i].out, expected[i], std::to_string(i));
  }
}

TEST(CudaAdd, MalformedPayloadsAreToldAndStayInBounds) {
  std::mt19937_64 random(1);
  for (const IndexCoder indices : kIndices) {
    const Layout layout(70000, 300, indices, ValueCoder::float16);
    for (int round = 0; round < 20; ++round) {
      std::vector<Arrived> all{arrived(Layout(10, 2, indices, ValueCoder::int8), 2, 1), arrived(layout, 2, 2)};
      // In the indices of the second payload, until the processor refuses it, too.
      uint8_t* const payload = all[1].payloads.data() + layout.nbytes();
      while (layout.check(payload).empty()) {
        payload[600 + random() % (layout.nbytes() - 600)] = static_cast<uint8_t>(random());
      }
      const std::string wrong = layout.check(payload);
      // Bits that nobody reads are not looked at.
      if (wrong.rfind("unused", 0) == 0) continue;
      const std::vector<float> first = all[0].out;
      EXPECT_EQ(add_all(&all, 1.0f), 2u) << wrong;
      EXPECT_NE(all[0].out, first);
    }
  }
}

TEST(CudaReduce, SumsOfSquares) {
  SquaresBuilder builder;
  std::vector<std::vector<float>> arrays;
  for (const size_t n : {1, 8192, 30000}) arrays.push_back(test::normal(n, n));
  for (const auto& a : arrays) builder.add(a.size(), reinterpret_cast<Address>(a.data()), Scalar::float32);
  Room table(builder.table_bytes());
  builder.write(table.data());
  std::vector<double> sums(builder.stripes());
  sum_squares(builder.tensors(table.address()), builder.stripe_tensor(table.address()), builder.stripes(), sums.data(),
              nullptr);
  double all = 0.0, expected = 0.0;
  for (const double s : sums) all += s;
  for (const auto& a : arrays) expected += dgc::sum_squares(a.data(), Scalar::float32, a.size(), 1);
  EXPECT_NEAR(all, expected, 1e-12 * expected);
}

TEST(CudaReduce, MomentumOfTheAggregatedGradient) {
  for (const bool nesterov : {false, true}) {
    const Update update(1.0, 0.0, 0.9, 0.1, nesterov);
    const size_t n = 9000;
    std::vector<float> g = test::normal(n, 1), u = test::normal(n, 2), out(n), plain(n);
    std::vector<uint16_t> halves(n);
    for (size_t i = 0; i < n; ++i) {
      halves[i] = float_to_half(g[i]);
      g[i] = half_to_float(halves[i]);
    }
    std::vector<float> velocity = u;
    const auto address = [](const auto& v) { return reinterpret_cast<Address>(v.data()); };
    ReducedBuilder builder;
    builder.add(n, address(halves), Scalar::float16, address(out), address(velocity), update, 0.5f, 4.0f);
    builder.add(n, address(g), Scalar::float32, address(plain), 0, update, 3.0f, 1.0f);
    Room table(builder.table_bytes());
    builder.write(table.data());
    finish_reduced(builder.tensors(table.address()), builder.stripe_tensor(table.address()), builder.stripes(), nullptr);
    std::vector<float> expected = g, thrice = g;
    for (float& x : expected) x *= 0.5f;
    for (float& x : thrice) x *= 3.0f;
    dgc::apply_momentum(expected.data(), u.data(), n, update);
    for (float& x : expected) x *= 4.0f;
    expect_same(out, expected, "step");
    expect_same(velocity, u, "velocity");
    expect_same(plain, thrice, "without momentum");
  }
}

TEST(CudaProgress, CallersReadItByTheNamesOfItsFields) {
  Progress progress{};
  progress.nonfinite = 7;
  progress.nonzero = 9;
  std::vector<uint32_t> words(kProgressWords);
  ASSERT_EQ(words.size() * sizeof(uint32_t), sizeof progress);
  std::memcpy(words.data(), &progress, sizeof progress);
  std::map<std::string, uint32_t> read;
  for (const auto& field : kProgressFields) read[field.name] = words.at(field.word);
  EXPECT_EQ(read, (std::map<std::string, uint32_t>{{"nonfinite", 7}, {"nonzero", 9}}));
}

TEST(CudaFormat, KnowsWhatItCannotDo) {
  EXPECT_FALSE(has_format(Layout(1000, 10, IndexCoder::runlength16, ValueCoder::float16)));
  EXPECT_FALSE(has_format(Layout(size_t{1} << 31, 1 << 20, IndexCoder::elias_fano, ValueCoder::float16)));
  EXPECT_FALSE(has_format(Layout(1000, 10, IndexCoder::elias_fano, ValueCoder("natural"))));
  EXPECT_TRUE(has_format(Layout(1000, 1000, IndexCoder::runlength16, ValueCoder::float16)));
  EXPECT_THROW(format_of(Layout(1000, 10, IndexCoder::runlength16, ValueCoder::float16)), std::invalid_argument);
}

}  // namespace
}  // namespace dgc::cuda
