// Loops compiled for several instruction sets: a unit defines its table of functions once per set with
// DGC_INSTRUCTION_SETS(DEFINE), where DEFINE(SET, TARGET) opens namespace SET and ends with a `table` whose
// `name` is #SET, and calls those of chosen(DGC_TABLES).
//
// No lambdas in such functions: a lambda does not inherit the target attribute of the function around it.
#pragma once

#include <cstddef>
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define DGC_X86 1
#else
#define DGC_X86 0
#endif

#if defined(__GNUC__) || defined(__clang__)
#define DGC_INLINE inline __attribute__((always_inline))
#else
#define DGC_INLINE inline
#endif

#if DGC_X86
#define DGC_AVX2 __attribute__((target("avx2")))
#define DGC_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")))
#define DGC_INSTRUCTION_SETS(DEFINE) \
  DEFINE(portable, )                 \
  DEFINE(avx2, DGC_AVX2)             \
  DEFINE(avx512, DGC_AVX512)
#define DGC_TABLES {&portable::table, &avx2::table, &avx512::table}
#else
#define DGC_INSTRUCTION_SETS(DEFINE) DEFINE(portable, )
#define DGC_TABLES {&portable::table}
#endif

namespace dgc {

// The table of the set that kernels() uses.
template <class Table, size_t kSets>
const Table& chosen(const Table* const (&tables)[kSets]) {
  const char* const name = kernels().name;
  for (const Table* table : tables) {
    if (std::strcmp(table->name, name) == 0) return *table;
  }
  return *tables[0];
}

}  // namespace dgc
