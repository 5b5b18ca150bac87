// Products with a small weight, and what stands around them in a block: norm and gate before, sum or gate behind.
//
// per block of rows: rows -> (gated, normed) -> packed by tiles    then per panel of outputs, tile after tile:
// sum over the depth -> (+ residual, or silu(gate) * up) -> out
//
// Every output is one sum over the depth, term after term: the same whatever the rows beside it, or the threads.

#include "product.hpp"

namespace {

constexpr int64_t PACKED = 65536;  // floats of a packed block of rows: it stays in the second cache

// (W rows, depth) -> (depth, TILE). What is written behind a row of `to` is overwritten by the next.
void turn(const float* const (&rows)[W], int64_t depth, float* to) {
  int64_t k = 0;
#ifdef HYBRIDNA_SHUFFLES
  if constexpr (TILE <= W)
    for (; k + W <= depth; k += W) {
      vf square[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) square[i] = load(rows[i] + k);
      exchange_all<1>(square);
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) store(to + (k + i) * TILE, square[i]);
    }
#endif
  constexpr int many = TILE <= W ? TILE : W;
  for (; k < depth; k++)
    for (int r = 0; r < many; r++) to[k * TILE + r] = rows[r][k];
}

// `count` rows from `first` on -> tiles of (depth, TILE). A tile's rows past the last one repeat it.
void pack(const Rows& in, int64_t first, int64_t count, float* normed, float* to) {
  constexpr int step = TILE <= W ? TILE : 1;
  for (int64_t from = 0; from < count; from += TILE, to += in.depth * TILE) {
    const float* rows[TILE > W ? TILE : W];
    for (int i = 0; i < TILE; i++) {
      const int64_t row = first + (from + i < count ? from + i : count - 1);
      rows[i] = in.x + row * in.x_row;
      if (!in.norm) continue;
      rows[i] = normed + i * in.depth;
      if (from + i < count) prepare_row(in, row, normed + i * in.depth);
      else rows[i] = rows[i - 1];
    }
    if constexpr (step == 1) {
      for (int64_t k = 0; k < in.depth; k++)
        for (int r = 0; r < TILE; r++) to[k * TILE + r] = rows[r][k];
    } else {
      const float* square[W];
      for (int i = 0; i < W; i++) square[i] = rows[i < TILE ? i : 0];
      turn(square, in.depth, to);
    }
  }
}

}  // namespace

// Outputs of one panel.
HYBRIDNA_EXPORT int64_t hybridna_product_width() { return WIDE; }

// x (rows, depth) and z or null, with strides of rows; norm (depth,) or null, z only with it; panels (n, depth, WIDE);
// add (rows, outputs) or null; out (rows, outputs); contiguous where no stride is given.
HYBRIDNA_EXPORT void hybridna_product(const float* x, int64_t x_row, const float* z, int64_t z_row, const float* norm,
                                      float eps, const float* panels, const float* add, float* out, int64_t rows,
                                      int64_t depth, int64_t outputs, int64_t paired, int64_t threads) {
  const Rows in{x, z, x_row, z_row, norm, eps, depth};
  const Out to{out, outputs, add, paired != 0};
  const int64_t count = to.panels();
  int64_t most = PACKED / depth / TILE * TILE;
  if (most < TILE) most = TILE;
  // As many blocks for each thread, of whole tiles; where there are too few rows for that, threads share the panels.
  int64_t blocks = (rows + most * threads - 1) / (most * threads) * threads;
  const int64_t block = ((rows + blocks - 1) / blocks + TILE - 1) / TILE * TILE;
  blocks = (rows + block - 1) / block;
  const int64_t parts = blocks < threads ? (threads < count ? threads : count) : 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast<int>(threads))
  for (int64_t i = 0; i < blocks * parts; i++) {
    float *normed = keep_scratch((block + TILE) * depth + W), *packed = normed + TILE * depth;
    const int64_t first = i / parts * block, now = rows - first < block ? rows - first : block;
    const int64_t part = i % parts, end = (part + 1) * count / parts;
    pack(in, first, now, normed, packed);
    for (int64_t panel = part * count / parts; panel < end; panel++)
      for (int64_t from = 0; from < now; from += TILE)
        next_tile(now - from, [&](auto constant) {
          constexpr int R = decltype(constant)::value;
          vf acc[R][2] = {};
          multiply<R>(acc, packed + from * depth, TILE, panels + panel * depth * WIDE, WIDE, depth);
#pragma GCC unroll 16
          for (int r = 0; r < R; r++) {
            if (from + r >= now) break;
            finish_row(acc[r][0], acc[r][1], to, first + from + r, panel);
          }
        });
  }
}
