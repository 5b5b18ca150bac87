// A whole Mamba-2 block with its MLP: the kernels of the other files one after the other, without leaving C++.
//
// x -> norm, in_proj -> convolution, softplus -> scan or step -> gated norm, out_proj, + x -> norm, gate and up, down, +
//
// Few rows at a time, so that all between two products stays in the second cache. The spans are whole chunks of the
// scan, and every kernel gives a row the same bits whatever is beside it: so does the block.

#include <cmath>
#include <vector>

#include "simd.hpp"

extern "C" {
void hybridna_product(const float*, int64_t, const float*, int64_t, const float*, float, const float*, const float*,
                      float*, int64_t, int64_t, int64_t, int64_t, int64_t);
void hybridna_causal_conv1d(const float*, int64_t, int64_t, const float*, const float*, const float*, const float*,
                            float*, int64_t, int64_t, int64_t, int64_t, int64_t);
int64_t hybridna_ssd_scratch(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
void hybridna_ssd_scan(const float*, int64_t, int64_t, int64_t, const float*, int64_t, int64_t, int64_t, const float*,
                       const float*, int64_t, int64_t, int64_t, const float*, int64_t, int64_t, int64_t, const float*,
                       const float*, float*, float*, float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t,
                       int64_t, int64_t);
void hybridna_ssd_step(const float*, int64_t, int64_t, const float*, int64_t, int64_t, const float*, const float*,
                       int64_t, int64_t, const float*, int64_t, int64_t, const float*, const float*, const int64_t*,
                       float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
}

namespace {

constexpr int64_t SPAN = 512;  // rows at a time; whole chunks of the scan

// As block.py lays it out; every field has eight bytes.
struct Weights {
  const float *norm, *in_panels, *conv, *conv_bias, *dt_bias, *A_log, *D, *gated_norm, *out_panels, *mlp_norm,
      *gate_up_panels, *down_panels;
  double eps, gated_eps, mlp_eps, dt_least, dt_most;
  int64_t hidden, heads, head_dim, groups, size, taps, inner;
  int64_t width() const { return heads * head_dim; }
  int64_t channels() const { return width() + 2 * groups * size; }
  int64_t projected() const { return width() + channels() + heads; }
};

// log(1 + e^x), clamped.
void make_steps(const Weights& w, const float* dt, int64_t rows, float* to) {
  const float least = static_cast<float>(w.dt_least), most = static_cast<float>(w.dt_most);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t h = 0; h < w.heads; h++) {
      const float v = dt[r * w.projected() + h] + w.dt_bias[h], step = v > 20.0f ? v : std::log1p(std::exp(v));
      to[r * w.heads + h] = step < least ? least : step > most ? most : step;
    }
}

// conv (sequences, taps - 1, channels): the last inputs, `length` more read from `mixed`.
void keep_inputs(const Weights& w, const float* mixed, int64_t sequences, int64_t length, float* conv) {
  const int64_t kept = w.taps - 1, channels = w.channels(), stays = kept > length ? kept - length : 0;
  for (int64_t s = 0; s < sequences; s++, conv += kept * channels) {
    if (stays) std::memmove(conv, conv + length * channels, sizeof(float) * stays * channels);
    for (int64_t k = stays; k < kept; k++)
      std::memcpy(conv + k * channels, mixed + (s * length + length - kept + k) * w.projected(),
                  sizeof(float) * channels);
  }
}

}  // namespace

// x, out (batch, length, hidden); conv_in, conv (batch, taps - 1, channels); state_in, state (batch, heads, head_dim,
// size); all contiguous. rows (batch,): which row of state_in each row goes on from, for a length of 1 alone; or null.
HYBRIDNA_EXPORT void hybridna_mamba_block(const Weights* weights, const float* x, const float* conv_in,
                                          const float* state_in, const int64_t* rows, float* out, float* conv,
                                          float* state, int64_t batch, int64_t length, int64_t threads) {
  const Weights& w = *weights;
  const int64_t width = w.width(), channels = w.channels(), projected = w.projected(), kept = (w.taps - 1) * channels;
  const int64_t one = width * w.size, wide = w.groups * w.size;
  const int64_t together = length >= SPAN ? 1 : SPAN / length < batch ? SPAN / length : batch;
  const int64_t most = length >= SPAN ? SPAN : together * length;
  const int64_t scan = hybridna_ssd_scratch(together, length < SPAN ? length : SPAN, w.heads, w.head_dim, w.groups, w.size);
  static thread_local std::vector<float> scratch;
  scratch.resize(static_cast<std::size_t>(most * (projected + channels + w.heads + width + w.hidden + w.inner) + scan +
                                          w.taps * channels + w.heads + 64));
  float* at = scratch.data();
  const auto take = [&](int64_t count) { return (at += count) - count; };
  float *mixer_in = take(most * projected), *mixed = take(most * channels), *y = take(most * width);
  float *steps = take(most * w.heads), *middle = take(most * w.hidden), *inner = take(most * w.inner);
  float *taps = take(w.taps * channels), *A = take(w.heads), *scan_scratch = take(scan);
  for (int64_t c = 0; c < channels; c++)
    for (int64_t k = 0; k < w.taps; k++) taps[k * channels + c] = w.conv[c * w.taps + k];
  for (int64_t h = 0; h < w.heads; h++) A[h] = -std::exp(w.A_log[h]);

  for (int64_t b = 0; b < batch; b += together) {
    const int64_t sequences = batch - b < together ? batch - b : together;
    float *own_conv = conv + b * kept, *own_state = state + b * one;
    std::memcpy(own_conv, conv_in + b * kept, sizeof(float) * sequences * kept);
    for (int64_t t = 0; t < length; t += SPAN) {
      const int64_t now = length - t < SPAN ? length - t : SPAN, count = sequences * now, first = b * length + t;
      const float* in = x + first * w.hidden;
      hybridna_product(in, w.hidden, nullptr, 0, w.norm, static_cast<float>(w.eps), w.in_panels, nullptr, mixer_in,
                       count, w.hidden, projected, 0, threads);
      const float* before = mixer_in + width;
      hybridna_causal_conv1d(before, now * projected, projected, taps, w.conv_bias, own_conv, nullptr, mixed, sequences,
                             now, channels, w.taps, threads);
      keep_inputs(w, before, sequences, now, own_conv);
      make_steps(w, before + channels, count, steps);
      const float *B = mixed + width, *C = B + wide;
      if (length == 1)
        hybridna_ssd_step(mixed, channels, w.head_dim, steps, w.heads, 1, A, B, channels, w.size, C, channels, w.size,
                          w.D, rows ? state_in : state_in + b * one, rows ? rows + b : nullptr, y, own_state, sequences,
                          w.heads, w.head_dim, w.groups, w.size, threads);
      else
        hybridna_ssd_scan(mixed, now * channels, channels, w.head_dim, steps, now * w.heads, w.heads, 1, A, B,
                          now * channels, channels, w.size, C, now * channels, channels, w.size, w.D,
                          t ? own_state : state_in + b * one, y, own_state, nullptr, scan_scratch, sequences, now,
                          w.heads, w.head_dim, w.groups, w.size, threads);
      hybridna_product(y, width, mixer_in, projected, w.gated_norm, static_cast<float>(w.gated_eps), w.out_panels, in,
                       middle, count, width, w.hidden, 0, threads);
      hybridna_product(middle, w.hidden, nullptr, 0, w.mlp_norm, static_cast<float>(w.mlp_eps), w.gate_up_panels,
                       nullptr, inner, count, w.hidden, w.inner, 1, threads);
      hybridna_product(inner, w.inner, nullptr, 0, nullptr, 0, w.down_panels, middle, out + first * w.hidden, count,
                       w.inner, w.hidden, 0, threads);
    }
  }
}
