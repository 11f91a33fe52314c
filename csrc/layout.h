// The payload of one tensor: values first, then indices, no header. Its length depends on (n, k, coders)
// only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "index_coding.h"
#include "value_coding.h"

namespace dgc {

class Layout {
 public:
  // n elements, 0 <= n < 2^32 (int32: 2^31), of which k are sent, 1 <= k <= n (n == 0: k == 0).
  // runlength16 also needs k >= ceil(n / 65536) unless k == n: with less, a single far coordinate is out of
  // reach. Throws std::invalid_argument naming the argument, its value and what is allowed.
  Layout(size_t n, size_t k, IndexCoder indices, const ValueCoder& values);

  size_t n() const { return n_; }
  size_t k() const { return k_; }
  IndexCoder indices() const { return indices_; }
  const ValueCoder& values() const { return values_; }
  size_t nbytes() const { return value_bytes_ + index_bytes(indices_, n_, k_); }
  bool dense() const { return k_ == n_; }

  bool operator==(const Layout& other) const {
    return n_ == other.n_ && k_ == other.k_ && indices_ == other.indices_ && values_ == other.values_;
  }

  const uint8_t* index_part(const uint8_t* payload) const { return payload + value_bytes_; }

  // Writes nbytes() bytes to payload and k floats to sent: what decoding adds at each given coordinate (0 at
  // one that gave its slot to a filler of runlength16). indices: k, strictly increasing, below n; null if
  // dense(). sent may be values. key: for value coders that round at random. The result does not depend on
  // `threads`.
  void pack(const uint32_t* indices, const float* values, uint8_t* payload, float* sent, Key key = {},
            int threads = 1) const;

  // The k coordinates and values of a payload that check() has passed.
  void unpack(const uint8_t* payload, uint32_t* indices, float* values) const;

  // Empty if nbytes() bytes are a payload, else what is wrong with them.
  std::string check(const uint8_t* payload) const;

  // A valid payload of the first k coordinates, some of which hold NaN: tells every rank that this one's
  // gradient was not finite.
  std::vector<uint8_t> poison() const;

 private:
  size_t n_;
  size_t k_;
  IndexCoder indices_;
  ValueCoder values_;
  size_t value_bytes_;
};

}  // namespace dgc
