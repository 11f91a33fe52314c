#include "add.h"

#include "coded_values.h"
#include "launch.h"

namespace dgc::cuda {
namespace {

constexpr uint32_t kPayloadsAtOnce = kThreads;

// `width` <= 32 bits from bit `bit` on of `size` bytes.
__device__ uint32_t read_bits(const uint8_t* bytes, uint64_t size, uint64_t bit, uint32_t width) {
  uint64_t word = 0;
  for (uint64_t b = bit / 8, shift = 0; b < size && shift < bit % 8 + width; ++b, shift += 8) {
    word |= uint64_t{bytes[b]} << shift;
  }
  return static_cast<uint32_t>((word >> bit % 8) & ((uint64_t{1} << width) - 1));
}

__device__ void report(const Sums& sums, uint32_t sum) { atomicMax(sums.malformed, sum + 1); }

// Word `word` of the high part; its bytes beyond the end are 0.
__device__ uint32_t high_word(const Format& format, const uint8_t* high, uint64_t word) {
  uint32_t bits = 0;
  for (uint32_t b = 0; b < 4 && 4 * word + b < format.high_bytes; ++b) {
    bits |= static_cast<uint32_t>(high[4 * word + b]) << (8 * b);
  }
  return bits;
}

// The coordinates whose bits are in one segment of the high part of a payload: the j-th bit that is set, minus j, is the
// high part of the j-th coordinate.
__device__ void decode_segment(const Sums& sums, uint32_t number, const Format& format, const uint8_t* payload,
                               uint32_t segment, bool last, uint32_t* indices) {
  DGC_SHARED(BlockScratch, scratch);
  constexpr uint64_t kWords = kSegment / 4;
  static_assert(kWords == kThreads, "one word for each thread");
  const uint8_t* const low = payload + format.value_bytes;
  const uint8_t* const high = low + format.low_bytes;
  const auto index_of = [&](uint64_t bit, uint32_t j) {
    return static_cast<uint32_t>((bit - j) << format.low) |
           read_bits(low, format.low_bytes, uint64_t{j} * format.low, format.low);
  };
  const uint64_t first = segment * kWords;
  uint32_t before = 0;
  for (uint64_t w = threadIdx.x; w < first; w += kThreads) {
    before += static_cast<uint32_t>(__popc(high_word(format, high, w)));
  }
  before = sum_of_block<kThreads>(before, &scratch);
  uint32_t word = high_word(format, high, first + threadIdx.x);
  uint32_t total;
  uint32_t j = before + sum_before<kThreads>(static_cast<uint32_t>(__popc(word)), &scratch, &total);
  uint32_t previous = 0;
  bool follows = false;
  if (word != 0 && j > 0 && j <= format.k) {
    // The coordinate before this thread's first one.
    uint64_t w = first + threadIdx.x;
    uint32_t earlier = 0;
    while (w > 0 && earlier == 0) earlier = high_word(format, high, --w);
    if (earlier != 0) {
      previous = index_of(32 * w + 31 - static_cast<uint32_t>(__clz(static_cast<int>(earlier))), j - 1);
      follows = true;
    }
  }
  bool valid = true;
  for (; word != 0 && j < format.k; word &= word - 1, ++j) {
    const uint64_t bit = 32 * (first + threadIdx.x) + static_cast<uint32_t>(__ffs(static_cast<int>(word))) - 1;
    const uint32_t index = index_of(bit, j);
    valid = valid && index < format.n && (!follows || previous < index);
    indices[j] = index;
    previous = index;
    follows = true;
  }
  const uint32_t found = before + total;
  if (last && found != format.k) {
    // Too few or too many: whatever is missing is nowhere.
    valid = false;
    for (uint32_t missing = found + threadIdx.x; missing < format.k; missing += kThreads) {
      indices[missing] = 0xffffffffu;
    }
  }
  if (!valid) report(sums, number);
}

// Those of one segment of int32 indices.
__device__ void copy_segment(const Sums& sums, uint32_t number, const Format& format, const uint8_t* payload,
                             uint32_t segment, uint32_t* indices) {
  const uint32_t j = segment * kThreads + threadIdx.x;
  if (j >= format.k) return;
  const uint8_t* const own = payload + format.value_bytes + uint64_t{4} * j;
  indices[j] = read_32(own);
  if (indices[j] >= format.n || (j > 0 && read_32(own - 4) >= indices[j])) report(sums, number);
}

__global__ void __launch_bounds__(kThreads) decode_indices(Sums sums) {
  const uint32_t number = sums.segment_sum[blockIdx.x];
  const Sum sum = sums.sums[number];
  const Format& format = sum.format;
  const uint32_t own = blockIdx.x - sum.first_segment;
  const uint64_t which = own / sum.segments;
  const uint32_t segment = own % sum.segments;
  const uint8_t* const payload = sum.payloads + which * format.nbytes();
  uint32_t* const indices = sum.indices + which * format.k;
  if (format.elias_fano) {
    decode_segment(sums, number, format, payload, segment, segment + 1 == sum.segments, indices);
  } else {
    copy_segment(sums, number, format, payload, segment, indices);
  }
}

// First of k ascending indices that is not below `lowest`.
__device__ uint32_t lower_bound(const uint32_t* indices, uint32_t k, uint32_t lowest) {
  uint32_t first = 0, last = k;
  while (first < last) {
    const uint32_t middle = first + (last - first) / 2;
    if (indices[middle] < lowest) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return first;
}

// One block has a range of the coordinates, and adds payload after payload.
__device__ void add_sparse(const Sum& sum, uint32_t range) {
  struct Shared {
    uint32_t begin[kPayloadsAtOnce];
    uint32_t end[kPayloadsAtOnce];
  };
  DGC_SHARED(Shared, shared);
  const Format& format = sum.format;
  const uint32_t lowest = range * kRange;
  const uint32_t beyond = format.n - lowest < kRange ? format.n : lowest + kRange;
  for (uint32_t first = 0; first < sum.count; first += kPayloadsAtOnce) {
    const uint32_t here = sum.count - first < kPayloadsAtOnce ? sum.count - first : kPayloadsAtOnce;
    if (threadIdx.x < here) {
      const uint32_t* const indices = sum.indices + uint64_t{first + threadIdx.x} * format.k;
      shared.begin[threadIdx.x] = lower_bound(indices, format.k, lowest);
      shared.end[threadIdx.x] = lower_bound(indices, format.k, beyond);
    }
    __syncthreads();
    for (uint32_t p = 0; p < here; ++p) {
      const uint32_t* const indices = sum.indices + uint64_t{first + p} * format.k;
      const uint8_t* const payload = sum.payloads + (uint64_t{first} + p) * format.nbytes();
      for (uint32_t j = shared.begin[p] + threadIdx.x; j < shared.end[p]; j += kThreads) {
        const uint32_t i = indices[j];
        if (i >= lowest && i < beyond) sum.out[i] += sum.scale * decoded_value(format, payload, j);
      }
      __syncthreads();
    }
  }
}

__device__ void add_dense(const Sum& sum, uint32_t stripe) {
  const Format& format = sum.format;
  for (uint32_t at = threadIdx.x; at < kStripe; at += kThreads) {
    const uint32_t i = stripe * kStripe + at;
    if (i >= format.n) return;
    float total = sum.out[i];
    for (uint32_t p = 0; p < sum.count; ++p) {
      total += sum.scale * decoded_value(format, sum.payloads + uint64_t{p} * format.nbytes(), i);
    }
    sum.out[i] = total;
  }
}

__global__ void __launch_bounds__(kThreads) add_payloads(Sums sums) {
  const Sum sum = sums.sums[sums.block_sum[blockIdx.x]];
  const uint32_t own = blockIdx.x - sum.first_block;
  if (sum.format.dense()) {
    add_dense(sum, own);
  } else {
    add_sparse(sum, own);
  }
}

}  // namespace

void add(const Sums& sums, void* stream) {
  launch("decode_indices", decode_indices, sums.segments, kThreads, stream, sums);
  launch("add_payloads", add_payloads, sums.blocks, kThreads, stream, sums);
}

}  // namespace dgc::cuda
