// How a fuzzer's bytes are read: eight bytes choose a layout, the rest is the payload. The only place where
// the fuzz target and its seeds make layouts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "layout.h"

namespace dgc::fuzz {

constexpr size_t kHeader = 8;
constexpr uint32_t kMostElements = 1 << 17;  // more than a run of runlength16 spans; small enough to decode

struct Input {
  Layout layout;
  // Exactly layout.nbytes(), so that the sanitizer sees any access beyond; missing bytes are 0.
  std::unique_ptr<uint8_t[]> payload;
};

inline Layout layout_of(uint32_t n, uint32_t k, unsigned indices, unsigned values) {
  constexpr IndexCoder kIndexCoders[] = {IndexCoder::elias_fano, IndexCoder::runlength16, IndexCoder::int32};
  constexpr ValueCoder kValueCoders[] = {ValueCoder::float32, ValueCoder::float16, ValueCoder::bfloat16,
                                         ValueCoder::int8, ValueCoder::int4};
  return Layout(n, k, kIndexCoders[indices % 3], kValueCoders[values % 5]);
}

// n and k take 24 bits each; out of range they are brought into it, unless that is what is to be refused.
inline Layout read_layout(const uint8_t* header) {
  uint32_t n = 0, k = 0;
  std::memcpy(&n, header, 3);
  std::memcpy(&k, header + 3, 3);
  n %= kMostElements;
  const bool as_it_is = header[7] & 1;
  return layout_of(n, as_it_is || n == 0 ? k : 1 + k % n, header[6], header[6] / 3u);
}

inline std::vector<uint8_t> write_header(uint32_t n, uint32_t k, unsigned indices, unsigned values) {
  std::vector<uint8_t> header(kHeader, 0);
  std::memcpy(header.data(), &n, 3);
  std::memcpy(header.data() + 3, &k, 3);
  header[6] = static_cast<uint8_t>(indices + 3 * values);
  header[7] = 1;
  return header;
}

inline Input read_input(const uint8_t* data, size_t size) {
  Layout layout = read_layout(data);
  std::unique_ptr<uint8_t[]> payload(new uint8_t[layout.nbytes()]());
  std::copy_n(data + kHeader, std::min(size - kHeader, layout.nbytes()), payload.get());
  return {layout, std::move(payload)};
}

}  // namespace dgc::fuzz
