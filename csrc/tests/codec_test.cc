#include "codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "cases.h"
#include "kinds.h"
#include "proposal.h"
#include "quantile.h"

namespace dgc {
namespace {

// One of each kind and selector, for n = 600.
const char* const kDescriptions[] = {
    "coordinates n=600 k=6 indices=elias-fano values=float16 select=largest",
    "coordinates n=600 k=600 indices=elias-fano values=int8 select=largest",
    "coordinates n=600 k=60 indices=elias-fano values=float32 select=above threshold=0.8",
    "coordinates n=600 k=60 indices=elias-fano values=float16 select=quantile share=0.05 samples=600",
    "coordinates n=600 k=20 indices=elias-fano values=float32 select=quantile share=0.05 samples=100",
    "coordinates n=600 k=60 indices=int32 values=float16 select=proportion",
    "coordinates n=600 k=60 indices=runlength16 values=float32 select=bins length=50",
    "coordinates n=600 k=600 indices=elias-fano values=ternary select=ternarise clip=2.5 shared=0",
    "coordinates n=600 k=600 indices=elias-fano values=ternary select=ternarise clip=0 shared=1",
    "coordinates n=600 k=60 indices=elias-fano values=float32 select=unambiguous alpha=1.5 zeta=0.999 "
    "threshold=0",
    "coordinates n=600 k=60 indices=elias-fano values=float32 select=unambiguous alpha=1 zeta=0.9 "
    "threshold=0.5",
    "coordinates n=600 k=60 indices=elias-fano values=ternary select=bins length=50",
    "coordinates n=600 k=60 indices=elias-fano values=power4 select=unambiguous alpha=1 zeta=0.999 "
    "threshold=0",
    "coordinates n=600 k=600 indices=elias-fano values=sign select=largest vote=1",
    "random n=600 k=60 values=float32 factor=1",
    "random n=600 k=600 values=float16 factor=1",
    "sketch n=600 k=10 rows=3 columns=101",
    "lowrank rows=20 columns=30 rank=3",
    "lowrank rows=30 columns=20 rank=20",
    "ranges n=600 k=60 parts=7 indices=elias-fano values=float16",
    "ranges n=600 k=590 parts=4 indices=int32 values=int8",
};

// One worker with all that it keeps.
struct Worker {
  std::shared_ptr<const Codec> codec;
  std::vector<float> grad, residual, memory, opened;
  Randomness randomness{1, 2, 3, 0};
  int threads = 1;

  Worker(std::shared_ptr<const Codec> made, std::vector<float> gradient)
      : codec(std::move(made)),
        grad(std::move(gradient)),
        residual(test::normal(codec->n(), 5, 0.3f)),
        memory(codec->memory(), 0.0f),
        opened(codec->opening().count) {}

  Arrays arrays() {
    Arrays a;
    a.n = codec->n();
    a.grad = grad.data();
    a.residual = residual.data();
    return a;
  }

  Context context() const {
    Context c;
    c.randomness = randomness;
    c.opened = opened.data();
    c.memory = memory.data();
    c.threads = threads;
    return c;
  }

  Options options() const {
    Options o;
    o.threads = threads;
    return o;
  }

  bool open() {
    opened.resize(codec->opening().count);
    const bool finite = dgc::open(*codec, Update(), arrays(), options(), context(), opened.data());
    if (codec->opening().reduction == Reduction::quantile)
      opened = {opened_by_quantile({codec.get()}, {opened.data()})};
    return finite;
  }

  Proposal propose() { return dgc::propose(*codec, Update(), arrays(), options(), context()); }

