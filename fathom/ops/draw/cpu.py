"""The draw in native code: all rows in one call, without sorting what cannot be drawn.

Promise: the tokens of `reference.py`; log-probabilities to about a millionth. A row is drawn by one
thread. The kernel is `ops/native/draw`.
"""

import torch
from torch import Tensor

from fathom.ops import native
from fathom.ops.native.tensors import dense, rows


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
    S, V = logits_SV.shape
    one, wide = (S,), torch.float64
    if logits_SV.is_contiguous():
        logits, stride = _address("draw: logits", logits_SV, (S, V), torch.float32), V
    else:
        logits, stride = rows("draw: logits", logits_SV, (S, V), torch.float32)
    allowed = 0
    if allowed_SM is not None:
        allowed = _address("draw: allowed", allowed_SM, (S, (V + 31) // 32), torch.int32)
    ids_S = torch.empty(S, dtype=torch.int64)
    logp_S, sampler_logp_S = torch.empty(S), torch.empty(S)
    native.kernels().draw_tokens(
        logits,
        stride,
        _address("draw: temperature", temperature_S, one, wide),
        _address("draw: top_k", top_k_S, one, torch.int64),
        _address("draw: top_p", top_p_S, one, wide),
        _address("draw: min_p", min_p_S, one, wide),
        _address("draw: point", point_S, one, wide),
        allowed,
        ids_S.data_ptr(),
        logp_S.data_ptr(),
        sampler_logp_S.data_ptr(),
        S,
        V,
    )
    return ids_S, logp_S, sampler_logp_S


def _address(name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """As `dense`, which says what is wrong; a draw of few logits would be mostly its questions."""
    if x.dtype is dtype and x.shape == shape and x.is_cpu and x.is_contiguous():
        return x.data_ptr()
    return dense(name, x, shape, dtype)


__all__ = ["draw"]
