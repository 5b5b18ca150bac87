// What stands around a product with a weight, whichever way it is summed: norm and gate before, sum or gate behind.

#pragma once

#include <cmath>

#include "simd.hpp"

struct Rows {
  const float *x, *z;  // z null: no gate
  int64_t x_row, z_row;
  const float* norm;  // null: no norm
  float eps;
  int64_t depth;
};

// One row, gated and normed as rows.cpp does it.
inline void prepare_row(const Rows& in, int64_t row, float* out) {
  const float *a = in.x + row * in.x_row, *g = in.z + row * in.z_row;
  vf squares{};
  for (int64_t c = 0; c < in.depth; c += W) {
    const int n = static_cast<int>(in.depth - c < W ? in.depth - c : W);
    vf v = load_part(a + c, n);
    if (in.z) v *= silu(load_part(g + c, n));
    store_part(out + c, v, n);
    squares += v * v;
  }
  const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(in.depth) + in.eps);
  for (int64_t c = 0; c < in.depth; c += W) {
    const int n = static_cast<int>(in.depth - c < W ? in.depth - c : W);
    store_part(out + c, load_part(out + c, n) * scale * load_part(in.norm + c, n), n);
  }
}

struct Out {
  float* to;
  int64_t outputs;
  const float* add;  // (rows, outputs), or null
  bool paired;       // panels hold W gates, then W ups
  int64_t width() const { return paired ? W : WIDE; }
  int64_t panels() const { return (outputs + width() - 1) / width(); }
};

// What one row gives with one panel.
HYBRIDNA_INLINE void finish_row(vf low, vf high, const Out& out, int64_t row, int64_t panel) {
  const int64_t column = panel * out.width(), left = out.outputs - column, at = row * out.outputs + column;
  const int first = static_cast<int>(left < W ? left : W);
  const int second = static_cast<int>(left - W < 0 ? 0 : left - W < W ? left - W : W);
  if (out.paired) return store_part(out.to + at, silu(low) * high, first);
  if (out.add) {
    low += load_part(out.add + at, first);
    if (second) high += load_part(out.add + at + W, second);
  }
  store_part(out.to + at, low, first);
  if (second) store_part(out.to + at + W, high, second);
}
