// Gradients of the Mamba-2 recurrence (ssd_scan), chunk after chunk from the last to the first.
//
// per (row, group, some heads), per chunk: B C^T once; per head: decay, M = decay * C B^T; from the incoming state that
// the forward pass kept, and the gradient of the outgoing one:
// dx' = M^T dy + rest B dS;  dM = dy x'^T;  dC = decay S dy + dG B;  dB = rest dS x' + dG^T C;  dS = total dS + C^T dy
//
// Gradients of the decay are summed over the pairs of tokens that it lies between, not taken as differences of sums.

#include <vector>

#include "simd.hpp"

namespace {

constexpr int Q = 64;  // tokens of a chunk, as in scan.cpp

struct Shape {
  int64_t batch, length, heads, head_dim, groups, size;
  int64_t wide_dim() const { return (head_dim + WIDE - 1) / WIDE * WIDE; }
  int64_t wide_size() const { return (size + WIDE - 1) / WIDE * WIDE; }
  // Each group's heads are summed in this many parts, whatever the number of threads.
  int64_t parts() const { return heads / groups < 4 ? heads / groups : 4; }
};

// out(row, column) for all rows below `rows` and columns in pairs of vectors, by `finish(row, column, first, second)`.
// a (depth, lda) holds the rows side by side, b (depth, ldb) the columns; `from` and `to` give the depth's part per tile.
template <class Range, class Columns, class Finish>
HYBRIDNA_INLINE void product(int64_t rows, Columns columns, const float* a, int64_t lda, const float* b, int64_t ldb,
                             Range range, Finish finish) {
  for (int64_t r0 = 0; r0 < rows;)
    r0 += next_tile(rows - r0, [&](auto constant) {
      constexpr int R = decltype(constant)::value;
      const auto [from, to] = range(r0, r0 + R);
      const int64_t last = columns(r0 + R);
      for (int64_t c = 0; c < last; c += WIDE) {
        vf acc[R][2] = {};
        multiply<R>(acc, a + from * lda + r0, lda, b + from * ldb + c, ldb, to - from);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) finish(r0 + r, c, acc[r][0], acc[r][1]);
      }
    });
}

struct Span {
  int64_t from, to;
};

HYBRIDNA_INLINE void add(float* to, vf first, vf second) {
  store(to, load(to) + first);
  store(to + W, load(to + W) + second);
}

// Rows of `width` floats into rows of `wide`, zeros behind each and below the last.
void bring(const float* from, int64_t stride, int64_t rows, int64_t width, int64_t wide, int64_t all, float* to) {
  for (int64_t t = 0; t < all; t++) {
    float* row = to + t * wide;
    if (t < rows) {
      std::memcpy(row, from + t * stride, sizeof(float) * width);
      std::memset(row + width, 0, sizeof(float) * (wide - width));
    } else {
      std::memset(row, 0, sizeof(float) * wide);
    }
  }
}

struct Scratch {
  std::vector<float> held;
  float *B, *C, *Bt, *Ct, *G, *dG, *dGt, *dB, *dC;                           // of a part
  float *x, *fed, *fed_t, *dy, *dy_t, *decays, *M, *S, *dS, *dS_t, *dfed;    // of a head
  explicit Scratch(const Shape& s, int64_t heads) {
    const int64_t n = s.wide_size(), p = s.wide_dim();
    const int64_t sizes[] = {Q * n, Q * n, n * Q, n * Q, Q * Q, Q * Q, Q * Q, Q * n, Q * n, Q * p,         Q * p,
                             p * Q, Q * p, p * Q, Q * Q, Q * Q, p * n, heads * n * p, p * n, Q * p};
    float** places[] = {&B, &C,    &Bt,     &Ct, &G, &dG, &dGt,  &dB,  &dC,   &x,
                        &fed, &fed_t, &dy, &dy_t, &decays, &M, &S, &dS, &dS_t, &dfed};
    int64_t total = 16;
    for (int64_t size : sizes) total += (size + 31) / 16 * 16;
    held.assign(total, 0.0f);
    float* at = held.data() + (16 - reinterpret_cast<uintptr_t>(held.data()) / sizeof(float) % 16) % 16;
    for (int i = 0; i < 20; i++) {
      *places[i] = at;
      at += (sizes[i] + 31) / 16 * 16;
    }
  }
};

