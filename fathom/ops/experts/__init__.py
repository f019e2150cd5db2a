"""Which experts a token visits (`route`) and what they say (`experts`).

Two operations: "route" chooses (and has the activation), "experts" multiplies.

Promise: the choice is made in fp32 with the correction bias in fp32, as in training; the bias
steers the choice and never the weights. Latent projections and the shared expert are
`model/latent_moe.py`.
"""

from jaxtyping import Float, Int
from torch import Tensor

from fathom.ops import dispatch, native
from fathom.ops.experts import cpu, eager, quantised, reference, routing_cpu
from fathom.ops.linear import WEIGHTS_ALONE, PackedStack, Precision, rounds_rows
from fathom.ops.nvfp4 import Quantiser, straight_through

OPERATION = dispatch.in_torch("experts", eager, reference)
"""The backends of the experts themselves."""

ROUTE = dispatch.in_torch("route", eager, reference, native.backend(routing_cpu))
"""The backends of the choice and of the activation."""

PACKED = dispatch.in_torch("packed_experts", eager, reference, native.backend(cpu))
"""The backends of experts with packed weights."""


def route(
    x_TD: Float[Tensor, "T D"],
    weight_ED: Float[Tensor, "E D"],
    correction_E: Float[Tensor, " E"],
    chosen: int,
    scale: float,
) -> tuple[Int[Tensor, "T K"], Float[Tensor, "T K"], Float[Tensor, "T E"]]:
    """Choose K experts for every token.

    s = sigmoid(W x); the K largest of s + correction are chosen, the largest first; their weights
    are s / sum(s), times `scale`. Among equals the native backend takes the lower index first;
    `torch.topk`, which the others use, promises no order there.

    Returns:
        The chosen experts (int64), their weights and all scores s (both fp32).
    """
    backend = ROUTE.choose(dispatch.Case.of(x_TD)).module
    result: tuple[Tensor, Tensor, Tensor] = backend.route(
        x_TD, weight_ED, correction_E, chosen, scale
    )
    return result


def experts(
    x_TD: Float[Tensor, "T D"],
    up_EID: Float[Tensor, "E I D"],
    down_EDI: Float[Tensor, "E D I"],
    chosen_TK: Int[Tensor, "T K"],
    weights_TK: Float[Tensor, "T K"],
    precision: Precision = "stored",
) -> Float[Tensor, "T D"]:
    """sum_k weights[t, k] down_e relu(up_e x_t)^2 with e = chosen[t, k]; of x's type.

    The hidden layer is rounded to x's type. In LatentMoE, D is the latent width. With `bf16` the
    products are those of `ops/linear` in that precision, and the weights of the choice are
    multiplied into down's rows before they are rounded.

    Raises:
        KernelError: rows are not whole blocks where weights are rounded to NVFP4.
    """
    if precision in WEIGHTS_ALONE:
        form, precision = WEIGHTS_ALONE[precision], "stored"
        up_EID, down_EDI = straight_through(up_EID, form), straight_through(down_EDI, form)
    backend = OPERATION.choose(dispatch.Case.of(x_TD)).module
    result: Tensor = backend.experts(x_TD, up_EID, down_EDI, chosen_TK, weights_TK, precision)
    return result


def quantised_experts(
    x_TD: Float[Tensor, "T D"],
    up_EID: Float[Tensor, "E I D"],
    down_EDI: Float[Tensor, "E D I"],
    chosen_TK: Int[Tensor, "T K"],
    weights_TK: Float[Tensor, "T K"],
    quantisers: tuple[Quantiser, Quantiser],
) -> Float[Tensor, "T D"]:
    """`experts` with operands in four or eight bits, rounded by the quantisers of up and of down.

    Each expert's weights and rows have a scale of their own; the weights of the choice are
    multiplied into down's rows before they are rounded.
    """
    return quantised.quantised_experts(x_TD, up_EID, down_EDI, chosen_TK, weights_TK, quantisers)


def packed_experts(
    x_TD: Float[Tensor, "T D"],
    up: PackedStack,
    down: PackedStack,
    chosen_TK: Int[Tensor, "T K"],
    weights_TK: Float[Tensor, "T K"],
    precision: Precision = "stored",
) -> Float[Tensor, "T D"]:
    """`experts` with packed weights: up holds E matrices [I, D], down E matrices [D, I].

    Nothing can be trained by it.

    Raises:
        KernelError: shapes that do not belong together.
    """
    backend = PACKED.choose(dispatch.Case.of(x_TD)).module
    int8 = rounds_rows(up.format, precision)
    result: Tensor = backend.packed_experts(x_TD, up, down, chosen_TK, weights_TK, int8)
    return result


def squared_relu(x_TI: Float[Tensor, "T I"]) -> Float[Tensor, "T I"]:
    """relu(x)^2, the one activation of the family's experts and MLPs."""
    result: Tensor = ROUTE.choose(dispatch.Case.of(x_TI)).module.squared_relu(x_TI)
    return result


__all__ = [
    "OPERATION",
    "PACKED",
    "ROUTE",
    "experts",
    "packed_experts",
    "quantised_experts",
    "route",
    "squared_relu",
]
