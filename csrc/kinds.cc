#include "kinds.h"

#include <stdexcept>

#include "agreed.h"
#include "coordinates.h"
#include "low_rank.h"
#include "ranges.h"
#include "settings.h"

namespace dgc {
namespace {

struct Kind {
  const char* name;
  std::shared_ptr<const Codec> (*make)(Settings* settings);
};

const Kind kKinds[] = {
    {"coordinates", make_coordinates},
    {"random", make_random},
    {"sketch", make_sketch},
    {"lowrank", make_low_rank},
    {"ranges", make_ranges},
};

}  // namespace

std::shared_ptr<const Codec> make_codec(const std::string& description) {
  Settings settings(description);
  std::string allowed;
  for (const Kind& kind : kKinds) {
    allowed += (allowed.empty() ? "" : ", ") + std::string(kind.name);
    if (settings.kind() != kind.name) continue;
    std::shared_ptr<const Codec> codec = kind.make(&settings);
    settings.done();
    return codec;
  }
  throw std::invalid_argument("codec is '" + settings.kind() + "'; allowed: " + allowed);
}

}  // namespace dgc