struct Head {
  float A, D, *dx, *ddt, *dA, *dD;
  const float *x, *dt, *dy, *kept;
  int64_t stride_x, stride_dt;
};

// One chunk of one head. dS (size, head_dim): gradient of the state after the chunk, replaced by that before it.
void step_back(const Shape& s, const Scratch& w, const Head& h, int64_t rows, float* dS) {
  const int64_t n = s.wide_size(), p = s.wide_dim(), stride = s.heads * s.head_dim;
  alignas(64) float high[Q], low[Q], decay[Q], step[Q], rest[Q], out[Q], in[Q], columns[Q] = {};
  double sum = 0;
  for (int64_t t = 0; t < Q; t++) {
    step[t] = t < rows ? h.dt[t * h.stride_dt] : 0.0f;
    sum += static_cast<double>(step[t]) * h.A;
    high[t] = static_cast<float>(sum);
    low[t] = static_cast<float>(sum - high[t]);
  }
  for (int64_t t = 0; t < Q; t += W) {
    const vf a = load(high + t), b = load(low + t);
    store(decay + t, exponential(a + b));
    store(rest + t, exponential((high[Q - 1] - a) + (low[Q - 1] - b)));
  }
  const float total = decay[Q - 1];
  bring(h.x, h.stride_x, rows, s.head_dim, p, Q, w.x);
  bring(h.dy, stride, rows, s.head_dim, p, Q, w.dy);
  for (int64_t t = 0; t < Q; t++)
    for (int64_t c = 0; c < p; c += W) store(w.fed + t * p + c, load(w.x + t * p + c) * step[t]);
  transpose(w.fed, p, Q, p, w.fed_t, Q);
  transpose(w.dy, p, Q, p, w.dy_t, Q);
  transpose(dS, p, n, p, w.dS_t, n);
  bring(h.kept, s.size, s.head_dim, s.size, n, p, w.S);  // (head_dim, size)

  const vi index = count_up();
  for (int64_t t = 0; t < Q; t++) {
    // Columns in use reach up to the end of the tile that holds the diagonal.
    const int64_t end = (t + TILE) / WIDE * WIDE + WIDE < Q ? (t + TILE) / WIDE * WIDE + WIDE : Q;
    for (int64_t c = 0; c < end; c += W) {
      const vf span = (high[t] - load(high + c)) + (low[t] - load(low + c));
      const vf e = index + static_cast<int>(c) <= static_cast<int>(t) ? exponential(span) : vf{};
      store(w.decays + t * Q + c, e);
      store(w.M + t * Q + c, e * load(w.G + t * Q + c));
    }
    for (int64_t c = end; c < Q; c += W) store(w.M + t * Q + c, vf{});
  }

  // Gradient of what is fed in. (Q, head_dim)
  const auto whole = [](int64_t depth) { return [depth](int64_t, int64_t) { return Span{0, depth}; }; };
  const auto all = [](int64_t width) { return [width](int64_t) { return width; }; };
  for (int64_t r0 = 0; r0 < Q;)
    r0 += next_tile(Q - r0, [&](auto constant) {
      constexpr int R = decltype(constant)::value;
      for (int64_t c = 0; c < p; c += WIDE) {
        vf acc[R][2] = {};
        multiply<R>(acc, w.Bt + r0, Q, dS + c, p, s.size);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          acc[r][0] *= rest[r0 + r];
          acc[r][1] *= rest[r0 + r];
        }
        multiply<R>(acc, w.M + r0 * Q + r0, Q, w.dy + r0 * p + c, p, Q - r0);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          store(w.dfed + (r0 + r) * p + c, acc[r][0]);
          store(w.dfed + (r0 + r) * p + c + W, acc[r][1]);
        }
      }
    });

  // Gradient of C B^T; M becomes the gradient of the logarithm of each pair's decay.
  product(Q, [](int64_t end) { return end < Q ? end : int64_t{Q}; }, w.dy_t, Q, w.fed_t, Q, whole(s.head_dim),
          [&](int64_t t, int64_t c, vf first, vf second) {
            const int64_t at = t * Q + c;
            add(w.dG + at, load(w.decays + at) * first, load(w.decays + at + W) * second);
            store(w.M + at, load(w.M + at) * first);
            store(w.M + at + W, load(w.M + at + W) * second);
          });

  // The states' share of dC and dB; out[t] and in[t] are the gradients of log decay up to t, and from t to the end.
  alignas(64) vf sums[Q];
  for (int64_t t = 0; t < Q; t++) sums[t] = vf{};
  product(Q, all(n), w.dy_t, Q, w.S, n, whole(s.head_dim), [&](int64_t t, int64_t c, vf first, vf second) {
    first *= decay[t];
    second *= decay[t];
    add(w.dC + t * n + c, first, second);
    sums[t] += first * load(w.C + t * n + c) + second * load(w.C + t * n + c + W);
  });
  for (int64_t t = 0; t < Q; t++) {
    out[t] = ::sum(sums[t]);
    sums[t] = vf{};
  }
  product(Q, all(n), w.fed_t, Q, w.dS_t, n, whole(s.head_dim), [&](int64_t t, int64_t c, vf first, vf second) {
    first *= rest[t];
    second *= rest[t];
    add(w.dB + t * n + c, first, second);
    sums[t] += first * load(w.B + t * n + c) + second * load(w.B + t * n + c + W);
  });
  for (int64_t t = 0; t < Q; t++) in[t] = ::sum(sums[t]);
  vf crossing{};
  for (int64_t i = 0; i < p * n; i += W) crossing += load(w.S + i) * load(w.dS_t + i);

  // The decay of token t lies between all pairs s < t <= u.
  double before = static_cast<double>(total) * ::sum(crossing), dA = 0, dD = 0;
  for (int64_t t = 0; t < rows; t++) before += in[t];
  for (int64_t t = rows - 1; t >= 0; t--) {
    before += out[t];
    before -= in[t];
    vf pairs{};
    for (int64_t c = 0; c <= t; c += W) {
      const vf v = load(columns + c) + load(w.M + t * Q + c);
      store(columns + c, v);
      pairs += index + static_cast<int>(c) < static_cast<int>(t) ? v : vf{};
    }
    const double between = before + ::sum(pairs);
    vf fed{}, passed{};
    float* dx = h.dx + t * stride;
    for (int64_t c = 0; c < p; c += W) {
      const int count = static_cast<int>(s.head_dim - c < W ? s.head_dim - c : W);
      if (count <= 0) break;
      const vf x = load(w.x + t * p + c), d = load(w.dfed + t * p + c), dy = load(w.dy + t * p + c);
      fed += x * d;
      passed += x * dy;
      store_part(dx + c, d * step[t] + h.D * dy, count);
    }
    h.ddt[t * s.heads] = static_cast<float>(h.A * between) + ::sum(fed);
    dA += step[t] * between;
    dD += ::sum(passed);
  }
  *h.dA += static_cast<float>(dA);
  *h.dD += static_cast<float>(dD);

  for (int64_t t = 0; t < Q; t++)
    for (int64_t c = 0; c < p; c += W) store(w.dy + t * p + c, load(w.dy + t * p + c) * decay[t]);
  product(s.size, all(p), w.C, n, w.dy, p, whole(rows), [&](int64_t r, int64_t c, vf first, vf second) {
    float* at = dS + r * p + c;
    store(at, total * load(at) + first);
    store(at + W, total * load(at + W) + second);
  });
}

}  // namespace

