// Writes valid payloads of every kind of codec, every selection and every pair of coders, for some shapes,
// into the folder given: what fuzzing starts from. Usage: seeds FOLDER
#include <fstream>
#include <iterator>
#include <random>

#include "input.h"
#include "proposal.h"
#include "quantile.h"

namespace {

using dgc::fuzz::Header;

struct Folder {
  std::string path;
  int written = 0;

  void write(const Header& header, const std::vector<uint8_t>& rest) {
    std::ofstream file(path + "/" + std::to_string(written++), std::ios::binary);
    file.write(reinterpret_cast<const char*>(&header), sizeof header);
    file.write(reinterpret_cast<const char*>(rest.data()), static_cast<std::streamsize>(rest.size()));
    if (!file) throw std::runtime_error("cannot write " + path);
  }
};

void append(const std::vector<float>& floats, std::vector<uint8_t>* bytes) {
  const uint8_t* first = reinterpret_cast<const uint8_t*>(floats.data());
  bytes->insert(bytes->end(), first, first + floats.size() * sizeof(float));
}

void seed(const Header& header, std::mt19937* random, Folder* folder) {
  std::shared_ptr<const dgc::Codec> codec;
  try {
    codec = dgc::make_codec(dgc::fuzz::description(header));
  } catch (const std::invalid_argument&) {
    return;  // some selections and coders do not go with some shapes
  }
  std::normal_distribution<float> normal;
  std::vector<float> grad(codec->n()), residual(codec->n()), memory(codec->memory());
  for (float& value : grad) value = normal(*random);
  std::vector<float> opened(codec->opening().count);
  dgc::Arrays arrays;
  arrays.n = codec->n();
  arrays.grad = grad.data();
  arrays.residual = residual.data();
  dgc::Context context;
  context.randomness = dgc::Randomness(1, 2, 3, 0);
  context.memory = memory.data();
  context.opened = opened.data();
  dgc::open(*codec, dgc::Update(), arrays, dgc::Options(), context, opened.data());
  if (codec->opening().reduction == dgc::Reduction::quantile) {
    opened = {dgc::opened_by_quantile({codec.get()}, {opened.data()})};
    context.opened = opened.data();
  }
  const dgc::Bytes payload = dgc::propose(*codec, dgc::Update(), arrays, dgc::Options(), context).payload;
  std::vector<uint8_t> rest(payload.begin(), payload.end());
  append(opened, &rest);
  // What stands in for the gradient: a few values are enough for a seed.
  grad.resize(std::min<size_t>(grad.size(), 64));
  append(grad, &rest);
  folder->write(header, rest);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return 1;
  Folder folder{arguments[1]};
  std::mt19937 random(1);
  const uint32_t shapes[][2] = {{0, 0},      {1, 1},     {300, 300},    {300, 7},
                                {1000, 270}, {70000, 3}, {130000, 1000}};
  for (const auto& [n, k] : shapes) {
    Header header;
    header.n = n;
    header.k = k;
    header.a = 4;
    header.b = 64;
    header.flags = dgc::fuzz::kExact | (n >= dgc::fuzz::kFewElements ? dgc::fuzz::kLarge : 0);
    for (uint8_t values = 0; values < std::size(dgc::fuzz::kValues); ++values) {
      header.values = values;
      header.kind = dgc::fuzz::kRandom;
      seed(header, &random, &folder);
      for (uint8_t indices = 0; indices < std::size(dgc::fuzz::kIndices); ++indices) {
        header.indices = indices;
        for (const uint8_t kind : {dgc::fuzz::kCoordinates, dgc::fuzz::kRanges}) {
          header.kind = kind;
          seed(header, &random, &folder);
        }
      }
      header.kind = dgc::fuzz::kCoordinates;
    }
    header.values = header.indices = 0;
    for (uint8_t selector = 1; selector < std::size(dgc::fuzz::kSelectors); ++selector) {
      header.selector = selector;
      seed(header, &random, &folder);
    }
    header.kind = dgc::fuzz::kSketch;
    seed(header, &random, &folder);
  }
  Header header;
  header.kind = dgc::fuzz::kLowRank;
  for (const uint32_t rank : {0u, 2u, 19u}) {
    header.k = rank;
    header.a = 19;
    header.b = 29;
    seed(header, &random, &folder);
  }
  header.kind = dgc::fuzz::kText;
  for (const char* text : {"coordinates n=9 k=2 indices=int32 values=qsgd:4:64 select=bins length=3",
                           "sketch n=9 k=2 rows=3 columns=7", "random n=9 k=2 values=int8 factor=4.5",
                           "lowrank rows=3 columns=5 rank=2"}) {
    const std::string words = text;
    folder.write(header, {words.begin(), words.end()});
  }
  return 0;
}
