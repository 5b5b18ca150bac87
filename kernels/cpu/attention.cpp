// Causal attention in blocks, float32 (attention).
//
// per (row, key head, block of keys): keys transposed, values packed     then per (row, key head, some tiles of columns),
// keys block by block: scores^T = K Q^T, running maximum and sum, out^T += V^T exp(scores^T)     -> out / sum
//
// Columns are the queries of all heads that share a key head, token after token: they lie along the vectors, so that
// maxima and sums need no step across a vector, and few tokens of several heads fill one. Where all columns fit one
// vector, keys and values are read where they lie: each is needed once.

#include <cmath>

#include "simd.hpp"

namespace {

constexpr int KEYS = 96;       // of a block; a multiple of every TILE
constexpr int LARGEST = 256;   // head_dim
constexpr float NEVER = -1e30f;
constexpr int TOGETHER = 4;    // tiles that read a block of keys while it is near
constexpr int64_t NEAR = 1 << 18;  // floats that stay in the second cache

struct Keys {
  const float *k, *v;
  int64_t count, k_batch, k_time, k_head, v_batch, v_time, v_head;
  int64_t blocks() const { return (count + KEYS - 1) / KEYS; }
};

// Keys of one block, (count, head_dim) -> (head_dim, KEYS), zeros behind the last; then its values, without gaps.
void pack(const float* k, int64_t stride, const float* v, int64_t v_stride, int64_t count, int64_t head_dim,
          float* out) {
  // Few rows at a time: at a power of two apart they fall into the same few lines of the nearest cache.
  constexpr int64_t side = 16, wide = 16;
  for (int64_t s0 = 0; s0 < KEYS; s0 += side)
    for (int64_t d0 = 0; d0 < head_dim; d0 += wide) {
      if (s0 + side <= count && d0 + wide <= head_dim && side % W == 0) {
        transpose(k + s0 * stride + d0, stride, side, wide, out + d0 * KEYS + s0, KEYS);
        continue;
      }
      const int64_t d1 = d0 + wide < head_dim ? d0 + wide : head_dim;
      for (int64_t d = d0; d < d1; d++)
        for (int64_t s = s0; s < s0 + side; s++) out[d * KEYS + s] = s < count ? k[s * stride + d] : 0.0f;
    }
  for (int64_t s = 0; s < count; s++)
    std::memcpy(out + (KEYS + s) * head_dim, v + s * v_stride, sizeof(float) * head_dim);
}

// Running softmax of a tile of columns, in one vector or two. out (head_dim, WIDE) is not yet divided by `sums`.
struct Tile {
  int vectors;
  int64_t least, seen;  // the last key that every column sees; all keys before `seen` are seen by some
  vi limit[2];          // the last key that each column sees
  vf most[2], sums[2];
  alignas(64) float queries[LARGEST * WIDE], out[LARGEST * WIDE];
};

// Keys and values of one block: packed ones, or as they lie, so many floats apart.
struct Packed {
  const float* at;
  template <int R, int V>
  void score(vf (&acc)[R][V], int64_t from, int64_t, const float* queries, int64_t head_dim) const {
    multiply<R>(acc, at + from, KEYS, queries, WIDE, head_dim);
  }
  const float* values(int64_t head_dim) const { return at + head_dim * KEYS; }
  int64_t apart(int64_t head_dim) const { return head_dim; }
};

struct Lying {
  const float *k, *v;
  int64_t k_time, v_time;
  template <int R, int V>
  void score(vf (&acc)[R][V], int64_t from, int64_t count, const float* queries, int64_t head_dim) const {
    const float* rows[R];
    // A tile's rows past the last key repeat it.
    for (int r = 0; r < R; r++) rows[r] = k + (from + r < count ? from + r : count - 1) * k_time;
    for (int64_t d = 0; d < head_dim; d++, queries += WIDE) {
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
        for (int i = 0; i < V; i++) acc[r][i] += splat(rows[r][d]) * load(queries + i * W);
    }
  }
  const float* values(int64_t) const { return v; }
  int64_t apart(int64_t) const { return v_time; }
};

// One block of `count` keys, the first of them `first`; `masked`: not all columns see them all.
template <int V, class Block>
void attend(const Block& block, int64_t first, int64_t count, int64_t head_dim, bool masked, Tile& tile) {
  const float* values = block.values(head_dim);
  alignas(64) float scores[KEYS * V * W];
  vf most[V];
  for (int i = 0; i < V; i++) most[i] = tile.most[i];
  for (int64_t from = 0; from < count;)
    from += next_tile(count - from, [&](auto constant) {
      constexpr int R = decltype(constant)::value;
      vf acc[R][V] = {};
      block.score(acc, from, count, tile.queries, head_dim);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
        for (int i = 0; i < V; i++) {
          const int at = static_cast<int>(first + from + r);
          vf score = acc[r][i];
          // Branches on whole rows: only the blocks on the diagonal, and tiles past the last key, pay for masks.
          if (from + r >= count)
            score = splat(NEVER);
          else if (masked)
            score = tile.limit[i] >= at ? score : splat(NEVER);
          most[i] = larger(score, most[i]);
          store(scores + ((from + r) * V + i) * W, score);
        }
    });
  vf fade[V], sums[V];
  for (int i = 0; i < V; i++) {
    fade[i] = exponential(tile.most[i] - most[i]);
    sums[i] = vf{};
    tile.most[i] = most[i];
  }
  for (int64_t s = 0; s < count; s++)
    for (int i = 0; i < V; i++) {
      const vf weight = exponential(load(scores + (s * V + i) * W) - most[i]);
      sums[i] += weight;
      store(scores + (s * V + i) * W, weight);
    }
  // Each block is summed on its own first, which keeps long sums exact.
  for (int i = 0; i < V; i++) tile.sums[i] = tile.sums[i] * fade[i] + sums[i];
  for (int64_t d = 0; d < head_dim;)
    d += next_tile(head_dim - d, [&](auto constant) {
      constexpr int R = decltype(constant)::value;
      vf acc[R][V] = {};
      multiply<R>(acc, values + d, block.apart(head_dim), scores, V * W, count);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
        for (int i = 0; i < V; i++) {
          float* out = tile.out + (d + r) * WIDE + i * W;
          store(out, load(out) * fade[i] + acc[r][i]);
        }
    });
}

void attend(const float* packed, int64_t first, int64_t count, int64_t head_dim, bool masked, Tile& tile) {
  if (tile.vectors == 1)
    attend<1>(Packed{packed}, first, count, head_dim, masked, tile);
  else
    attend<2>(Packed{packed}, first, count, head_dim, masked, tile);
}

// All keys of one row and key head for one tile of one vector, from where they lie. `masked`: they are the last ones.
void attend_all(const Keys& keys, int64_t b, int64_t head, int64_t seen, int64_t head_dim, bool masked, Tile& tile) {
  for (int64_t first = 0; first < seen; first += KEYS) {
    const int64_t count = seen - first < KEYS ? seen - first : KEYS;
    const Lying block{keys.k + b * keys.k_batch + first * keys.k_time + head * keys.k_head,
                      keys.v + b * keys.v_batch + first * keys.v_time + head * keys.v_head, keys.k_time, keys.v_time};
    attend<1>(block, first, count, head_dim, masked && first + count - 1 > tile.least, tile);
  }
}

// Rows whose packed keys stay in a cache, and at least enough for every thread.
int64_t count_together(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t keys, int64_t threads) {
  const int64_t near = NEAR / (2 * kv_heads * head_dim * keys), least = 2 * threads;
  const int64_t some = near > least ? near : least;
  return some < batch ? some : batch;
}

// hybridna_attention for so few rows.
void attend_rows(const float* q, int64_t q_batch, int64_t q_time, int64_t q_head, const Keys& own, const Keys& common,
                 float* out, float* weight, float* scratch, float scale, int64_t batch, int64_t n, int64_t heads,
                 int64_t kv_heads, int64_t head_dim, int64_t threads) {
  const int64_t size = 2 * head_dim * KEYS, per_kv = heads / kv_heads, past = own.count - n;
  float* common_packed = scratch + batch * kv_heads * own.blocks() * size;
  const int64_t columns = n * per_kv;
  const bool lie = columns <= W;  // keys are read where they lie
  const int64_t parts = (columns + TOGETHER * WIDE - 1) / (TOGETHER * WIDE);
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < (lie ? 0 : batch * kv_heads * own.blocks() + kv_heads * common.blocks()); i++) {
      const bool is_own = i < batch * kv_heads * own.blocks();
      const Keys& keys = is_own ? own : common;
      const int64_t j = is_own ? i : i - batch * kv_heads * own.blocks();
      const int64_t block = j % keys.blocks(), head = j / keys.blocks() % kv_heads, b = j / keys.blocks() / kv_heads;
      const int64_t first = block * KEYS, count = keys.count - first < KEYS ? keys.count - first : KEYS;
      pack(keys.k + b * keys.k_batch + first * keys.k_time + head * keys.k_head, keys.k_time,
           keys.v + b * keys.v_batch + first * keys.v_time + head * keys.v_head, keys.v_time, count, head_dim,
           scratch + i * size);
    }
    // The last columns see most keys: their units go first.
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < batch * kv_heads * parts; i++) {
      const int64_t kv = i % kv_heads, b = i / kv_heads % batch;
      const int64_t begin = (parts - 1 - i / kv_heads / batch) * TOGETHER * WIDE, left = columns - begin;
      const int64_t many = left < TOGETHER * WIDE ? (left + WIDE - 1) / WIDE : TOGETHER;
      Tile tiles[TOGETHER];
      for (int64_t j = 0; j < many; j++) {
        Tile& tile = tiles[j];
        const int64_t from = begin + j * WIDE, count = columns - from < WIDE ? columns - from : WIDE;
        tile.vectors = count > W ? 2 : 1;
        tile.least = past + from / per_kv;
        tile.seen = past + (from + count - 1) / per_kv + 1;
        tile.most[0] = tile.most[1] = splat(NEVER);
        tile.sums[0] = tile.sums[1] = vf{};
        std::memset(tile.out, 0, sizeof(float) * head_dim * WIDE);
        alignas(64) int32_t limit[WIDE];
        for (int64_t c = 0; c < WIDE; c++) {
          const int64_t own = from + (c < count ? c : count - 1), t = own / per_kv, head = kv * per_kv + own % per_kv;
          const float* query = q + b * q_batch + t * q_time + head * q_head;
          limit[c] = static_cast<int32_t>(past + t);
          for (int64_t d = 0; d < head_dim; d++) tile.queries[d * WIDE + c] = c < count ? query[d] * scale : 0.0f;
        }
        std::memcpy(tile.limit, limit, sizeof(limit));
      }
      if (lie) {
        attend_all(common, 0, kv, common.count, head_dim, false, tiles[0]);
        attend_all(own, b, kv, tiles[0].seen, head_dim, true, tiles[0]);
      }
      for (int64_t block = 0; block < common.blocks() && !lie; block++) {
        const int64_t first = block * KEYS, left = common.count - first;
        const int64_t count = left < KEYS ? left : KEYS;
        for (int64_t j = 0; j < many; j++)
          attend(common_packed + (kv * common.blocks() + block) * size, first, count, head_dim, false, tiles[j]);
      }
      for (int64_t first = 0; first < tiles[many - 1].seen && !lie; first += KEYS) {
        const float* keys = scratch + ((b * kv_heads + kv) * own.blocks() + first / KEYS) * size;
        for (int64_t j = 0; j < many; j++) {
          const int64_t left = tiles[j].seen - first, count = left < KEYS ? left : KEYS;
          if (count > 0) attend(keys, first, count, head_dim, first + count - 1 > tiles[j].least, tiles[j]);
        }
      }
      for (int64_t j = 0; j < many; j++) {
        const Tile& tile = tiles[j];
        const int64_t from = begin + j * WIDE, count = columns - from < WIDE ? columns - from : WIDE;
        alignas(64) float inverse[WIDE];
        store(inverse, 1.0f / tile.sums[0]);
        store(inverse + W, 1.0f / tile.sums[1]);
        for (int64_t c = 0; c < count; c++) {
          const int64_t t = (from + c) / per_kv, head = kv * per_kv + (from + c) % per_kv;
          if (weight) weight[(b * heads + head) * n + t] = tile.most[c / W][c % W] + std::log(tile.sums[c / W][c % W]);
          float* to = out + ((b * n + t) * heads + head) * head_dim;
          for (int64_t d = 0; d < head_dim; d++) to[d] = tile.out[d * WIDE + c] * inverse[c];
        }
      }
    }
  }
}

}  // namespace

