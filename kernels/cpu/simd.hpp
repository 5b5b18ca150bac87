// Vectors, exponential and register tiles that the CPU kernels share.
//
// GCC vector extensions only: the widest vectors of the machine that compiles, and plain code where there are none.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#define HYBRIDNA_EXPORT extern "C" __attribute__((visibility("default")))
#define HYBRIDNA_INLINE static inline __attribute__((always_inline))

// TILE rows of two vectors each, two more for the operand and one for the multiplier, fill the registers.
#if defined(__AVX512F__)
constexpr int W = 16, TILE = 12;
#elif defined(__AVX__)
constexpr int W = 8, TILE = 6;
#elif defined(__aarch64__)
constexpr int W = 4, TILE = 12;
#else
constexpr int W = 4, TILE = 6;
#endif
constexpr int WIDE = 2 * W;  // columns of a tile

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef vf vf_unaligned __attribute__((aligned(4), may_alias));

HYBRIDNA_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
HYBRIDNA_INLINE void store(float* p, vf v) { *reinterpret_cast<vf_unaligned*>(p) = v; }
HYBRIDNA_INLINE vf splat(float v) { return v - vf{}; }

// Floats of this thread and file that last until the next call; they only ever grow, as each growth writes zeros.
// which: several at once have numbers
template <int which = 0>
static inline float* keep_scratch(int64_t floats) {
  static thread_local std::vector<float> kept;
  if (kept.size() < static_cast<std::size_t>(floats)) kept.resize(static_cast<std::size_t>(floats));
  return kept.data();
}

// The first n of a vector, zeros behind them.
HYBRIDNA_INLINE vf load_part(const float* p, int n) {
  if (n >= W) return load(p);
  float part[W] = {};
  for (int i = 0; i < n; i++) part[i] = p[i];
  return load(part);
}

HYBRIDNA_INLINE void store_part(float* p, vf v, int n) {
  if (n >= W) return store(p, v);
  float part[W];
  store(part, v);
  for (int i = 0; i < n; i++) p[i] = part[i];
}

HYBRIDNA_INLINE float sum(vf v) {
  float total = 0;
  for (int i = 0; i < W; i++) total += v[i];
  return total;
}

HYBRIDNA_INLINE vf larger(vf a, vf b) { return a > b ? a : b; }

HYBRIDNA_INLINE vi count_up() {
  vi v{};
  for (int i = 0; i < W; i++) v[i] = i;
  return v;
}

// e^x to 1 ulp; 0 below -87, infinite above 88.3. 2^n times a polynomial in the rest (minimax on [-ln2/2, ln2/2]).
HYBRIDNA_INLINE vf exponential(vf x) {
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  vf shifted = x * 1.44269504f + round;
  vf n = shifted - round;
  vf r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  vf y = reinterpret_cast<vf>(reinterpret_cast<vi>(p) + (reinterpret_cast<vi>(shifted) << 23));
  y = x > 88.3f ? splat(__builtin_inff()) : y;
  return x < -87.0f ? vf{} : y;
}

#if defined(__AVX512F__)
// 1 / x for x from 1 on, to 1 ulp, 0 above 2^126: an estimate of 14 bits and a step of Newton's, as division is slow.
HYBRIDNA_INLINE vf reciprocal(vf x) {
  const vf r = reinterpret_cast<vf>(__builtin_ia32_rcp14ps512_mask(x, vf{}, 0xffff));
  return x > 0x1p126f ? vf{} : r + r * (1.0f - x * r);
}
#else
HYBRIDNA_INLINE vf reciprocal(vf x) { return 1.0f / x; }
#endif

HYBRIDNA_INLINE vf silu(vf x) { return x * reciprocal(1.0f + exponential(-x)); }

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HYBRIDNA_SHUFFLES
#endif
#endif

#ifdef HYBRIDNA_SHUFFLES
// Exchange the off-diagonal S x S blocks of rows `a` and `b`, S rows apart.
template <int S, std::size_t... I>
HYBRIDNA_INLINE void exchange(vf& a, vf& b, std::index_sequence<I...>) {
  const vf upper = __builtin_shufflevector(a, b, static_cast<int>(I & S ? W + I - S : I)...);
  b = __builtin_shufflevector(a, b, static_cast<int>(I & S ? W + I : I + S)...);
  a = upper;
}

template <int S>
HYBRIDNA_INLINE void exchange_all(vf (&rows)[W]) {
#pragma GCC unroll 16
  for (int i = 0; i < W; i++)
    if (!(i & S)) exchange<S>(rows[i], rows[i | S], std::make_index_sequence<W>{});
  if constexpr (2 * S < W) exchange_all<2 * S>(rows);
}
#endif

// to[c * ld_to + r] = from[r * ld_from + c], rows and columns multiples of W.
HYBRIDNA_INLINE void transpose(const float* from, int64_t ld_from, int64_t rows, int64_t columns, float* to,
                               int64_t ld_to) {
  for (int64_t r = 0; r < rows; r += W)
    for (int64_t c = 0; c < columns; c += W) {
#ifdef HYBRIDNA_SHUFFLES
      vf square[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) square[i] = load(from + (r + i) * ld_from + c);
      exchange_all<1>(square);
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) store(to + (c + i) * ld_to + r, square[i]);
#else
      for (int i = 0; i < W; i++)
        for (int j = 0; j < W; j++) to[(c + j) * ld_to + r + i] = from[(r + i) * ld_from + c + j];
#endif
    }
}

// acc[r] += sum over k of a[k * lda + r] * b[k * ldb ...]: R rows of one or two vectors, all in registers.
template <int R, int V>
HYBRIDNA_INLINE void multiply(vf (&acc)[R][V], const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth) {
  for (int64_t k = 0; k < depth; k++, a += lda, b += ldb) {
    const vf b0 = load(b), b1 = V > 1 ? load(b + W) : b0;
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const vf factor = splat(a[r]);
      acc[r][0] += factor * b0;
      if constexpr (V > 1) acc[r][1] += factor * b1;
    }
  }
}

// Calls f with the rows of the next tile as a constant, even and at most TILE; returns them. `left` >= 1.
template <class F>
HYBRIDNA_INLINE int next_tile(int64_t left, F f) {
  if (left >= TILE) {
    f(std::integral_constant<int, TILE>{});
    return TILE;
  }
  switch ((left + 1) / 2) {
    case 1: f(std::integral_constant<int, 2>{}); return 2;
    case 2: f(std::integral_constant<int, 4>{}); return 4;
    case 3: f(std::integral_constant<int, 6>{}); return 6;
    case 4: f(std::integral_constant<int, 8>{}); return 8;
    case 5: f(std::integral_constant<int, 10>{}); return 10;
    default: f(std::integral_constant<int, 12>{}); return 12;
  }
}
