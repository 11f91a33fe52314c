// Small codes, one per uint8, packed densely into bytes and back.
//
// bits   code i occupies bits [width * i, width * (i + 1)) of the bytes, least significant bit first
// trits  five codes of 0, 1, 2 to a byte, code 5j + r with the weight 3^r in byte j
//
// What is unused of the last byte is 0.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dgc {

constexpr size_t kTritsPerByte = 5;
constexpr unsigned kTritBytes = 243;  // 3^5: bytes below it are five trits

inline size_t packed_bytes(size_t count, unsigned width) { return (count * width + 7) / 8; }

// `count` codes below 2^width, 1 <= width <= 8.
void pack_codes(const uint8_t* codes, size_t count, unsigned width, uint8_t* bytes);

// Codes first..first + count of `bytes`, which hold at least these.
void unpack_codes(const uint8_t* bytes, size_t first, size_t count, unsigned width, uint8_t* codes);

// Whether the bits of the last byte that no code uses are 0.
bool unused_bits_are_zero(const uint8_t* bytes, size_t count, unsigned width);

inline size_t packed_trits(size_t count) { return (count + kTritsPerByte - 1) / kTritsPerByte; }

// `count` codes below 3.
void pack_trits(const uint8_t* codes, size_t count, uint8_t* bytes);

// Codes first..first + count; of bytes that are not five trits, codes below 3 all the same.
void unpack_trits(const uint8_t* bytes, size_t first, size_t count, uint8_t* codes);

// Whether every byte is five trits and the unused ones of the last are 0.
bool trits_are_valid(const uint8_t* bytes, size_t count);

}  // namespace dgc