  void commit(const Proposal& p) {
    dgc::commit(*codec, p, Update(), arrays(), options(), context(),
                memory.empty() ? nullptr : memory.data());
  }
};

std::vector<float> dense(const Proposal& p) {
  std::vector<float> out(p.n, 7.0f);
  p.masked(out.data());
  return out;
}

class EveryCodec : public testing::TestWithParam<const char*> {
 protected:
  std::shared_ptr<const Codec> codec = make_codec(GetParam());
};

TEST_P(EveryCodec, SentPlusResidualIsWhatWasAccumulated) {
  for (const float size : {1.0f, 0.0f, 1e-42f, 1e15f}) {
    Worker worker(codec, test::normal(codec->n(), 1, size));
    for (int step = 0; step < 4; ++step) {
      std::vector<float> expected = worker.residual;
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += worker.grad[i];
      ASSERT_TRUE(worker.open());
      const Proposal p = worker.propose();
      ASSERT_TRUE(p.finite);
      ASSERT_EQ(p.payload.size(), codec->nbytes());
      ASSERT_EQ(p.values().size(), codec->sent());
      const std::vector<float> sent = dense(p);
      worker.commit(p);
      for (size_t i = 0; i < expected.size(); ++i) ASSERT_EQ(worker.residual[i], expected[i] - sent[i]);
      codec->absorb(p.payload.data(), 1, worker.memory.data());
    }
  }
}

TEST_P(EveryCodec, PayloadDecodesToWhatWasSent) {
  Worker worker(codec, test::normal(codec->n(), 2));
  ASSERT_TRUE(worker.open());
  const Proposal p = worker.propose();
  ASSERT_EQ(codec->check(p.payload.data()), "");
  const Proposal again = codec->recover(p.payload.data(), worker.context());
  EXPECT_EQ(again.indices, p.indices);
  EXPECT_TRUE(test::same_bits(again.values(), p.values()));
  std::vector<float> decoded(codec->n(), 0.0f);
  codec->add(p.payload.data(), 1, decoded.data(), 1.0f, worker.context());
  const std::vector<float> sent = dense(p);
  for (size_t i = 0; i < sent.size(); ++i) ASSERT_EQ(decoded[i], sent[i]);
  for (size_t j = 1; j < p.indices.size(); ++j) ASSERT_LT(p.indices[j - 1], p.indices[j]);
}

TEST_P(EveryCodec, ResultsDoNotDependOnThreads) {
  Worker one(codec, test::normal(codec->n(), 3));
  Worker more = one;
  more.threads = 3;
  ASSERT_TRUE(one.open() && more.open());
  ASSERT_TRUE(test::same_bits(one.opened, more.opened));
  EXPECT_EQ(one.propose().payload, more.propose().payload);
}

TEST_P(EveryCodec, WhatIsNotFiniteIsToldAndChangesNothing) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Worker worker(codec, test::normal(codec->n(), 4));
    worker.grad[codec->n() - 1] = bad;
    const std::vector<float> before = worker.residual;
    EXPECT_FALSE(worker.open());
    const Proposal p = worker.propose();
    EXPECT_FALSE(p.finite);
    EXPECT_TRUE(test::same_bytes(p.payload, codec->poison()));
    EXPECT_EQ(codec->check(p.payload.data()), "");
    EXPECT_TRUE(test::same_bits(worker.residual, before));
  }
}

TEST_P(EveryCodec, WithoutAResidualTheGradientAloneIsSent) {
  for (const bool finite : {true, false}) {
    Worker worker(codec, test::normal(codec->n(), 5));
    std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
    ASSERT_TRUE(worker.open());
    if (!finite) worker.grad[codec->n() / 2] = -std::numeric_limits<float>::infinity();
    const std::vector<float> before = worker.grad;
    Arrays alone = worker.arrays();
    alone.residual = nullptr;
    const Proposal with = worker.propose();
    const Proposal p = dgc::propose(*codec, Update(), alone, worker.options(), worker.context());
    EXPECT_EQ(p.finite, finite);
    EXPECT_EQ(p.payload, with.payload);
    if (finite) dgc::commit(*codec, p, Update(), alone, worker.options(), worker.context());
    EXPECT_TRUE(test::same_bits(worker.grad, before));
  }
}

TEST_P(EveryCodec, EveryInstructionSetDoesTheSame) {
  Bytes payload;
  std::vector<float> memory;
  for (const Kernels* set : available_kernels()) {
    force_kernels(set);
    Worker worker(codec, test::normal(codec->n(), 6));
    for (int step = 0; step < 2; ++step) {
      worker.open();
      const Proposal p = worker.propose();
      worker.commit(p);
      if (step == 0) continue;
      if (set == available_kernels().front()) {
        payload = p.payload;
        memory = worker.memory;
      }
      EXPECT_EQ(p.payload, payload) << set->name;
      EXPECT_TRUE(test::same_bits(worker.memory, memory)) << set->name;
    }
  }
  force_kernels(nullptr);
}

