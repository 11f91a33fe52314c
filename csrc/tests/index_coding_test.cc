#include "index_coding.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "cases.h"

namespace dgc {
namespace {

constexpr IndexCoder kCoders[] = {IndexCoder::elias_fano, IndexCoder::runlength16, IndexCoder::int32};

std::vector<uint8_t> encode(IndexCoder coder, size_t n, const std::vector<uint32_t>& indices) {
  std::vector<uint8_t> bytes(index_bytes(coder, n, indices.size()) + 16, 0xa5);
  encode_indices(coder, n, indices.size(), indices.data(), bytes.data());
  for (size_t i = bytes.size() - 16; i < bytes.size(); ++i)
    EXPECT_EQ(bytes[i], 0xa5) << "written past the end";
  bytes.resize(bytes.size() - 16);
  return std::vector<uint8_t>(bytes.begin(), bytes.end());  // exact allocation: a read past the end is caught
}

std::vector<uint32_t> decode(IndexCoder coder, size_t n, size_t k, const std::vector<uint8_t>& bytes,
                             size_t batch) {
  IndexReader reader(coder, n, k, bytes.data());
  std::vector<uint32_t> indices(k);
  while (reader.position() < k) {
    const size_t position = reader.position();
    const size_t count = reader.read(indices.data() + position, std::min(batch, k - position));
    EXPECT_EQ(reader.position(), position + count);
    if (count == 0) break;
  }
  return indices;
}

TEST(IndexBytes, FollowsTheFormulas) {
  for (const size_t n : {1u, 2u, 3u, 64u, 1000u, 65536u, 25557032u}) {
    for (const size_t k : {size_t{1}, n / 1000 + 1, n / 3 + 1, n}) {
      if (k > n) continue;
      if (k == n) {
        for (const IndexCoder coder : kCoders) EXPECT_EQ(index_bytes(coder, n, k), 0u);
        continue;
      }
      const size_t l =
          static_cast<size_t>(std::floor(std::log2(static_cast<double>(n) / static_cast<double>(k))));
      EXPECT_EQ(index_bytes(IndexCoder::elias_fano, n, k), (k * l + 7) / 8 + (k + ((n - 1) >> l) + 7) / 8);
      EXPECT_EQ(index_bytes(IndexCoder::runlength16, n, k), 2 * k);
      EXPECT_EQ(index_bytes(IndexCoder::int32, n, k), 4 * k);
    }
  }
}

TEST(EliasFano, MatchesAWorkedExample) {
  // n = 16, k = 3: l = 2. Low bits 01, 10, 11 LSB first: 0b111001. High parts 0, 1, 3: bits 0, 2, 5.
  const std::vector<uint8_t> expected{0x39, 0x25};
  EXPECT_EQ(encode(IndexCoder::elias_fano, 16, {1, 6, 15}), expected);
}

TEST(Indices, RoundTripInBatchesAndFromAnyPoint) {
  for (const IndexCoder coder : kCoders) {
    for (const size_t n : {2u, 3u, 63u, 64u, 65u, 1000u, 65535u, 65536u, 65537u, 200003u}) {
      for (const size_t k :
           {size_t{1}, size_t{2}, n / 1000 + 1, n / 64 + 1, n / 3 + 1, n / 2 + 1, n - 1, n}) {
        if (k > n) continue;
        const std::vector<uint32_t> indices = test::random_coordinates(n, k, static_cast<unsigned>(n + k));
        if (coder == IndexCoder::runlength16 && needs_fillers(k, indices.data())) continue;
        const std::vector<uint8_t> bytes = encode(coder, n, indices);
        ASSERT_EQ(check_indices(coder, n, k, bytes.data()), "");
        for (const size_t batch : {size_t{1}, size_t{7}, size_t{256}, k}) {
          ASSERT_EQ(decode(coder, n, k, bytes, batch), indices) << n << " " << k;
        }
        for (const size_t lowest : {size_t{0}, size_t{1}, n / 2, n / 2 + 1, 2 * n / 3, n - 1}) {
          IndexReader reader(coder, n, k, bytes.data());
          reader.seek(lowest);
          const auto first = std::lower_bound(indices.begin(), indices.end(), lowest);
          const size_t position = static_cast<size_t>(first - indices.begin());
          ASSERT_EQ(reader.position(), position) << n << " " << k << " " << lowest;
          std::vector<uint32_t> rest(k);
          rest.resize(reader.read(rest.data(), k));
          ASSERT_EQ(rest, std::vector<uint32_t>(first, indices.end())) << n << " " << k << " " << lowest;
        }
      }
    }
  }
}

TEST(Indices, ReachTheLastCoordinateOfALargeTensor) {
  const size_t n = 4294967295u;
  const std::vector<uint32_t> indices{0, 5, 2147483648u, 4294967293u, 4294967294u};
  const std::vector<uint8_t> bytes = encode(IndexCoder::elias_fano, n, indices);
  EXPECT_EQ(check_indices(IndexCoder::elias_fano, n, 5, bytes.data()), "");
  EXPECT_EQ(decode(IndexCoder::elias_fano, n, 5, bytes, 2), indices);
  const std::vector<uint8_t> words = encode(IndexCoder::int32, 2147483647u, {1, 2147483646u});
  EXPECT_EQ(check_indices(IndexCoder::int32, 2147483647u, 2, words.data()), "");
}

TEST(CheckIndices, RefusesEveryMutationOrKeepsReadsInOrderAndInRange) {
  std::mt19937 random(3);
  size_t refused = 0;
  for (const IndexCoder coder : kCoders) {
    for (int round = 0; round < 3000; ++round) {
      const size_t n = 2 + random() % 3000;
      const size_t k = 1 + random() % (n - 1);
      std::vector<uint8_t> bytes = encode(coder, n, test::random_coordinates(n, k, random()));
      const int flips = 1 + static_cast<int>(random() % 4);
      for (int f = 0; f < flips; ++f)
        bytes[random() % bytes.size()] ^= static_cast<uint8_t>(1 + random() % 255);
      std::vector<uint32_t> indices(k);
      IndexReader(coder, n, k, bytes.data()).read(indices.data(), k);
      if (!check_indices(coder, n, k, bytes.data()).empty()) {
        ++refused;
        continue;
      }
      for (size_t j = 0; j < k; ++j) {
        ASSERT_LT(indices[j], n);
        ASSERT_TRUE(j == 0 || indices[j - 1] < indices[j]);
      }
      ASSERT_EQ(encode(coder, n, indices), bytes) << "an accepted stream is the one that encoding gives";
    }
  }
  EXPECT_GT(refused, 3000u);
}

TEST(CheckIndices, NamesWhatIsWrong) {
  std::vector<uint8_t> bytes = encode(IndexCoder::elias_fano, 16, {1, 6, 15});
  bytes[0] |= 0x80;
  EXPECT_NE(check_indices(IndexCoder::elias_fano, 16, 3, bytes.data()).find("unused low bits"),
            std::string::npos);
  bytes[0] &= 0x7f;
  bytes[1] |= 0x40;
  EXPECT_NE(check_indices(IndexCoder::elias_fano, 16, 3, bytes.data()).find("unused high bits"),
            std::string::npos);
  bytes[1] = 0x24;
  EXPECT_NE(check_indices(IndexCoder::elias_fano, 16, 3, bytes.data()).find("holds 2"), std::string::npos);
  const std::vector<uint8_t> words = {3, 0, 0, 0, 3, 0, 0, 0};
  EXPECT_NE(check_indices(IndexCoder::int32, 16, 2, words.data()).find("not above"), std::string::npos);
  const std::vector<uint8_t> negative = {3, 0, 0, 0, 255, 255, 255, 255};
  EXPECT_NE(check_indices(IndexCoder::int32, 16, 2, negative.data()).find("below 16"), std::string::npos);
  const std::vector<uint8_t> runs = {3, 0, 12, 0};
  EXPECT_NE(check_indices(IndexCoder::runlength16, 16, 2, runs.data()).find("below 16"), std::string::npos);
}

void check_slots(size_t n, const std::vector<uint32_t>& indices, const std::vector<float>& values) {
  const size_t k = indices.size();
  const RunSlots slots = fit_run_lengths(n, k, indices.data(), values.data());
  ASSERT_EQ(slots.indices.size(), k);
  ASSERT_EQ(slots.sources.size(), k);
  EXPECT_FALSE(needs_fillers(k, slots.indices.data()));
  const std::vector<uint8_t> bytes = encode(IndexCoder::runlength16, n, slots.indices);
  EXPECT_EQ(check_indices(IndexCoder::runlength16, n, k, bytes.data()), "");
  EXPECT_EQ(decode(IndexCoder::runlength16, n, k, bytes, 256), slots.indices);
  std::vector<bool> sent(k, false);
  for (size_t j = 0; j < k; ++j) {
    if (slots.sources[j] == RunSlots::kFiller) continue;
    EXPECT_EQ(slots.indices[j], indices[slots.sources[j]]);
    sent[slots.sources[j]] = true;
  }
  // Those sent are the largest: nobody displaced outranks anybody sent.
  size_t count = 0;
  for (size_t j = 0; j < k; ++j) count += sent[j] ? 1 : 0;
  EXPECT_GE(count, 1u);
  for (const uint32_t place : test::best(values, count)) EXPECT_TRUE(sent[place]);
}

TEST(FitRunLengths, FillersDisplaceTheSmallest) {
  // One run of 199990 needs 3 fillers: three of the four smallest give way.
  const RunSlots slots = [] {
    const std::vector<uint32_t> indices{0, 1, 2, 3, 4, 5, 6, 200000};
    const std::vector<float> values{8, 1, -7, 6, 2, -3, 5, 4};
    return fit_run_lengths(200003, 8, indices.data(), values.data());
  }();
  const std::vector<uint32_t> indices{0, 2, 3, 6, 65542, 131078, 196614, 200000};
  EXPECT_EQ(slots.indices, indices);
}

TEST(FitRunLengths, AlwaysFitsAndAlwaysSends) {
  std::mt19937 random(11);
  for (int round = 0; round < 400; ++round) {
    const size_t n = 65537 + random() % 2000000;
    const size_t least = (n + kMaxRun) / (kMaxRun + 1);
    const size_t k = least + random() % 40;
    std::vector<uint32_t> indices;
    switch (round % 4) {
      case 0:  // a cluster somewhere
        indices.resize(k);
        std::iota(indices.begin(), indices.end(), static_cast<uint32_t>(random() % (n - k)));
        break;
      case 1:  // the end
        indices.resize(k);
        std::iota(indices.begin(), indices.end(), static_cast<uint32_t>(n - k));
        break;
      case 2:  // a cluster at the start and one at the very end
        for (size_t j = 0; j < k - 1; ++j) indices.push_back(static_cast<uint32_t>(j));
        indices.push_back(static_cast<uint32_t>(n - 1));
        break;
      default:
        indices = test::random_coordinates(n, k, random());
    }
    std::vector<float> values = test::normal(k, random());
    if (round % 3 == 0) std::fill(values.begin(), values.end(), 1.0f);
    check_slots(n, indices, values);
    if (HasFatalFailure()) return;
  }
}

TEST(FitRunLengths, FillsSlotsThatDisplacementLeavesOver) {
  // The last coordinate costs three fillers and is the smallest: giving it up leaves three slots.
  const RunSlots slots = [] {
    const std::vector<uint32_t> indices{0, 1, 2, 3, 250000};
    const std::vector<float> values{5, 4, 3, 2, 1};
    return fit_run_lengths(262144, 5, indices.data(), values.data());
  }();
  const std::vector<uint32_t> indices{0, 1, 2, 3, 4};
  EXPECT_EQ(slots.indices, indices);
  EXPECT_EQ(slots.sources.back(), RunSlots::kFiller);
}

}  // namespace
}  // namespace dgc
