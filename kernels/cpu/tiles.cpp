// Products on the processor's matrix tiles, for any two factors, and for kept weights with what stands around them.
//
// per block of rows: rows -> (gated, normed) -> slices      then per pair of tiles of columns, 32 rows after another:
// six products of slices a block of the depth -> (+ residual, or silu(gate) * up) -> out
//
// Every output is one sum in one order: the same whatever the rows beside it, or the threads.

#include "tiles.hpp"

#include "product.hpp"

#ifdef HYBRIDNA_TILES

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

namespace {

constexpr int64_t PACKED = 1 << 19;  // numbers of a packed block of rows: it takes half of the second cache
constexpr int64_t NEAR = 32;         // blocks of the depth of two panels beside it
constexpr int64_t CHUNK = 1024;      // of the depth at a time, where both factors are packed for one call
constexpr int64_t GROUP = 1 << 21;   // numbers of columns packed at a time
constexpr int64_t ROWS = 2048;       // packed at a time

int64_t blocks_of(int64_t depth) { return (depth + DEEP - 1) / DEEP; }
int64_t strips_of(int64_t rows) { return (rows + 2 * SIDE - 1) / (2 * SIDE); }

// Units of work: blocks of rows, two for each thread, which need not be equally fast; where there are too few rows for
// that, threads share the panels.
struct Units {
  int64_t block, blocks, parts;  // of `block` rows
  Units(int64_t rows, int64_t one, int64_t panels, int64_t threads) {
    const int64_t strips = strips_of(rows), most = std::max<int64_t>(PACKED / one / WIDE, 1);
    block = std::min(threads == 1 ? strips : (strips + 2 * threads - 1) / (2 * threads), most) * WIDE;
    blocks = (rows + block - 1) / block;
    parts = blocks < threads ? std::min(threads, panels) : 1;
  }
};

// Up to 16 rows from `first` on -> a tile of each pair. normed: as many rows of scratch.
template <int S>
void pack_rows(const Rows& in, int64_t first, int64_t count, float* normed, bf* to) {
  Factor rows{in.x + first * in.x_row, in.x_row, 1};
  if (in.norm) {
    for (int64_t i = 0; i < count; i++) prepare_row(in, first + i, normed + i * in.depth);
    rows = {normed, in.depth, 1};
  }
  slice_rows<S>(rows, count, in.depth, to);
}

// Calls multiply(i, sums, beside) and, row by row while the tiles are busy with the next sums, finish(i, sums, row).
template <class Multiply, class Finish>
HYBRIDNA_INLINE void overlap(int64_t count, int64_t blocks, Multiply multiply, Finish finish) {
  alignas(64) float sums[2][4 * SIDE * SIDE];
  const int64_t some = (WIDE + blocks - 1) / blocks;
  for (int64_t i = 0; i < count; i++)
    multiply(i, sums[i % 2], [&](int64_t k) {
      if (!i) return;
      for (int64_t r = k * some; r < std::min<int64_t>((k + 1) * some, WIDE); r++) finish(i - 1, sums[(i - 1) % 2], r);
    });
  for (int64_t r = 0; r < WIDE && count; r++) finish(count - 1, sums[(count - 1) % 2], r);
}

template <int S>
void product(const Rows& in, const Out& out, const bf* panels, int64_t rows, int64_t threads) {
  const int64_t depth = blocks_of(in.depth), size = depth * S * PAIR, count = out.panels();
  const Units units(rows, depth * DEEP * S, count, threads);
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    const Tiles tiles;
    float* normed = keep_scratch<1>(SIDE * in.depth + W);
    bf* packed = align_pairs(keep_scratch(units.block / WIDE * size / 2 + 16));
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < units.blocks * units.parts; i++) {
      const int64_t first = i / units.parts * units.block, now = std::min(rows - first, units.block);
      const int64_t part = i % units.parts, start = part * count / units.parts, end = (part + 1) * count / units.parts;
      for (int64_t from = 0; from < now; from += SIDE)
        pack_rows<S>(in, first + from, std::min<int64_t>(now - from, SIDE), normed,
                     packed + from / WIDE * size + from / SIDE % 2 * ONE);
      const int64_t strips = strips_of(now);
      overlap(
          (end - start) * strips, depth,
          [&](int64_t j, float* sums, auto beside) {
            const bf* panel = panels + (start + j / strips) * size;
            // Each strip brings its share of the next panel near, where there is room for both.
            const int64_t lines = S > 1 && depth <= NEAR ? S * PAIR / 32 : 0;
            const int64_t from = j % strips * lines / strips, to = (j % strips + 1) * lines / strips;
            multiply_pairs<S>(packed + j % strips * size, panel, depth, now - j % strips * WIDE, false, sums,
                              [&](int64_t k) {
                                const bf* next = panel + size + k * S * PAIR;
                                for (int64_t line = from; line < to; line++) __builtin_prefetch(next + line * 32, 0, 2);
                                beside(k);
                              });
          },
          [&](int64_t j, const float* sums, int64_t row) {
            const int64_t at = j % strips * WIDE + row;
            if (at < now)
              finish_row(load(sums + row * WIDE), load(sums + row * WIDE + W), out, first + at, start + j / strips);
          });
    }
  }
}

