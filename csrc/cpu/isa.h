// Chooses the instruction set of the CPU kernels: the best one of this processor, unless the
// environment variable DINO_CPU asks for a lower one.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../checks.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define DINO_X86 1
#endif

namespace dino::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The best instruction set of this processor, but none above DINO_CPU=baseline|avx2|avx512.
inline Isa best_isa() {
  Isa best = Isa::kBaseline;
#ifdef DINO_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    best = Isa::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      best = Isa::kAvx512;
    }
  }
#endif
  const char* asked = std::getenv("DINO_CPU");
  if (asked == nullptr || std::strcmp(asked, "avx512") == 0) return best;
  if (std::strcmp(asked, "avx2") == 0) return std::min(best, Isa::kAvx2);
  if (std::strcmp(asked, "baseline") == 0) return Isa::kBaseline;
  fail("DINO_CPU", "must be baseline, avx2 or avx512, found ", asked);
}

inline Isa isa() {
  static const Isa chosen = best_isa();
  return chosen;
}

}  // namespace dino::cpu
