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

// The coordinates of one payload of Elias-Fano's coding: the j-th bit that is set in the high part, minus j, is the
// high part of the j-th.
__device__ void decode_elias_fano(const Sums& sums, uint32_t number, const Format& format, const uint8_t* payload,
                                  uint32_t* indices) {
  DGC_SHARED(BlockScratch, scratch);
  const uint8_t* const low = payload + format.value_bytes;
  const uint8_t* const high = low + format.low_bytes;
  uint32_t found = 0;
  for (uint64_t first = 0; first < format.high_bytes; first += 4 * kSelectThreads) {
    const uint64_t at = first + 4 * threadIdx.x;
    uint32_t word = 0;
    for (uint32_t b = 0; b < 4 && at + b < format.high_bytes; ++b) {
      word |= static_cast<uint32_t>(high[at + b]) << (8 * b);
    }
    uint32_t total;
    uint32_t j = found + sum_before<kSelectThreads>(static_cast<uint32_t>(__popc(word)), &scratch, &total);
    for (; word != 0; word &= word - 1, ++j) {
      if (j >= format.k) break;
      const uint64_t bit = 8 * at + static_cast<uint32_t>(__ffs(static_cast<int>(word))) - 1;
      indices[j] = static_cast<uint32_t>((bit - j) << format.low) |
                   read_bits(low, format.low_bytes, uint64_t{j} * format.low, format.low);
    }
    found += total;
  }
  if (found == format.k) return;
  // Too few or too many: whatever is missing is nowhere.
  for (uint32_t j = found + threadIdx.x; j < format.k; j += kSelectThreads) indices[j] = 0xffffffffu;
  if (threadIdx.x == 0) report(sums, number);
}

__global__ void __launch_bounds__(kSelectThreads) decode_indices(Sums sums) {
  const uint32_t number = sums.payload_sum[blockIdx.x];
  const Sum sum = sums.sums[number];
  const Format& format = sum.format;
  if (format.dense()) return;
  const uint64_t which = blockIdx.x - sum.first_payload;
  const uint8_t* const payload = sum.payloads + which * format.nbytes();
  uint32_t* const indices = sum.indices + which * format.k;
  if (format.elias_fano) {
    decode_elias_fano(sums, number, format, payload, indices);
  } else {
    for (uint32_t j = threadIdx.x; j < format.k; j += kSelectThreads) {
      indices[j] = read_32(payload + format.value_bytes + uint64_t{4} * j);
    }
  }
  __syncthreads();
  for (uint32_t j = threadIdx.x; j < format.k; j += kSelectThreads) {
    const bool ascends = j == 0 || indices[j - 1] < indices[j];
    if (!ascends || indices[j] >= format.n) report(sums, number);
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
  launch("decode_indices", decode_indices, sums.payloads, kSelectThreads, stream, sums);
  launch("add_payloads", add_payloads, sums.blocks, kThreads, stream, sums);
}

}  // namespace dgc::cuda
