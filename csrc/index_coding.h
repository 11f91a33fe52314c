// Coding of k coordinates of [0, n), strictly increasing, in a number of bytes that depends on (n, k) only.
//
// elias_fano   l = floor(log2(n / k)) low bits of each index, packed LSB first in ceil(k l / 8) bytes; then
//              the high parts in unary: bit (index >> l) + j set for the j-th, in
//              ceil((k + ((n-1) >> l)) / 8) bytes. Unused bits are 0. Elias 1974, Fano 1971; about
//              2 + log2(n / k) bits per index.
// runlength16  for each index the number of coordinates skipped since the one before (the first: since 0) as
//              uint16: the DGC paper's coding (arXiv 1712.01887). Needs runs of at most 65535: see
//              fit_run_lengths.
// int32        each index as int32; n < 2^31.
// k == n takes no bytes in any of them. Little-endian throughout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dgc {

enum class IndexCoder { elias_fano, runlength16, int32 };

constexpr size_t kMaxRun = 65535;

// floor(log2(n / k)), 1 <= k <= n: how many bits of an index elias_fano keeps in its low part.
unsigned low_bits_per_index(size_t n, size_t k);

// 0 <= k <= n < 2^32; k >= 1 if n >= 1.
size_t index_bytes(IndexCoder coder, size_t n, size_t k);

// Writes exactly index_bytes(). indices: k, strictly increasing, below n; for runlength16 with runs <=
// kMaxRun.
void encode_indices(IndexCoder coder, size_t n, size_t k, const uint32_t* indices, uint8_t* bytes);

// Reads a stream of index_bytes() bytes, never beyond it, whatever it holds. Only for streams that pass
// check_indices are all indices below n and strictly increasing.
class IndexReader {
 public:
  IndexReader(IndexCoder coder, size_t n, size_t k, const uint8_t* bytes);

  // Position in [0, k] of the index that read() gives next.
  size_t position() const { return position_; }

  // Moves forward to the first index >= lowest. Only on a fresh reader of a checked stream.
  void seek(size_t lowest);

  // The next min(capacity, k - position()) indices, fewer only if an Elias-Fano stream lacks bits.
  size_t read(uint32_t* indices, size_t capacity);

 private:
  uint32_t low_bits(size_t j) const;
  size_t read_elias_fano(uint32_t* indices, size_t wanted);
  uint64_t high_word(size_t word) const;

  IndexCoder coder_;
  size_t n_;
  size_t k_;
  const uint8_t* bytes_;
  size_t size_;
  size_t position_ = 0;
  uint64_t next_ = 0;  // runlength16: the coordinate after the last read
  unsigned low_ = 0;   // elias_fano: low bits per index
  size_t high_offset_ = 0;
  size_t word_ = 0;    // elias_fano: word of the high part that bits_ was taken from
  uint64_t bits_ = 0;  // elias_fano: bits of that word not yet read
};

// Empty if the stream is what encode_indices could have written, else what is wrong with it.
std::string check_indices(IndexCoder coder, size_t n, size_t k, const uint8_t* bytes);

// What runlength16 sends for k coordinates of which some lie too far apart: k slots, in index order.
struct RunSlots {
  static constexpr uint32_t kFiller = 0xffffffffu;
  std::vector<uint32_t> indices;  // strictly increasing, runs <= kMaxRun
  // Position of that index among the given ones, or kFiller: a slot of value 0.
  std::vector<uint32_t> sources;
};

// Whether some run exceeds kMaxRun.
bool needs_fillers(size_t k, const uint32_t* indices);

// Bridges long runs by fillers, which take the slots of the coordinates of smallest magnitude (among equals,
// of the highest index). At least the coordinate of largest magnitude keeps its slot, given
// k >= ceil(n / 65536).
RunSlots fit_run_lengths(size_t n, size_t k, const uint32_t* indices, const float* values);

// By its name, as descriptions of codecs have it. Throws std::invalid_argument naming it and what is allowed.
IndexCoder index_coder(const std::string& name);

}  // namespace dgc