TEST_P(EveryCodec, VotesAreTheSignOfTheSum) {
  if (!codec->votes()) GTEST_SKIP() << "sums";
  std::vector<uint8_t> payloads;
  for (uint64_t worker = 0; worker < 4; ++worker) {
    const Proposal p = Worker(codec, test::normal(codec->n(), worker)).propose();
    payloads.insert(payloads.end(), p.payload.begin(), p.payload.end());
  }
  std::vector<float> sum(codec->n(), 0.0f), votes(codec->n(), 1.0f);
  Context context;
  codec->add(payloads.data(), 4, sum.data(), 1.0f, context);
  codec->vote(payloads.data(), 4, votes.data(), 0.5f, context);
  for (size_t i = 0; i < sum.size(); ++i) {
    ASSERT_EQ(votes[i], sum[i] > 0 ? 1.5f : sum[i] < 0 ? 0.5f : 1.0f);
  }
  const std::vector<uint8_t> poison = codec->poison();
  codec->vote(poison.data(), 1, votes.data(), 1.0f, context);
  EXPECT_TRUE(std::isnan(votes[0]));
}

TEST_P(EveryCodec, AnotherWorkersFaultInTheOpeningIsTold) {
  if (codec->opening().count == 0) GTEST_SKIP() << "no opening round";
  Worker worker(codec, test::normal(codec->n(), 4));
  ASSERT_TRUE(worker.open());
  std::fill(worker.opened.begin(), worker.opened.end(), std::numeric_limits<float>::quiet_NaN());
  const Proposal p = worker.propose();
  // Where all coordinates are sent, nothing is left to be agreed upon but what the values are.
  if (codec->sent() < codec->n()) {
    EXPECT_FALSE(p.finite);
  }
}

std::shared_ptr<const Codec> over(size_t n, size_t samples, double share) {
  return make_codec("coordinates n=" + std::to_string(n) +
                    " k=1 indices=int32 values=float32 select=quantile share=" + std::to_string(share) +
                    " samples=" + std::to_string(samples));
}

TEST(Quantile, IsThatOfAllElementsWhereAllAreSampled) {
  for (const double share : {0.001, 0.01, 0.1, 0.5, 1.0}) {
    const auto small = over(700, 700, share);
    const auto large = over(2300, 2300, share);
    std::vector<float> magnitudes[] = {test::normal(700, 1, 5.0f), test::normal(2300, 2)};
    std::vector<float> all;
    for (auto& part : magnitudes) {
      for (float& x : part) all.push_back(x = std::fabs(x));
    }
    std::sort(all.begin(), all.end(), std::greater<float>());
    const size_t wanted = static_cast<size_t>(std::ceil(share * 3000 * (1 - 1e-9)));
    const float found =
        opened_by_quantile({small.get(), large.get()}, {magnitudes[0].data(), magnitudes[1].data()});
    EXPECT_EQ(found, all[wanted - 1]) << share;
  }
}

TEST(Quantile, ASampleCountsForTheElementsItStandsFor) {
  // 90 elements of 1, all sampled, and 9,000 of 2, of which 9 are: most samples are ones, few elements are.
  const auto small = over(90, 90, 0.01);
  const auto large = over(9000, 9, 0.01);
  const std::vector<float> ones(90, 1.0f);
  const std::vector<float> twos(9, 2.0f);
  EXPECT_EQ(opened_by_quantile({small.get(), large.get()}, {ones.data(), twos.data()}), 2.0f);
  const auto most = over(90, 90, 0.995);
  EXPECT_EQ(opened_by_quantile({most.get(), large.get()}, {ones.data(), twos.data()}), 1.0f);
}

TEST(Quantile, OfNothingIsZeroAndOfNanIsNan) {
  EXPECT_EQ(opened_by_quantile({}, {}), 0.0f);
  const auto codec = over(3, 3, 0.5);
  const std::vector<float> bad = {1.0f, std::numeric_limits<float>::quiet_NaN(), 2.0f};
  EXPECT_TRUE(std::isnan(opened_by_quantile({codec.get()}, {bad.data()})));
}

INSTANTIATE_TEST_SUITE_P(All, EveryCodec, testing::ValuesIn(kDescriptions));

TEST(Random, DrawsEachCoordinateEquallyOftenAndAlikeOnAllRanks) {
  const size_t n = 37, k = 5, steps = 20000;
  const auto codec = make_codec("random n=37 k=5 values=float32 factor=1");
  std::vector<size_t> counts(n);
  Worker worker(codec, std::vector<float>(n, 1.0f));
  for (size_t step = 0; step < steps; ++step) {
    worker.randomness = Randomness(1, 2, step, 0);
    const Proposal p = worker.propose();
    worker.randomness = Randomness(1, 2, step, 7);
    ASSERT_EQ(worker.propose().indices, p.indices);
    for (const uint32_t i : p.indices) ++counts[i];
  }
  // A binomial count of mean 2703 and standard deviation 48; five of them, 37 coordinates: 2e-5 by chance.
  const double mean = static_cast<double>(steps * k) / static_cast<double>(n);
  for (const size_t count : counts) EXPECT_NEAR(static_cast<double>(count), mean, 5.0 * std::sqrt(mean));
}

