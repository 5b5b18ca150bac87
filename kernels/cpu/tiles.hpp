// The processor's matrix tiles (AMX): factors of float32 in slices of bfloat16, sums in float32.
//
// x = x1 + x2 + x3, each the rest of what is before it, rounded to bfloat16: three slices are all 24 bits. Of the nine
// products of two factors' slices the six largest are summed; the others are below 2^-24 of the product. One slice by
// itself is a product of factors rounded to bfloat16.
//
// Both factors lie as pairs of tiles, 32 rows (or columns) by 32 of the depth: per block of the depth, slice by slice,
// two tiles of 16. A unit of 32 bits holds numbers k and k + 16 of a block's depth, so that nothing needs shuffling.

#pragma once

#include "simd.hpp"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(HYBRIDNA_SHUFFLES)
#define HYBRIDNA_TILES

#include <immintrin.h>

typedef uint16_t bf;  // bits of a bfloat16

constexpr int SIDE = 16, DEEP = 32;         // rows of a tile, and of the depth
constexpr int64_t ONE = SIDE * DEEP;        // numbers of a tile
constexpr int64_t PAIR = 2 * ONE;           // of a pair

// This thread's tiles are set up while one of these lives.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette, start, none[14];
      uint16_t bytes[16];
      uint8_t rows[16];
    } set = {};
    set.palette = 1;
    for (int i = 0; i < 8; i++) {
      set.bytes[i] = 64;
      set.rows[i] = SIDE;
    }
    // Some compilers think that the instruction reads eight bytes alone, and would leave the rest unwritten.
    asm volatile("" : : "r"(&set) : "memory");
    _tile_loadconfig(&set);
  }
  ~Tiles() { _tile_release(); }
};

// Numbers at[row * r + deep * k]; one of the strides is 1.
struct Factor {
  const float* at;
  int64_t row, deep;
};

HYBRIDNA_INLINE __mmask16 first_of(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }

// To the nearest bfloat16; half-way cases go to the even one, or outwards where the rest is kept too.
template <bool even>
HYBRIDNA_INLINE __m512i round_bits(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  if constexpr (!even) return _mm512_and_si512(_mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)), upper);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  // Rounding upwards could turn what is no number into one.
  return _mm512_and_si512(_mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits), upper);
}

// The slices of two vectors: `a` in the lower halves of the units, `b` in the upper.
template <int S>
HYBRIDNA_INLINE void split(__m512 a, __m512 b, __m512i (&out)[S]) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
#pragma GCC unroll 3
  for (int s = 0; s < S; s++) {
    const bool last = S > 1 && s + 1 == S;  // what is left then has 8 bits
    const __m512i low = last ? _mm512_castps_si512(a) : round_bits<S == 1>(a);
    const __m512i high = last ? _mm512_castps_si512(b) : round_bits<S == 1>(b);
    // (low >> 16) | (high & upper)
    out[s] = _mm512_ternarylogic_epi32(_mm512_srli_epi32(low, 16), high, upper, 0xf8);
    if (s + 1 == S) break;
    a = _mm512_sub_ps(a, _mm512_castsi512_ps(low));
    b = _mm512_sub_ps(b, _mm512_castsi512_ps(high));
  }
}

// Vectors of the depth k .. k + 31 of 16 rows, zeros behind `rows` and `depth`.
HYBRIDNA_INLINE void load_block(const Factor& f, int64_t rows, int64_t k, int64_t depth, __m512 (&low)[SIDE],
                                __m512 (&high)[SIDE]) {
  const int64_t left = depth - k;
  if (f.deep == 1) {
    const __mmask16 first = first_of(left), second = first_of(left - 16);
#pragma GCC unroll 16
    for (int r = 0; r < SIDE; r++) {
      const float* from = f.at + r * f.row + k;
      const bool is_row = r < rows;
      low[r] = _mm512_maskz_loadu_ps(is_row ? first : 0, from);
      high[r] = _mm512_maskz_loadu_ps(is_row ? second : 0, from + 16);
    }
    return;
  }
  const __mmask16 mask = first_of(rows);
  vf square[2][W];
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) {
      const int64_t at = half * W + i;
      square[half][i] = (vf)_mm512_maskz_loadu_ps(at < left ? mask : 0, f.at + (k + at) * f.deep);
    }
    exchange_all<1>(square[half]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < SIDE; r++) {
    low[r] = (__m512)square[0][r];
    high[r] = (__m512)square[1][r];
  }
}

// 16 rows -> one tile of each pair, (blocks of the depth, S slices, 2 tiles, 16 rows, 16 units of the depth).
template <int S>
void slice_rows(const Factor& f, int64_t rows, int64_t depth, bf* to) {
  for (int64_t k = 0; k < depth; k += DEEP, to += S * PAIR) {
    __m512 low[SIDE], high[SIDE];
    load_block(f, rows, k, depth, low, high);
#pragma GCC unroll 16
    for (int r = 0; r < SIDE; r++) {
      __m512i slices[S];
      split<S>(low[r], high[r], slices);
#pragma GCC unroll 3
      for (int s = 0; s < S; s++) _mm512_storeu_si512(to + s * PAIR + r * DEEP, slices[s]);
    }
  }
}

