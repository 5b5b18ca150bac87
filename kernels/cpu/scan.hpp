// The Mamba-2 recurrence in chunks of 64 tokens: what its ways have in common.
//
// per (row, group, chunk): pack what heads share      then per (row, some heads), chunk after chunk: advance the state
//
// A Way has the floats that one chunk of a group takes packed, the two steps, and what a thread holds meanwhile. Each
// head's sums are the same whatever the number of threads or rows.

#pragma once

#include <cmath>

#include "simd.hpp"

namespace {

constexpr int Q = 64;             // tokens of a chunk
constexpr int PACKED_CHUNKS = 8;  // over all rows and groups at a time: they stay in the second cache

struct Shape {
  int64_t batch, length, heads, head_dim, groups, size;
  int64_t even() const { return (size + 1) / 2 * 2; }
  int64_t blocks() const { return (head_dim + WIDE - 1) / WIDE; }
  int64_t kept() const { return blocks() * even() * WIDE; }
  int64_t chunks() const { return (length + Q - 1) / Q; }
  // Chunks packed at a time.
  int64_t round() const {
    const int64_t some = PACKED_CHUNKS / (batch * groups) > 1 ? PACKED_CHUNKS / (batch * groups) : 1;
    return some < chunks() ? some : chunks();
  }
};

// What a chunk of one head does to itself: its steps, and decays from its start, between its tokens and to its end.
struct Decays {
  // Logarithms in two floats each, so that differences of large ones lose nothing.
  alignas(64) float high[Q], low[Q], decay[Q], step[Q], rest[Q];

  Decays(const float* dt, int64_t stride, float A, int64_t rows) {
    double sum = 0;
    for (int64_t t = 0; t < Q; t++) {
      step[t] = t < rows ? dt[t * stride] : 0.0f;
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
  }
};

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

// Floats of scratch that `run_scan` needs.
template <class Way>
int64_t count_scratch(const Shape& s) {
  return s.batch * s.groups * s.round() * Way::packed(s) + s.batch * s.heads * s.kept() + 64;
}

struct Given {
  const float *x, *dt, *A, *B, *C, *D;
  int64_t x_batch, x_time, x_head, dt_batch, dt_time, dt_head, b_batch, b_time, b_group, c_batch, c_time, c_group;
};

// y, state, state_in and kept are contiguous. kept (batch, heads, chunks, head_dim, size): the state before each chunk,
// for the gradients; or null.
template <class Way>
void run_scan(const Shape& s, const Given& in, const float* state_in, float* y, float* state, float* kept,
              float* scratch, int64_t threads) {
  const int64_t batch = s.batch, length = s.length, heads = s.heads, groups = s.groups, one = s.head_dim * s.size;
  const int64_t chunks = s.chunks(), per_group = heads / groups, round = s.round();
  float* states = scratch;
  float* packs = scratch + (batch * heads * s.kept() + 15) / 16 * 16;
  // Heads of one unit share what is packed, as long as every thread has several units.
  int64_t together = batch * heads / (2 * threads);
  together = together < 1 ? 1 : together > 4 ? 4 : together;
  const int64_t parts = (per_group + together - 1) / together, units = batch * groups * parts;
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    [[maybe_unused]] const typename Way::Held held{};
    for (int64_t start = 0; start < chunks; start += round) {
      const int64_t now = chunks - start < round ? chunks - start : round;
      const auto place = [&](int64_t b, int64_t g, int64_t c) {
        return packs + ((b * groups + g) * round + c) * Way::packed(s);
      };
      const auto count = [&](int64_t first) { return length - first < Q ? length - first : Q; };
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < batch * groups * now; i++) {
        const int64_t c = i % now, g = i / now % groups, b = i / now / groups, first = (start + c) * Q;
        Way::pack(s, in.B + b * in.b_batch + first * in.b_time + g * in.b_group, in.b_time,
                  in.C + b * in.c_batch + first * in.c_time + g * in.c_group, in.c_time, count(first), place(b, g, c));
      }
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < units; i++) {
        const int64_t part = i % parts, g = i / parts % groups, b = i / parts / groups;
        const int64_t from = g * per_group + part * together;
        const int64_t most = (g + 1) * per_group, to = from + together < most ? from + together : most;
        for (int64_t h = from; h < to && start == 0 && state_in; h++)
          bring_state(s, state_in + (b * heads + h) * one, states + (b * heads + h) * s.kept());
        for (int64_t c = 0; c < now; c++) {
          const int64_t first = (start + c) * Q;
          const bool empty = !state_in && first == 0;
          for (int64_t h = from; h < to; h++) {
            float* S = states + (b * heads + h) * s.kept();
            if (kept) {
              float* before = kept + ((b * heads + h) * chunks + start + c) * one;
              if (empty) std::memset(before, 0, sizeof(float) * one);
              else give_state(s, S, before);
            }
            Way::advance(s, in.x + b * in.x_batch + first * in.x_time + h * in.x_head, in.x_time,
                         in.dt + b * in.dt_batch + first * in.dt_time + h * in.dt_head, in.dt_time, in.A[h], in.D[h],
                         place(b, g, c), count(first), empty, S, y + ((b * length + first) * heads + h) * s.head_dim);
          }
        }
        for (int64_t h = from; h < to && start + now == chunks; h++)
          give_state(s, states + (b * heads + h) * s.kept(), state + (b * heads + h) * one);
      }
    }
  }
}

}  // namespace
