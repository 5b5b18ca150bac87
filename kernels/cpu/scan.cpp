// The Mamba-2 recurrence in chunks of 64 tokens (ssd_scan), on vectors.
//
// per (row, group, chunk): C transposed, B packed, B C^T    then per (row, some heads), chunk after chunk:
// C S * decay + causal block * dt x + D x -> y;  decay S + B^T (decayed dt x) -> S

#include "scan.hpp"

namespace {

// (rows, size) -> (size, Q), zeros behind the last token; in squares that stay in the nearest cache.
void turn(const Shape& s, const float* from, int64_t stride, int64_t rows, float* to) {
  if (rows == Q && s.size % W == 0) return transpose(from, stride, Q, s.size, to, Q);
  constexpr int64_t side = 16;
  for (int64_t n0 = 0; n0 < s.size; n0 += side)
    for (int64_t t0 = 0; t0 < Q; t0 += side) {
      const int64_t n1 = n0 + side < s.size ? n0 + side : s.size;
      if (t0 + side <= rows)
        for (int64_t n = n0; n < n1; n++)
          for (int64_t t = t0; t < t0 + side; t++) to[n * Q + t] = from[t * stride + n];
      else
        for (int64_t n = n0; n < n1; n++)
          for (int64_t t = t0; t < t0 + side; t++) to[n * Q + t] = t < rows ? from[t * stride + n] : 0.0f;
    }
}

struct OnVectors {
  struct Held {};

  static int64_t packed(const Shape& s) { return 2 * s.even() * Q + Q * Q; }

  // One chunk of one group: C^T (size, Q), B (Q, size), B C^T (Q, Q) where the second index is not before the first.
  static void pack(const Shape& s, const float* B, int64_t stride_b, const float* C, int64_t stride_c, int64_t rows,
                   float* out) {
    const int64_t even = s.even();
    float *Ct = out, *packed = Ct + even * Q, *product = packed + even * Q;
    alignas(64) float Bt[512 * Q];
    for (int64_t t = 0; t < rows; t++) {
      std::memcpy(packed + t * even, B + t * stride_b, sizeof(float) * s.size);
      if (even > s.size) packed[t * even + s.size] = 0;  // makes a row of S that nothing reads
    }
    turn(s, B, stride_b, rows, Bt);
    turn(s, C, stride_c, rows, Ct);
    for (int64_t from = 0; from < rows;)
      from += next_tile(rows - from, [&](auto constant) {
        constexpr int R = decltype(constant)::value;
        for (int64_t t = from / WIDE * WIDE; t < Q; t += WIDE) {
          vf acc[R][2] = {};
          multiply<R>(acc, Bt + from, Q, Ct + t, Q, s.size);
          for (int r = 0; r < R && from + r < Q; r++) {
            store(product + (from + r) * Q + t, acc[r][0]);
            store(product + (from + r) * Q + t + W, acc[r][1]);
          }
        }
      });
  }