// 16 columns -> one tile of each pair, (blocks of the depth, S slices, 2 tiles, 16 units of the depth, 16 columns).
template <int S>
void slice_columns(const Factor& f, int64_t columns, int64_t depth, bf* to) {
  const __mmask16 mask = first_of(columns);
  for (int64_t k = 0; k < depth; k += DEEP, to += S * PAIR) {
    if (f.deep != 1) {
#pragma GCC unroll 4
      for (int p = 0; p < SIDE; p++) {
        const int64_t at = k + p;
        const __m512 low = _mm512_maskz_loadu_ps(at < depth ? mask : 0, f.at + at * f.deep);
        const __m512 high = _mm512_maskz_loadu_ps(at + SIDE < depth ? mask : 0, f.at + (at + SIDE) * f.deep);
        __m512i slices[S];
        split<S>(low, high, slices);
#pragma GCC unroll 3
        for (int s = 0; s < S; s++) _mm512_storeu_si512(to + s * PAIR + p * DEEP, slices[s]);
      }
      continue;
    }
    __m512 low[SIDE], high[SIDE];
    load_block(f, columns, k, depth, low, high);
    vf squares[S][W];
#pragma GCC unroll 16
    for (int c = 0; c < SIDE; c++) {
      __m512i slices[S];
      split<S>(low[c], high[c], slices);
#pragma GCC unroll 3
      for (int s = 0; s < S; s++) squares[s][c] = (vf)slices[s];
    }
#pragma GCC unroll 3
    for (int s = 0; s < S; s++) {
      exchange_all<1>(squares[s]);
#pragma GCC unroll 16
      for (int p = 0; p < SIDE; p++) _mm512_storeu_si512(to + s * PAIR + p * DEEP, (__m512i)squares[s][p]);
    }
  }
}

// Tiles 0 to 3: sums; 4 and 5: rows; 6 and 7: columns.
template <bool tall>
HYBRIDNA_INLINE void add_product() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (tall) {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

template <bool tall>
HYBRIDNA_INLINE void load_rows(const bf* a) {
  _tile_loadd(4, a, 64);
  if constexpr (tall) _tile_loadd(5, a + ONE, 64);
}

HYBRIDNA_INLINE void load_columns(const bf* b) {
  _tile_loadd(6, b, 64);
  _tile_loadd(7, b + ONE, 64);
}

// Sums of 32 rows (16 if not tall) by 32 columns, added to what the tiles 0 to 3 hold. beside(k): after each block of
// the depth, other work that the processor does while the tiles are busy.
template <int S, bool tall, class Beside>
HYBRIDNA_INLINE void add_products(const bf* a, const bf* b, int64_t blocks, Beside beside) {
  for (int64_t k = 0; k < blocks; k++, a += S * PAIR, b += S * PAIR) {
    load_rows<tall>(a);
    if constexpr (S == 1) {
      load_columns(b);
      add_product<tall>();
      beside(k);
    } else {
      static_assert(S == 3);
      // In an order that loads few tiles anew.
      load_columns(b + 2 * PAIR);
      add_product<tall>();
      load_columns(b + PAIR);
      add_product<tall>();
      load_columns(b);
      add_product<tall>();
      beside(k);
      load_rows<tall>(a + 2 * PAIR);
      add_product<tall>();
      load_rows<tall>(a + PAIR);
      add_product<tall>();
      load_columns(b + PAIR);
      add_product<tall>();
    }
  }
}

// sums (32, 32): of `rows` rows and 32 columns; added to what is there if `more`. beside: as above
template <int S, class Beside>
HYBRIDNA_INLINE void multiply_pairs(const bf* a, const bf* b, int64_t blocks, int64_t rows, bool more, float* sums,
                                    Beside beside) {
  constexpr int64_t wide = 2 * SIDE, bytes = wide * sizeof(float);
  if (more) {
    _tile_loadd(0, sums, bytes);
    _tile_loadd(1, sums + SIDE, bytes);
    _tile_loadd(2, sums + SIDE * wide, bytes);
    _tile_loadd(3, sums + SIDE * wide + SIDE, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  if (rows > SIDE)
    add_products<S, true>(a, b, blocks, beside);
  else
    add_products<S, false>(a, b, blocks, beside);
  _tile_stored(0, sums, bytes);
  _tile_stored(1, sums + SIDE, bytes);
  if (rows <= SIDE) return;
  _tile_stored(2, sums + SIDE * wide, bytes);
  _tile_stored(3, sums + SIDE * wide + SIDE, bytes);
}

// Where the first pair goes in scratch that has 16 floats more than the pairs need.
HYBRIDNA_INLINE bf* align_pairs(float* p) {
  return reinterpret_cast<bf*>((reinterpret_cast<uintptr_t>(p) + 63) / 64 * 64);
}

#endif
