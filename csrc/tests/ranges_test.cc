#include "ranges.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cases.h"
#include "kinds.h"
#include "workers.h"

namespace dgc {
namespace {

using test::Worker;

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

}  // namespace
}  // namespace dgc
