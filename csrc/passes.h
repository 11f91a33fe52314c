// The streaming passes over the arrays of a step, each over one range of coordinates; ranges begin at
// multiples of kBlock. They are what threads run in parallel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arrays.h"
#include "kernels.h"
#include "selection.h"

namespace dgc {

// from[0..count) -= values[0..count).
void subtract(float* from, const float* values, size_t count);

struct Pass {
  const Kernels& kernels;
  const Arrays& arrays;
  Coefficients coefficients;
  Memory memory;

  Pass(const Kernels& kernels, const Arrays& arrays, const Update& update);

  // Offers v' to `list` (may be null) and copies it to values[begin, end) (may be null). Writes nothing else.
  // Returns false if a value is not finite; what list and values hold then is unspecified.
  bool preview(size_t begin, size_t end, CandidateList* list, float* values) const;

  // velocity = u', residual = v', grad = 0 if zero_grad; offers v' to `list` (may be null). Returns false if
  // a value is not finite; the whole range is updated all the same.
  bool apply(size_t begin, size_t end, CandidateList* list, bool zero_grad) const;

  // Offers the residual as it stands.
  bool rescan(size_t begin, size_t end, CandidateList* list) const;

  // apply(), then residual -= sent at the k strictly increasing `indices` that lie in the range, and velocity
  // = 0 there where mask is set and sent is not 0.
  void commit(size_t begin, size_t end, const uint32_t* indices, const float* sent, size_t k, bool mask,
              bool zero_grad) const;

  // apply(), then residual -= sent[0..end - begin); sent may be null if there is no residual.
  void commit_dense(size_t begin, size_t end, const float* sent, bool zero_grad) const;

 private:
  void update_tile(size_t first, size_t count, float* values, int32_t* maxima) const;
  void zero(size_t first, size_t count) const;
};

}  // namespace dgc