// Columns first .. first + 31 of one or two factors -> a pair of tiles.
template <int S>
void pack_panel(const Factor& one, const Factor* other, int64_t columns, int64_t panel, int64_t depth, bf* to) {
  for (int half = 0; half < 2; half++) {
    const Factor& from = half && other ? *other : one;
    const int64_t first = other ? panel * SIDE : (2 * panel + half) * SIDE;
    slice_columns<S>({from.at + first * from.row, from.row, from.deep}, columns - first, depth, to + half * ONE);
  }
}

template <int S>
void matmul(const Factor& a, const Factor& b, float* out, int64_t rows, int64_t columns, int64_t depth,
            int64_t threads) {
  const int64_t panels = strips_of(columns), strips = strips_of(rows);
  const int64_t most = std::min(blocks_of(depth), CHUNK / DEEP) * S * PAIR;
  const int64_t group = std::min(std::max<int64_t>(GROUP / most, 1), panels);
  // Of this thread, for all of them.
  bf* packed_rows = align_pairs(keep_scratch((strips + group) * most / 2 + 16));
  bf* packed_columns = packed_rows + strips * most;
  // Units of work: strips that stay in a second cache, with part of the columns; four for each thread, which need not
  // be equally fast.
  const int64_t some = std::min(std::max<int64_t>(PACKED / most, 1), std::max<int64_t>(strips / threads, 1));
  const int64_t lots = (strips + some - 1) / some, wanted = (4 * threads + lots - 1) / lots;
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    const Tiles tiles;
    for (int64_t k = 0; k < depth; k += CHUNK) {
      const int64_t deep = std::min(depth - k, CHUNK), size = blocks_of(deep) * S * PAIR;
      const Factor now_a{a.at + k * a.deep, a.row, a.deep}, now_b{b.at + k * b.deep, b.row, b.deep};
#pragma omp for schedule(dynamic, 4)
      for (int64_t i = 0; i < 2 * strips; i++)
        slice_rows<S>({now_a.at + i * SIDE * a.row, a.row, a.deep}, rows - i * SIDE, deep,
                      packed_rows + i / 2 * size + i % 2 * ONE);
      for (int64_t start = 0; start < panels; start += group) {
        const int64_t many = std::min(panels - start, group), parts = threads == 1 ? 1 : std::min(wanted, many);
#pragma omp for schedule(dynamic, 2)
        for (int64_t i = 0; i < many; i++)
          pack_panel<S>(now_b, nullptr, columns, start + i, deep, packed_columns + i * size);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < lots * parts; i++) {
          const int64_t first = i / parts * some, now = std::min(strips - first, some);
          const int64_t part = i % parts, from = part * many / parts, end = (part + 1) * many / parts;
          // Where a row of sums goes, and which of its columns there are.
          const auto place = [&](int64_t j, int64_t row, auto f) {
            const int64_t at = (first + j % now) * WIDE + row, column = (start + from + j / now) * WIDE;
            if (at < rows) f(out + at * columns + column, first_of(columns - column), first_of(columns - column - W));
          };
          overlap(
              (end - from) * now, blocks_of(deep),
              [&](int64_t j, float* sums, auto beside) {
                for (int64_t row = 0; row < WIDE && k; row++)
                  place(j, row, [&](const float* at, __mmask16 low, __mmask16 high) {
                    _mm512_store_ps(sums + row * WIDE, _mm512_maskz_loadu_ps(low, at));
                    _mm512_store_ps(sums + row * WIDE + W, _mm512_maskz_loadu_ps(high, at + W));
                  });
                multiply_pairs<S>(packed_rows + (first + j % now) * size, packed_columns + (from + j / now) * size,
                                  blocks_of(deep), rows - (first + j % now) * WIDE, k > 0, sums, beside);
              },
              [&](int64_t j, const float* sums, int64_t row) {
                place(j, row, [&](float* to, __mmask16 low, __mmask16 high) {
                  _mm512_mask_storeu_ps(to, low, _mm512_load_ps(sums + row * WIDE));
                  _mm512_mask_storeu_ps(to + W, high, _mm512_load_ps(sums + row * WIDE + W));
                });
              });
        }
      }
    }
  }
}

