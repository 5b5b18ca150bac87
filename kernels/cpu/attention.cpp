// Causal attention in blocks, float32 (attention).
//
// per (row, key head, block of keys): keys transposed     then per (row, head, block of queries), keys block by block:
// scores^T = K Q^T, running maximum and sum, out^T += V^T exp(scores^T)     -> out / sum
//
// Queries lie along the vectors, so that maxima and sums need no step across a vector.

#include "simd.hpp"

namespace {

constexpr int KEYS = 96;       // of a block; a multiple of every TILE
constexpr int LARGEST = 256;   // head_dim

struct Keys {
  const float *k, *v;
  int64_t count, k_batch, k_time, k_head, v_batch, v_time, v_head;
  int64_t blocks() const { return (count + KEYS - 1) / KEYS; }
};

// Keys of one block, (count, head_dim) -> (head_dim, KEYS), zeros behind the last.
void transpose(const float* k, int64_t stride, int64_t count, int64_t head_dim, float* out) {
  constexpr int64_t side = 16;
  for (int64_t s0 = 0; s0 < KEYS; s0 += side)
    for (int64_t d = 0; d < head_dim; d++)
      for (int64_t s = s0; s < s0 + side; s++) out[d * KEYS + s] = s < count ? k[s * stride + d] : 0.0f;
}

// Running softmax of WIDE queries. out (head_dim, WIDE) is not yet divided by `sums`.
struct Running {
  vf most[2], sums[2];
  alignas(64) float out[LARGEST * WIDE];
};

// One block of keys. Key s is seen by query t where s <= t + limit; all of them where limit >= KEYS.
void attend(const float* queries, const float* keys, const float* values, int64_t value_stride, int64_t count,
            int64_t head_dim, int64_t limit, Running& run) {
  alignas(64) float scores[KEYS * WIDE];
  const vi index[2] = {count_up(), count_up() + W};
  vf most[2] = {run.most[0], run.most[1]};
  for (int64_t from = 0; from < count;)
    from += next_tile(count - from, [&](auto constant) {
      constexpr int R = decltype(constant)::value;
      vf acc[R][2] = {};
      multiply<R>(acc, keys + from, KEYS, queries, WIDE, head_dim);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
        for (int i = 0; i < 2; i++) {
          const int first = static_cast<int>(from + r - limit);
          const vf score = from + r >= count ? splat(-1e30f) : first <= 0 ? acc[r][i] : index[i] >= first ? acc[r][i] : splat(-1e30f);
          most[i] = larger(score, most[i]);
          store(scores + (from + r) * WIDE + i * W, score);
        }
    });
  vf fade[2], sums[2];
  for (int i = 0; i < 2; i++) {
    fade[i] = exponential(run.most[i] - most[i]);
    sums[i] = vf{};
    run.most[i] = most[i];
  }
  for (int64_t s = 0; s < count; s++)
    for (int i = 0; i < 2; i++) {
      const vf weight = exponential(load(scores + s * WIDE + i * W) - most[i]);
      sums[i] += weight;
      store(scores + s * WIDE + i * W, weight);
    }
  // Each block is summed on its own first, which keeps long sums exact.
  for (int i = 0; i < 2; i++) run.sums[i] = run.sums[i] * fade[i] + sums[i];
  for (int64_t d = 0; d < head_dim;)
    d += next_tile(head_dim - d, [&](auto constant) {
      constexpr int R = decltype(constant)::value;
      vf acc[R][2] = {};
      multiply<R>(acc, values + d, value_stride, scores, WIDE, count);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
        for (int i = 0; i < 2; i++) {
          float* out = run.out + (d + r) * WIDE + i * W;
          store(out, load(out) * fade[i] + acc[r][i]);
        }
    });
}

}  // namespace

// Floats of scratch that hybridna_attention needs.
HYBRIDNA_EXPORT int64_t hybridna_attention_scratch(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t keys,
                                                   int64_t shared) {
  const int64_t own = (keys + KEYS - 1) / KEYS, common = (shared + KEYS - 1) / KEYS;
  return kv_heads * head_dim * KEYS * (batch * own + common);
}

