// The Mamba-2 recurrence in chunks of 64 tokens (ssd_scan), on the processor's matrix tiles.
//
// per (row, group, chunk): C and B^T as rows of tiles, C B^T    then per (row, some heads), chunk after chunk:
// causal block, dt x, decayed dt x and S in slices -> C S * decay + block * dt x + D x -> y;
// decay S + B^T (decayed dt x) -> S

#include "tiles.hpp"

#include "scan.hpp"

#ifdef HYBRIDNA_TILES

namespace {

constexpr int S3 = 3;                      // slices
constexpr int64_t SLICED = S3 * PAIR;      // numbers of 16 bits of a pair of tiles for 32 of the depth
constexpr int64_t HALVES = Q / WIDE;       // strips of a chunk

void nothing(int64_t) {}

// Two vectors that share units -> their place in slices.
HYBRIDNA_INLINE void put(vf low, vf high, bf* to) {
  __m512i slices[S3];
  split<S3>((__m512)low, (__m512)high, slices);
#pragma GCC unroll 3
  for (int s = 0; s < S3; s++) _mm512_store_si512(to + s * PAIR, slices[s]);
}

struct OnTiles {
  using Held = Tiles;

  // C: HALVES strips of size / 32 pairs; B^T: size / 32 strips of HALVES pairs; C B^T (Q, Q).
  static int64_t sliced(const Shape& s) { return s.size / DEEP * HALVES * SLICED; }
  static int64_t packed(const Shape& s) { return sliced(s) + Q * Q; }

  static void pack(const Shape& s, const float* B, int64_t stride_b, const float* C, int64_t stride_c, int64_t rows,
                   float* out) {
    const int64_t deep = s.size / DEEP;
    bf *own = reinterpret_cast<bf*>(out), *turned = own + sliced(s);
    float* product = out + sliced(s);
    bf* columns = align_pairs(keep_scratch(sliced(s) / 2 + 16));
    for (int64_t t = 0; t < Q; t += SIDE) {
      const int64_t at = t / WIDE * deep * SLICED + t / SIDE % 2 * ONE;
      slice_rows<S3>({C + t * stride_c, stride_c, 1}, rows - t, s.size, own + at);
      slice_columns<S3>({B + t * stride_b, stride_b, 1}, rows - t, s.size, columns + at);
    }
    for (int64_t n = 0; n < s.size; n += SIDE)
      slice_rows<S3>({B + n, 1, stride_b}, SIDE, rows, turned + n / WIDE * HALVES * SLICED + n / SIDE % 2 * ONE);
    alignas(64) float sums[WIDE * WIDE];
    for (int64_t i = 0; i < HALVES; i++)
      for (int64_t j = 0; j <= i; j++) {
        multiply_pairs<S3>(own + i * deep * SLICED, columns + j * deep * SLICED, deep, WIDE, false, sums, nothing);
        for (int64_t r = 0; r < WIDE; r++) {
          store(product + (i * WIDE + r) * Q + j * WIDE, load(sums + r * WIDE));
          store(product + (i * WIDE + r) * Q + j * WIDE + W, load(sums + r * WIDE + W));
        }
      }
  }

  // Of token t, what each earlier one of the chunk gives: a row of the causal block, in slices.
  static void put_row(const Decays& d, const float* product, int64_t t, bf* to) {
    const vi index = count_up();
    for (int64_t k = 0; k <= t / WIDE; k++) {
      vf part[2];
      for (int half = 0; half < 2; half++) {
        const int64_t s = k * WIDE + half * W;
        const vf span = (d.high[t] - load(d.high + s)) + (d.low[t] - load(d.low + s));
        const vf weight = exponential(span) * load(product + t * Q + s);
        part[half] = index + static_cast<int>(s) <= static_cast<int>(t) ? weight : vf{};
      }
      put(part[0], part[1], to + k * SLICED);
    }
  }

