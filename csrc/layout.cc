#include "layout.h"

#include <limits>
#include <numeric>
#include <stdexcept>

namespace dgc {
namespace {

[[noreturn]] void refuse(const char* name, size_t value, const std::string& allowed) {
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + "; allowed: " + allowed);
}

}  // namespace

Layout::Layout(size_t n, size_t k, IndexCoder indices, const ValueCoder& values)
    : n_(n), k_(k), indices_(indices), values_(values), value_bytes_(value_bytes(values, k)) {
  const size_t limit = size_t{1} << (indices == IndexCoder::int32 ? 31 : 32);
  if (n >= limit) refuse("n", n, "0 to " + std::to_string(limit - 1) + " with these indices");
  const size_t least = n == 0 ? 0 : 1;
  if (k < least || k > n) refuse("k", k, std::to_string(least) + " to n = " + std::to_string(n));
  const size_t reach = (n + kMaxRun) / (kMaxRun + 1);
  if (indices == IndexCoder::runlength16 && k < reach) {
    refuse("k", k, "at least ceil(n / 65536) = " + std::to_string(reach) + " with runlength16 indices");
  }
}

void Layout::pack(const uint32_t* indices, const float* values, uint8_t* payload, float* sent,
                  Key key, int threads) const {
  uint8_t* index_bytes = payload + value_bytes_;
  if (dense() || indices_ != IndexCoder::runlength16 || !needs_fillers(k_, indices)) {
    encode_values(values_, values, k_, payload, sent, key, threads);
    encode_indices(indices_, n_, k_, indices, index_bytes);
    return;
  }
  const RunSlots slots = fit_run_lengths(n_, k_, indices, values);
  std::vector<float> slot_values(k_, 0.0f);
  for (size_t j = 0; j < k_; ++j) {
    if (slots.sources[j] != RunSlots::kFiller) slot_values[j] = values[slots.sources[j]];
  }
  encode_values(values_, slot_values.data(), k_, payload, slot_values.data(), key, threads);
  encode_indices(indices_, n_, k_, slots.indices.data(), index_bytes);
  for (size_t j = 0; j < k_; ++j) sent[j] = 0.0f;
  for (size_t j = 0; j < k_; ++j) {
    if (slots.sources[j] != RunSlots::kFiller) sent[slots.sources[j]] = slot_values[j];
  }
}

void Layout::unpack(const uint8_t* payload, uint32_t* indices, float* values) const {
  IndexReader(indices_, n_, k_, index_part(payload)).read(indices, k_);
  decode_values(values_, k_, payload, 0, k_, values);
}

std::string Layout::check(const uint8_t* payload) const {
  const std::string wrong = check_values(values_, k_, payload);
  return wrong.empty() ? check_indices(indices_, n_, k_, index_part(payload)) : wrong;
}

std::vector<uint8_t> Layout::poison() const {
  std::vector<uint8_t> payload(nbytes());
  std::vector<uint32_t> indices(k_);
  std::iota(indices.begin(), indices.end(), 0u);
  std::vector<float> values(k_, std::numeric_limits<float>::quiet_NaN());
  pack(indices.data(), values.data(), payload.data(), values.data());
  return payload;
}

}  // namespace dgc
