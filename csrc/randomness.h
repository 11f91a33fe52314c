// Random numbers by counter: each is a function of a key and an index alone, so that results depend neither on
// the number of threads nor on the order of evaluation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dgc {

struct Key {
  uint32_t low = 0;
  uint32_t high = 0;
};

// A bijection of 32 bits whose outputs look independent (two rounds of multiply and xor-shift, which compilers
// vectorise); constants of Wellons's search for low bias, "lowbias32".
inline uint32_t scramble(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

// 32 uniform bits.
inline uint32_t random_bits(Key key, uint32_t index) {
  return scramble(scramble(index ^ key.low) + key.high);
}

// Uniform on the multiples of 2^-24 in [0, 1).
inline float random_uniform(Key key, uint32_t index) {
  return static_cast<float>(random_bits(key, index) >> 8) * 0x1p-24f;
}

// The key of an independent stream, for each value of `word`.
inline Key derive(Key key, uint64_t word) {
  const uint32_t low = static_cast<uint32_t>(word);
  const uint32_t high = static_cast<uint32_t>(word >> 32);
  const uint32_t first = scramble(key.low ^ scramble(low + 0x9e3779b9u));
  const uint32_t second = scramble(key.high ^ scramble(high + 0x85ebca6bu) ^ first);
  return {scramble(first + second), scramble(second ^ 0xc2b2ae35u)};
}

// What one tensor's randomness in one step follows from: `shared` is the same on all ranks, `own` is not.
struct Randomness {
  Randomness() = default;
  Randomness(uint64_t seed, uint64_t tensor, uint64_t step, uint64_t rank)
      : shared(derive(derive(derive(Key{}, seed), tensor), step)), own(derive(shared, rank + 1)) {}

  Key shared;
  Key own;
};

}  // namespace dgc
