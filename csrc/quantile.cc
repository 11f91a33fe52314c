#include "quantile.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace dgc {

float opened_by_quantile(const std::vector<const Codec*>& codecs, const std::vector<const float*>& opened) {
  struct Sampled {
    float magnitude;
    double elements;  // that it stands for
  };
  std::vector<Sampled> samples;
  double wanted = 0.0;
  for (size_t t = 0; t < codecs.size(); ++t) {
    const Codec& codec = *codecs[t];
    const size_t count = codec.opening().count;
    if (count == 0) continue;
    wanted += codecs[0]->opening().share * static_cast<double>(codec.n());
    for (size_t i = 0; i < count; ++i) {
      if (std::isnan(opened[t][i])) return opened[t][i];
      samples.push_back({opened[t][i], static_cast<double>(codec.n()) / static_cast<double>(count)});
    }
  }
  // Halves, as long as there is a choice: the larger magnitudes come first.
  auto first = samples.begin();
  auto last = samples.end();
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last,
                     [](const Sampled& a, const Sampled& b) { return a.magnitude > b.magnitude; });
    const double larger = std::accumulate(
        first, middle, 0.0, [](double sum, const Sampled& sample) { return sum + sample.elements; });
    // A share that is whole on paper must not ask for one more because of its last bit.
    if (larger >= wanted * (1.0 - 1e-9)) {
      last = middle;
    } else {
      wanted -= larger;
      first = middle;
    }
  }
  return first == last ? 0.0f : first->magnitude;
}

}  // namespace dgc
