// Vectors of the level being compiled, and elementary functions on them, accurate to a few units in the last place.
//
// Included by kernels.cpp alone, inside its unnamed namespace. The polynomials are near-minimax fits on the interval
// given beside each; the error quoted is the fit's, before rounding.
#pragma once

#if defined(__AVX512F__)
constexpr int W = 16;
constexpr int max_tile = 14;  // rows of a register tile: 14 x 2 accumulators of the 32 registers
#elif defined(__AVX__)
constexpr int W = 8;
constexpr int max_tile = 6;
#else
constexpr int W = 4;
constexpr int max_tile = 6;
#endif
constexpr int vectors = 2;  // per panel
constexpr int panel = vectors * W;

typedef float V __attribute__((vector_size(4 * W)));
typedef float V1 __attribute__((vector_size(4 * W), aligned(4)));  // unaligned
typedef int32_t VI __attribute__((vector_size(4 * W)));

inline V splat(float a) { return a - V{}; }
inline VI splat(int32_t a) { return a - VI{}; }
inline V load(const float* p) { return *reinterpret_cast<const V1*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<V1*>(p) = v; }

// The first n < W lanes; the others are zero.
inline V load(const float* p, int n) {
  alignas(64) float lanes[W] = {};
  __builtin_memcpy(lanes, p, sizeof(float) * n);
  return load(lanes);
}
inline void store(float* p, V v, int n) {
  alignas(64) float lanes[W];
  store(lanes, v);
  __builtin_memcpy(p, lanes, sizeof(float) * n);
}

// v with every lane from n on set to zero.
inline V keep(V v, int n) {
  alignas(64) float lanes[W];
  store(lanes, v);
  return load(lanes, n);
}

inline VI bits(V v) { return reinterpret_cast<VI>(v); }
inline V from_bits(VI v) { return reinterpret_cast<V>(v); }
inline V to_float(VI v) { return __builtin_convertvector(v, V); }
inline V select(VI mask, V a, V b) { return mask ? a : b; }
inline V abs(V a) { return from_bits(bits(a) & 0x7fffffff); }
inline V max(V a, V b) { return a < b ? b : a; }  // NaN in a stays NaN

// The 32 bits at p in every lane, whatever they stand for.
inline V broadcast(const float* p) {
#if defined(__AVX512F__)
  int32_t unit;
  __builtin_memcpy(&unit, p, sizeof unit);
  return reinterpret_cast<V>(_mm512_set1_epi32(unit));
#else
  return *p - V{};
#endif
}

// Products of 32-bit units (kernels.hpp): acc + a b.
struct Float {
  static constexpr bool pairs = false;
  static V multiply_add(V a, V b, V acc) { return acc + a * b; }
};

#if defined(__AVX512BF16__)
struct Bfloat16 {
  static constexpr bool pairs = true;
  static V multiply_add(V a, V b, V acc) {
    return reinterpret_cast<V>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(acc), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
  }
  // [a | b] as pairs of neighbours, rounded to nearest even: unit i is elements 2i, 2i + 1.
  static V neighbours(V a, V b) {
    return reinterpret_cast<V>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a)));
  }
  // Pairs across: unit i is (a[i], b[i]).
  static V across(V a, V b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return reinterpret_cast<V>(_mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(neighbours(a, b))));
  }
  // Half `v` of the elements in W pairs of neighbours.
  static V widened(const float* pairs, int v) {
    __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs) + v);
    return reinterpret_cast<V>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
};
#endif

// Lanes added in a fixed order: each half to the other.
inline float sum(V v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#else
  alignas(64) float lanes[W];
  store(lanes, v);
  for (int half = W / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
#endif
}

inline V sqrt(V a) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_sqrt_ps(reinterpret_cast<__m512>(a)));
#elif defined(__AVX__)
  return reinterpret_cast<V>(_mm256_sqrt_ps(reinterpret_cast<__m256>(a)));
#else
  V r;
  for (int i = 0; i < W; ++i) r[i] = __builtin_sqrtf(a[i]);
  return r;
#endif
}

// 2 x / sqrt(a) for positive normal a. The estimate y is good to 2^-14, a Newton step y (3 - a y^2) / 2 makes it 2^-23.
inline V twice_over_sqrt(V x, V a) {
#if defined(__AVX512F__)
  V y = reinterpret_cast<V>(_mm512_rsqrt14_ps(reinterpret_cast<__m512>(a)));
  return x * y * (3.0f - (a * y) * y);
#else
  return 2.0f * x / sqrt(a);
#endif
}

// x = n log(2) + r, |r| <= log(2)/2: n, and exp(r) - 1 with a fit error of 3e-9.
struct Reduced {
  VI exponent;
  V expm1;
};
inline Reduced reduced(V x) {
  V shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23 rounds to an integer
  V n = shifted - 12582912.0f;
  V r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  V p = ((((1.39504764e-3f * r + 8.36888235e-3f) * r + 4.1666206e-2f) * r + 0.166665182f) * r + 0.5f) * (r * r) + r;
  return {bits(shifted) - 0x4B400000, p};
}

