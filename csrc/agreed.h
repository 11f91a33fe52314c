// Codecs whose workers all send the same coordinates, which each works out for itself: no indices travel, and
// payloads of float values can be summed as they are.
#pragma once

#include <memory>

#include "codec.h"
#include "settings.h"

namespace dgc {

// random n= k= values= factor=: k coordinates drawn alike by all workers, anew in each step; what is sent is
// factor * v' (n / k makes the result unbiased where nothing is kept back; 1 with a residual).
std::shared_ptr<const Codec> make_random(Settings* settings);

// sketch n= k= rows= columns=: the k coordinates whose sums over all workers a count sketch (Charikar, Chen,
// Farach-Colton 2002; for gradients Ivkin et al. 2019, arXiv 1903.04488) finds to be the largest. The opening
// round sums the sketches, rows * columns floats; the payload holds the exact float32 values at the k
// coordinates.
std::shared_ptr<const Codec> make_sketch(Settings* settings);

}  // namespace dgc
