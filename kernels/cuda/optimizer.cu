// One optimizer step on n parameters with their gradient. Grid: one thread per parameter.
#include "optimizer.cuh"

struct FlatUpdate {
  Update update;
  float *w, *s0, *s1;  // s1 is Adam's alone
  const float* g;
  i64 n;
};

KERNEL(update, 256, FlatUpdate) {
  i64 i = static_cast<i64>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= args.n) return;
  const bool second = args.update.rule == RULE_ADAM;
  float s0 = args.s0[i], s1 = second ? args.s1[i] : 0.0f;
  args.w[i] = updated(args.update, args.w[i], args.g[i], s0, s1);
  args.s0[i] = s0;
  if (second) args.s1[i] = s1;
}
