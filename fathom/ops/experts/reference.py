"""Routing and routed experts in plain PyTorch: the specification of every other backend.

Promise: the router works in fp32 (or better) whatever the model's type; an expert is
down . relu(up x)^2; a token's answer is the weighted sum of its experts'.
Source: Nemotron 3 Nano technical report (arXiv 2512.20848), DeepSeek-V3 for sigmoid routing.
"""

import torch
from torch import Tensor

from fathom.ops.linear.packed import PackedStack
from fathom.ops.linear.reference import linear, rounded_rows
from fathom.ops.wide import wide


def route(
    x_TD: Tensor, weight_ED: Tensor, correction_E: Tensor, chosen: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `fathom.ops.experts.route`."""
    scores_TE = (wide(x_TD) @ wide(weight_ED).T).sigmoid()
    chosen_TK = (scores_TE + correction_E).topk(chosen, dim=-1).indices
    weights_TK = scores_TE.gather(1, chosen_TK)
    weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20) * scale
    return chosen_TK, weights_TK, scores_TE


def squared_relu(x_TI: Tensor) -> Tensor:
    """See `fathom.ops.experts.squared_relu`."""
    return x_TI.relu().square()


def experts(
    x_TD: Tensor,
    up_EID: Tensor,
    down_EDI: Tensor,
    chosen_TK: Tensor,
    weights_TK: Tensor,
    precision: str = "stored",
) -> Tensor:
    """See `fathom.ops.experts.experts`."""
    x, up, down = wide(x_TD), wide(up_EID), wide(down_EDI)
    y = torch.zeros_like(x)
    for expert in range(up.shape[0]):
        token, place = (chosen_TK == expert).nonzero(as_tuple=True)
        hidden = linear(x[token], up[expert], precision).relu().square()
        weight = wide(weights_TK[token, place, None])
        if precision == "bf16":
            said = linear(hidden * weight, down[expert], precision)
        else:
            said = linear(hidden.to(x_TD.dtype).to(x.dtype), down[expert], precision) * weight
        y = y.index_add(0, token, said)
    return y.to(x_TD.dtype)


def packed_experts(
    x_TD: Tensor,
    up: PackedStack,
    down: PackedStack,
    chosen_TK: Tensor,
    weights_TK: Tensor,
    int8: bool,
) -> Tensor:
    """See `fathom.ops.experts.packed_experts`."""
    x = rounded_rows(wide(x_TD)) if int8 else wide(x_TD)
    y = torch.zeros_like(x)
    for expert in chosen_TK.unique().tolist():
        token, place = (chosen_TK == expert).nonzero(as_tuple=True)
        hidden = (x[token] @ up[expert].dense().to(x.dtype).T).relu().square()
        hidden = hidden.to(x_TD.dtype).to(x.dtype)
        hidden = rounded_rows(hidden) if int8 else hidden
        said = hidden @ down[expert].dense().to(x.dtype).T
        y = y.index_add(0, token, said * wide(weights_TK[token, place, None]))
    return y.to(x_TD.dtype)


__all__ = ["experts", "packed_experts", "route", "squared_relu"]
