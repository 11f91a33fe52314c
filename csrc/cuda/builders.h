// The tables that kernels read, built on the host for arrays on the device. A builder is told the tensors, then how
// much memory the tables and the kernels want; where that memory is, it learns when the table is written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "layout.h"
#include "tables.h"

namespace dgc::cuda {

// Address of device memory that belongs to the caller; nothing here reads or writes it.
using Address = uint64_t;

// Whether kernels know this layout: n below 2^31, indices in Elias-Fano's coding or as int32, and values as float32,
// float16, bfloat16, int8 or int4.
bool has_format(const Layout& layout);

// Throws std::invalid_argument if there is none.
Format format_of(const Layout& layout);

// A step of several tensors: a Batch.
class BatchBuilder {
 public:
  // arrays: of device memory. Returns the tensor's number. mask, zero_grad: as in Options (proposal.h).
  size_t add(const Layout& layout, const Update& update, const Arrays& arrays, bool mask, bool zero_grad);

  size_t count() const { return slots_.size(); }

  // Bytes of the payloads, one after another, each from a multiple of 16 on.
  size_t payload_bytes() const { return payload_bytes_; }
  size_t payload_offset(size_t number) const { return payload_offsets_.at(number); }
  size_t payload_nbytes(size_t number) const { return slots_.at(number).format.nbytes(); }

  // Bytes of what lies between propose and commit: each tensor's coordinates.
  size_t kept_bytes() const { return kept_bytes_; }

  // Bytes that propose needs for itself.
  size_t scratch_bytes() const;

  size_t table_bytes() const;

  // Writes the table to host memory, from which the caller copies it to `table`. progress: room for Progress of
  // every tensor.
  void write(Address table, Address payloads, Address kept, Address progress, Address scratch, uint8_t* host) const;

  // What kernels are called with, once the table has been written and copied.
  Batch batch(Address table, Address scratch) const;

  // Groups of sent coordinates of one tensor: first, and how many.
  uint32_t first_group(size_t number) const { return slots_.at(number).first_group; }
  uint32_t groups(size_t number) const;

 private:
  size_t payload_bytes_ = 0;
  size_t kept_bytes_ = 0;
  size_t candidates_ = 0;
  size_t members_ = 0;
  size_t sparse_ = 0;  // tensors whose layout is not dense
  std::vector<Slot> slots_;
  std::vector<size_t> payload_offsets_;
  std::vector<size_t> kept_offsets_;
  std::vector<uint32_t> stripe_slot_;
  std::vector<uint32_t> row_slot_;
  std::vector<uint32_t> group_slot_;
};

// Payloads of several tensors that have arrived: a Sums.
class SumsBuilder {
 public:
  // `count` payloads at `payloads` are added to the n floats at `out`.
  void add(const Layout& layout, Address payloads, size_t count, Address out, float scale);

  size_t scratch_bytes() const { return 4 * coordinates_; }
  size_t table_bytes() const;
  void write(Address scratch, uint8_t* host) const;
  Sums sums(Address table, Address malformed) const;

 private:
  size_t coordinates_ = 0;
  std::vector<Sum> sums_;
  std::vector<size_t> offsets_;
  std::vector<uint32_t> block_sum_;
  std::vector<uint32_t> segment_sum_;
};

// Tensors that are gone through stripe by stripe. Each: has n elements, and first_stripe, which is set here.
template <class Each>
class StripesBuilder {
 public:
  uint32_t stripes() const { return static_cast<uint32_t>(stripe_tensor_.size()); }
  size_t table_bytes() const;
  void write(uint8_t* host) const;
  const Each* tensors(Address table) const { return reinterpret_cast<const Each*>(table); }

  // Which tensor a stripe belongs to.
  const uint32_t* stripe_tensor(Address table) const;

 protected:
  void put(Each tensor, size_t n);

 private:
  std::vector<Each> tensors_;
  std::vector<uint32_t> stripe_tensor_;
};

// Reduced tensors that become gradients.
class ReducedBuilder : public StripesBuilder<Reduced> {
 public:
  // velocity: 0 for none; then nothing of `update` counts. The others as in Reduced.
  void add(size_t n, Address in, Scalar in_type, Address out, Address velocity, const Update& update, float factor,
           float after);
};

// Arrays whose squares are summed.
class SquaresBuilder : public StripesBuilder<Squared> {
 public:
  void add(size_t n, Address data, Scalar type);
};

}  // namespace dgc::cuda
