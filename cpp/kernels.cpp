// Every kernel for one instruction-set level: CMake compiles this file once per level, with that level's flags and
// FASTVAE_LEVEL set to its name. Internal linkage throughout, no dynamic initialisers, no library code.
#include "kernels.hpp"

#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define FASTVAE_JOIN2(a, b) a##b
#define FASTVAE_JOIN(a, b) FASTVAE_JOIN2(a, b)
#define FASTVAE_STRING2(a) #a
#define FASTVAE_STRING(a) FASTVAE_STRING2(a)

namespace fastvae {
namespace {
// clang-format off: the order is that of use
#include "vec.hpp"
#include "optimizer.hpp"
#include "rng.hpp"
#include "gather.hpp"
#include "latent.hpp"
#include "likelihood.hpp"
#include "dense.hpp"
#include "sparse.hpp"
// clang-format on
}  // namespace

extern const Kernels FASTVAE_JOIN(kernels_, FASTVAE_LEVEL);
constexpr Kernels table = {
    FASTVAE_STRING(FASTVAE_LEVEL),
    panel,
    affine_tasks,
    affine,
    weight_tasks,
    weight_gradient,
    derive,
#if defined(__AVX512BF16__)
    to_pairs,
    from_pairs,
#else
    nullptr,
    nullptr,
#endif
    update,
    gather,
    list_rows,
    list_columns,
    philox,
    normal,
    order_keys,
    latent_forward,
    latent_backward,
    latent_forward_sampled,
    latent_backward_sampled,
    dream_backward,
    likelihood,
    likelihood_mean,
    likelihood_sample,
};
const Kernels FASTVAE_JOIN(kernels_, FASTVAE_LEVEL) = table;

}  // namespace fastvae