// Strides in floats; the last dimension is dense and head_dim even. The last of m keys is the last of n queries;
// `shared` more keys, the same for every row, come before them. out (batch, n, heads, head_dim) is contiguous.
HYBRIDNA_EXPORT void hybridna_attention(const float* q, int64_t q_batch, int64_t q_time, int64_t q_head, const float* k,
                                        int64_t k_batch, int64_t k_time, int64_t k_head, const float* v,
                                        int64_t v_batch, int64_t v_time, int64_t v_head, const float* shared_k,
                                        int64_t sk_time, int64_t sk_head, const float* shared_v, int64_t sv_time,
                                        int64_t sv_head, float* out, float* scratch, float scale, int64_t batch,
                                        int64_t n, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t m,
                                        int64_t shared, int64_t threads) {
  const Keys own{k, v, m, k_batch, k_time, k_head, v_batch, v_time, v_head};
  const Keys common{shared_k, shared_v, shared, 0, sk_time, sk_head, 0, sv_time, sv_head};
  const int64_t size = head_dim * KEYS, per_kv = heads / kv_heads, past = m - n;
  float* common_packed = scratch + batch * kv_heads * own.blocks() * size;
  const int64_t query_blocks = (n + WIDE - 1) / WIDE;
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < batch * kv_heads * own.blocks() + kv_heads * common.blocks(); i++) {
      const bool is_own = i < batch * kv_heads * own.blocks();
      const Keys& keys = is_own ? own : common;
      const int64_t j = is_own ? i : i - batch * kv_heads * own.blocks();
      const int64_t block = j % keys.blocks(), head = j / keys.blocks() % kv_heads, b = j / keys.blocks() / kv_heads;
      const int64_t first = block * KEYS, count = keys.count - first < KEYS ? keys.count - first : KEYS;
      transpose(keys.k + b * keys.k_batch + first * keys.k_time + head * keys.k_head, keys.k_time, count, head_dim,
                scratch + i * size);
    }
    // The last queries see most keys: their units go first.
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < batch * heads * query_blocks; i++) {
      const int64_t head = i % heads, b = i / heads % batch, from = (query_blocks - 1 - i / heads / batch) * WIDE;
      const int64_t kv = head / per_kv, rows = n - from < WIDE ? n - from : WIDE;
      alignas(64) float queries[LARGEST * WIDE];
      Running run;
      run.most[0] = run.most[1] = splat(-1e30f);
      run.sums[0] = run.sums[1] = vf{};
      std::memset(run.out, 0, sizeof(float) * head_dim * WIDE);
      const float* own_q = q + b * q_batch + from * q_time + head * q_head;
      for (int64_t t = 0; t < WIDE; t++)
        for (int64_t d = 0; d < head_dim; d++) queries[d * WIDE + t] = t < rows ? own_q[t * q_time + d] * scale : 0.0f;
      for (int64_t block = 0; block < common.blocks(); block++) {
        const int64_t first = block * KEYS, count = shared - first < KEYS ? shared - first : KEYS;
        attend(queries, common_packed + (kv * common.blocks() + block) * size,
               shared_v + first * sv_time + kv * sv_head, sv_time, count, head_dim, KEYS, run);
      }
      const int64_t seen = past + from + rows;
      for (int64_t first = 0; first < seen; first += KEYS) {
        const int64_t count = seen - first < KEYS ? seen - first : KEYS;
        attend(queries, scratch + ((b * kv_heads + kv) * own.blocks() + first / KEYS) * size,
               v + b * v_batch + first * v_time + kv * v_head, v_time, count, head_dim, past + from - first, run);
      }
      alignas(64) float inverse[WIDE];
      store(inverse, 1.0f / run.sums[0]);
      store(inverse + W, 1.0f / run.sums[1]);
      float* to = out + ((b * n + from) * heads + head) * head_dim;
      for (int64_t t = 0; t < rows; t++)
        for (int64_t d = 0; d < head_dim; d++) to[t * heads * head_dim + d] = run.out[d * WIDE + t] * inverse[t];
    }
  }
}
