// Passes over rows of channels: causal convolution with SiLU, norms, the gate of the MLP.

#include <cmath>

#include "simd.hpp"

namespace {

constexpr int64_t SPAN = 32;  // rows of one unit of work

// One token: bias + sum of `width` earlier inputs, each times its weights, then SiLU. weights (width, channels)
void convolve(const float* const* inputs, const float* weights, const float* bias, int64_t width, int64_t channels,
              float* y) {
  int64_t c = 0;
  for (; c + W <= channels; c += W) {
    vf acc = bias ? load(bias + c) : vf{};
    for (int64_t k = 0; k < width; k++) acc += load(inputs[k] + c) * load(weights + k * channels + c);
    store(y + c, silu(acc));
  }
  if (const int left = static_cast<int>(channels - c)) {
    vf acc = bias ? load_part(bias + c, left) : vf{};
    for (int64_t k = 0; k < width; k++)
      acc += load_part(inputs[k] + c, left) * load_part(weights + k * channels + c, left);
    store_part(y + c, silu(acc), left);
  }
}

// The usual width, with nothing but registers in the inner loop.
void convolve4(const float* const* inputs, const float* weights, const float* bias, int64_t channels, float* y) {
  const float *x0 = inputs[0], *x1 = inputs[1], *x2 = inputs[2], *x3 = inputs[3];
  const float *w0 = weights, *w1 = w0 + channels, *w2 = w1 + channels, *w3 = w2 + channels;
  for (int64_t c = 0; c + W <= channels; c += W) {
    vf acc = load(bias + c);
    acc += load(x0 + c) * load(w0 + c);
    acc += load(x1 + c) * load(w1 + c);
    acc += load(x2 + c) * load(w2 + c);
    acc += load(x3 + c) * load(w3 + c);
    store(y + c, silu(acc));
  }
}

// out = row / root mean square * weight, where `load_row(c, n)` gives the row's vector at c and keeps it in `row`.
template <class F>
HYBRIDNA_INLINE void normalize(F fill, const float* weight, float eps, int64_t width, float* out) {
  vf squares{};
  int64_t c = 0;
  for (; c + W <= width; c += W) {
    const vf v = fill(c, W);
    store(out + c, v);
    squares += v * v;
  }
  const int left = static_cast<int>(width - c);
  if (left) {
    const vf v = fill(c, left);
    store_part(out + c, v, left);
    squares += v * v;
  }
  const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps);
  for (c = 0; c + W <= width; c += W) store(out + c, load(out + c) * scale * load(weight + c));
  if (left) store_part(out + c, load_part(out + c, left) * scale * load_part(weight + c, left), left);
}

}  // namespace

// x (batch, length, channels) with strides; weights (width, channels), bias or null, state (batch, width - 1, channels)
// or null, y contiguous.
HYBRIDNA_EXPORT void hybridna_causal_conv1d(const float* x, int64_t x_batch, int64_t x_time, const float* weights,
                                            const float* bias, const float* state, const float* zeros, float* y,
                                            int64_t batch, int64_t length, int64_t channels, int64_t width,
                                            int64_t threads) {
  const int64_t spans = (length + SPAN - 1) / SPAN;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads))
  for (int64_t i = 0; i < batch * spans; i++) {
    const int64_t b = i / spans, from = i % spans * SPAN, to = from + SPAN < length ? from + SPAN : length;
    const float* inputs[64];
    for (int64_t t = from; t < to; t++) {
      for (int64_t k = 0; k < width; k++) {
        const int64_t at = t - width + 1 + k;
        inputs[k] = at >= 0 ? x + b * x_batch + at * x_time
                    : state ? state + (b * (width - 1) + at + width - 1) * channels
                            : zeros;
      }
      float* out = y + (b * length + t) * channels;
      if (width == 4 && bias && channels % W == 0)
        convolve4(inputs, weights, bias, channels, out);
      else
        convolve(inputs, weights, bias, width, channels, out);
    }
  }
}

// out = norm(y * silu(z)) * weight, row by row. out is contiguous.
HYBRIDNA_EXPORT void hybridna_gated_rms_norm(const float* y, int64_t y_row, const float* z, int64_t z_row,
                                             const float* weight, float eps, float* out, int64_t rows, int64_t width,
                                             int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads))
  for (int64_t i = 0; i < rows; i++) {
    const float *a = y + i * y_row, *g = z + i * z_row;
    normalize([&](int64_t c, int n) { return load_part(a + c, n) * silu(load_part(g + c, n)); }, weight, eps, width,
              out + i * width);
  }
}

// added = x + more, or x alone when more is null; out = norm(added) * weight. All contiguous.
HYBRIDNA_EXPORT void hybridna_add_rms_norm(const float* x, const float* more, const float* weight, float eps,
                                           float* added, float* out, int64_t rows, int64_t width, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads))
  for (int64_t i = 0; i < rows; i++) {
    const float *a = x + i * width, *b = more + i * width;
    float* total = added + i * width;
    if (more)
      normalize(
          [&](int64_t c, int n) {
            const vf v = load_part(a + c, n) + load_part(b + c, n);
            store_part(total + c, v, n);
            return v;
          },
          weight, eps, width, out + i * width);
    else
      normalize([&](int64_t c, int n) { return load_part(a + c, n); }, weight, eps, width, out + i * width);
  }
}

// out = silu(gate) * up; all contiguous; out may be gate.
HYBRIDNA_EXPORT void hybridna_silu_mul(const float* gate, const float* up, float* out, int64_t count, int64_t threads) {
  const int64_t part = 4096, parts = (count + part - 1) / part;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads))
  for (int64_t i = 0; i < parts; i++) {
    const int64_t end = (i + 1) * part < count ? (i + 1) * part : count;
    for (int64_t c = i * part; c < end; c += W) {
      const int n = static_cast<int>(end - c < W ? end - c : W);
      store_part(out + c, silu(load_part(gate + c, n)) * load_part(up + c, n), n);
    }
  }
}