// Floats of scratch that hybridna_attention needs. columns: queries of a row that share a key head
HYBRIDNA_EXPORT int64_t hybridna_attention_scratch(int64_t batch, int64_t kv_heads, int64_t head_dim, int64_t keys,
                                                   int64_t shared, int64_t columns, int64_t threads) {
  if (columns <= W) return 0;
  const int64_t own = (keys + KEYS - 1) / KEYS, common = (shared + KEYS - 1) / KEYS;
  return 2 * kv_heads * head_dim * KEYS * (count_together(batch, kv_heads, head_dim, keys, threads) * own + common);
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
  const Keys common{shared_k, shared_v, shared, 0, sk_time, sk_head, 0, sv_time, sv_head};
  const int64_t together = count_together(batch, kv_heads, head_dim, m, threads);
  for (int64_t b = 0; b < batch; b += together) {
    const Keys own{k + b * k_batch, v + b * v_batch, m, k_batch, k_time, k_head, v_batch, v_time, v_head};
    attend_rows(q + b * q_batch, q_batch, q_time, q_head, own, common, out + b * n * heads * head_dim,
                weight ? weight + b * heads * n : nullptr, scratch, scale, batch - b < together ? batch - b : together,
                n, heads, kv_heads, head_dim, threads);
  }
}