  // One chunk of one head; S (blocks, even size, WIDE) is advanced. `empty`: S is all zeros.
  static void advance(const Shape& s, const float* x, int64_t stride_x, const float* dt, int64_t stride_dt, float A,
                      float D, const float* packed, int64_t rows, bool empty, float* S, float* y) {
    const int64_t even = s.even(), stride_y = s.heads * s.head_dim;
    const float *Ct = packed, *B = Ct + even * Q, *product = B + even * Q;
    const Decays d(dt, stride_dt, A, rows);
    const float *high = d.high, *low = d.low, *decay = d.decay, *step = d.step, *rest = d.rest;
    alignas(64) float block[Q * Q], fed[Q * WIDE], kept[Q * WIDE];
    const float total = decay[Q - 1];
    const vi index = count_up();
    for (int64_t s0 = 0; s0 < rows; s0++) {
      // Tiles reach back at most TILE - 1 tokens before the diagonal, where they must find zeros.
      for (int64_t t = s0 < TILE ? 0 : (s0 - TILE + 1) / W * W; t < Q; t += W) {
        const vf span = (load(high + t) - high[s0]) + (load(low + t) - low[s0]);
        const vf weight = exponential(span) * load(product + s0 * Q + t);
        store(block + s0 * Q + t, index + static_cast<int>(t) >= static_cast<int>(s0) ? weight : vf{});
      }
    }
    for (int64_t b = 0; b < s.blocks(); b++) {
      const int64_t p = b * WIDE;
      const int first = static_cast<int>(s.head_dim - p < W ? s.head_dim - p : W);
      const int second = static_cast<int>(s.head_dim - p - W < 0 ? 0 : s.head_dim - p - W < W ? s.head_dim - p - W : W);
      float* own = S + b * even * WIDE;
      for (int64_t t = 0; t < rows; t++) {
        const float* from = x + t * stride_x + p;
        const vf v0 = load_part(from, first) * step[t], v1 = load_part(from + W, second) * step[t];
        store(fed + t * WIDE, v0);
        store(fed + t * WIDE + W, v1);
        store(kept + t * WIDE, v0 * rest[t]);
        store(kept + t * WIDE + W, v1 * rest[t]);
      }
      for (int64_t from = 0; from < rows;)
        from += next_tile(rows - from, [&](auto constant) {
          constexpr int R = decltype(constant)::value;
          vf acc[R][2] = {};
          if (!empty) {
            multiply<R>(acc, Ct + from, Q, own, WIDE, s.size);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
              acc[r][0] *= decay[from + r];
              acc[r][1] *= decay[from + r];
            }
          }
          multiply<R>(acc, block + from, Q, fed, WIDE, from + R < rows ? from + R : rows);
#pragma GCC unroll 16
          for (int r = 0; r < R; r++) {
            if (from + r >= rows) break;
            const float* in = x + (from + r) * stride_x + p;
            float* out = y + (from + r) * stride_y + p;
            store_part(out, acc[r][0] + D * load_part(in, first), first);
            store_part(out + W, acc[r][1] + D * load_part(in + W, second), second);
          }
        });
      for (int64_t n = 0; n < s.size;)
        n += next_tile(s.size - n, [&](auto constant) {
          constexpr int R = decltype(constant)::value;
          vf acc[R][2];
#pragma GCC unroll 16
          for (int r = 0; r < R; r++) {
            acc[r][0] = empty ? vf{} : total * load(own + (n + r) * WIDE);
            acc[r][1] = empty ? vf{} : total * load(own + (n + r) * WIDE + W);
          }
          multiply<R>(acc, B + n, even, kept, WIDE, rows);
#pragma GCC unroll 16
          for (int r = 0; r < R; r++) {
            store(own + (n + r) * WIDE, acc[r][0]);
            store(own + (n + r) * WIDE + W, acc[r][1]);
          }
        });
    }
  }
};

}  // namespace

// Floats of scratch that hybridna_ssd_scan needs.
HYBRIDNA_EXPORT int64_t hybridna_ssd_scratch(int64_t batch, int64_t length, int64_t heads, int64_t head_dim,
                                             int64_t groups, int64_t size) {
  return count_scratch<OnVectors>({batch, length, heads, head_dim, groups, size});
}

// Strides in floats; the last dimension of every tensor is dense.
HYBRIDNA_EXPORT void hybridna_ssd_scan(const float* x, int64_t x_batch, int64_t x_time, int64_t x_head, const float* dt,
                                       int64_t dt_batch, int64_t dt_time, int64_t dt_head, const float* A,
                                       const float* B, int64_t b_batch, int64_t b_time, int64_t b_group, const float* C,
                                       int64_t c_batch, int64_t c_time, int64_t c_group, const float* D,
                                       const float* state_in, float* y, float* state, float* kept, float* scratch,
                                       int64_t batch, int64_t length, int64_t heads, int64_t head_dim, int64_t groups,
                                       int64_t size, int64_t threads) {
  const Given in{x,       dt,      A,       B,        C,       D,       x_batch, x_time,  x_head,
                 dt_batch, dt_time, dt_head, b_batch, b_time, b_group, c_batch, c_time, c_group};
  run_scan<OnVectors>({batch, length, heads, head_dim, groups, size}, in, state_in, y, state, kept, scratch, threads);
}
