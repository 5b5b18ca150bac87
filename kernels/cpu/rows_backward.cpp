// Gradients of the passes in rows.cpp; what the forward pass computed is computed again from its inputs.
//
// Sums over rows (of weights and biases) come out in parts, one per unit of work, to be summed by the caller.

#include <cmath>

#include "simd.hpp"

namespace {

constexpr int64_t SPAN = 64;  // rows of one unit of work

HYBRIDNA_INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exponential(-x)); }

// silu(x) and its derivative.
HYBRIDNA_INLINE void silu_slope(vf x, vf& value, vf& slope) {
  const vf s = sigmoid(x);
  // Far below zero x * s would be infinity times nothing.
  value = x < -87.0f ? vf{} : x * s;
  slope = s + value * (1.0f - s);
}

HYBRIDNA_INLINE int part(int64_t width, int64_t c) { return static_cast<int>(width - c < W ? width - c : W); }

struct Convolution {
  const float *x, *weights, *bias, *state, *dy;
  float *dx, *dstate;
  int64_t x_time, length, channels;
};

// Tokens [from, to) of one row, one vector of channels: dx, and the sums of the weights' and the bias's gradients.
template <int K>
void convolve_back(const Convolution& v, int64_t from, int64_t to, int64_t c, float* sums) {
  const int n = part(v.channels, c);
  vf taps[K], dw[K] = {}, ring[K] = {}, db{};
  for (int k = 0; k < K; k++) taps[k] = load_part(v.weights + k * v.channels + c, n);
  const vf bias = v.bias ? load_part(v.bias + c, n) : vf{};
  const auto input = [&](int64_t t) {
    if (t >= 0) return load_part(v.x + t * v.x_time + c, n);
    return v.state ? load_part(v.state + (t + K - 1) * v.channels + c, n) : vf{};
  };
  vf seen[K];  // inputs t - K + 1 ... t
  const int64_t last = to + K - 1 < v.length ? to + K - 1 : v.length;
  for (int k = 1; k < K; k++) seen[k - 1] = input(last - K + k);
  const int64_t stop = from == 0 && v.dstate ? 1 - K : from;
  for (int64_t t = last - 1; t >= stop; t--) {
#pragma GCC unroll 8
    for (int k = K - 1; k > 0; k--) {
      seen[k] = seen[k - 1];
      ring[k] = ring[k - 1];
    }
    ring[0] = vf{};
    if (t >= 0) {
      seen[0] = input(t - K + 1);
      vf u = bias;
#pragma GCC unroll 8
      for (int k = 0; k < K; k++) u += seen[k] * taps[k];
      vf value, slope;
      silu_slope(u, value, slope);
      ring[0] = load_part(v.dy + t * v.channels + c, n) * slope;
    }
    if (t >= to) continue;
    vf dx{};
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) dx += taps[K - 1 - k] * ring[k];
    store_part(t >= 0 ? v.dx + t * v.channels + c : v.dstate + (t + K - 1) * v.channels + c, dx, n);
    if (t < 0) continue;
    db += ring[0];
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) dw[k] += ring[0] * seen[k];
  }
  for (int k = 0; k < K; k++) store_part(sums + k * v.channels + c, dw[k], n);
  store_part(sums + K * v.channels + c, db, n);
}

}  // namespace

HYBRIDNA_EXPORT int64_t hybridna_units(int64_t rows) { return (rows + SPAN - 1) / SPAN; }

// Shapes as in hybridna_causal_conv1d; dy, dx contiguous; dstate (batch, width - 1, channels) or null.
// sums (batch, units(length), width + 1, channels): per unit, of the weights and then of the bias. width 2, 3 or 4.
HYBRIDNA_EXPORT void hybridna_causal_conv1d_backward(const float* x, int64_t x_batch, int64_t x_time,
                                                     const float* weights, const float* bias, const float* state,
                                                     const float* dy, float* dx, float* dstate, float* sums,
                                                     int64_t batch, int64_t length, int64_t channels, int64_t width,
                                                     int64_t threads) {
  const int64_t units = hybridna_units(length);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads))
  for (int64_t i = 0; i < batch * units; i++) {
    const int64_t b = i / units, from = i % units * SPAN, to = from + SPAN < length ? from + SPAN : length;
    const int64_t own = b * length * channels, before = b * (width - 1) * channels;
    const Convolution v{x + b * x_batch, weights, bias, state ? state + before : nullptr, dy + own, dx + own,
                        dstate ? dstate + before : nullptr, x_time, length, channels};
    float* to_sums = sums + i * (width + 1) * channels;
    for (int64_t c = 0; c < channels; c += W) {
      if (width == 4) convolve_back<4>(v, from, to, c, to_sums);
      if (width == 3) convolve_back<3>(v, from, to, c, to_sums);
      if (width == 2) convolve_back<2>(v, from, to, c, to_sums);
    }
  }
}