  static void advance(const Shape& s, const float* x, int64_t stride_x, const float* dt, int64_t stride_dt, float A,
                      float D, const float* packed, int64_t rows, bool empty, float* S, float* y) {
    const int64_t deep = s.size / DEEP, stride_y = s.heads * s.head_dim, halves = (rows + WIDE - 1) / WIDE;
    const bf *C = reinterpret_cast<const bf*>(packed), *B = C + sliced(s);
    const float* product = packed + sliced(s);
    const Decays d(dt, stride_dt, A, rows);
    const vf total = splat(d.decay[Q - 1]);
    alignas(64) bf block[HALVES * HALVES * SLICED], fed[HALVES * SLICED], kept[HALVES * SLICED];
    bf* state = align_pairs(keep_scratch(deep * SLICED / 2 + 16));
    alignas(64) float read[HALVES][WIDE * WIDE], own[HALVES][WIDE * WIDE], gained[2][WIDE * WIDE];
    for (int64_t t = 0; t < rows; t++)
      put_row(d, product, t, block + t / WIDE * HALVES * SLICED + t / SIDE % 2 * ONE + t % SIDE * DEEP);
    for (int64_t b = 0; b < s.blocks(); b++) {
      const int64_t p = b * WIDE;
      float* now = S + b * s.even() * WIDE;
      for (int half = 0; half < 2; half++) {
        const auto in = [&](int64_t t) {
          return t < rows ? load(x + t * stride_x + p + half * W) * d.step[t] : vf{};
        };
        for (int64_t k = 0; k < halves; k++)
          for (int64_t u = 0; u < SIDE; u++) {
            const int64_t t = k * WIDE + u, at = k * SLICED + half * ONE + u * DEEP;
            const vf low = in(t), high = in(t + SIDE);
            put(low, high, fed + at);
            put(low * d.rest[t], high * d.rest[t + SIDE], kept + at);
          }
        if (!empty) slice_columns<S3>({now + half * W, 1, WIDE}, SIDE, s.size, state + half * ONE);
      }
      const auto finish = [&](int64_t half, int64_t first, int64_t last) {
        for (int64_t r = first; r < last && half * WIDE + r < rows; r++)
          for (int i = 0; i < 2; i++) {
            const int64_t t = half * WIDE + r, at = r * WIDE + i * W;
            vf sum = load(own[half] + at);
            if (!empty) sum += load(read[half] + at) * d.decay[t];
            store(y + t * stride_y + p + i * W, sum + D * load(x + t * stride_x + p + i * W));
          }
      };
      for (int64_t half = 0; half < halves; half++) {
        const int64_t some = (WIDE + half) / (half + 1);
        // Sums of the last strip are finished while the tiles are busy with this one's.
        multiply_pairs<S3>(block + half * HALVES * SLICED, fed, half + 1, WIDE, false, own[half], [&](int64_t k) {
          if (half) finish(half - 1, k * some, (k + 1) * some < WIDE ? (k + 1) * some : WIDE);
        });
        if (!empty)
          multiply_pairs<S3>(C + half * deep * SLICED, state, deep, WIDE, false, read[half], nothing);
      }
      const auto gain = [&](int64_t strip, int64_t first, int64_t last) {
        const float* more = gained[strip % 2];
        for (int64_t r = first; r < last; r++)
          for (int i = 0; i < 2; i++) {
            float* at = now + (strip * WIDE + r) * WIDE + i * W;
            const vf added = load(more + r * WIDE + i * W);
            store(at, empty ? added : total * load(at) + added);
          }
      };
      for (int64_t strip = 0; strip < deep; strip++) {
        const int64_t some = WIDE / halves;
        multiply_pairs<S3>(B + strip * HALVES * SLICED, kept, halves, WIDE, false, gained[strip % 2], [&](int64_t k) {
          if (strip) gain(strip - 1, k * some, (k + 1) * some);
          else finish(halves - 1, k * some, (k + 1) * some);
        });
      }
      gain(deep - 1, 0, WIDE);
    }
  }
};

}  // namespace

HYBRIDNA_EXPORT int64_t hybridna_tile_ssd_scratch(int64_t batch, int64_t length, int64_t heads, int64_t head_dim,
                                                  int64_t groups, int64_t size) {
  return count_scratch<OnTiles>({batch, length, heads, head_dim, groups, size}) + 16;
}

// As hybridna_ssd_scan; head_dim and size multiples of 32.
HYBRIDNA_EXPORT void hybridna_tile_ssd_scan(
    const float* x, int64_t x_batch, int64_t x_time, int64_t x_head, const float* dt, int64_t dt_batch, int64_t dt_time,
    int64_t dt_head, const float* A, const float* B, int64_t b_batch, int64_t b_time, int64_t b_group, const float* C,
    int64_t c_batch, int64_t c_time, int64_t c_group, const float* D, const float* state_in, float* y, float* state,
    float* kept, float* scratch, int64_t batch, int64_t length, int64_t heads, int64_t head_dim, int64_t groups,
    int64_t size, int64_t threads) {
  const Given in{x,        dt,      A,       B,       C,      D,       x_batch, x_time, x_head,
                 dt_batch, dt_time, dt_head, b_batch, b_time, b_group, c_batch, c_time, c_group};
  run_scan<OnTiles>({batch, length, heads, head_dim, groups, size}, in, state_in, y, state, kept,
                    reinterpret_cast<float*>(align_pairs(scratch)), threads);
}

#else

// Never called: see tiles.cpp.
HYBRIDNA_EXPORT int64_t hybridna_tile_ssd_scratch(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t) { return 0; }
HYBRIDNA_EXPORT void hybridna_tile_ssd_scan(const float*, int64_t, int64_t, int64_t, const float*, int64_t, int64_t,
                                            int64_t, const float*, const float*, int64_t, int64_t, int64_t,
                                            const float*, int64_t, int64_t, int64_t, const float*, const float*, float*,
                                            float*, float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t,
                                            int64_t, int64_t) {}

#endif
