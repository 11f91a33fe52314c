// Any bytes as a payload of any codec: what check() passes decodes to increasing coordinates below n, the
// same on one thread and on several, and, in a layout, is what coding it gives; what it refuses is refused
// before anything is decoded, and even reading a layout unchecked stays within its bytes. Any floats as what
// the opening round came to. Any finite gradient makes a payload that check() passes and that decodes to what
// the proposal says. Any text as a codec's description.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "decode.h"
#include "input.h"
#include "proposal.h"

namespace {

using dgc::Codec;
using dgc::Context;
using dgc::Proposal;
using dgc::fuzz::Header;
using dgc::fuzz::Input;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "violated: %s\n", what);
  std::abort();
}

// To the bit: NaN equals itself.
template <class Floats>
bool same(const Floats& a, const Floats& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

Context context_of(const Input& input, const std::vector<float>& memory, int threads) {
  Context context;
  context.randomness = dgc::Randomness(1, 2, 3, 0);
  context.opened = input.opened.data();
  context.memory = memory.data();
  context.threads = threads;
  return context;
}

void require_coordinates(const Codec& codec, const Proposal& p) {
  require(p.n == codec.n() && p.values().size() == codec.sent(), "a proposal has its codec's size");
  require(p.indices.size() == (p.dense ? 0 : codec.sent()), "every value has a coordinate");
  for (size_t j = 0; j < p.indices.size(); ++j) {
    require(p.indices[j] < codec.n(), "an index is below n");
    require(j == 0 || p.indices[j - 1] < p.indices[j], "indices increase");
  }
}

void require_canonical(const dgc::Layout& layout, const uint8_t* payload,
                       const std::vector<uint32_t>& indices) {
  const size_t nbytes = dgc::index_bytes(layout.indices(), layout.n(), indices.size());
  std::unique_ptr<uint8_t[]> again(new uint8_t[nbytes]());
  dgc::encode_indices(layout.indices(), layout.n(), indices.size(), indices.data(), again.get());
  require(std::memcmp(again.get(), layout.index_part(payload), nbytes) == 0, "a checked stream is canonical");
}

// Each part of one payload by itself: what comes out is valid, and with what is returned it is what went in,
// or, where that is not finite, poison.
void reduce_alone(const Codec& codec, const uint8_t* payload, const std::vector<float>& decoded) {
  const size_t nbytes = codec.nbytes() / codec.parts();
  std::unique_ptr<uint8_t[]> reduced(new uint8_t[codec.nbytes()]);
  std::vector<float> returned(codec.n()), again(codec.n(), 0.0f);
  for (size_t part = 0; part < codec.parts(); ++part)
    codec.reduce(part, payload + part * nbytes, 1, Context(), reduced.get() + part * nbytes,
                 returned.data() + codec.begin(part));
  require(codec.check(reduced.get()).empty(), "parts that are reduced are a valid payload");
  codec.add(reduced.get(), 1, again.data(), 1.0f, Context());
  for (size_t part = 0; part < codec.parts(); ++part) {
    const auto first = decoded.begin() + static_cast<long>(codec.begin(part));
    const auto last = decoded.begin() + static_cast<long>(codec.begin(part + 1));
    if (!std::all_of(first, last, [](float x) { return std::isfinite(x); })) {
      require(std::isnan(again[codec.begin(part)]), "a part that is not finite is poison");
      continue;
    }
    // Some coders code values near the largest float as more than that.
    if (std::any_of(first, last, [](float x) { return std::fabs(x) > 1e30f; })) continue;
    for (size_t i = codec.begin(part); i < codec.begin(part + 1); ++i) {
      const float size = std::max(std::fabs(again[i]), std::fabs(decoded[i]));
      require(std::fabs(again[i] + returned[i] - decoded[i]) <= 1e-6f * size + 1e-40f,
              "nothing is lost where parts are reduced");
    }
  }
}

void read_checked(const Input& input, const std::vector<float>& memory) {
  const Codec& codec = *input.codec;
  const uint8_t* payload = input.payload.get();
  const Proposal p = codec.recover(payload, context_of(input, memory, 1));
  require_coordinates(codec, p);
  std::vector<float> once(codec.n(), 0.0f), threaded(codec.n(), 0.0f), sum(codec.n(), 0.0f);
  codec.add(payload, 1, once.data(), 1.0f, context_of(input, memory, 1));
  codec.add(payload, 1, threaded.data(), 1.0f, context_of(input, memory, 4));
  require(same(once, threaded), "four threads give what one gives");
  if (p.finite) {
    const dgc::Floats sent = p.values();
    for (size_t j = 0; j < sent.size(); ++j) sum[p.dense ? j : p.indices[j]] += sent[j];
    require(same(once, sum), "what is added is what recover gives");
    if (codec.fused() && !p.dense) require_canonical(*codec.fused(), payload, p.indices);
  } else {
    require(once.empty() || std::isnan(once[0]), "what cannot be decoded is NaN");
  }
  if (codec.parts() > 0) reduce_alone(codec, payload, once);
  std::vector<float> after = memory;
  codec.absorb(payload, 1, after.data());
}

void read_refused(const Input& input) {
  if (const dgc::Layout* layout = input.codec->fused()) {
    std::vector<uint32_t> indices(layout->k());
    std::vector<float> values(layout->k());
    layout->unpack(input.payload.get(), indices.data(), values.data());
  }
  try {
    dgc::validate(*input.codec, input.payload.get(), 1, 2);
  } catch (const std::invalid_argument&) {
    return;
  }
  require(false, "validate refuses what check() refuses");
}

void code(const Input& input, const std::vector<float>& memory) {
  const Codec& codec = *input.codec;
  std::vector<float> grad = input.values, residual(codec.n(), 0.0f);
  dgc::Arrays arrays;
  arrays.n = codec.n();
  arrays.grad = grad.data();
  arrays.residual = residual.data();
  const Context context = context_of(input, memory, 1);
  std::vector<float> opening(codec.opening().count);
  require(dgc::open(codec, dgc::Update(), arrays, dgc::Options(), context, opening.data()),
          "a finite gradient opens");
  const Proposal p = dgc::propose(codec, dgc::Update(), arrays, dgc::Options(), context);
  require(p.payload.size() == codec.nbytes(), "a payload has its codec's length");
  require(codec.check(p.payload.data()).empty(), "a proposed payload is valid");
  if (!p.finite) {
    require(dgc::any_poisoned(codec, p.payload.data(), 1), "what is not finite sends poison");
    return;
  }
  require_coordinates(codec, p);
  const Proposal again = codec.recover(p.payload.data(), context);
  require(again.indices == p.indices && same(again.values(), p.values()),
          "a payload decodes to what was sent");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Header header;
  if (size < sizeof header) return -1;
  std::memcpy(&header, data, sizeof header);
  data += sizeof header;
  size -= sizeof header;
  try {
    if (header.kind % dgc::fuzz::kKinds == dgc::fuzz::kText) {
      dgc::make_codec(std::string(data, data + size));
      return 0;
    }
    const Input input = dgc::fuzz::read_input(header, data, size);
    const std::vector<float> memory(input.codec->memory(), 0.0f);
    if (input.codec->check(input.payload.get()).empty()) {
      read_checked(input, memory);
    } else {
      read_refused(input);
    }
    // Long tensors are there for the index coders and threads of decoding; coding them costs most of the
    // time.
    if (!(header.flags & dgc::fuzz::kLarge)) code(input, memory);
  } catch (const std::invalid_argument&) {
    return -1;  // the codec itself: not worth keeping
  }
  return 0;
}
