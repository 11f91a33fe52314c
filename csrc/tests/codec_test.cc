#include "codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cases.h"
#include "kinds.h"
#include "proposal.h"
#include "workers.h"

namespace dgc {
namespace {

using test::Worker;
using test::dense;

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

TEST_P(EveryCodec, PoisonIsSeenInPayloadsAndInTheirSum) {
  Worker worker(codec, test::normal(codec->n(), 7));
  ASSERT_TRUE(worker.open());
  const Proposal good = worker.propose();
  const std::vector<uint8_t> poison = codec->poison();
  for (const bool bad : {false, true}) {
    std::vector<uint8_t> payloads(good.payload.begin(), good.payload.end());
    payloads.insert(payloads.end(), bad ? poison.begin() : payloads.begin(), bad ? poison.end() : payloads.end());
    std::vector<float> sum(codec->n(), 0.0f);
    codec->add(payloads.data(), 2, sum.data(), 1.0f, worker.context());
    EXPECT_EQ(any_poisoned(*codec, payloads.data(), 2), bad);
    EXPECT_EQ(any_poisoned(sum.data(), Scalar::float32, sum.size()), bad);
    if (codec->summable().empty()) continue;
    const Scalar type = codec->summable() == "float16" ? Scalar::float16 : Scalar::float32;
    // With payloads of zeros, the sum is the payload.
    EXPECT_EQ(any_poisoned(payloads.data() + codec->nbytes(), type, codec->nbytes() / scalar_size(type)), bad);
  }
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

TEST(AnyPoisoned, ASumIsIfOneOfItsValuesIsNotFinite) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_FALSE(any_poisoned(nullptr, Scalar::float32, 0));
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity}) {
    for (const size_t where : {0, 1, 999}) {
      std::vector<float> sum = test::normal(1000, 1);
      EXPECT_FALSE(any_poisoned(sum.data(), Scalar::float32, sum.size()));
      sum[where] = bad;
      EXPECT_TRUE(any_poisoned(sum.data(), Scalar::float32, sum.size()));
      std::vector<uint16_t> halves(1000, 0x7bff);
      EXPECT_FALSE(any_poisoned(halves.data(), Scalar::float16, halves.size()));
      halves[where] = static_cast<uint16_t>(std::isnan(bad) ? 0x7e00 : bad > 0 ? 0x7c00 : 0xfc00);
      EXPECT_TRUE(any_poisoned(halves.data(), Scalar::float16, halves.size()));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, EveryCodec, testing::ValuesIn(kDescriptions));

}  // namespace
}  // namespace dgc
