// From one tensor's accumulated gradient to what its worker sends, and from what all workers sent to their
// sum. A codec is immutable and knows sizes and bytes; what a worker keeps between steps is passed in.
//
// Most codecs have one round: code, a collective, add. Some need to agree on something first (a common scale, a
// common basis): an opening round, in which every worker contributes floats that a collective sums up, or takes
// the maximum of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "layout.h"
#include "randomness.h"

namespace dgc {

struct Proposal {
  size_t n = 0;
  bool dense = false;   // every coordinate is sent
  bool finite = false;  // false: v' (update.h) is not finite somewhere; the payload is the codec's poison
  std::vector<uint8_t> payload;   // Codec::nbytes()
  std::vector<uint32_t> indices;  // the coordinates sent, strictly increasing; empty if dense
  std::vector<float> sent;        // what decoding the payload adds there, one for each; NaN if not finite
  size_t overflow = 0;            // coordinates that qualified but found no room, and wait in the residual

  // out (n floats) = 0, then sent at the coordinates.
  void masked(float* out) const;
};

// What a codec's arithmetic in one step depends on besides the accumulated gradient v'.
struct Context {
  Randomness randomness;
  const float* opened = nullptr;    // opening().count floats that came back from the opening round
  const float* residual = nullptr;  // n: the residual before this step; null without one
  const float* squares = nullptr;   // n: this step's second moments, where wants_squares()
  const float* memory = nullptr;    // memory() floats that the codec keeps between steps; zeros at first
  int threads = 1;
};

struct Opening {
  size_t count = 0;      // floats; 0: no opening round
  bool maximum = false;  // reduced by maximum, otherwise by sum
};

class Codec {
 public:
  virtual ~Codec() = default;

  size_t n() const { return n_; }
  size_t nbytes() const { return nbytes_; }

  // Coordinates that one payload gives values to.
  virtual size_t sent() const { return n_; }

  // Type of the numbers that payloads consist of where the sum of payloads is the payload of the sum: "float32"
  // or "float16". Empty where it is not.
  virtual std::string summable() const { return {}; }

  virtual Opening opening() const { return {}; }

  // Floats that a worker keeps for the codec between steps.
  virtual size_t memory() const { return 0; }

  virtual bool wants_squares() const { return false; }

  // Whether the sum of what was sent is to be replaced by its sign (majority vote).
  virtual bool votes() const { return false; }

  // The layout, if what is sent are simply the coordinates of largest |v'|, or all of them: then selection can
  // share a pass over memory with the accumulation. Null otherwise.
  virtual const Layout* fused() const { return nullptr; }

  // This worker's part of the opening round. values: v'. out: opening().count floats.
  virtual void open(const float* values, const Context& context, float* out) const;

  // A step's proposal. values: v', finite. The result is not finite where `opened` is not.
  virtual Proposal code(const float* values, const Context& context) const = 0;

  // Coordinates and values of a payload that check() has passed: indices, sent, n and dense of the proposal.
  virtual Proposal recover(const uint8_t* payload, const Context& context) const = 0;

  // out += scale * the sum of `count` payloads that check() has passed, in this order at each coordinate, so
  // that the result does not depend on context.threads.
  virtual void add(const uint8_t* payloads, size_t count, float* out, float scale,
                   const Context& context) const = 0;

  // Empty if nbytes() bytes are a payload, else what is wrong with them.
  virtual std::string check(const uint8_t* payload) const = 0;

  // A valid payload that decodes to NaN at its first coordinate: tells every rank that this one's gradient was
  // not finite.
  virtual std::vector<uint8_t> poison() const = 0;

  // The memory after a proposal of this worker has been committed. residual: n, as the commit left it; memory:
  // written.
  virtual void settle(const Proposal& proposal, const float* residual, const Context& context,
                      float* memory) const;

  // The memory after `count` payloads (or their sum, as one) have come back from all workers.
  virtual void absorb(const uint8_t* payloads, size_t count, float* memory) const;

  Proposal poisoned() const;

 protected:
  Codec(size_t n, size_t nbytes) : n_(n), nbytes_(nbytes) {}

 private:
  size_t n_;
  size_t nbytes_;
};

// The proposal that these values at these coordinates make in a layout. indices: empty if the layout is dense.
Proposal packed(const Layout& layout, const float* values, std::vector<uint32_t> indices, const Context& context);

// Whether one of `count` payloads is the codec's poison.
bool any_poisoned(const Codec& codec, const uint8_t* payloads, size_t count);

// Throws std::invalid_argument naming the first payload that is malformed and what is wrong with it.
void validate(const Codec& codec, const uint8_t* payloads, size_t count, int threads);

// The k coordinates of largest |v'|, all of them if k == n, in this layout.
std::shared_ptr<const Codec> largest(const Layout& layout);

// From a description such as "coordinates n=1000 k=10 indices=elias-fano values=float16 select=largest": the kind
// of codec, then settings in any order. Kinds and their settings: codec.cc. Throws std::invalid_argument naming
// the setting, its value and what is allowed.
std::shared_ptr<const Codec> make_codec(const std::string& description);

}  // namespace dgc
