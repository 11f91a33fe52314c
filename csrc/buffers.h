// Arrays of the size of a tensor: not zeroed, since what is written next is all of them, and on huge pages
// where the system grants them, since touching fresh memory page by page takes longer than filling it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dgc {

template <class T>
struct LargeAllocator {
  using value_type = T;

  LargeAllocator() = default;
  template <class U>
  LargeAllocator(const LargeAllocator<U>&) {}

  T* allocate(size_t n) {
    const size_t size = n * sizeof(T);
    if (size < kLarge) return static_cast<T*>(::operator new(size));
    const size_t rounded = (size + kHugePage - 1) / kHugePage * kHugePage;
    void* const memory = std::aligned_alloc(kHugePage, rounded);
    if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    // Advice: without it everything works the same, but slower.
    (void)madvise(memory, rounded, MADV_HUGEPAGE);
#endif
    return static_cast<T*>(memory);
  }

  void deallocate(T* memory, size_t n) {
    if (n * sizeof(T) < kLarge) {
      ::operator delete(memory);
    } else {
      std::free(memory);
    }
  }

  // What resize() adds is not set to zero.
  template <class U>
  void construct(U* place) {
    ::new (static_cast<void*>(place)) U;
  }

  template <class U, class... Arguments>
  void construct(U* place, Arguments&&... arguments) {
    ::new (static_cast<void*>(place)) U(std::forward<Arguments>(arguments)...);
  }

  template <class U>
  bool operator==(const LargeAllocator<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const LargeAllocator<U>&) const {
    return false;
  }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  static constexpr size_t kLarge = 2 * kHugePage;
};

template <class T>
using Buffer = std::vector<T, LargeAllocator<T>>;

using Bytes = Buffer<uint8_t>;
using Floats = Buffer<float>;

}  // namespace dgc
