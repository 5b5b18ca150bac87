// Causal attention in blocks, float32 (attention).
//
// per (row, key head, block of keys): keys transposed, values packed     then per (row, some heads of one key head,
// block of queries), keys block by block: scores^T = K Q^T, running maximum and sum, out^T += V^T exp(scores^T)
// -> out / sum
//
// Queries lie along the vectors, so that maxima and sums need no step across a vector.

#include <cmath>

#include "simd.hpp"

namespace {

constexpr int KEYS = 96;       // of a block; a multiple of every TILE
constexpr int LARGEST = 256;   // head_dim
constexpr float NEVER = -1e30f;
constexpr int TOGETHER = 4;    // heads at most that read a block of keys while it is near

struct Keys {
  const float *k, *v;
  int64_t count, k_batch, k_time, k_head, v_batch, v_time, v_head;
  int64_t blocks() const { return (count + KEYS - 1) / KEYS; }
};

// Keys of one block, (count, head_dim) -> (head_dim, KEYS), zeros behind the last; then its values, without gaps.
void pack(const float* k, int64_t stride, const float* v, int64_t v_stride, int64_t count, int64_t head_dim,
          float* out) {
  // Few rows at a time: at a power of two apart they fall into the same few lines of the nearest cache.
  constexpr int64_t side = 8, wide = 16;
  for (int64_t s0 = 0; s0 < KEYS; s0 += side)
    for (int64_t d0 = 0; d0 < head_dim; d0 += wide) {
      const int64_t d1 = d0 + wide < head_dim ? d0 + wide : head_dim;
      for (int64_t d = d0; d < d1; d++)
        for (int64_t s = s0; s < s0 + side; s++) out[d * KEYS + s] = s < count ? k[s * stride + d] : 0.0f;
    }
  for (int64_t s = 0; s < count; s++)
    std::memcpy(out + (KEYS + s) * head_dim, v + s * v_stride, sizeof(float) * head_dim);
}

// Running softmax of WIDE queries (head_dim, WIDE). out (head_dim, WIDE) is not yet divided by `sums`.
struct Running {
  vf most[2], sums[2];
  alignas(64) float queries[LARGEST * WIDE], out[LARGEST * WIDE];
};

// One block of keys. Key s is seen by query t where s <= t + limit; all of them where limit >= KEYS.
void attend(const float* keys, int64_t count, int64_t head_dim, int64_t limit, Running& run) {
  const float* values = keys + head_dim * KEYS;
  alignas(64) float scores[KEYS * WIDE];
  const vi index[2] = {count_up(), count_up() + W};
  vf most[2] = {run.most[0], run.most[1]};
  for (int64_t from = 0; from < count;)
    from += next_tile(count - from, [&](auto constant) {
      constexpr int R = decltype(constant)::value;
      vf acc[R][2] = {};
      multiply<R>(acc, keys + from, KEYS, run.queries, WIDE, head_dim);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
        for (int i = 0; i < 2; i++) {
          const int first = static_cast<int>(from + r - limit);
          vf score = acc[r][i];
          // Branches on whole rows: only the blocks on the diagonal, and tiles past the last key, pay for masks.
          if (from + r >= count)
            score = splat(NEVER);
          else if (first > 0)
            score = index[i] >= first ? score : splat(NEVER);
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
      multiply<R>(acc, values + d, head_dim, scores, WIDE, count);
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
  return 2 * kv_heads * head_dim * KEYS * (batch * own + common);
}

// Strides in floats; the last dimension is dense and head_dim even. The last of m keys is the last of n queries;
// `shared` more keys, the same for every row, come before them. out (batch, n, heads, head_dim) is contiguous.
// weight (batch, heads, n): logarithm of the sum that each query's exponentials were divided by; or null.
HYBRIDNA_EXPORT void hybridna_attention(const float* q, int64_t q_batch, int64_t q_time, int64_t q_head, const float* k,
                                        int64_t k_batch, int64_t k_time, int64_t k_head, const float* v,
                                        int64_t v_batch, int64_t v_time, int64_t v_head, const float* shared_k,
                                        int64_t sk_time, int64_t sk_head, const float* shared_v, int64_t sv_time,
                                        int64_t sv_head, float* out, float* weight, float* scratch,
                                        float scale, int64_t batch,
                                        int64_t n, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t m,
                                        int64_t shared, int64_t threads) {
  const Keys own{k, v, m, k_batch, k_time, k_head, v_batch, v_time, v_head};
  const Keys common{shared_k, shared_v, shared, 0, sk_time, sk_head, 0, sv_time, sv_head};
  const int64_t size = 2 * head_dim * KEYS, per_kv = heads / kv_heads, past = m - n;
  float* common_packed = scratch + batch * kv_heads * own.blocks() * size;
  const int64_t query_blocks = (n + WIDE - 1) / WIDE, parts = (per_kv + TOGETHER - 1) / TOGETHER;
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < batch * kv_heads * own.blocks() + kv_heads * common.blocks(); i++) {
      const bool is_own = i < batch * kv_heads * own.blocks();
      const Keys& keys = is_own ? own : common;
      const int64_t j = is_own ? i : i - batch * kv_heads * own.blocks();
      const int64_t block = j % keys.blocks(), head = j / keys.blocks() % kv_heads, b = j / keys.blocks() / kv_heads;
      const int64_t first = block * KEYS, count = keys.count - first < KEYS ? keys.count - first : KEYS;
      pack(keys.k + b * keys.k_batch + first * keys.k_time + head * keys.k_head, keys.k_time,
           keys.v + b * keys.v_batch + first * keys.v_time + head * keys.v_head, keys.v_time, count, head_dim,
           scratch + i * size);
    }
    // The last queries see most keys: their units go first.
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < batch * kv_heads * parts * query_blocks; i++) {
      const int64_t part = i % parts, kv = i / parts % kv_heads, b = i / parts / kv_heads % batch;
      const int64_t from = (query_blocks - 1 - i / parts / kv_heads / batch) * WIDE;
      const int64_t rows = n - from < WIDE ? n - from : WIDE, head = kv * per_kv + part * TOGETHER;
      const int64_t many = per_kv - part * TOGETHER < TOGETHER ? per_kv - part * TOGETHER : TOGETHER;
      Running runs[TOGETHER];
      for (int64_t h = 0; h < many; h++) {
        Running& run = runs[h];
        run.most[0] = run.most[1] = splat(NEVER);
        run.sums[0] = run.sums[1] = vf{};
        std::memset(run.out, 0, sizeof(float) * head_dim * WIDE);
        const float* own_q = q + b * q_batch + from * q_time + (head + h) * q_head;
        for (int64_t t = 0; t < WIDE; t++)
          for (int64_t d = 0; d < head_dim; d++)
            run.queries[d * WIDE + t] = t < rows ? own_q[t * q_time + d] * scale : 0.0f;
      }
      for (int64_t block = 0; block < common.blocks(); block++) {
        const int64_t first = block * KEYS, count = shared - first < KEYS ? shared - first : KEYS;
        for (int64_t h = 0; h < many; h++)
          attend(common_packed + (kv * common.blocks() + block) * size, count, head_dim, KEYS, runs[h]);
      }
      const int64_t seen = past + from + rows;
      for (int64_t first = 0; first < seen; first += KEYS) {
        const int64_t count = seen - first < KEYS ? seen - first : KEYS;
        const float* keys = scratch + ((b * kv_heads + kv) * own.blocks() + first / KEYS) * size;
        for (int64_t h = 0; h < many; h++) attend(keys, count, head_dim, past + from - first, runs[h]);
      }
      for (int64_t h = 0; h < many; h++) {
        alignas(64) float inverse[WIDE];
        store(inverse, 1.0f / runs[h].sums[0]);
        store(inverse + W, 1.0f / runs[h].sums[1]);
        if (weight)
          for (int64_t t = 0; t < rows; t++)
            weight[(b * heads + head + h) * n + from + t] =
                runs[h].most[t / W][t % W] + std::log(runs[h].sums[t / W][t % W]);
        float* to = out + ((b * n + from) * heads + head + h) * head_dim;
        for (int64_t t = 0; t < rows; t++)
          for (int64_t d = 0; d < head_dim; d++)
            to[t * heads * head_dim + d] = runs[h].out[d * WIDE + t] * inverse[t];
      }
    }
  }
}
