// From v' of all tensors of a batch to their payloads. The kernels run one after the other on one stream; none
// of them writes to the arrays of the step.
//
//   sample.cu   sample   a threshold for each tensor, from a sample of its v'
//   select.cu   collect  reads everything: which coordinates exceed the threshold, and a histogram of their magnitudes;
//                        dense layouts are coded here
//               place    the list of these candidates, in order
//               settle   the k-th magnitude; where candidates were fewer than k, or too many, the k largest in passes
//                        over everything
//               take     the k largest of the candidates, in order, ties going to the lower index
//   code.cu     code     the payloads
#pragma once

#include "tables.h"

namespace dgc::cuda {

void guess_thresholds(const Batch& batch, void* stream);
void select_largest(const Batch& batch, void* stream);
void code_payloads(const Batch& batch, void* stream);

inline void propose(const Batch& batch, void* stream) {
  guess_thresholds(batch, stream);
  select_largest(batch, stream);
  code_payloads(batch, stream);
}

}  // namespace dgc::cuda
