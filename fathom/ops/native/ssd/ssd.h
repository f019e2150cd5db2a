// The kernels of the ssd room: scan, its backward, one step, peek and replay of drafts, step sizes.
#pragma once

#include "core/tape.h"
#include "core/types.h"

namespace FATHOM_TIER {

// Addresses and strides of what a scan reads. Letters as in fathom/ops/ssd: T tokens, H heads of P
// channels, G groups of N states, S sequences; K chunks of at most Q tokens.
struct ScanInputs {
  Address x;  // [T, H, P], tokens x_step apart
  int64_t x_step;
  int x_type;
  Address dt;  // fp32 [T, H], tokens dt_step apart
  int64_t dt_step;
  Address A;  // fp32 [H]
  Address B;  // [T, G, N], tokens B_step apart
  int64_t B_step;
  int B_type;
  Address C;  // [T, G, N], tokens C_step apart
  int64_t C_step;
  int C_type;
  Address D;  // fp32 [H]
};

struct ScanSizes {
  Address pieces;  // int64 [K, 2]: first token and tokens of each chunk, sequence by sequence
  Address firsts;  // int64 [S + 1]: the first chunk of each sequence
  int64_t S, K, H, P, G, N, Q;
};

// Values of one head's state as kernels hold it, [N, P] with P rounded up to whole vectors.
int64_t ssd_state_values(int64_t P, int64_t N);

// initial fp32 [S, H, P, N] or 0; y [T, H, P] of x's type; inner fp32 [T, H, P] or 0: y without the
// skip; states [K + S, H, N, P] or 0: before each sequence's first chunk and after each of its chunks,
// transposed; final fp32 [S, H, P, N].
void ssd_scan(ScanInputs inputs, ScanSizes sizes, Address initial, Address y, Address inner,
              Address states, Address final);

// dy [T, H, P] of x's type; dfinal fp32 [S, H, P, N] or 0; inner and states as the scan left them; has_initial:
// whether it had states to begin with. Gradients: dx, dB, dC of their inputs' types, ddt [T, H], dA and dD
// [H] fp32, dinitial fp32 [S, H, P, N] or 0.
void ssd_scan_backward(ScanInputs inputs, ScanSizes sizes, Address dy, Address dfinal, Address inner,
                       Address states, bool has_initial, Address dx, Address ddt, Address dA,
                       Address dB, Address dC, Address dD, Address dinitial);

// States below are fp32 where `past` is 0. Else they are fp16, and past int32 [S] says how many tokens came before
// each sequence's first, which with the layer's seed decides how new states are rounded (ssd/rounding.h).

// One token of S sequences: x [S, H, P], dt fp32 [S, H], B and C [S, G, N], each with rows a step apart;
// A fp32 [H], D [H]; before and after [S, H, P, N], which may be one; y [S, H, P] of x's type.
void ssd_step(Address x, int64_t x_step, int x_type, Address dt, int64_t dt_step, Address A, Address B,
              int64_t B_step, int B_type, Address C, int64_t C_step, int C_type, Address D, int D_type,
              Address before, Address after, Address past, uint32_t seed, Address y, int64_t S, int64_t H,
              int64_t P, int64_t G, int64_t N);

// y [T, H, P] of x's type: what the tokens say, continuing from state [S, H, P, N], which stays as it is.
// x [T, H, P], dt fp32 [T, H], B and C [T, G, N], each with rows a step apart; A fp32 [H], D [H]; bounds int32
// [S + 1]: each sequence's first token, and T.
void ssd_peek(Address x, int64_t x_step, int x_type, Address dt, int64_t dt_step, Address A, Address B,
              int64_t B_step, int B_type, Address C, int64_t C_step, int C_type, Address D, int D_type,
              Address bounds, Address state, Address past, uint32_t seed, Address y, int64_t S, int64_t H,
              int64_t P, int64_t G, int64_t N);

// state [S, H, P, N] moves on by the first counts[s] tokens of its sequence; x, dt, A, B and bounds as in
// `ssd_peek`; counts int32 or int64 [S], read when it runs, more than there are tokens counts as all.
void ssd_replay(Address state, Address past, uint32_t seed, Address x, int64_t x_step, int x_type, Address dt,
                int64_t dt_step, Address A, Address B, int64_t B_step, int B_type, Address bounds, Address counts,
                bool counts_wide, int64_t S, int64_t H, int64_t P, int64_t G, int64_t N);

// steps fp32 [T, H] = softplus(raw + bias); raw [T, H] with rows raw_step apart, bias [H].
void ssd_step_sizes(Address raw, int64_t raw_step, int raw_type, Address bias, int bias_type,
                    Address steps, int64_t T, int64_t H);

// dsteps fp32 [T, H], dense; draw [T, H] of raw's type, dbias fp32 [H].
void ssd_step_sizes_backward(Address raw, int64_t raw_step, int raw_type, Address bias, int bias_type,
                             Address dsteps, Address draw, Address dbias, int64_t T, int64_t H);

}  // namespace FATHOM_TIER
