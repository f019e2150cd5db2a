"""Routing and the experts' activation in native code.

Promise: equal to `reference.py` up to fp32 rounding, values and gradients; a token's scores are the
same bits for any number of tokens and threads. Experts stand in the order of score + correction,
the largest first, the lower index first among equals. The kernels are `ops/native/route`; the
router's two backward products are torch's.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.errors import KernelError
from fathom.ops import native
from fathom.ops.native.tensors import CODES, FLOATS, dense, differentiated, rows


def route(
    x_TD: Tensor, weight_ED: Tensor, correction_E: Tensor, chosen: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `fathom.ops.experts.route`."""
    if differentiated(x_TD, weight_ED):
        return _Route.apply(  # type: ignore[no-any-return]
            x_TD, weight_ED, correction_E, chosen, scale
        )
    return _route(x_TD, weight_ED, correction_E, chosen, scale)


def squared_relu(x_TI: Tensor) -> Tensor:
    """See `fathom.ops.experts.squared_relu`."""
    if differentiated(x_TI):
        return _SquaredReLU.apply(x_TI)  # type: ignore[no-any-return]
    return _squared_relu(x_TI)


def _route(
    x_TD: Tensor, weight_ED: Tensor, correction_E: Tensor, chosen: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward pass: chosen experts, weights, scores."""
    (T, D), E = x_TD.shape, weight_ED.shape[0]
    if not 1 <= chosen <= E:
        raise KernelError(f"route: chosen must lie between 1 and the {E} experts; got {chosen}.")
    x, stride = rows("route: x", x_TD, (T, D), *FLOATS)
    weight = dense("route: weight", weight_ED, (E, D), *FLOATS)
    correction = dense("route: correction", correction_E, (E,), torch.float32)
    chosen_TK = torch.empty(T, chosen, dtype=torch.int64)
    weights_TK, scores_TE = torch.empty(T, chosen), torch.empty(T, E)
    native.kernels().route(
        *(x, stride, weight, correction),
        *(chosen_TK.data_ptr(), weights_TK.data_ptr(), scores_TE.data_ptr()),
        *(T, D, E, chosen, scale, CODES[x_TD.dtype], CODES[weight_ED.dtype]),
    )
    return chosen_TK, weights_TK, scores_TE


def _squared_relu(x_TI: Tensor) -> Tensor:
    """The forward pass."""
    x = dense("squared_relu: x", x_TI, x_TI.shape, *FLOATS)
    y_TI = torch.empty_like(x_TI)
    native.kernels().squared_relu(x, y_TI.data_ptr(), x_TI.numel(), CODES[x_TI.dtype])
    return y_TI


class _Route(torch.autograd.Function):
    """x [T, D], weight [E, D], correction [E] -> chosen [T, K], weights [T, K], scores [T, E]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, correction: Tensor, chosen: int, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose; keep the inputs, the choice and the scores."""
        chosen_TK, weights, scores = _route(x, weight, correction, chosen, scale)
        ctx.save_for_backward(x, weight, chosen_TK, scores)
        ctx.scale = scale
        ctx.mark_non_differentiable(chosen_TK)
        ctx.set_materialize_grads(False)
        return chosen_TK, weights, scores

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, _: None, dweights: Tensor | None, dscores: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of x and weight; the correction has none."""
        x, weight, chosen, scores = ctx.saved_tensors
        (T, K), E = chosen.shape, weight.shape[0]
        dweights = None if dweights is None else dweights.contiguous()
        dscores = None if dscores is None else dscores.contiguous()
        dlogits = torch.empty(T, E)
        native.kernels().route_backward(
            0 if dweights is None else dense("route: gradient", dweights, (T, K), torch.float32),
            0 if dscores is None else dense("route: gradient", dscores, (T, E), torch.float32),
            *(chosen.data_ptr(), scores.data_ptr(), dlogits.data_ptr(), T, E, K, ctx.scale),
        )
        dx, dweight = dlogits @ weight.float(), dlogits.T @ x.float()
        return dx.to(x.dtype), dweight.to(weight.dtype), None, None, None


class _SquaredReLU(torch.autograd.Function):
    """relu(x)^2, keeping x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """One pass."""
        ctx.save_for_backward(x)
        return _squared_relu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        """2 relu(x) dy."""
        (x,) = ctx.saved_tensors
        dx, dy = torch.empty_like(x), dy.contiguous()
        native.kernels().squared_relu_backward(
            dense("squared_relu: gradient", dy, x.shape, x.dtype),
            *(x.data_ptr(), dx.data_ptr(), x.numel(), CODES[x.dtype]),
        )
        return dx


__all__ = ["route", "squared_relu"]