TEST(Sketch, FindsTheHeavyCoordinates) {
  const auto codec = make_codec("sketch n=600 k=10 rows=5 columns=1000");
  std::vector<float> grad = test::normal(600, 1, 0.01f);
  std::set<uint32_t> heavy;
  for (uint32_t i = 3; heavy.size() < 10; i += 57) {
    grad[i] = i % 2 ? 5.0f : -5.0f;
    heavy.insert(i);
  }
  Worker worker(codec, grad);
  std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
  ASSERT_TRUE(worker.open());
  const Proposal p = worker.propose();
  EXPECT_EQ(std::set<uint32_t>(p.indices.begin(), p.indices.end()), heavy);
}

TEST(Ranges, EachSendsItsLargest) {
  const auto codec = make_codec("ranges n=10 k=4 parts=2 indices=int32 values=float32");
  Worker worker(codec, {1, 5, -5, 5, 0, 0, 0, 9, 0, -8});
  std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
  // Ties go to the lower index, and no range gives its place to another.
  EXPECT_EQ(worker.propose().indices, (std::vector<uint32_t>{1, 2, 7, 9}));
}

TEST(Ranges, WhatIsReducedAndWhatIsReturnedIsTheSum) {
  for (const char* const values : {"float32", "float16", "int4"}) {
    const auto codec =
        make_codec(std::string("ranges n=601 k=50 parts=6 indices=elias-fano values=") + values);
    const size_t part_nbytes = codec->nbytes() / codec->parts();
    std::vector<uint8_t> payloads;
    for (uint64_t worker = 0; worker < 3; ++worker) {
      const Proposal p = Worker(codec, test::normal(codec->n(), worker)).propose();
      payloads.insert(payloads.end(), p.payload.begin(), p.payload.end());
    }
    std::vector<float> sum(codec->n(), 0.0f), reduced(codec->n(), 0.0f), returned(codec->n());
    codec->add(payloads.data(), 3, sum.data(), 1.0f, Context());
    std::vector<uint8_t> together(codec->nbytes());
    ASSERT_EQ(codec->begin(0), 0u);
    for (size_t part = 0; part < codec->parts(); ++part) {
      std::vector<uint8_t> received;
      for (size_t worker = 0; worker < 3; ++worker) {
        const uint8_t* const sent = payloads.data() + worker * codec->nbytes() + part * part_nbytes;
        received.insert(received.end(), sent, sent + part_nbytes);
      }
      codec->reduce(part, received.data(), 3, Context(), together.data() + part * part_nbytes,
                    returned.data() + codec->begin(part));
      received[part_nbytes - 1] ^= 0xff;
      if (std::string(values) == "float32") {
        EXPECT_THROW(codec->reduce(part, received.data(), 3, Context(), together.data(), returned.data()),
                     std::invalid_argument);
      }
    }
    ASSERT_EQ(codec->begin(codec->parts()), codec->n());
    ASSERT_EQ(codec->check(together.data()), "");
    codec->add(together.data(), 1, reduced.data(), 1.0f, Context());
    size_t sent = 0;
    for (size_t i = 0; i < sum.size(); ++i) {
      ASSERT_EQ(reduced[i] + returned[i], sum[i]) << values << " " << i;
      sent += reduced[i] != 0.0f;
    }
    EXPECT_LE(sent, codec->sent());
    EXPECT_GT(sent, codec->sent() / 2);
  }
}

TEST(Ranges, ASumThatIsNotFiniteIsPoison) {
  const auto codec = make_codec("ranges n=100 k=10 parts=5 indices=elias-fano values=float32");
  const size_t part_nbytes = codec->nbytes() / codec->parts();
  const std::vector<uint8_t> poison = codec->poison();
  std::vector<uint8_t> together(codec->nbytes());
  for (size_t part = 0; part < codec->parts(); ++part) {
    const uint8_t* const bad = poison.data() + part * part_nbytes;
    std::vector<float> returned(20, 1.0f);
    codec->reduce(part, bad, 1, Context(), together.data() + part * part_nbytes, returned.data());
    EXPECT_EQ(returned, std::vector<float>(20, 0.0f));
  }
  EXPECT_EQ(together, poison);
}

