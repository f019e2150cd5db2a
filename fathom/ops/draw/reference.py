"""The draw in plain PyTorch, row by row in fp64: the specification.

Promise: every step is one line of the definition (`README.md`); nothing is left out for speed.
"""

import math

import torch
from torch import Tensor


def draw(
    logits_SV: Tensor,
    temperature_S: Tensor,
    top_k_S: Tensor,
    top_p_S: Tensor,
    min_p_S: Tensor,
    point_S: Tensor,
    allowed_SM: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token from each row; see `fathom.ops.draw.draw`."""
    parameters = zip(
        *(temperature_S.tolist(), top_k_S.tolist(), top_p_S.tolist()),
        *(min_p_S.tolist(), point_S.tolist()),
        strict=True,
    )
    drawn = [
        _row(logits_SV[s].double(), own, None if allowed_SM is None else allowed_SM[s])
        for s, own in enumerate(parameters)
    ]
    ids, logps, sampler_logps = zip(*drawn, strict=True)
    device = logits_SV.device
    return (
        torch.tensor(ids, dtype=torch.int64).to(device),
        torch.tensor(logps, dtype=torch.float32).to(device),
        torch.tensor(sampler_logps, dtype=torch.float32).to(device),
    )


def _row(
    logits_V: Tensor, parameters: tuple[float, int, float, float, float], allowed_M: Tensor | None
) -> tuple[int, float, float]:
    """Id and both log-probabilities of one row's token."""
    temperature, top_k, top_p, min_p, point = parameters
    left_V = logits_V if allowed_M is None else _masked(logits_V, allowed_M)
    if not (math.isfinite(logits_V.max()) and math.isfinite(left_V.max())):
        return -1, math.nan, math.nan
    logp_V = torch.log_softmax(logits_V, 0)
    if temperature == 0:
        best = int(left_V.argmax())
        return best, float(logp_V[best]), 0.0
    share_V = torch.softmax((left_V - left_V.max()) / temperature, 0)
    ids_K, share_K = _survivors(share_V, top_k, top_p, min_p)
    cumulative_K = share_K.cumsum(0)
    index = int(torch.searchsorted(cumulative_K, point * float(cumulative_K[-1]), right=True))
    if index == len(ids_K):
        # rounding made the point the whole sum: the last token that has any share
        index = int(torch.searchsorted(cumulative_K, float(cumulative_K[-1])))
    chosen = int(ids_K[index])
    return chosen, float(logp_V[chosen]), math.log(share_K[index])


def _masked(logits_V: Tensor, allowed_M: Tensor) -> Tensor:
    """The logits, -inf where a token's bit is not set."""
    bits_32 = torch.arange(32, dtype=torch.int32, device=allowed_M.device)
    allowed_V = (allowed_M[:, None] >> bits_32 & 1).flatten()[: len(logits_V)]
    return logits_V.masked_fill(allowed_V == 0, -math.inf)


def _survivors(share_V: Tensor, top_k: int, top_p: float, min_p: float) -> tuple[Tensor, Tensor]:
    """Ids and shares [K] of what the filters leave: by id where there is none, else by share."""
    if not top_k and top_p >= 1 and min_p <= 0:
        return torch.arange(len(share_V)), share_V
    share_K, ids_K = torch.sort(share_V, descending=True, stable=True)
    if top_k:
        share_K = share_K[:top_k]
    if top_p < 1:
        before_K = share_K.cumsum(0) - share_K
        share_K = share_K[: max(1, int((before_K < top_p * share_K.sum()).sum()))]
    if min_p > 0:
        share_K = share_K[: int((share_K >= min_p * share_K[0]).sum())]
    return ids_K[: len(share_K)], share_K / share_K.sum()


__all__ = ["draw"]
