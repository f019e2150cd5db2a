// The kernels of routing: scores of experts, the choice among them, and the experts' activation.
//
// Shapes: T tokens of width D, E experts of which K are chosen.
#pragma once

#include <type_traits>
#include <vector>

#include "core/tape.h"
#include "core/types.h"

namespace FATHOM_TIER {

void route(Address x, int64_t stride, Address weight, Address correction, Address chosen,
           Address weights, Address scores, int64_t T, int64_t D, int64_t E, int64_t K, double scale,
           int type, int weight_type);

void route_backward(Address dweights, Address dscores, Address chosen, Address scores,
                    Address dlogits, int64_t T, int64_t E, int64_t K, double scale);

void squared_relu(Address x, Address y, int64_t n, int type);
void squared_relu_backward(Address dy, Address x, Address dx, int64_t n, int type);

// x [T, D] with rows `stride` apart, weight [E, D] -> logits [T, E] in fp32, one fixed order of sums
void router_logits(Address x, int64_t stride, Address weight, float* logits, int64_t T, int64_t D,
                   int64_t E, int type, int weight_type);

}  // namespace FATHOM_TIER
