// From v' of all tensors of a batch to their payloads. The kernels run one after the other on one stream; none
// of them writes to the arrays of the step.
//
//   sample   a threshold for each tensor, from a sample of its v'
//   collect  reads everything: which coordinates exceed the threshold, and a histogram of their magnitudes; dense
//            layouts are coded here
//   place    the list of these candidates, in order
//   settle   the k-th magnitude; where candidates were fewer than k, or too many, the k largest in passes over everything
//   take     the k largest of the candidates, in order, ties going to the lower index
//   code     the payloads
#pragma once

#include "tables.h"

namespace dgc::cuda {

void propose(const Batch& batch, void* stream);

}  // namespace dgc::cuda
