// Writes a valid payload of every pair of coders, for some shapes, into the folder given: what fuzzing starts
// from. Usage: seeds FOLDER
#include <fstream>
#include <random>
#include <string>

#include "input.h"

int main(int count, char** arguments) {
  if (count != 2) return 1;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const uint32_t shapes[][2] = {{0, 0}, {1, 1}, {300, 300}, {300, 7}, {1000, 270}, {70000, 3}, {200000, 1000}};
  for (const auto& [n, k] : shapes) {
    std::vector<uint32_t> indices(k);
    for (uint32_t j = 0; j < k; ++j) indices[j] = static_cast<uint32_t>(uint64_t{j} * n / k);
    std::vector<float> drawn(k);
    for (float& value : drawn) value = normal(random);
    for (unsigned i = 0; i < 3; ++i) {
      for (unsigned v = 0; v < 5; ++v) {
        const dgc::Layout layout = dgc::fuzz::layout_of(n, k, i, v);
        std::vector<float> values = drawn;
        std::vector<uint8_t> payload(layout.nbytes());
        layout.pack(layout.dense() ? nullptr : indices.data(), values.data(), payload.data(), values.data());
        const std::vector<uint8_t> header = dgc::fuzz::write_header(n, k, i, v);
        std::ofstream file(std::string(arguments[1]) + "/" + std::to_string(n) + "-" + std::to_string(k) + "-" +
                               std::to_string(i) + "-" + std::to_string(v),
                           std::ios::binary);
        file.write(reinterpret_cast<const char*>(header.data()), static_cast<std::streamsize>(header.size()));
        file.write(reinterpret_cast<const char*>(payload.data()), static_cast<std::streamsize>(payload.size()));
        if (!file) return 1;
      }
    }
  }
  return 0;
}
