// Runs every kernel of one tier on awkward shapes beside plain loops in double, without Python.
//
// Promise: exit status 0 means that all agreed (or that this processor cannot run the tier, which is said), 1
// that something did not. It needs no torch, so it runs under sanitizers and under an emulator. A room's checks
// are a file beside this one; adding a room is a file, a line in `driver.h` and a line here.
#include "driver.h"

#include <omp.h>

static bool runs_here() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(__AVX512BF16__)
  if (!__builtin_cpu_supports("avx512bf16")) return false;
#endif
#if defined(__AVX512F__)
  if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512vnni")) return false;
#endif
#if defined(__AVX2__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
#endif
#endif
  return true;
}

#define NAMED(tier) #tier
#define NAME(tier) NAMED(tier)

int main() {
  using namespace FATHOM_TIER;
  const char* tier = NAME(FATHOM_TIER);
  if (!runs_here()) {
    std::printf("%s: this processor cannot run it\n", tier);
    return 0;
  }
  for (int threads : {1, 3}) {
    omp_set_num_threads(threads);
    Draw draw;
    check_norm(draw);
    check_conv(draw);
    check_route(draw);
    check_linear(draw);
    check_experts(draw);
    check_ssd(draw);
    check_attend(draw);
    check_step(draw);
    check_draw(draw);
    check_nvfp4(draw);
  }
  std::printf("%s: %d of %d comparisons wrong\n", tier, tally.wrong, tally.compared);
  return tally.wrong ? 1 : 0;
}
