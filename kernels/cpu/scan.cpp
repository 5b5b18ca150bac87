// The Mamba-2 recurrence in chunks of 64 tokens (ssd_scan).
//
// per (row, group, chunk): C transposed, B packed, B C^T    then per (row, some heads), chunk after chunk:
// C S * decay + causal block * dt x + D x -> y;  decay S + B^T (decayed dt x) -> S
//
// Each head's sums are the same whatever the number of threads or rows.

#include <cmath>

#include "simd.hpp"

namespace {

constexpr int Q = 64;      // tokens of a chunk
constexpr int PACKED = 8;  // chunks packed at a time, over all rows and groups: they stay in the second cache

struct Shape {
  int64_t batch, length, heads, head_dim, groups, size;
  int64_t even() const { return (size + 1) / 2 * 2; }
  int64_t blocks() const { return (head_dim + WIDE - 1) / WIDE; }
  int64_t packed() const { return 2 * even() * Q + Q * Q; }
  int64_t kept() const { return blocks() * even() * WIDE; }
  int64_t round() const { return PACKED / (batch * groups) > 1 ? PACKED / (batch * groups) : 1; }
};

struct Rows {
  const float* at;
  int64_t batch, time, head;
};

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

// One chunk of one group: C^T (size, Q), B (Q, size), B C^T (Q, Q) where the second index is not before the first.
void pack(const Shape& s, const float* B, int64_t stride_b, const float* C, int64_t stride_c, int64_t rows, float* out) {
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
void advance(const Shape& s, const float* x, int64_t stride_x, const float* dt, int64_t stride_dt, float A, float D,
             const float* packed, int64_t rows, bool empty, float* S, float* y) {
  const int64_t even = s.even(), stride_y = s.heads * s.head_dim;
  const float *Ct = packed, *B = Ct + even * Q, *product = B + even * Q;
  // Logarithms of decay in two floats each, so that differences of large ones lose nothing.
  alignas(64) float high[Q], low[Q], decay[Q], step[Q], rest[Q], block[Q * Q], fed[Q * WIDE], kept[Q * WIDE];
  double sum = 0;
  for (int64_t t = 0; t < Q; t++) {
    step[t] = t < rows ? dt[t * stride_dt] : 0.0f;
    sum += static_cast<double>(step[t]) * A;
    high[t] = static_cast<float>(sum);
    low[t] = static_cast<float>(sum - high[t]);
  }
  const float last_high = high[Q - 1], last_low = low[Q - 1];
  for (int64_t t = 0; t < Q; t += W) {
    const vf h = load(high + t), l = load(low + t);
    store(decay + t, exponential(h + l));
    store(rest + t, exponential((last_high - h) + (last_low - l)));
  }
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

// (head_dim, size) of the caller <-> (blocks, even size, WIDE) here.
void bring_state(const Shape& s, const float* from, float* S) {
  const int64_t even = s.even();
  std::memset(S, 0, sizeof(float) * s.kept());
  for (int64_t p = 0; p < s.head_dim; p++)
    for (int64_t n = 0; n < s.size; n++) S[(p / WIDE * even + n) * WIDE + p % WIDE] = from[p * s.size + n];
}

void give_state(const Shape& s, const float* S, float* to) {
  const int64_t even = s.even();
  if (s.size % W == 0 && s.head_dim % WIDE == 0) {
    for (int64_t b = 0; b < s.blocks(); b++)
      transpose(S + b * even * WIDE, WIDE, s.size, WIDE, to + b * WIDE * s.size, s.size);
    return;
  }
  for (int64_t p = 0; p < s.head_dim; p++)
    for (int64_t n = 0; n < s.size; n++) to[p * s.size + n] = S[(p / WIDE * even + n) * WIDE + p % WIDE];
}

}  // namespace

// Floats of scratch that hybridna_ssd_scan needs.
HYBRIDNA_EXPORT int64_t hybridna_ssd_scratch(int64_t batch, int64_t length, int64_t heads, int64_t head_dim,
                                             int64_t groups, int64_t size) {
  const Shape s{batch, length, heads, head_dim, groups, size};
  const int64_t chunks = (length + Q - 1) / Q;
  const int64_t held = s.round() < chunks ? s.round() : chunks;
  return batch * groups * held * s.packed() + batch * heads * s.kept() + 64;
}

// Strides in floats; the last dimension of every tensor is dense. y, state, state_in and kept are contiguous.
// kept (batch, heads, chunks, head_dim, size): the state before each chunk, for the gradients; or null.
HYBRIDNA_EXPORT void hybridna_ssd_scan(const float* x, int64_t x_batch, int64_t x_time, int64_t x_head, const float* dt,
                                       int64_t dt_batch, int64_t dt_time, int64_t dt_head, const float* A,
                                       const float* B, int64_t b_batch, int64_t b_time, int64_t b_group, const float* C,
                                       int64_t c_batch, int64_t c_time, int64_t c_group, const float* D,
                                       const float* state_in, float* y, float* state, float* kept,
                                       float* scratch, int64_t batch, int64_t length, int64_t heads, int64_t head_dim, int64_t groups, int64_t size,
                                       int64_t threads) {
  const Shape s{batch, length, heads, head_dim, groups, size};
  const int64_t chunks = (length + Q - 1) / Q, per_group = heads / groups;
  const int64_t round = s.round() < chunks ? s.round() : chunks;
  float* states = scratch;
  float* packs = scratch + (batch * heads * s.kept() + 15) / 16 * 16;
  // Heads of one unit share what is packed, as long as every thread has several units.
  int64_t together = batch * heads / (2 * threads);
  together = together < 1 ? 1 : together > 4 ? 4 : together;
  const int64_t parts = (per_group + together - 1) / together, units = batch * groups * parts;
#pragma omp parallel num_threads(static_cast<int>(threads))
  for (int64_t start = 0; start < chunks; start += round) {
    const int64_t now = chunks - start < round ? chunks - start : round;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < batch * groups * now; i++) {
      const int64_t c = i % now, g = i / now % groups, b = i / now / groups;
      const int64_t first = (start + c) * Q, rows = length - first < Q ? length - first : Q;
      pack(s, B + b * b_batch + first * b_time + g * b_group, b_time, C + b * c_batch + first * c_time + g * c_group,
           c_time, rows, packs + ((b * groups + g) * round + c) * s.packed());
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < units; i++) {
      const int64_t part = i % parts, g = i / parts % groups, b = i / parts / groups;
      const int64_t from = g * per_group + part * together;
      const int64_t most = (g + 1) * per_group, to = from + together < most ? from + together : most;
      for (int64_t h = from; h < to && start == 0; h++) {
        float* S = states + (b * heads + h) * s.kept();
        if (state_in) bring_state(s, state_in + (b * heads + h) * head_dim * size, S);
      }
      for (int64_t c = 0; c < now; c++) {
        const int64_t first = (start + c) * Q, rows = length - first < Q ? length - first : Q;
        const float* packed = packs + ((b * groups + g) * round + c) * s.packed();
        for (int64_t h = from; h < to; h++) {
          float* before = kept + ((b * heads + h) * chunks + start + c) * head_dim * size;
          if (kept && first == 0 && !state_in) std::memset(before, 0, sizeof(float) * head_dim * size);
          if (kept && (first || state_in)) give_state(s, states + (b * heads + h) * s.kept(), before);
          advance(s, x + b * x_batch + first * x_time + h * x_head, x_time,
                  dt + b * dt_batch + first * dt_time + h * dt_head, dt_time, A[h], D[h], packed, rows,
                  !state_in && first == 0, states + (b * heads + h) * s.kept(), y + ((b * length + first) * heads + h) * head_dim);
        }
      }
      for (int64_t h = from; h < to && start + now == chunks; h++)
        give_state(s, states + (b * heads + h) * s.kept(), state + (b * heads + h) * head_dim * size);
    }
  }
}
