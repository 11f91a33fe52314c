#include "codec.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "decode.h"
#include "norms.h"

namespace dgc {

void Proposal::read(size_t first, size_t count, float* out) const {
  if (coding) {
    if (count > 0) coding->decode(n, coded, first, count, out);
  } else {
    std::copy_n(sent.data() + first, count, out);
  }
}

Floats Proposal::values() const {
  if (!coding) return sent;
  Floats all(n);
  read(0, n, all.data());
  return all;
}

void Proposal::masked(float* out) const {
  if (dense) {
    read(0, n, out);
    return;
  }
  std::fill(out, out + n, 0.0f);
  for (size_t j = 0; j < sent.size(); ++j) out[indices[j]] = sent[j];
}

void Codec::open(const float*, const Context&, float*) const {}

void Codec::vote(const uint8_t*, size_t, float*, float, const Context&) const {
  throw std::logic_error("the payloads of this codec are summed, not counted as votes");
}

size_t Codec::begin(size_t) const { throw std::logic_error("the payloads of this codec have no parts"); }

void Codec::reduce(size_t, const uint8_t*, size_t, const Context&, uint8_t*, float*) const {
  throw std::logic_error("the payloads of this codec have no parts");
}

void Codec::settle(const Proposal&, const float*, const Context&, float*) const {}

void Codec::absorb(const uint8_t*, size_t, float*) const {}

Proposal Codec::poisoned() const {
  Proposal p;
  p.n = n();
  p.dense = sent() == n();
  const std::vector<uint8_t> bytes = poison();
  p.payload.assign(bytes.begin(), bytes.end());
  p.sent.assign(sent(), std::numeric_limits<float>::quiet_NaN());
  if (!p.dense) {
    p.indices.resize(sent());
    std::iota(p.indices.begin(), p.indices.end(), 0u);
  }
  return p;
}

Proposal packed(const Layout& layout, const float* values, std::vector<uint32_t> indices,
                const Context& context, const ValueCoding* coding) {
  Proposal p;
  p.n = layout.n();
  p.dense = layout.dense();
  p.finite = true;
  p.payload.resize(layout.nbytes());
  if (p.dense) {
    p.coding = layout.values().shared();
    p.coded = p.payload.data();
  } else {
    p.sent.resize(layout.k());
  }
  if (coding && layout.n() > 0) {
    coding->encode(values, layout.n(), context.randomness.own, context.threads, p.payload.data(), nullptr);
  } else {
    layout.pack(indices.data(), values, p.payload.data(), p.dense ? nullptr : p.sent.data(),
                context.randomness.own, context.threads);
  }
  p.indices = std::move(indices);
  return p;
}

bool any_poisoned(const Codec& codec, const uint8_t* payloads, size_t count) {
  const std::vector<uint8_t> poison = codec.poison();
  for (size_t i = 0; i < count; ++i) {
    if (std::equal(poison.begin(), poison.end(), payloads + i * poison.size())) return true;
  }
  return false;
}

bool any_poisoned(const void* sum, Scalar type, size_t n) { return !all_finite(sum, type, n); }

void validate(const Codec& codec, const uint8_t* payloads, size_t count, int threads) {
  validate_each(count, codec.sent() * count, threads,
                [&](size_t p) { return codec.check(payloads + p * codec.nbytes()); });
}

}  // namespace dgc
