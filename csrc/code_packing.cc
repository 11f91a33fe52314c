#include "code_packing.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "instruction_sets.h"

namespace dgc {
namespace {

constexpr size_t kGroup = 8;  // codes of any width that fill whole bytes

// The low kWidth bits of each of 8 bytes, side by side: pairs, then fours, then all.
template <unsigned kWidth>
DGC_INLINE uint64_t gather(uint64_t w) {
  w = (w & 0x00ff00ff00ff00ffu) | ((w & 0xff00ff00ff00ff00u) >> (8 - kWidth));
  w = (w & 0x0000ffff0000ffffu) | ((w & 0xffff0000ffff0000u) >> (16 - 2 * kWidth));
  return (w & 0x00000000ffffffffu) | ((w & 0xffffffff00000000u) >> (32 - 4 * kWidth));
}

// The inverse of gather.
template <unsigned kWidth>
DGC_INLINE uint64_t scatter(uint64_t w) {
  constexpr uint64_t kFour = (uint64_t{1} << (4 * kWidth)) - 1;
  constexpr uint64_t kTwo = ((uint64_t{1} << (2 * kWidth)) - 1) * 0x0000000100000001u;
  constexpr uint64_t kOne = ((uint64_t{1} << kWidth) - 1) * 0x0001000100010001u;
  w = (w & kFour) | ((w & ~kFour) << (32 - 4 * kWidth));
  w = (w & kTwo) | ((w & (kTwo << (2 * kWidth))) << (16 - 2 * kWidth));
  return (w & kOne) | ((w & (kOne << kWidth)) << (8 - kWidth));
}

// An integer of kWidth bytes, and of 8 where there is none: what follows is then written too, and once more
// by the next word.
template <unsigned kWidth>
using Stored = std::conditional_t<
    kWidth == 1, uint8_t,
    std::conditional_t<kWidth == 2, uint16_t, std::conditional_t<kWidth == 4, uint32_t, uint64_t>>>;

constexpr size_t kWords = 8;

// The whole bytes of `groups` groups of 8 codes.
template <unsigned kWidth>
DGC_INLINE void pack_groups(const uint8_t* __restrict codes, size_t groups, uint8_t* __restrict bytes) {
  using Word = Stored<kWidth>;
  size_t g = 0;
  for (; (g + kWords - 1) * kWidth + sizeof(Word) <= groups * kWidth; g += kWords) {
    uint64_t words[kWords];
    Word narrow[kWords];
    std::memcpy(words, codes + g * kGroup, sizeof words);
    for (size_t j = 0; j < kWords; ++j) narrow[j] = static_cast<Word>(gather<kWidth>(words[j]));
    for (size_t j = 0; j < kWords; ++j) std::memcpy(bytes + (g + j) * kWidth, &narrow[j], sizeof(Word));
  }
  for (; g < groups; ++g) {
    uint64_t w;
    std::memcpy(&w, codes + g * kGroup, kGroup);
    w = gather<kWidth>(w);
    std::memcpy(bytes + g * kWidth, &w, kWidth);
  }
}

template <unsigned kWidth>
DGC_INLINE void unpack_groups(const uint8_t* __restrict bytes, size_t groups, uint8_t* __restrict codes) {
  using Word = Stored<kWidth>;
  size_t g = 0;
  for (; (g + kWords - 1) * kWidth + sizeof(Word) <= groups * kWidth; g += kWords) {
    Word narrow[kWords];
    uint64_t words[kWords];
    for (size_t j = 0; j < kWords; ++j) std::memcpy(&narrow[j], bytes + (g + j) * kWidth, sizeof(Word));
    for (size_t j = 0; j < kWords; ++j) words[j] = scatter<kWidth>(narrow[j]);
    std::memcpy(codes + g * kGroup, words, sizeof words);
  }
  for (; g < groups; ++g) {
    uint64_t w = 0;
    std::memcpy(&w, bytes + g * kWidth, kWidth);
    w = scatter<kWidth>(w);
    std::memcpy(codes + g * kGroup, &w, kGroup);
  }
}

struct PackKernels {
  const char* name;
  void (*pack[kGroup])(const uint8_t* codes, size_t groups, uint8_t* bytes);
  void (*unpack[kGroup])(const uint8_t* bytes, size_t groups, uint8_t* codes);
};

#define DGC_EVERY_WIDTH(FUNCTION) \
  {FUNCTION<1>, FUNCTION<2>, FUNCTION<3>, FUNCTION<4>, FUNCTION<5>, FUNCTION<6>, FUNCTION<7>, FUNCTION<8>}
#define DGC_DEFINE_PACKING(SET, TARGET)                                             \
  namespace SET {                                                                   \
  template <unsigned kWidth>                                                        \
  TARGET void pack(const uint8_t* codes, size_t groups, uint8_t* bytes) {           \
    pack_groups<kWidth>(codes, groups, bytes);                                      \
  }                                                                                 \
  template <unsigned kWidth>                                                        \
  TARGET void unpack(const uint8_t* bytes, size_t groups, uint8_t* codes) {         \
    unpack_groups<kWidth>(bytes, groups, codes);                                    \
  }                                                                                 \
  const PackKernels table = {#SET, DGC_EVERY_WIDTH(pack), DGC_EVERY_WIDTH(unpack)}; \
  }

DGC_INSTRUCTION_SETS(DGC_DEFINE_PACKING)

const PackKernels& pack_kernels() { return chosen<PackKernels>(DGC_TABLES); }

// Codes [from, to) of the group whose bytes begin at `bytes`.
void unpack_part(const PackKernels& kernels, const uint8_t* bytes, size_t from, size_t to, unsigned width,
                 uint8_t* codes) {
  uint8_t padded[kGroup] = {};
  std::memcpy(padded, bytes, packed_bytes(to, width));
  uint8_t group[kGroup];
  kernels.unpack[width - 1](padded, 1, group);
  std::memcpy(codes, group + from, to - from);
}

// The five trits of every byte, in the bytes of a word from the lowest; those of 243 and above as of the byte
// less 243.
constexpr std::array<uint64_t, 256> trit_words() {
  std::array<uint64_t, 256> words{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    unsigned rest = byte % kTritBytes;
    for (unsigned r = 0; r < kTritsPerByte; ++r, rest /= 3) words[byte] |= uint64_t{rest % 3} << (8 * r);
  }
  return words;
}

constexpr std::array<uint64_t, 256> kTritWords = trit_words();

uint8_t byte_of_trits(uint64_t word) {
  // The byte of weight 2^32 of the product is the sum of code r times 3^r. No byte below it carries into it:
  // each is a sum of two times distinct ones of these powers, at most 242.
  constexpr uint64_t kPowers = 81u + (27u << 8) + (9u << 16) + (3u << 24) + (uint64_t{1} << 32);
  return static_cast<uint8_t>((word & 0xffffffffffu) * kPowers >> 32);
}

}  // namespace

void pack_codes(const uint8_t* codes, size_t count, unsigned width, uint8_t* bytes) {
  const PackKernels& kernels = pack_kernels();
  const size_t groups = count / kGroup;
  kernels.pack[width - 1](codes, groups, bytes);
  const size_t rest = count % kGroup;
  if (rest == 0) return;
  uint8_t group[kGroup] = {};
  uint8_t padded[kGroup];
  std::memcpy(group, codes + groups * kGroup, rest);
  kernels.pack[width - 1](group, 1, padded);
  std::memcpy(bytes + groups * width, padded, packed_bytes(rest, width));
}

void unpack_codes(const uint8_t* bytes, size_t first, size_t count, unsigned width, uint8_t* codes) {
  const PackKernels& kernels = pack_kernels();
  bytes += first / kGroup * width;
  if (const size_t from = first % kGroup) {
    const size_t length = std::min(count, kGroup - from);
    unpack_part(kernels, bytes, from, from + length, width, codes);
    bytes += width;
    codes += length;
    count -= length;
  }
  const size_t groups = count / kGroup;
  kernels.unpack[width - 1](bytes, groups, codes);
  if (const size_t rest = count % kGroup) {
    unpack_part(kernels, bytes + groups * width, 0, rest, width, codes + groups * kGroup);
  }
}

bool unused_bits_are_zero(const uint8_t* bytes, size_t count, unsigned width) {
  const size_t used = count * width % 8;
  return used == 0 || bytes[count * width / 8] >> used == 0;
}

void pack_trits(const uint8_t* codes, size_t count, uint8_t* bytes) {
  size_t i = 0;
  for (; i + 8 <= count; i += kTritsPerByte) {
    uint64_t word;
    std::memcpy(&word, codes + i, 8);
    *bytes++ = byte_of_trits(word);
  }
  for (; i < count; i += kTritsPerByte) {
    uint64_t word = 0;
    std::memcpy(&word, codes + i, std::min(kTritsPerByte, count - i));
    *bytes++ = byte_of_trits(word);
  }
}

void unpack_trits(const uint8_t* bytes, size_t first, size_t count, uint8_t* codes) {
  bytes += first / kTritsPerByte;
  size_t skip = first % kTritsPerByte;
  size_t i = 0;
  while (i < count) {
    const uint64_t word = kTritWords[*bytes++] >> (8 * skip);
    if (skip == 0 && i + 8 <= count) {
      std::memcpy(codes + i, &word, 8);  // three more than meant, which the next turns write again
      i += kTritsPerByte;
      continue;
    }
    const size_t length = std::min(kTritsPerByte - skip, count - i);
    std::memcpy(codes + i, &word, length);
    i += length;
    skip = 0;
  }
}

bool trits_are_valid(const uint8_t* bytes, size_t count) {
  const size_t length = packed_trits(count);
  uint8_t largest = 0;
  for (size_t j = 0; j < length; ++j) largest = std::max(largest, bytes[j]);
  if (largest >= kTritBytes) return false;
  const size_t used = count % kTritsPerByte;
  return used == 0 || kTritWords[bytes[length - 1]] >> (8 * used) == 0;
}

}  // namespace dgc
