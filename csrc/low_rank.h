// PowerSGD: Vogels, Karimireddy, Jaggi, NeurIPS 2019, arXiv 1905.13727, algorithm 1.
#pragma once

#include <memory>

#include "codec.h"
#include "settings.h"

namespace dgc {

// lowrank rows= columns= rank=: the accumulated gradient M as a matrix, row-major. With Q of the step before (at
// first drawn alike by all workers):
//
//   opening   P = the sum over workers of M Q, then its columns orthonormalised       rows * rank floats
//   payload   Q = M^T P                                                               columns * rank floats
//   decoded   P Q^T, which is linear in Q: payloads can be summed
//   memory    Q, summed over workers                                                  columns * rank floats
//
// A worker's own contribution is P P^T M, its projection; what lies outside stays in the residual.
std::shared_ptr<const Codec> make_low_rank(Settings* settings);

}  // namespace dgc
