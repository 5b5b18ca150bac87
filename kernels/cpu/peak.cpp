// What this machine's arithmetic gives when nothing else is in the way: multiply-adds on registers alone.

#include "simd.hpp"

// Floating-point operations that one thread does in a round.
HYBRIDNA_EXPORT int64_t hybridna_peak_operations() { return 2 * TILE * 2 * W; }

// Returns a sum of all results, so that none can be left out.
HYBRIDNA_EXPORT float hybridna_peak(int64_t rounds, int64_t threads) {
  float total = 0;
#pragma omp parallel for schedule(static, 1) reduction(+ : total) num_threads(static_cast<int>(threads))
  for (int64_t i = 0; i < threads; i++) {
    vf acc[TILE][2] = {};
    vf factor = splat(0.999f), more = splat(1e-3f);
    // The compiler must not know the factors: it could take sums together.
    __asm__ volatile("" : "+m"(factor), "+m"(more));
    for (int64_t k = 0; k < rounds; k++)
#pragma GCC unroll 16
      for (int r = 0; r < TILE; r++) {
        acc[r][0] = acc[r][0] * factor + more;
        acc[r][1] = acc[r][1] * factor + more;
      }
    for (int r = 0; r < TILE; r++) total += sum(acc[r][0]) + sum(acc[r][1]);
  }
  return total;
}
