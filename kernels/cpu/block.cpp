// Whole blocks, one after the other without leaving C++: a mixer, Mamba-2 or attention, and its MLP.
//
// Mamba-2: x -> norm, in_proj -> convolution, softplus -> scan or step -> gated norm, out_proj, + x -> MLP
// attention: x -> norm, q, k and v -> keys and values behind the earlier ones -> softmax -> o_proj, + x -> MLP
// MLP: x -> norm, gate and up -> down, + x
//
// Few rows at a time, so that all between two products stays in the second cache. The spans are whole chunks of the
// scan, and every kernel gives a row the same bits whatever is beside it: so do the blocks.

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>

#include "product.hpp"

extern "C" {
void hybridna_product(const float*, int64_t, const float*, int64_t, const float*, float, const float*, const float*,
                      float*, int64_t, int64_t, int64_t, int64_t, int64_t);
void hybridna_tile_product(const float*, int64_t, const float*, int64_t, const float*, float, const uint16_t*,
                           const float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
void hybridna_causal_conv1d(const float*, int64_t, int64_t, const float*, const float*, const float*, const float*,
                            float*, int64_t, int64_t, int64_t, int64_t, int64_t);
int64_t hybridna_ssd_scratch(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
void hybridna_ssd_scan(const float*, int64_t, int64_t, int64_t, const float*, int64_t, int64_t, int64_t, const float*,
                       const float*, int64_t, int64_t, int64_t, const float*, int64_t, int64_t, int64_t, const float*,
                       const float*, float*, float*, float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t,
                       int64_t, int64_t);
int64_t hybridna_tile_ssd_scratch(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
void hybridna_tile_ssd_scan(const float*, int64_t, int64_t, int64_t, const float*, int64_t, int64_t, int64_t,
                            const float*, const float*, int64_t, int64_t, int64_t, const float*, int64_t, int64_t,
                            int64_t, const float*, const float*, float*, float*, float*, float*, int64_t, int64_t,
                            int64_t, int64_t, int64_t, int64_t, int64_t);
void hybridna_ssd_step(const float*, int64_t, int64_t, const float*, int64_t, int64_t, const float*, const float*,
                       int64_t, int64_t, const float*, int64_t, int64_t, const float*, const float*, const int64_t*,
                       float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
int64_t hybridna_attention_scratch(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
void hybridna_attention(const float*, int64_t, int64_t, int64_t, const float*, int64_t, int64_t, int64_t, const float*,
                        int64_t, int64_t, int64_t, const float*, int64_t, int64_t, const float*, int64_t, int64_t,
                        float*, float*, float*, float, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                        int64_t);
}

namespace {

// Rows at a time, whole chunks of the scan: a thread's share stays in its second cache, if the rows are narrow.
int64_t span_of(int64_t hidden, int64_t threads) {
  return hidden > 512 ? 1024 : std::min<int64_t>(std::max<int64_t>(128 * threads, 256), 1024);
}

// As block.py lays them out; every field has eight bytes.

// A weight of a product. panels: null where it is large, and single tokens are not read; tiles: the same in so many
// slices, or null
struct Weight {
  const float* panels;
  const uint16_t* tiles;
  int64_t slices;
};

struct FeedForward {
  const float* norm;
  Weight gate_up, down;
  double eps;
  int64_t inner;
};

struct Mamba {
  FeedForward mlp;
  const float* norm;
  Weight in;
  const float *conv, *conv_bias, *dt_bias, *A_log, *D, *gated_norm;
  Weight out;
  double eps, gated_eps, dt_least, dt_most;
  int64_t hidden, heads, head_dim, groups, size, taps;
  int64_t width() const { return heads * head_dim; }
  int64_t channels() const { return width() + 2 * groups * size; }
  int64_t projected() const { return width() + channels() + heads; }
};

struct Attention {
  FeedForward mlp;
  const float* norm;
  Weight qkv, out;
  double eps;
  int64_t hidden, heads, kv_heads, head_dim;
  int64_t width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
  int64_t projected() const { return width() + 2 * kv_width(); }
};

// A block, the state it begins with and where the state after it goes.
//
// Mamba-2 (kind 0): given conv (batch, taps - 1, channels) and state (batch, heads, head_dim, size); after, the same.
//   rows (batch,): which row of the state each row goes on from, for a length of 1 alone; or null.
// attention (kind 1): given keys and values (batch, past, kv_heads, head_dim) and those common to all rows (shared,
//   kv_heads, head_dim); after, keys and values (batch, past + length, kv_heads, head_dim).
struct Step {
  int64_t kind;
  const void* weights;
  const float* given[4];
  int64_t past, shared;
  const int64_t* rows;
  float* after[2];
};

// Hands out the scratch of a thread piece by piece.
struct Pieces {
  float* at;
  float* take(int64_t floats) { return (at += floats) - floats; }
};

// hybridna_product, on tiles where there are some. Single tokens would leave most of a tile empty; the choice is by
// what is read, not by the number of rows, so that a row's bits do not depend on that.
struct Product {
  bool single;
  int64_t rows, threads;

  void operator()(const Rows& in, const Weight& w, int64_t outputs, const float* add, float* out, bool paired) const {
    if (w.tiles && !single)
      hybridna_tile_product(in.x, in.x_row, in.z, in.z_row, in.norm, in.eps, w.tiles, add, out, rows, in.depth, outputs,
                            paired, w.slices, threads);
    else
      hybridna_product(in.x, in.x_row, in.z, in.z_row, in.norm, in.eps, w.panels, add, out, rows, in.depth, outputs,
                       paired, threads);
  }
};

Rows plain(const float* x, int64_t depth) { return {x, nullptr, depth, 0, nullptr, 0, depth}; }

Rows normed(const float* x, int64_t depth, const float* norm, double eps) {
  return {x, nullptr, depth, 0, norm, static_cast<float>(eps), depth};
}

// x (rows, hidden) + MLP of it -> out. inner: (rows, w.inner) of scratch.
void feed_forward(const FeedForward& w, const float* x, int64_t hidden, float* inner, float* out,
                  const Product& product) {
  product(normed(x, hidden, w.norm, w.eps), w.gate_up, w.inner, nullptr, inner, true);
  product(plain(inner, w.inner), w.down, hidden, x, out, false);
}

// log(1 + e^x), clamped.
void make_steps(const Mamba& w, const float* dt, int64_t rows, float* to, int64_t threads) {
  const float least = static_cast<float>(w.dt_least), most = static_cast<float>(w.dt_most);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (rows * w.heads > 1024)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t h = 0; h < w.heads; h++) {
      const float v = dt[r * w.projected() + h] + w.dt_bias[h], step = v > 20.0f ? v : std::log1p(std::exp(v));
      to[r * w.heads + h] = step < least ? least : step > most ? most : step;
    }
}

// conv (sequences, taps - 1, channels): the last inputs, `length` more read from `mixed`.
void keep_inputs(const Mamba& w, const float* mixed, int64_t sequences, int64_t length, float* conv) {
  const int64_t kept = w.taps - 1, channels = w.channels(), stays = kept > length ? kept - length : 0;
  for (int64_t s = 0; s < sequences; s++, conv += kept * channels) {
    if (stays) std::memmove(conv, conv + length * channels, sizeof(float) * stays * channels);
    for (int64_t k = stays; k < kept; k++)
      std::memcpy(conv + k * channels, mixed + (s * length + length - kept + k) * w.projected(),
                  sizeof(float) * channels);
  }
}

// x and out (batch, length, hidden), which may be the same.
void read_mamba(const Mamba& w, const Step& step, const float* x, float* out, int64_t batch, int64_t length,
                int64_t threads) {
  const float *conv_in = step.given[0], *state_in = step.given[1];
  float *conv = step.after[0], *state = step.after[1];
  const int64_t* rows = step.rows;
  const int64_t width = w.width(), channels = w.channels(), projected = w.projected(), kept = (w.taps - 1) * channels;
  const int64_t one = width * w.size, wide = w.groups * w.size;
  const int64_t span = span_of(w.hidden, threads), together = length >= span ? 1 : std::min(span / length, batch);
  const int64_t most = length >= span ? span : together * length;
  // Fewer sequences hold more chunks at a time: the last ones may need the most.
  const bool on_tiles = w.in.tiles && w.head_dim % 32 == 0 && w.size % 32 == 0;
  const auto scan_all = on_tiles ? hybridna_tile_ssd_scan : hybridna_ssd_scan;
  const auto need = [&](int64_t sequences) {
    const auto measure = on_tiles ? hybridna_tile_ssd_scratch : hybridna_ssd_scratch;
    return measure(sequences, std::min(length, span), w.heads, w.head_dim, w.groups, w.size);
  };
  const int64_t scan = std::max(need(together), batch % together ? need(batch % together) : 0);
  Pieces scratch{keep_scratch(most * (projected + channels + w.heads + width + w.hidden + w.mlp.inner) + scan +
                              w.taps * channels + w.heads + 64)};
  float *mixer_in = scratch.take(most * projected), *mixed = scratch.take(most * channels);
  float *y = scratch.take(most * width), *steps = scratch.take(most * w.heads);
  float *middle = scratch.take(most * w.hidden), *inner = scratch.take(most * w.mlp.inner);
  float *taps = scratch.take(w.taps * channels), *A = scratch.take(w.heads), *scan_scratch = scratch.take(scan);
  for (int64_t c = 0; c < channels; c++)
    for (int64_t k = 0; k < w.taps; k++) taps[k * channels + c] = w.conv[c * w.taps + k];
  for (int64_t h = 0; h < w.heads; h++) A[h] = -std::exp(w.A_log[h]);

  for (int64_t b = 0; b < batch; b += together) {
    const int64_t sequences = std::min(batch - b, together);
    float *own_conv = conv + b * kept, *own_state = state + b * one;
    std::memcpy(own_conv, conv_in + b * kept, sizeof(float) * sequences * kept);
    for (int64_t t = 0; t < length; t += span) {
      const int64_t now = std::min(length - t, span), count = sequences * now, first = b * length + t;
      const float* in = x + first * w.hidden;
      const Product product{length == 1, count, threads};
      product(normed(in, w.hidden, w.norm, w.eps), w.in, projected, nullptr, mixer_in, false);
      const float* before = mixer_in + width;
      hybridna_causal_conv1d(before, now * projected, projected, taps, w.conv_bias, own_conv, nullptr, mixed, sequences,
                             now, channels, w.taps, threads);
      keep_inputs(w, before, sequences, now, own_conv);
      make_steps(w, before + channels, count, steps, threads);
      const float *B = mixed + width, *C = B + wide;
      if (length == 1)
        hybridna_ssd_step(mixed, channels, w.head_dim, steps, w.heads, 1, A, B, channels, w.size, C, channels, w.size,
                          w.D, rows ? state_in : state_in + b * one, rows ? rows + b : nullptr, y, own_state, sequences,
                          w.heads, w.head_dim, w.groups, w.size, threads);
      else
        scan_all(mixed, now * channels, channels, w.head_dim, steps, now * w.heads, w.heads, 1, A, B, now * channels,
                 channels, w.size, C, now * channels, channels, w.size, w.D, t ? own_state : state_in + b * one, y,
                 own_state, nullptr, scan_scratch, sequences, now, w.heads, w.head_dim, w.groups, w.size, threads);
      const Rows gated{y, mixer_in, width, projected, w.gated_norm, static_cast<float>(w.gated_eps), width};
      product(gated, w.out, w.hidden, in, middle, false);
      feed_forward(w.mlp, middle, w.hidden, inner, out + first * w.hidden, product);
    }
  }
}

// Earlier keys or values, then those of `fresh`, at rows `projected` apart -> (sequences, past + length, kv_width).
void append(const Attention& w, const float* earlier, int64_t past, const float* fresh, int64_t sequences,
            int64_t length, float* to) {
  const int64_t wide = w.kv_width();
  for (int64_t s = 0; s < sequences; s++, to += (past + length) * wide) {
    if (past) std::memcpy(to, earlier + s * past * wide, sizeof(float) * past * wide);
    for (int64_t t = 0; t < length; t++)
      std::memcpy(to + (past + t) * wide, fresh + (s * length + t) * w.projected(), sizeof(float) * wide);
  }
}

// x and out as in read_mamba.
void read_attention(const Attention& w, const Step& step, const float* x, float* out, int64_t batch, int64_t length,
                    int64_t threads) {
  const int64_t width = w.width(), wide = w.kv_width(), projected = w.projected(), keys = step.past + length;
  const int64_t limit = span_of(w.hidden, threads);
  const int64_t together = length >= limit ? 1 : std::min(limit / length, batch), most = together * length;
  const int64_t attending = hybridna_attention_scratch(together, w.kv_heads, w.head_dim, keys, step.shared,
                                                       length * (w.heads / w.kv_heads), threads);
  // Grows with the length, so it is not kept.
  const std::unique_ptr<float[]> kept(new float[static_cast<std::size_t>(most * (projected + width) + attending)]);
  float *qkv = kept.get(), *y = qkv + most * projected, *attention_scratch = y + most * width;
  const int64_t span = std::min(most, limit);
  Pieces scratch{keep_scratch(span * (w.hidden + w.mlp.inner))};
  float *middle = scratch.take(span * w.hidden), *inner = scratch.take(span * w.mlp.inner);
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(w.head_dim)));

  for (int64_t b = 0; b < batch; b += together) {
    const int64_t sequences = std::min(batch - b, together), count = sequences * length;
    const float* in = x + b * length * w.hidden;
    const Product whole{length == 1, count, threads};
    whole(normed(in, w.hidden, w.norm, w.eps), w.qkv, projected, nullptr, qkv, false);
    float *k = step.after[0] + b * keys * wide, *v = step.after[1] + b * keys * wide;
    append(w, step.given[0] + b * step.past * wide, step.past, qkv + width, sequences, length, k);
    append(w, step.given[1] + b * step.past * wide, step.past, qkv + width + wide, sequences, length, v);
    hybridna_attention(qkv, length * projected, projected, w.head_dim, k, keys * wide, wide, w.head_dim, v, keys * wide,
                       wide, w.head_dim, step.given[2], wide, w.head_dim, step.given[3], wide, w.head_dim, y, nullptr,
                       attention_scratch, scale, sequences, length, w.heads, w.kv_heads, w.head_dim, keys, step.shared,
                       threads);
    for (int64_t t = 0; t < count; t += span) {
      const int64_t now = std::min(count - t, span);
      const Product product{length == 1, now, threads};
      product(plain(y + t * width, width), w.out, w.hidden, in + t * w.hidden, middle, false);
      feed_forward(w.mlp, middle, w.hidden, inner, out + (b * length + t) * w.hidden, product);
    }
  }
}

}  // namespace

// x and out (batch, length, hidden); all that the steps point to is contiguous. Returns 1 when memory ran out.
HYBRIDNA_EXPORT int hybridna_read_blocks(const Step* steps, int64_t count, const float* x, float* out, int64_t batch,
                                         int64_t length, int64_t threads) {
  try {
    for (int64_t i = 0; i < count; i++, x = out)
      if (steps[i].kind)
        read_attention(*static_cast<const Attention*>(steps[i].weights), steps[i], x, out, batch, length, threads);
      else
        read_mamba(*static_cast<const Mamba*>(steps[i].weights), steps[i], x, out, batch, length, threads);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
