#include "index_coding.h"

#include <algorithm>
#include <cstring>
#include <queue>
#include <stdexcept>

#include "half.h"

namespace dgc {
namespace {

size_t high_bit_count(size_t n, size_t k) { return k + ((n - 1) >> low_bits_per_index(n, k)); }

size_t low_byte_count(size_t n, size_t k) { return (k * low_bits_per_index(n, k) + 7) / 8; }

// Up to 8 bytes of `bytes[offset, size)` as the low bytes of a word; 0 beyond the end.
uint64_t load_word(const uint8_t* bytes, size_t size, size_t offset) {
  uint64_t word = 0;
  if (offset + 8 <= size) {
    std::memcpy(&word, bytes + offset, 8);
  } else if (offset < size) {
    std::memcpy(&word, bytes + offset, size - offset);
  }
  return word;
}

void encode_elias_fano(size_t n, size_t k, const uint32_t* indices, uint8_t* bytes) {
  const unsigned low = low_bits_per_index(n, k);
  const size_t low_bytes = low_byte_count(n, k);
  const uint64_t low_mask = (uint64_t{1} << low) - 1;
  uint8_t* out = bytes;
  uint64_t pending = 0;
  unsigned filled = 0;
  for (size_t j = 0; j < k; ++j) {
    pending |= (indices[j] & low_mask) << filled;
    filled += low;
    while (filled >= 32) {
      const uint32_t word = static_cast<uint32_t>(pending);
      std::memcpy(out, &word, 4);
      out += 4;
      pending >>= 32;
      filled -= 32;
    }
  }
  for (; out < bytes + low_bytes; ++out, pending >>= 8) *out = static_cast<uint8_t>(pending);

  uint8_t* high = bytes + low_bytes;
  std::memset(high, 0, (high_bit_count(n, k) + 7) / 8);
  for (size_t j = 0; j < k; ++j) {
    const size_t bit = (indices[j] >> low) + j;
    high[bit / 8] = static_cast<uint8_t>(high[bit / 8] | (1u << (bit % 8)));
  }
}

}  // namespace

unsigned low_bits_per_index(size_t n, size_t k) { return 63u - static_cast<unsigned>(__builtin_clzll(n / k)); }

size_t index_bytes(IndexCoder coder, size_t n, size_t k) {
  if (k == n) return 0;
  switch (coder) {
    case IndexCoder::elias_fano:
      return low_byte_count(n, k) + (high_bit_count(n, k) + 7) / 8;
    case IndexCoder::runlength16:
      return 2 * k;
    case IndexCoder::int32:
      return 4 * k;
  }
  return 0;
}

void encode_indices(IndexCoder coder, size_t n, size_t k, const uint32_t* indices, uint8_t* bytes) {
  if (k == n) return;
  switch (coder) {
    case IndexCoder::elias_fano:
      encode_elias_fano(n, k, indices, bytes);
      break;
    case IndexCoder::runlength16: {
      uint32_t next = 0;
      for (size_t j = 0; j < k; ++j) {
        const uint16_t run = static_cast<uint16_t>(indices[j] - next);
        std::memcpy(bytes + 2 * j, &run, 2);
        next = indices[j] + 1;
      }
      break;
    }
    case IndexCoder::int32:
      std::memcpy(bytes, indices, 4 * k);
      break;
  }
}

IndexReader::IndexReader(IndexCoder coder, size_t n, size_t k, const uint8_t* bytes)
    : coder_(coder), n_(n), k_(k), bytes_(bytes), size_(index_bytes(coder, n, k)) {
  if (coder == IndexCoder::elias_fano && k < n) {
    low_ = low_bits_per_index(n, k);
    high_offset_ = low_byte_count(n, k);
    bits_ = high_word(0);
  }
}

uint64_t IndexReader::high_word(size_t word) const {
  return load_word(bytes_, size_, high_offset_ + 8 * word);
}

uint32_t IndexReader::low_bits(size_t j) const {
  const size_t bit = j * low_;
  const uint64_t word = load_word(bytes_, size_, bit / 8) >> (bit % 8);
  return static_cast<uint32_t>(word & ((uint64_t{1} << low_) - 1));
}

void IndexReader::seek(size_t lowest) {
  if (k_ == n_) {
    position_ = std::min(lowest, k_);
    return;
  }
  switch (coder_) {
    case IndexCoder::elias_fano: {
      // Every high value before that of `lowest` ends with a 0 bit: skip the words that hold only such
      // groups.
      size_t zeros = lowest >> low_;
      const size_t words = (size_ - high_offset_ + 7) / 8;
      while (word_ < words) {
        bits_ = high_word(word_);
        const size_t ones = static_cast<size_t>(__builtin_popcountll(bits_));
        if (64 - ones >= zeros) break;
        zeros -= 64 - ones;
        position_ += ones;
        ++word_;
      }
      if (word_ == words) bits_ = 0;
      break;
    }
    case IndexCoder::runlength16:
      while (position_ < k_) {
        uint16_t run;
        std::memcpy(&run, bytes_ + 2 * position_, 2);
        if (next_ + run >= lowest) break;
        next_ += run + 1u;
        ++position_;
      }
      return;
    case IndexCoder::int32: {
      size_t first = 0;
      size_t last = k_;
      while (first < last) {
        const size_t middle = first + (last - first) / 2;
        uint32_t index;
        std::memcpy(&index, bytes_ + 4 * middle, 4);
        if (index < lowest) {
          first = middle + 1;
        } else {
          last = middle;
        }
      }
      position_ = first;
      return;
    }
  }
  // Elias-Fano has stopped at most a word before the first index with the high part of `lowest`.
  uint32_t index;
  for (IndexReader before = *this; read(&index, 1) == 1; before = *this) {
    if (index >= lowest) {
      *this = before;
      return;
    }
  }
}

size_t IndexReader::read_elias_fano(uint32_t* indices, size_t wanted) {
  const size_t words = (size_ - high_offset_ + 7) / 8;
  size_t count = 0;
  while (count < wanted) {
    while (bits_ == 0) {
      if (++word_ >= words) {
        word_ = words;
        return count;
      }
      bits_ = high_word(word_);
    }
    const size_t bit = 64 * word_ + static_cast<size_t>(__builtin_ctzll(bits_));
    bits_ &= bits_ - 1;
    const size_t j = position_ + count;
    indices[count++] = (static_cast<uint32_t>(bit - j) << low_) | low_bits(j);
  }
  return count;
}

size_t IndexReader::read(uint32_t* indices, size_t capacity) {
  const size_t wanted = std::min(capacity, k_ - position_);
  size_t count = wanted;
  if (k_ == n_) {
    for (size_t j = 0; j < wanted; ++j) indices[j] = static_cast<uint32_t>(position_ + j);
  } else if (coder_ == IndexCoder::elias_fano) {
    count = read_elias_fano(indices, wanted);
  } else if (coder_ == IndexCoder::runlength16) {
    for (size_t j = 0; j < wanted; ++j) {
      uint16_t run;
      std::memcpy(&run, bytes_ + 2 * (position_ + j), 2);
      next_ += run;
      indices[j] = static_cast<uint32_t>(next_);
      ++next_;
    }
  } else if (wanted > 0) {
    std::memcpy(indices, bytes_ + 4 * position_, 4 * wanted);
  }
  position_ += count;
  return count;
}

std::string check_indices(IndexCoder coder, size_t n, size_t k, const uint8_t* bytes) {
  if (k == n) return {};
  if (coder == IndexCoder::runlength16) {
    uint64_t next = 0;
    for (size_t j = 0; j < k; ++j) {
      uint16_t run;
      std::memcpy(&run, bytes + 2 * j, 2);
      next += run + uint64_t{1};
    }
    if (next <= n) return {};
    return "run lengths end at coordinate " + std::to_string(next - 1) + ", allowed: below " +
           std::to_string(n);
  }
  if (coder == IndexCoder::elias_fano) {
    const size_t low_bytes = low_byte_count(n, k);
    const size_t low_bits = k * low_bits_per_index(n, k);
    if (low_bits % 8 != 0 && bytes[low_bytes - 1] >> (low_bits % 8) != 0) return "unused low bits are not 0";
    const size_t high_bits = high_bit_count(n, k);
    const size_t size = index_bytes(coder, n, k);
    if (high_bits % 8 != 0 && bytes[size - 1] >> (high_bits % 8) != 0) return "unused high bits are not 0";
    size_t ones = 0;
    for (size_t offset = low_bytes; offset < size; offset += 8) {
      ones += static_cast<size_t>(__builtin_popcountll(load_word(bytes, size, offset)));
    }
    if (ones != k) return "holds " + std::to_string(ones) + " coordinates, allowed: " + std::to_string(k);
  }
  IndexReader reader(coder, n, k, bytes);
  uint64_t lowest = 0;
  uint32_t buffer[256];
  while (reader.position() < k) {
    const size_t count = reader.read(buffer, 256);
    for (size_t j = 0; j < count; ++j) {
      if (buffer[j] < lowest)
        return "coordinate " + std::to_string(buffer[j]) + " is not above the one before it";
      lowest = uint64_t{buffer[j]} + 1;
    }
  }
  if (lowest > n) return "coordinate " + std::to_string(lowest - 1) + ", allowed: below " + std::to_string(n);
  return {};
}

bool needs_fillers(size_t k, const uint32_t* indices) {
  uint64_t next = 0;
  for (size_t j = 0; j < k; ++j) {
    if (indices[j] - next > kMaxRun) return true;
    next = uint64_t{indices[j]} + 1;
  }
  return false;
}

RunSlots fit_run_lengths(size_t n, size_t k, const uint32_t* indices, const float* values) {
  // Positions in the list of kept coordinates: 1..k, with 0 and k + 1 as its ends.
  std::vector<uint32_t> before(k + 2), after(k + 2);
  for (size_t p = 0; p < k + 2; ++p) {
    before[p] = static_cast<uint32_t>(p) - 1;
    after[p] = static_cast<uint32_t>(p) + 1;
  }
  const auto fillers = [&](uint32_t from, uint32_t to) -> size_t {
    if (to == k + 1) return 0;
    const size_t next = from == 0 ? 0 : size_t{indices[from - 1]} + 1;
    return (indices[to - 1] - next) / (kMaxRun + 1);
  };
  size_t slots = k;
  for (uint32_t p = 1; p <= k; ++p) slots += fillers(p - 1, p);

  struct Kept {
    int32_t magnitude;
    uint32_t place;
  };
  const auto outranks = [](const Kept& a, const Kept& b) {
    return a.magnitude != b.magnitude ? a.magnitude > b.magnitude : a.place < b.place;
  };
  std::vector<Kept> all(k);
  for (uint32_t p = 1; p <= k; ++p) all[p - 1] = {magnitude(values[p - 1]), p};
  std::priority_queue<Kept, std::vector<Kept>, decltype(outranks)> smallest(outranks, std::move(all));
  while (slots > k) {
    const uint32_t p = smallest.top().place;
    smallest.pop();
    slots -= 1 + fillers(before[p], p) + fillers(p, after[p]);
    slots += fillers(before[p], after[p]);
    after[before[p]] = after[p];
    before[after[p]] = before[p];
  }

  RunSlots out;
  out.indices.reserve(k);
  out.sources.reserve(k);
  const auto put = [&out](size_t index, uint32_t source) {
    out.indices.push_back(static_cast<uint32_t>(index));
    out.sources.push_back(source);
  };
  size_t next = 0;
  for (uint32_t p = after[0]; p != k + 1; p = after[p]) {
    for (; indices[p - 1] - next > kMaxRun; next += kMaxRun + 1) put(next + kMaxRun, RunSlots::kFiller);
    put(indices[p - 1], p - 1);
    next = size_t{indices[p - 1]} + 1;
  }
  // Slots remain only if the coordinate given up last was the highest and needed several fillers: they fit
  // behind.
  for (; out.indices.size() < k && next < n; ++next) put(next, RunSlots::kFiller);
  return out;
}

IndexCoder index_coder(const std::string& name) {
  if (name == "elias-fano") return IndexCoder::elias_fano;
  if (name == "runlength16") return IndexCoder::runlength16;
  if (name == "int32") return IndexCoder::int32;
  throw std::invalid_argument("indices is '" + name + "'; allowed: elias-fano, runlength16, int32");
}

}  // namespace dgc
