// Which coordinates of an accumulated gradient are sent, and with which values, where that is not simply the
// largest: fixed in number, k, so that a payload's length is. Coordinates that qualify beyond k wait; where
// fewer qualify, the rest of the payload is filled up with coordinates of value 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "codec.h"
#include "settings.h"

namespace dgc {

struct Selected {
  std::vector<uint32_t> indices;  // k, strictly increasing; empty if k == n
  Floats values;                  // k
  size_t overflow = 0;            // how many more qualified
  // Where all are sent: codes v' itself into what the layout's own coder decodes; `values` is empty then.
  std::shared_ptr<const ValueCoding> coding;
};

class Selector {
 public:
  virtual ~Selector() = default;

  // values: v', n of them, finite. 1 <= k <= n.
  virtual Selected select(const float* values, size_t n, size_t k, const Context& context) const = 0;

  // The only value coder that this goes with; null for any.
  virtual const char* coder() const { return nullptr; }

  // See the members of Codec of these names.
  virtual Opening opening() const { return {}; }
  virtual bool wants_squares() const { return false; }
  virtual bool keeps_moments() const { return false; }  // n floats of memory
  virtual void open(const float*, size_t, const Context&, float*) const {}
  virtual void settle(const Proposal&, const float*, const Context&, float*) const {}
};

// From settings: select=NAME and what that one needs, for k of n coordinates. Null for select=largest.
std::shared_ptr<const Selector> make_selector(Settings* settings, size_t n, size_t k);

}  // namespace dgc
