// What Python asks the library for by name (tensorflow/operations.py).
#include <cstring>

#include "operations.h"

namespace dgc {
namespace {

// Names in the order of their numbers, each followed by a space.
template <class Number, size_t kCount>
std::string in_order(const Named<Number> (&names)[kCount]) {
  std::string all;
  for (size_t number = 0; number < kCount; ++number) {
    for (const auto& each : names) {
      if (static_cast<size_t>(each.number) == number) all += std::string(each.name) + " ";
    }
  }
  return all;
}

}  // namespace
}  // namespace dgc

// The names of the elements of `counts` (of each row) or of `progress`, in order; null for anything else.
extern "C" __attribute__((visibility("default"))) const char* horovod_dgc_names(const char* of) {
  static const std::string counts = dgc::in_order(dgc::kCountNames);
  static const std::string progress = dgc::in_order(dgc::kProgressNames);
  if (std::strcmp(of, "counts") == 0) return counts.c_str();
  return std::strcmp(of, "progress") == 0 ? progress.c_str() : nullptr;
}