// Asks the system, once, for the tiles' registers, which every thread then has.
bool is_allowed() {
  constexpr long ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool allowed = syscall(SYS_arch_prctl, ask, tile_data) == 0;
  return allowed;
}

}  // namespace

// 0: usable, 1: the processor (or the compiler) has none, 2: the system does not give them.
HYBRIDNA_EXPORT int64_t hybridna_tiles() { return is_allowed() ? 0 : 2; }

// Numbers of 16 bits that a weight takes as panels.
HYBRIDNA_EXPORT int64_t hybridna_tile_panels(int64_t depth, int64_t outputs, int64_t paired, int64_t slices) {
  const Out out{nullptr, outputs, nullptr, paired != 0};
  return out.panels() * blocks_of(depth) * slices * PAIR;
}

// weight (outputs, depth), up the same or null, contiguous -> panels, on a multiple of 64 bytes.
HYBRIDNA_EXPORT void hybridna_tile_pack(const float* weight, const float* up, int64_t depth, int64_t outputs,
                                        int64_t slices, bf* panels) {
  const Factor one{weight, depth, 1}, other{up, depth, 1};
  const Out out{nullptr, outputs, nullptr, up != nullptr};
  for (int64_t i = 0; i < out.panels(); i++)
    (slices == 1 ? pack_panel<1> : pack_panel<3>)(one, up ? &other : nullptr, outputs, i, depth,
                                                  panels + i * blocks_of(depth) * slices * PAIR);
}

// As hybridna_product; slices 3, or 1 for factors rounded to bfloat16.
HYBRIDNA_EXPORT void hybridna_tile_product(const float* x, int64_t x_row, const float* z, int64_t z_row,
                                           const float* norm, float eps, const bf* panels, const float* add, float* out,
                                           int64_t rows, int64_t depth, int64_t outputs, int64_t paired, int64_t slices,
                                           int64_t threads) {
  is_allowed();
  const Rows in{x, z, x_row, z_row, norm, eps, depth};
  const Out to{out, outputs, add, paired != 0};
  (slices == 1 ? product<1> : product<3>)(in, to, panels, rows, threads);
}

// out (rows, columns) = sum over the depth of a[row, k] b[column, k]; one stride of each factor is 1.
HYBRIDNA_EXPORT void hybridna_tile_matmul(const float* a, int64_t a_row, int64_t a_deep, const float* b, int64_t b_row,
                                          int64_t b_deep, float* out, int64_t rows, int64_t columns, int64_t depth,
                                          int64_t slices, int64_t threads) {
  is_allowed();
  for (int64_t first = 0; first < rows; first += ROWS)
    (slices == 1 ? matmul<1> : matmul<3>)({a + first * a_row, a_row, a_deep}, {b, b_row, b_deep}, out + first * columns,
                                          std::min(rows - first, ROWS), columns, depth, threads);
}

#else

HYBRIDNA_EXPORT int64_t hybridna_tiles() { return 1; }

// Never called: block.cpp takes tiles where there are some.
HYBRIDNA_EXPORT void hybridna_tile_product(const float*, int64_t, const float*, int64_t, const float*, float,
                                           const uint16_t*, const float*, float*, int64_t, int64_t, int64_t, int64_t,
                                           int64_t, int64_t) {}

#endif
