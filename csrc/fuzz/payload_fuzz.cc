// Any bytes as a payload of any layout: what check() passes decodes to k increasing coordinates below n, the
// same on one thread and on several, and is what coding them gives; what it refuses is refused by decoding,
// and even reading it unchecked stays within its bytes.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "decode.h"
#include "input.h"

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "violated: %s\n", what);
  std::abort();
}

std::vector<float> decoded(const dgc::Layout& layout, const uint8_t* payload, int threads) {
  std::vector<float> sum(layout.n(), 0.0f);
  dgc::decode_add(layout, payload, 1, sum.data(), 1.0f, threads);
  return sum;
}

// To the bit: NaN equals itself.
bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

void read_unchecked(const dgc::Layout& layout, const uint8_t* payload) {
  std::vector<uint32_t> indices(layout.k());
  std::vector<float> values(layout.k());
  layout.unpack(payload, indices.data(), values.data());
}

void read_checked(const dgc::Layout& layout, const uint8_t* payload) {
  const size_t k = layout.k();
  std::vector<uint32_t> indices(k);
  std::vector<float> values(k);
  layout.unpack(payload, indices.data(), values.data());
  for (size_t j = 0; j < k; ++j) {
    require(indices[j] < layout.n(), "an index is below n");
    require(j == 0 || indices[j - 1] < indices[j], "indices increase");
  }
  std::vector<float> sum(layout.n(), 0.0f);
  for (size_t j = 0; j < k; ++j) sum[indices[j]] += values[j];
  require(same(decoded(layout, payload, 1), sum), "decode_add gives what unpack gives");
  require(same(decoded(layout, payload, 4), sum), "four threads give what one gives");

  const size_t index_bytes = dgc::index_bytes(layout.indices(), layout.n(), k);
  std::unique_ptr<uint8_t[]> again(new uint8_t[index_bytes]());
  dgc::encode_indices(layout.indices(), layout.n(), k, indices.data(), again.get());
  require(std::memcmp(again.get(), layout.index_part(payload), index_bytes) == 0, "a checked stream is canonical");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < dgc::fuzz::kHeader) return -1;
  try {
    const dgc::fuzz::Input input = dgc::fuzz::read_input(data, size);
    const bool valid = input.layout.check(input.payload.get()).empty();
    if (valid) {
      read_checked(input.layout, input.payload.get());
      return 0;
    }
    read_unchecked(input.layout, input.payload.get());
    try {
      decoded(input.layout, input.payload.get(), 2);
    } catch (const std::invalid_argument&) {
      return 0;
    }
    require(false, "decode_add refuses what check() refuses");
  } catch (const std::invalid_argument&) {
    return -1;  // the layout itself: not worth keeping
  }
  return 0;
}
