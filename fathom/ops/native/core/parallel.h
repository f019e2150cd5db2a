// Work shared among the threads of OpenMP's pool, which is torch's as well.
//
// Promise: how many threads there are decides who computes something, never what is computed: items
// are independent. Work too small to share runs on the calling thread. Numbers below the normal range count
// as zero inside, on every thread, and the caller's own setting comes back.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "core/simd.h"

namespace FATHOM_TIER {

// Denormals are flushed while one of these lives.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  FlushDenormals() {}
  ~FlushDenormals() {}
#endif
};

// Nanoseconds of work below which a second thread costs more than it saves.
constexpr double WORTH_SHARING = 6000.0;

// f(begin, end) over shares of [0, n), one a thread. `cost` is nanoseconds for one item.
template <class F>
void share(int64_t n, double cost, const F& f) {
  if (n <= 0) return;
  int threads = omp_get_max_threads();
  if (threads == 1 || n == 1 || n * cost < WORTH_SHARING || omp_in_parallel()) {
    FlushDenormals flush;
    f(int64_t(0), n);
    return;
  }
#pragma omp parallel num_threads(int(std::min<int64_t>(threads, n)))
  {
    FlushDenormals flush;
    int64_t count = omp_get_num_threads(), own = omp_get_thread_num();
    int64_t begin = n * own / count, end = n * (own + 1) / count;
    if (begin < end) f(begin, end);
  }
}

// f(i) for i in [0, n), taken one after the other by whoever is free.
template <class F>
void each(int64_t n, double cost, const F& f) {
  if (n <= 0) return;
  int threads = omp_get_max_threads();
  if (threads == 1 || n == 1 || n * cost < WORTH_SHARING || omp_in_parallel()) {
    FlushDenormals flush;
    for (int64_t i = 0; i < n; i++) f(i);
    return;
  }
#pragma omp parallel num_threads(int(std::min<int64_t>(threads, n)))
  {
    FlushDenormals flush;
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = 0; i < n; i++) f(i);
  }
}

}  // namespace FATHOM_TIER
