// One token of the Mamba-2 recurrence (ssd_step), each row going on from the state of its parent.
//
// state[parent] read once -> decayed, fed -> written once to the row's own place, and read out as y on the way

#include <cmath>

#include "simd.hpp"

namespace {

// States of so many floats do not stay in the caches until the next token.
constexpr int64_t LARGE = 1 << 21;

// Write around the caches; p on a multiple of the vector's bytes.
HYBRIDNA_INLINE void stream(float* p, vf v) {
#if defined(__AVX512F__)
  __builtin_ia32_movntps512(p, v);
#elif defined(__AVX__)
  __builtin_ia32_movntps256(p, v);
#else
  store(p, v);
#endif
}

HYBRIDNA_INLINE void fence() {
#if defined(__AVX__)
  __builtin_ia32_sfence();
#endif
}

// One head of one row. old, now (head_dim, size)
template <bool around>
void step(const float* x, float dt, float decay, const float* B, const float* C, float D, const float* old, float* now,
          int64_t head_dim, int64_t size, float* y) {
  const int left = static_cast<int>(size % W);
  const int64_t whole = size - left;
  for (int64_t p = 0; p < head_dim; p++, old += size, now += size) {
    const float fed = dt * x[p];
    vf read{};
    for (int64_t n = 0; n < whole; n += W) {
      const vf s = decay * load(old + n) + fed * load(B + n);
      if constexpr (around) stream(now + n, s);
      else store(now + n, s);
      read += s * load(C + n);
    }
    if (left) {
      const vf s = decay * load_part(old + whole, left) + fed * load_part(B + whole, left);
      store_part(now + whole, s, left);
      read += s * load_part(C + whole, left);
    }
    y[p] = sum(read) + D * x[p];
  }
}

}  // namespace

// rows (batch,): which row of `state` each row goes on from; null: its own. y (batch, heads, head_dim), dense
HYBRIDNA_EXPORT void hybridna_ssd_step(
    const float* x, int64_t x_row, int64_t x_head, const float* dt, int64_t dt_row, int64_t dt_head, const float* A,
    const float* B, int64_t b_row, int64_t b_group, const float* C, int64_t c_row, int64_t c_group, const float* D,
    const float* state, const int64_t* rows, float* y, float* after, int64_t batch, int64_t heads, int64_t head_dim,
    int64_t groups, int64_t size, int64_t threads) {
  const int64_t one = head_dim * size, per_group = heads / groups;
  const bool around = batch * heads * one >= LARGE && size % W == 0 && reinterpret_cast<uintptr_t>(after) % (4 * W) == 0;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < batch; i++) {
    const int64_t parent = rows ? rows[i] : i;
    for (int64_t h = 0; h < heads; h++) {
      const int64_t g = h / per_group;
      const float width = dt[i * dt_row + h * dt_head];
      (around ? step<true> : step<false>)(x + i * x_row + h * x_head, width, std::exp(width * A[h]),
                                          B + i * b_row + g * b_group, C + i * c_row + g * c_group, D[h],
                                          state + (parent * heads + h) * one, after + (i * heads + h) * one, head_dim,
                                          size, y + (i * heads + h) * head_dim);
    }
    if (around) fence();
  }
}