// Strides in floats; the last dimension of every tensor is dense; what has no strides is contiguous.
// kept (batch, heads, chunks, head_dim, size): the state before each chunk. dlast and dstate (batch, heads, head_dim,
// size) may be null. dx (batch, length, heads, head_dim), ddt (batch, length, heads), dA and dD (batch, heads),
// dB and dC (parts, batch, length, groups, size), to be summed over parts.
HYBRIDNA_EXPORT void hybridna_ssd_backward(const float* x, int64_t x_batch, int64_t x_time, int64_t x_head,
                                           const float* dt, int64_t dt_batch, int64_t dt_time, int64_t dt_head,
                                           const float* A, const float* B, int64_t b_batch, int64_t b_time,
                                           int64_t b_group, const float* C, int64_t c_batch, int64_t c_time,
                                           int64_t c_group, const float* D, const float* kept, const float* dy,
                                           const float* dlast, float* dx, float* ddt, float* dA, float* dB, float* dC,
                                           float* dD, float* dstate, int64_t batch, int64_t length, int64_t heads,
                                           int64_t head_dim, int64_t groups, int64_t size, int64_t threads) {
  const Shape s{batch, length, heads, head_dim, groups, size};
  const int64_t chunks = (length + Q - 1) / Q, per_group = heads / groups, parts = s.parts();
  const int64_t together = (per_group + parts - 1) / parts, n = s.wide_size(), p = s.wide_dim();
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    Scratch w(s, together);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < batch * groups * parts; i++) {
      const int64_t part = i % parts, g = i / parts % groups, b = i / parts / groups;
      const int64_t start = g * per_group + part * together, most = (g + 1) * per_group;
      const int64_t begin = start < most ? start : most, end = start + together < most ? start + together : most;
      for (int64_t h = begin; h < end; h++) {
        float* dS = w.dS + (h - begin) * n * p;
        std::memset(dS, 0, sizeof(float) * n * p);
        if (dlast)
          for (int64_t r = 0; r < head_dim; r++)
            for (int64_t c = 0; c < size; c++) dS[c * p + r] = dlast[((b * heads + h) * head_dim + r) * size + c];
        dA[b * heads + h] = dD[b * heads + h] = 0;
      }
      for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
        const int64_t first = chunk * Q, rows = length - first < Q ? length - first : Q;
        bring(B + b * b_batch + first * b_time + g * b_group, b_time, rows, size, n, Q, w.B);
        bring(C + b * c_batch + first * c_time + g * c_group, c_time, rows, size, n, Q, w.C);
        transpose(w.B, n, Q, n, w.Bt, Q);
        transpose(w.C, n, Q, n, w.Ct, Q);
        product(Q, [](int64_t to) { return to < Q ? to : int64_t{Q}; }, w.Ct, Q, w.Bt, Q,
                [&](int64_t, int64_t) { return Span{0, size}; },
                [&](int64_t t, int64_t c, vf one, vf two) {
                  store(w.G + t * Q + c, one);
                  store(w.G + t * Q + c + W, two);
                });
        std::memset(w.dG, 0, sizeof(float) * Q * Q);
        std::memset(w.dB, 0, sizeof(float) * Q * n);
        std::memset(w.dC, 0, sizeof(float) * Q * n);
        for (int64_t h = begin; h < end; h++) {
          const int64_t at = (b * length + first) * heads + h;
          const Head head{A[h], D[h], dx + at * head_dim, ddt + at, dA + b * heads + h, dD + b * heads + h,
                          x + b * x_batch + first * x_time + h * x_head, dt + b * dt_batch + first * dt_time + h * dt_head,
                          dy + at * head_dim, kept + ((b * heads + h) * chunks + chunk) * head_dim * size, x_time, dt_time};
          step_back(s, w, head, rows, w.dS + (h - begin) * n * p);
        }
        transpose(w.dG, Q, Q, Q, w.dGt, Q);
        const auto width = [n](int64_t) { return n; };
        const int64_t place = ((part * batch + b) * length + first) * groups + g;
        const auto give = [&](float* to, const float* own) {
          return [=](int64_t t, int64_t c, vf one, vf two) {
            if (t >= rows) return;
            const int64_t left = size - c;
            float* row = to + (place + t * groups) * size + c;
            if (left > 0) store_part(row, one + load(own + t * n + c), static_cast<int>(left < W ? left : W));
            if (left > W)
              store_part(row + W, two + load(own + t * n + c + W), static_cast<int>(left < WIDE ? left - W : W));
          };
        };
        product(Q, width, w.dGt, Q, w.B, n, [](int64_t, int64_t to) { return Span{0, to < Q ? to : int64_t{Q}}; },
                give(dC, w.dC));
        product(Q, width, w.dG, Q, w.C, n, [](int64_t from, int64_t) { return Span{from, int64_t{Q}}; },
                give(dB, w.dB));
      }
      for (int64_t h = begin; h < end && dstate; h++)
        for (int64_t r = 0; r < head_dim; r++)
          for (int64_t c = 0; c < size; c++)
            dstate[((b * heads + h) * head_dim + r) * size + c] = w.dS[(h - begin) * n * p + c * p + r];
    }
  }
}