TEST(LowRank, RecoversAMatrixOfThatRank) {
  const auto codec = make_codec("lowrank rows=20 columns=30 rank=2");
  const std::vector<float> left = test::normal(40, 1), right = test::normal(60, 2);
  std::vector<float> matrix(600);
  for (size_t i = 0; i < 20; ++i) {
    for (size_t j = 0; j < 30; ++j) matrix[30 * i + j] = left[i] * right[j] + left[20 + i] * right[30 + j];
  }
  Worker worker(codec, matrix);
  std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
  ASSERT_TRUE(worker.open());
  const Proposal p = worker.propose();
  for (size_t i = 0; i < 600; ++i) EXPECT_NEAR(p.sent[i], matrix[i], 1e-4);
}

TEST(LowRank, AScaleOutOfAllProportionLastsOneStep) {
  const auto codec = make_codec("lowrank rows=20 columns=30 rank=2");
  Worker worker(codec, test::normal(600, 1));
  std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
  for (const float size : {1e25f, 1.0f, 1e-25f, 1.0f}) {
    worker.grad = test::normal(600, 2, size);
    ASSERT_TRUE(worker.open());
    const Proposal p = worker.propose();
    ASSERT_TRUE(p.finite);
    worker.commit(p);
    codec->absorb(p.payload.data(), 1, worker.memory.data());
  }
}

TEST(Proportion, OneCoordinateGoesToTheLargerSign) {
  Worker worker(make_codec("coordinates n=5 k=1 indices=int32 values=float32 select=proportion"),
                {1, 2, -3, 4, -5});
  std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
  for (const float expected : {-5.0f, 8.0f, -10.0f}) {
    const Proposal p = worker.propose();
    EXPECT_EQ(p.sent[0], expected);
    worker.commit(p);
  }
}

TEST(Ternarise, CodesAnEmptyTensor) {
  const auto codec =
      make_codec("coordinates n=0 k=0 indices=int32 values=ternary select=ternarise clip=2.5 shared=0");
  const Proposal p = Worker(codec, {}).propose();
  EXPECT_TRUE(p.finite);
  EXPECT_TRUE(p.payload.empty());
}

TEST(Ternarise, DoesNotClipEqualValues) {
  const auto codec =
      make_codec("coordinates n=1000 k=1000 indices=int32 values=ternary select=ternarise clip=2.5 shared=0");
  Worker worker(codec, std::vector<float>(1000, 0.1f));
  std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
  EXPECT_EQ(dense(worker.propose()), worker.grad);
}

TEST(Unambiguous, AMomentIsNeverInfinite) {
  for (const char* const threshold : {"0", "1e19", "1e30"}) {
    const auto codec = make_codec(
        std::string("coordinates n=4 k=4 indices=int32 values=float32 select=unambiguous alpha=1 zeta=0.9") +
        " threshold=" + threshold);
    Worker worker(codec, std::vector<float>(4, 1e30f));
    std::fill(worker.residual.begin(), worker.residual.end(), 0.0f);
    for (int step = 0; step < 4; ++step) {
      worker.commit(worker.propose());
      for (const float moment : worker.memory) ASSERT_TRUE(std::isfinite(moment));
    }
  }
}

TEST(Descriptions, AreRefusedWithWhatIsWrong) {
  const auto message = [](const std::string& description) -> std::string {
    try {
      make_codec(description);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message("unheard n=1").substr(0, 36), "codec is 'unheard'; allowed: coordin");
  EXPECT_EQ(message("random n=10 k=11 values=float32 factor=1"), "k is 11; allowed: 1 to 10");
  EXPECT_EQ(message("random n=10 k=1 values=float32 factor=x"), "factor is x; allowed: 0 to 1e+09");
  EXPECT_EQ(message("random n=10 k=1 values=float32"), "factor is missing; allowed: a value for random");
  EXPECT_EQ(message("random n=10 k=1 values=float32 factor=1 far=1"),
            "setting is far=1; allowed: none of this name for random");
  EXPECT_EQ(message("coordinates n=9 k=2 indices=int32 values=ternary select=ternarise clip=1 shared=0"),
            "k is 2 of n=9 with select=ternarise, which selects nothing; allowed: n");
  EXPECT_EQ(message("coordinates n=9 k=9 indices=int32 values=float32 select=ternarise clip=1 shared=0"),
            "values is float32; allowed with this select: ternary");
  EXPECT_EQ(message("random n=10 n=10"), "setting is n=10; allowed: each name once");
}

}  // namespace
}  // namespace dgc
