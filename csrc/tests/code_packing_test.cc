#include "code_packing.h"

#include <gtest/gtest.h>

#include <vector>

#include "cases.h"

namespace dgc {
namespace {

const size_t kCounts[] = {1, 2, 4, 5, 7, 8, 9, 13, 63, 64, 65, 70, 320, 1000};

std::vector<uint8_t> random_codes(size_t count, unsigned below, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint8_t> codes(count);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random() % below);
  return codes;
}

void expect_parts(const std::vector<uint8_t>& codes, size_t first, const std::vector<uint8_t>& part) {
  ASSERT_EQ(part, std::vector<uint8_t>(codes.begin() + static_cast<long>(first),
                                       codes.begin() + static_cast<long>(first + part.size())));
}

TEST(Codes, AreWhereTheFormatSays) {
  for (const Kernels* set : available_kernels()) {
    const test::ForcedKernels forced(set);
    for (unsigned width = 1; width <= 8; ++width) {
      for (const size_t count : kCounts) {
        const std::vector<uint8_t> codes = random_codes(count, 1u << width, width + count);
        const size_t length = (count * width + 7) / 8;
        ASSERT_EQ(packed_bytes(count, width), length);
        std::vector<uint8_t> bytes(length + 1, 0xa5);
        pack_codes(codes.data(), count, width, bytes.data());
        ASSERT_EQ(bytes.back(), 0xa5) << "written past the end";
        std::vector<uint8_t> expected(length, 0);
        for (size_t bit = 0; bit < count * width; ++bit) {
          const unsigned set_bit = (codes[bit / width] >> (bit % width)) & 1u;
          expected[bit / 8] = static_cast<uint8_t>(expected[bit / 8] | set_bit << (bit % 8));
        }
        bytes.pop_back();
        ASSERT_EQ(bytes, expected) << set->name << " width " << width << " count " << count;
        bytes.shrink_to_fit();
        for (size_t first = 0; first < count; first += 1 + first / 3) {
          for (const size_t part : {size_t{1}, (count - first + 1) / 2, count - first}) {
            std::vector<uint8_t> some(part);
            unpack_codes(bytes.data(), first, part, width, some.data());
            expect_parts(codes, first, some);
          }
        }
      }
    }
  }
}

TEST(Codes, UnusedBits) {
  const uint8_t bytes[] = {0xff, 0x07};
  EXPECT_TRUE(unused_bits_are_zero(bytes, 11, 1));
  EXPECT_FALSE(unused_bits_are_zero(bytes, 10, 1));
  EXPECT_TRUE(unused_bits_are_zero(bytes, 8, 1));
  EXPECT_TRUE(unused_bits_are_zero(bytes, 4, 3));
  EXPECT_FALSE(unused_bits_are_zero(bytes, 5, 2));
}

TEST(Trits, AreWhereTheFormatSays) {
  for (const size_t count : kCounts) {
    const std::vector<uint8_t> codes = random_codes(count, 3, count);
    const size_t length = (count + 4) / 5;
    ASSERT_EQ(packed_trits(count), length);
    std::vector<uint8_t> bytes(length + 1, 0xa5);
    pack_trits(codes.data(), count, bytes.data());
    ASSERT_EQ(bytes.back(), 0xa5) << "written past the end";
    bytes.pop_back();
    bytes.shrink_to_fit();
    ASSERT_TRUE(trits_are_valid(bytes.data(), count));
    constexpr unsigned kWeights[] = {1, 3, 9, 27, 81};
    for (size_t j = 0; j < length; ++j) {
      unsigned expected = 0;
      for (size_t i = 5 * j; i < std::min(count, 5 * j + 5); ++i) expected += codes[i] * kWeights[i % 5];
      ASSERT_EQ(bytes[j], expected);
    }
    for (size_t first = 0; first < count; first += 1 + first / 3) {
      for (const size_t part : {size_t{1}, (count - first + 1) / 2, count - first}) {
        std::vector<uint8_t> some(part);
        unpack_trits(bytes.data(), first, part, some.data());
        expect_parts(codes, first, some);
      }
    }
  }
}

TEST(Trits, RefusedAndHarmlessWhereTheyAreNone) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    const uint8_t bytes[] = {static_cast<uint8_t>(byte)};
    EXPECT_EQ(trits_are_valid(bytes, 5), byte < 243);
    EXPECT_EQ(trits_are_valid(bytes, 4), byte < 81);
    EXPECT_EQ(trits_are_valid(bytes, 1), byte < 3);
    uint8_t codes[5];
    unpack_trits(bytes, 0, 5, codes);
    for (const uint8_t code : codes) EXPECT_LT(code, 3);
  }
}

}  // namespace
}  // namespace dgc
