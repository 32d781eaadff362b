// The elementary functions of the kernels, of each of n numbers.
#include "functions.cuh"

struct Functions {
  const float* v;
  float *inverse, *log1p, *sigmoid, *softplus;  // inverse: 1 / (1 + v)
  int n;
};

KERNEL(functions, 32, Functions) {
  for (int i = blockIdx.x * 32 + threadIdx.x; i < args.n; i += gridDim.x * 32) {
    const float v = args.v[i];
    const Logistic f = logistic(v);
    args.inverse[i] = quotient(1.0f, 1.0f + v);
    args.log1p[i] = log1p_small(v);
    args.sigmoid[i] = f.sigmoid;
    args.softplus[i] = relu(v) + f.tail;
  }
}
