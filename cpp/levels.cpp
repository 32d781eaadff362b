// Which instruction-set levels this machine runs, and the one to use.
#include <cstdlib>
#include <cstring>
#include <string>

#include "errors.hpp"
#include "kernels.hpp"

namespace fastvae {

extern const Kernels kernels_baseline;
#if defined(FASTVAE_X86_LEVELS)
extern const Kernels kernels_avx2, kernels_avx512;
#endif
#if defined(FASTVAE_BF16_LEVEL)
extern const Kernels kernels_avx512_bf16;
#endif

Levels available_levels() {
  Levels levels = {{&kernels_baseline}, 1};
#if defined(FASTVAE_X86_LEVELS)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    levels.table[levels.count++] = &kernels_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
      levels.table[levels.count++] = &kernels_avx512;
#if defined(FASTVAE_BF16_LEVEL)
      if (__builtin_cpu_supports("avx512bf16")) levels.table[levels.count++] = &kernels_avx512_bf16;
#endif
    }
  }
#endif
  return levels;
}

const Kernels& select_kernels() {
  Levels levels = available_levels();
  const char* forced = std::getenv("FASTVAE_SIMD_LEVEL");
  if (!forced || !*forced) return *levels.table[levels.count - 1];
  std::string names;
  for (int i = 0; i < levels.count; ++i) {
    if (!std::strcmp(levels.table[i]->level, forced)) return *levels.table[i];
    names += (i ? ", " : "") + std::string(levels.table[i]->level);
  }
  throw Unavailable("FASTVAE_SIMD_LEVEL=" + std::string(forced) + " is not available here: unset it or choose " +
                    names);
}

}  // namespace fastvae
