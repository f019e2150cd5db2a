// The kernel of the draw room: one token a row of logits.
#pragma once

#include "core/tape.h"
#include "core/types.h"

namespace FATHOM_TIER {

// logits fp32 [S, V] with rows `stride` apart; temperature, top_p, min_p and point fp64 [S]; top_k int64 [S];
// allowed int32 [S, ceil(V / 32)] or none: bit i of word w is token 32 w + i -> ids int64 [S], -1 where there is
// none to draw; logp and sampler_logp fp32 [S]
void draw_tokens(Address logits, int64_t stride, Address temperature, Address top_k, Address top_p,
                 Address min_p, Address point, Address allowed, Address ids, Address logp,
                 Address sampler_logp, int64_t S, int64_t V);

}  // namespace FATHOM_TIER