// Of out = norm(y * silu(z)) * weight; dout, dy, dz contiguous. sums (units(rows), width)
HYBRIDNA_EXPORT void hybridna_gated_rms_norm_backward(const float* y, int64_t y_row, const float* z, int64_t z_row,
                                                      const float* weight, float eps, const float* dout, float* dy,
                                                      float* dz, float* sums, int64_t rows, int64_t width,
                                                      int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads))
  for (int64_t unit = 0; unit < hybridna_units(rows); unit++) {
    float* dw = sums + unit * width;
    std::memset(dw, 0, sizeof(float) * width);
    const int64_t end = (unit + 1) * SPAN < rows ? (unit + 1) * SPAN : rows;
    for (int64_t i = unit * SPAN; i < end; i++) {
      const float *a = y + i * y_row, *g = z + i * z_row, *d = dout + i * width;
      float *da = dy + i * width, *dg = dz + i * width;
      vf squares{}, along{};
      for (int64_t c = 0; c < width; c += W) {
        const int n = part(width, c);
        vf value, slope;
        silu_slope(load_part(g + c, n), value, slope);
        const vf gated = load_part(a + c, n) * value;
        squares += gated * gated;
        along += gated * load_part(d + c, n) * load_part(weight + c, n);
        store_part(da + c, value, n);
        store_part(dg + c, slope, n);
      }
      const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps);
      const float back = scale * scale * sum(along) / static_cast<float>(width);
      for (int64_t c = 0; c < width; c += W) {
        const int n = part(width, c);
        const vf in = load_part(a + c, n), value = load_part(da + c, n), slope = load_part(dg + c, n);
        const vf gated = in * value, given = load_part(d + c, n);
        const vf inner = scale * (load_part(weight + c, n) * given - back * gated);
        store_part(da + c, inner * value, n);
        store_part(dg + c, inner * in * slope, n);
        store_part(dw + c, load_part(dw + c, n) + given * gated * scale, n);
      }
    }
  }
}

// Of out = norm(total) * weight, plus the gradient `more` of total itself or null; all contiguous. sums (units, width)
HYBRIDNA_EXPORT void hybridna_rms_norm_backward(const float* total, const float* weight, float eps, const float* dout,
                                                const float* more, float* dtotal, float* sums, int64_t rows,
                                                int64_t width, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads))
  for (int64_t unit = 0; unit < hybridna_units(rows); unit++) {
    float* dw = sums + unit * width;
    std::memset(dw, 0, sizeof(float) * width);
    const int64_t end = (unit + 1) * SPAN < rows ? (unit + 1) * SPAN : rows;
    for (int64_t i = unit * SPAN; i < end; i++) {
      const float *a = total + i * width, *d = dout + i * width, *m = more + i * width;
      float* da = dtotal + i * width;
      vf squares{}, along{};
      for (int64_t c = 0; c < width; c += W) {
        const int n = part(width, c);
        const vf in = load_part(a + c, n);
        squares += in * in;
        along += in * load_part(d + c, n) * load_part(weight + c, n);
      }
      const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps);
      const float back = scale * scale * sum(along) / static_cast<float>(width);
      for (int64_t c = 0; c < width; c += W) {
        const int n = part(width, c);
        const vf in = load_part(a + c, n), given = load_part(d + c, n);
        const vf inner = scale * (load_part(weight + c, n) * given - back * in);
        store_part(da + c, more ? inner + load_part(m + c, n) : inner, n);
        store_part(dw + c, load_part(dw + c, n) + given * in * scale, n);
      }
    }
  }
}

// Of out = silu(gate) * up; all contiguous.
HYBRIDNA_EXPORT void hybridna_silu_mul_backward(const float* gate, const float* up, const float* dout, float* dgate,
                                                float* dup, int64_t count, int64_t threads) {
  const int64_t size = 4096, parts = (count + size - 1) / size;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads))
  for (int64_t i = 0; i < parts; i++) {
    const int64_t end = (i + 1) * size < count ? (i + 1) * size : count;
    for (int64_t c = i * size; c < end; c += W) {
      const int n = static_cast<int>(end - c < W ? end - c : W);
      vf value, slope;
      silu_slope(load_part(gate + c, n), value, slope);
      const vf given = load_part(dout + c, n);
      store_part(dgate + c, given * load_part(up + c, n) * slope, n);
      store_part(dup + c, given * value, n);
    }
  }
}
