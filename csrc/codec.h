// From one tensor's accumulated gradient to what its worker sends, and from what all workers sent to their
// sum. A codec is immutable and knows sizes and bytes; what a worker keeps between steps is passed in.
//
// Most codecs have one round: code, a collective, add. Some need to agree on something first (a common scale,
// a common basis, a common threshold): an opening round, in which every worker, or every tensor, contributes
// floats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arrays.h"
#include "buffers.h"
#include "layout.h"
#include "randomness.h"

namespace dgc {

struct Proposal {
  Proposal() = default;
  Proposal(Proposal&&) = default;
  Proposal& operator=(Proposal&&) = default;

  size_t n = 0;
  bool dense = false;   // every coordinate is sent
  bool finite = false;  // false: v' (update.h) is not finite somewhere; the payload is the codec's poison
  Bytes payload;        // Codec::nbytes()
  std::vector<uint32_t> indices;  // the coordinates sent, strictly increasing; empty if dense
  Floats sent;                    // what decoding the payload adds there, one for each; NaN if not finite
  size_t overflow = 0;            // coordinates that qualified but found no room, and wait in the residual

  // A dense layout decodes piece by piece faster than memory holds the values ready: then `sent` is empty,
  // and read() decodes these bytes, which are the payload's own or those that it was recovered from.
  std::shared_ptr<const ValueCoding> coding;
  const uint8_t* coded = nullptr;

  // out[0..count) = what is sent at coordinates first.. of a dense proposal.
  void read(size_t first, size_t count, float* out) const;

  // What is sent, one value for each coordinate.
  Floats values() const;

  // out (n floats) = 0, then the values at the coordinates.
  void masked(float* out) const;
};

// What a codec's arithmetic in one step depends on besides the accumulated gradient v'.
struct Context {
  Randomness randomness;
  const float* opened = nullptr;    // opening().returned() floats that came back from the opening round
  const float* residual = nullptr;  // n: the residual before this step; null without one
  const float* squares = nullptr;   // n: this step's second moments, where wants_squares()
  const float* memory = nullptr;    // memory() floats that the codec keeps between steps; zeros at first
  int threads = 1;
};

// What the opening round makes of the floats that are contributed: their sum or their maximum over all
// workers, float by float, or, over all tensors of one worker, the magnitude that a share of their elements
// reach.
enum class Reduction { sum, maximum, quantile };

struct Opening {
  size_t count = 0;  // floats that one tensor contributes; 0: no opening round
  Reduction reduction = Reduction::sum;
  double share = 0.0;  // quantile: of the elements

  // Floats that come back.
  size_t returned() const { return reduction == Reduction::quantile && count > 0 ? 1 : count; }

  // Floats that come back the same on all workers, and that payloads are decoded with.
  size_t agreed() const { return reduction == Reduction::quantile ? 0 : count; }
};

class Codec {
 public:
  virtual ~Codec() = default;

  size_t n() const { return n_; }
  size_t nbytes() const { return nbytes_; }

  // Coordinates that one payload gives values to.
  virtual size_t sent() const { return n_; }

  // Type of the numbers that payloads consist of where the sum of payloads is the payload of the sum:
  // "float32" or "float16". Empty where it is not.
  virtual std::string summable() const { return {}; }

  virtual Opening opening() const { return {}; }

  // Floats that a worker keeps for the codec between steps.
  virtual size_t memory() const { return 0; }

  virtual bool wants_squares() const { return false; }

  // Whether the sum of what was sent is to be replaced by its sign (majority vote).
  virtual bool votes() const { return false; }

  // The layout, if what is sent are simply the coordinates of largest |v'|, or all of them: then selection
  // can share a pass over memory with the accumulation. Null otherwise.
  virtual const Layout* fused() const { return nullptr; }

  // This tensor's and worker's part of the opening round. values: v'. out: opening().count floats.
  virtual void open(const float* values, const Context& context, float* out) const;

  // A step's proposal. values: v', finite. The result is not finite where `opened` is not.
  virtual Proposal code(const float* values, const Context& context) const = 0;

  // What check() has passed as a proposal without a payload of its own, which these bytes must outlive.
  virtual Proposal recover(const uint8_t* payload, const Context& context) const = 0;

  // out += scale * the sum of `count` payloads that check() has passed, in this order at each coordinate, so
  // that the result does not depend on context.threads.
  virtual void add(const uint8_t* payloads, size_t count, float* out, float scale,
                   const Context& context) const = 0;

  // Where votes(): out += scale * vote() of that sum (decode.h).
  virtual void vote(const uint8_t* payloads, size_t count, float* out, float scale,
                    const Context& context) const;

  // Empty if nbytes() bytes are a payload, else what is wrong with them.
  virtual std::string check(const uint8_t* payload) const = 0;

  // Where a payload consists of parts of equal length, one for each worker: how many. Otherwise 0. Worker i
  // adds up the coordinates from begin(i) up to begin(i + 1).
  virtual size_t parts() const { return 0; }
  virtual size_t begin(size_t part) const;

  // What the worker of a part makes of the parts that `count` workers have sent it: payload, the same part of
  // a payload of their sum, whose largest coordinates it holds; returned, what found no room there, for the
  // worker to add to its residual. If the sum is not finite, a part of poison(), and zeros. Throws
  // std::invalid_argument if a part is malformed.
  virtual void reduce(size_t part, const uint8_t* received, size_t count, const Context& context,
                      uint8_t* payload, float* returned) const;

  // A valid payload that decodes to NaN at its first coordinate: tells every rank that this one's gradient
  // was not finite.
  virtual std::vector<uint8_t> poison() const = 0;

  // The memory after a proposal of this worker has been committed. residual: n, as the commit left it;
  // memory: written.
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

// The proposal that these values at these coordinates make in a layout. indices: empty if the layout is
// dense. coding: of a dense layout, if its values are to be coded into its bytes in another way than by its
// own coder.
Proposal packed(const Layout& layout, const float* values, std::vector<uint32_t> indices,
                const Context& context, const ValueCoding* coding = nullptr);

// Whether a worker's gradient was not finite, judging by what has come back from all of them: `count` payloads, one
// of which is the codec's poison ...
bool any_poisoned(const Codec& codec, const uint8_t* payloads, size_t count);

// ... or the sum of payloads or of what they decode to, n numbers, one of which is not finite.
bool any_poisoned(const void* sum, Scalar type, size_t n);

// Throws std::invalid_argument naming the first payload that is malformed and what is wrong with it.
void validate(const Codec& codec, const uint8_t* payloads, size_t count, int threads);

}  // namespace dgc
