// Routing backward, up to the logits; the two products that follow are ordinary ones.
//
// With s the scores, c the chosen ones, S their sum + 1e-20 and w_k = scale s_k / S:
//   ds_k = dscores_k + scale (dw_k - sum_j dw_j s_j / S) / S, ds_e = dscores_e where e is not chosen,
//   dlogits = ds s (1 - s).
#include "core/parallel.h"
#include "route/route.h"

namespace FATHOM_TIER {

// dweights [T, K] and dscores [T, E] fp32, either or none; chosen [T, K], scores [T, E] -> dlogits [T, E]
void route_backward(Address dweights, Address dscores, Address chosen, Address scores,
                    Address dlogits, int64_t T, int64_t E, int64_t K, double scale) {
  share(T, double(E) + 4.0 * double(K), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const float* s = at<float>(scores) + i * E;
      const int64_t* c = at<int64_t>(chosen) + i * K;
      float* out = at<float>(dlogits) + i * E;
      for (int64_t e = 0; e < E; e++) out[e] = dscores ? at<float>(dscores)[i * E + e] : 0.0f;
      if (dweights) {
        const float* dw = at<float>(dweights) + i * K;
        float total = 0.0f, heard = 0.0f;
        for (int64_t k = 0; k < K; k++) total += s[c[k]], heard += dw[k] * s[c[k]];
        total += 1e-20f;
        for (int64_t k = 0; k < K; k++) out[c[k]] += float(scale) * (dw[k] - heard / total) / total;
      }
      for (int64_t e = 0; e < E; e++) out[e] *= s[e] * (1.0f - s[e]);
    }
  });
}

}  // namespace FATHOM_TIER
