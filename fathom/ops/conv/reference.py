"""The causal depthwise convolution with SiLU in plain PyTorch: the specification.

Promise: each sequence is convolved by itself, beginning from its own tail; fp32 or better inside.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.ops.layout import Layout
from fathom.ops.wide import wide


def causal_conv(
    x_Tc: Tensor, weight_ck: Tensor, bias_c: Tensor, layout: Layout, tail_Skc: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Convolve every sequence; see `fathom.ops.conv.causal_conv`."""
    taps = weight_ck.shape[1]
    outputs, tails = [], []
    for sequence, piece_tc in enumerate(x_Tc.split(layout.lengths)):
        if tail_Skc is None:
            before_kc = x_Tc.new_zeros(taps - 1, x_Tc.shape[1])
        else:
            before_kc = tail_Skc[sequence].to(x_Tc.dtype)
        whole_tc = torch.cat([before_kc, piece_tc])
        pre_ct = F.conv1d(
            wide(whole_tc).T[None],
            wide(weight_ck)[:, None],
            wide(bias_c),
            groups=x_Tc.shape[1],
        )[0]
        outputs.append(F.silu(pre_ct).T)
        tails.append(whole_tc[whole_tc.shape[0] - taps + 1 :])
    return torch.cat(outputs).to(x_Tc.dtype), torch.stack(tails)


def step_(x_Sc: Tensor, weight_ck: Tensor, bias_c: Tensor, tail_Skc: Tensor) -> Tensor:
    """See `fathom.ops.conv.step_`."""
    layout = Layout((1,) * x_Sc.shape[0])
    y, tail = causal_conv(x_Sc, weight_ck, bias_c, layout, tail_Skc)
    tail_Skc.copy_(tail)
    return y


def keep_(tail_Skc: Tensor, x_Tc: Tensor, layout: Layout, counts_S: Tensor) -> None:
    """See `fathom.ops.conv.keep_`."""
    pieces = x_Tc.split(layout.lengths)
    for tail_kc, piece_tc, count in zip(tail_Skc, pieces, counts_S.tolist(), strict=True):
        whole_tc = torch.cat([tail_kc, piece_tc[:count]])
        tail_kc.copy_(whole_tc[len(whole_tc) - len(tail_kc) :])


__all__ = ["causal_conv", "keep_", "step_"]
