"""Causal attention over ragged sequences, without positions, fresh or from pages.

Promise: no token sees another sequence or a later token; key-value heads are shared by consecutive
query heads. What pages are is `pages.py`; projections and memory are `model/attention.py` and
`model/memory.py`.
"""

from jaxtyping import Float
from torch import Tensor

from fathom.ops import dispatch, native
from fathom.ops.attend import cpu, eager, reference
from fathom.ops.attend.pages import Pages
from fathom.ops.layout import Layout

OPERATION = dispatch.in_torch("attend", eager, reference, native.backend(cpu))
"""The backends of this operation."""


def attend(
    q_THd: Float[Tensor, "T H d"],
    k_Thd: Float[Tensor, "T h d"],
    v_Thd: Float[Tensor, "T h d"],
    layout: Layout,
    pages: Pages | None = None,
) -> Float[Tensor, "T H d"]:
    """softmax(q k' / sqrt(d)) v, causal, for every sequence of the layout, of q's type.

    Args:
        q_THd: queries; query head i reads key-value head i // (H / h).
        k_Thd: keys of the same tokens.
        v_Thd: values of the same tokens.
        layout: where each sequence begins.
        pages: what the layout's sequences remember. The call's keys and values are stored there
            from past_S on, and queries see what is stored (rounded as it is) up to themselves;
            nothing carries gradients. past_S stays as it is. None: sequences begin here.

    Raises:
        KernelError: shapes, types or strides that the chosen backend cannot take.
    """
    backend = OPERATION.choose(dispatch.Case.of(q_THd)).module
    result: Tensor = backend.attend(q_THd, k_Thd, v_Thd, layout, pages)
    return result


__all__ = ["OPERATION", "Pages", "attend"]