// 2^n exp(r). Below -86.9 zero, above 88.72 infinity.
inline V exp(V x) {
  Reduced t = reduced(x);
  V y = (t.expm1 + 1.0f) * from_bits((t.exponent + 126) << 23) * 2.0f;
  y = select(x < -86.9f, V{}, y);
  return select(x > 88.7228f, splat(__builtin_inff()), y);
}

// 2 atanh(s) for |s| <= 1/3; fit error 6e-12.
inline V twice_atanh(V s) {
  V t = s * s;
  V q =
      ((((0.217923969f * t + 0.171478495f) * t + 0.22301501f) * t + 0.28568396f) * t + 0.400000542f) * t + 0.666666687f;
  return 2.0f * s + s * t * q;
}

// log(1 + e) for 0 <= e <= 1.
inline V log1p_unit(V e) { return twice_atanh(e / (2.0f + e)); }

struct Logistic {
  V sigmoid, tail;
};

// Both from one exponential e = exp(-|a|) and one division: sigmoid is 1/(1+e) or e/(1+e), softplus is max(a, 0) +
// tail, tail = log1p(e) = 2 atanh(e/(2+e)).
inline Logistic logistic(V a) {
  V e = exp(-abs(a));
  V one = 1.0f + e, two = 2.0f + e, over_both = 1.0f / (one * two);
  V inverse = over_both * two;
  return {select(a < 0.0f, e * inverse, inverse), twice_atanh(e * one * over_both)};
}

inline V sigmoid(V a) {
  V e = exp(-abs(a));
  V inverse = 1.0f / (1.0f + e);
  return select(a < 0.0f, e * inverse, inverse);
}

inline V softplus(V a) { return max(a, V{}) + log1p_unit(exp(-abs(a))); }

// e / (e + 2) of e = exp(2|x|) - 1 = 2^n (exp(r) - 1) + (2^n - 1), which does not cancel where x is small. Beyond 10 it
// is 1 in float32.
inline V tanh(V x) {
  V a = abs(x);
  Reduced t = reduced(2.0f * select(a > 10.0f, splat(10.0f), a));
  V scale = from_bits((t.exponent + 127) << 23);
  V e = t.expm1 * scale + (scale - 1.0f);
  return from_bits(bits(e / (e + 2.0f)) | (bits(x) & INT32_MIN));
}

// 1 - exp(-h) for h >= 0; up to 1/2 as h - h^2 E(h), fit error 1.6e-10.
inline V one_minus_exp(V h) {
  V p = ((((-1.64880286e-4f * h + 1.37070706e-3f) * h - 8.32871068e-3f) * h + 4.16661315e-2f) * h - 0.166666642f) * h +
        0.5f;
  return select(h < 0.5f, h - h * h * p, 1.0f - exp(-h));
}

// exp(v) - 1 - v; for |v| <= 1/2 as v^2 K(v), fit error 3.4e-10, free of the difference's cancellation.
inline V exp_minus_1_minus(V v, V exp_v) {
  V p =
      (((((2.49570458e-5f * v + 1.99621849e-4f) * v + 1.38886075e-3f) * v + 8.33318196e-3f) * v + 4.16666679e-2f) * v +
       0.166666672f) *
          v +
      0.5f;
  return select(abs(v) < 0.5f, v * v * p, exp_v - 1.0f - v);
}

struct Pair {
  V first, second;
};

// Box-Muller from two vectors of 24-bit integers k, with u = (k + 1/2) / 2^24. Above one half, log u is taken through
// t = 1 - u, which is exact in float32 where u is not.
inline Pair box_muller(VI k0, VI k1) {
  VI upper = k0 >= (1 << 23);
  V u = (to_float(upper ? 0xffffff - k0 : k0) + 0.5f) * 0x1p-24f;  // u, or 1 - u
  // log u = exponent * log 2 + log m with m in [sqrt(1/2), sqrt(2))
  VI shifted = bits(u) - 0x3f3504f3;
  VI exponent = shifted >> 23;
  V m = from_bits((shifted & 0x7fffff) + 0x3f3504f3);
  V n = to_float(exponent);
  V lower_log = n * 0.693359375f + (twice_atanh((m - 1.0f) / (m + 1.0f)) - n * 2.12194440e-4f);
  V upper_log = twice_atanh(-u / (2.0f - u));
  V radius = sqrt(-2.0f * select(upper, upper_log, lower_log));
  // angle = 2 pi u1: the nearest quarter turn by integers, then |f| <= 1/8 turn; fit errors 5e-11
  VI quarter = (k1 + (1 << 21)) >> 22;
  V f = (to_float(k1 - (quarter << 22)) + 0.5f) * 0x1p-24f;
  V t = f * f;
  V s = ((((41.47295f * t - 76.6978683f) * t + 81.6052017f) * t - 41.3417015f) * t + 6.28318548f) * f;
  V c = (((59.2204056f * t - 85.4428558f) * t + 64.9393158f) * t - 19.7392082f) * t + 1.0f;
  VI odd = (quarter & 1) != 0;
  V cosine = select(odd, s, c), sine = select(odd, c, s);
  cosine = from_bits(bits(cosine) ^ (((quarter + 1) & 2) << 30));
  sine = from_bits(bits(sine) ^ ((quarter & 2) << 30));
  return {radius * cosine, radius * sine};
}
