"""The mixture of experts: a router, routed experts (in latent space or not), a shared expert.

Promise: the router reads the full width and works in fp32; its correction bias is fp32 and moves
only by balancing (`train/balance.py`); with a latent width the tokens shrink before they are sent
out and grow after their experts are summed, so both traffic and expert weights shrink with it.
Source: LatentMoE (arXiv 2601.18089); routing and balance loss after DeepSeek-V3.
"""

import torch
from torch import Tensor, nn

from fathom.config.model import MlpConfig, MoEConfig
from fathom.model.precision import Linear, Matrices
from fathom.ops import experts
from fathom.ops.layout import Layout
from fathom.ops.linear import PackedStack, Precision
from fathom.ops.nvfp4 import Quantiser


class Router(nn.Module):
    """Chooses K of E experts for each token, and keeps what balancing needs to know of it."""

    correction_bias: Tensor
    """fp32 [E], added to the scores for the choice alone."""
    chosen_TK: Tensor
    """int64 [T, K]: the experts that the last forward chose."""

    def __init__(
        self,
        config: MoEConfig,
        width: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.experts, width, dtype=dtype, device=device))
        zeros = torch.zeros(config.experts, dtype=torch.float32, device=device)
        self.register_buffer("correction_bias", zeros)
        nothing = torch.zeros(0, config.chosen, dtype=torch.int64, device=device)
        self.register_buffer("chosen_TK", nothing, persistent=False)
        self.balance_weight = 0.0
        """Weight of the sequence-wise balance loss; training sets it."""
        self.balance_loss: Tensor | None = None
        """The weighted loss of the last forward, if the weight is not zero."""

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Convert as modules do, but leave the correction bias in fp32: BF16 would erase it."""
        bias = self.correction_bias
        super()._apply(fn, recurse)
        if self.correction_bias.dtype != torch.float32:
            self.correction_bias = bias.to(self.correction_bias.device)
        return self

    def forward(self, x_TD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """[T, D] -> chosen experts and weights, both [T, K]."""
        chosen, weights, scores = experts.route(
            x_TD, self.weight, self.correction_bias, self.config.chosen, self.config.scale
        )
        self.chosen_TK = chosen
        self.balance_loss = None
        if self.balance_weight and torch.is_grad_enabled():
            self.balance_loss = self.balance_weight * self._imbalance(chosen, scores, layout)
        return chosen, weights

    @property
    def load_E(self) -> Tensor:
        """int64 [E]: tokens sent to each expert by the last forward."""
        return torch.bincount(self.chosen_TK.reshape(-1), minlength=self.config.experts)

    def _imbalance(self, chosen_TK: Tensor, scores_TE: Tensor, layout: Layout) -> Tensor:
        """Mean over sequences of sum_e f_e P_e: 1 if balanced, up to E / K if not.

        f_e is the share of the sequence's choices that fell on e, times E; P_e its mean
        normalised score (DeepSeek-V3, arXiv 2412.19437, equations 17 to 20).
        """
        sequence_T = layout.sequence_T.to(chosen_TK.device)
        tokens_S = torch.tensor(layout.lengths, device=chosen_TK.device)[:, None]
        shape = (layout.sequences, self.config.experts)
        cells_TK = sequence_T[:, None] * self.config.experts + chosen_TK
        chosen_SE = torch.bincount(cells_TK.reshape(-1), minlength=shape[0] * shape[1]).view(shape)
        share_SE = chosen_SE * (self.config.experts / self.config.chosen) / tokens_S
        normal_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
        mean_SE = normal_TE.new_zeros(shape).index_add(0, sequence_T, normal_TE) / tokens_S
        return (share_SE * mean_SE).sum(-1).mean()


class Experts(Matrices):
    """The routed experts of a layer as two stacked tensors, trainable or packed for products."""

    up: nn.Parameter | None
    down: nn.Parameter | None

    def __init__(
        self,
        config: MoEConfig,
        width: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        up = (config.experts, config.expert_width, width)
        self.up = nn.Parameter(torch.empty(up, dtype=dtype, device=device))
        down = (config.experts, width, config.expert_width)
        self.down = nn.Parameter(torch.empty(down, dtype=dtype, device=device))
        self.packed: tuple[PackedStack, PackedStack] | None = None
        self.precision: Precision = "stored"
        self.quantisers: tuple[Quantiser, Quantiser] | None = None

    def forward(self, x_TD: Tensor, chosen_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        if self.packed is not None:
            return experts.packed_experts(x_TD, *self.packed, chosen_TK, weights_TK, self.precision)
        assert self.up is not None
        assert self.down is not None
        if self.quantisers is not None:
            return experts.quantised_experts(
                x_TD, self.up, self.down, chosen_TK, weights_TK, self.quantisers
            )
        return experts.experts(x_TD, self.up, self.down, chosen_TK, weights_TK, self.precision)

    def pack(self, packed: tuple[PackedStack, PackedStack] | None = None) -> None:
        """Take packed up and down stacks, by default of the own weights."""
        if packed is None:
            assert self.up is not None
            assert self.down is not None
            packed = PackedStack.of(self.up), PackedStack.of(self.down)
        self.packed = packed
        self.up = self.down = None


class Mlp(nn.Module):
    """down . relu(up x)^2, without biases: the shared expert, and the `-` block."""

    def __init__(
        self,
        config: MlpConfig,
        width: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.up = Linear(width, config.hidden, dtype=dtype, device=device)
        self.down = Linear(config.hidden, width, dtype=dtype, device=device)

    def initialise(self, std: float, out_std: float, generator: torch.Generator) -> None:
        """Fresh weights."""
        nn.init.normal_(self.up.plain, std=std, generator=generator)
        nn.init.normal_(self.down.plain, std=out_std, generator=generator)

    def forward(self, x_TD: Tensor, layout: Layout, memory: None) -> Tensor:
        """[T, D] -> [T, D]; an MLP remembers nothing."""
        return self.down(experts.squared_relu(self.up(x_TD)))  # type: ignore[no-any-return]


class LatentMoE(nn.Module):
    """Routed experts plus a shared expert; latent where the shape has a latent width."""

    def __init__(
        self,
        config: MoEConfig,
        width: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        inside = config.latent or width
        self.router = Router(config, width, dtype=dtype, device=device)
        self.experts = Experts(config, inside, dtype=dtype, device=device)
        self.shared = self.latent_down = self.latent_up = None
        if config.shared_width:
            shape = MlpConfig(hidden=config.shared_width)
            self.shared = Mlp(shape, width, dtype=dtype, device=device)
        if config.latent:
            self.latent_down = Linear(width, inside, dtype=dtype, device=device)
            self.latent_up = Linear(inside, width, dtype=dtype, device=device)

    def initialise(self, std: float, out_std: float, generator: torch.Generator) -> None:
        """Fresh weights; what writes into the residual stream takes `out_std`."""
        nn.init.normal_(self.router.weight, std=std, generator=generator)
        for weight, own_std in ((self.experts.up, std), (self.experts.down, out_std)):
            assert weight is not None
            nn.init.normal_(weight, std=own_std, generator=generator)
        if self.latent_down is not None and self.latent_up is not None:
            nn.init.normal_(self.latent_down.plain, std=std, generator=generator)
            nn.init.normal_(self.latent_up.plain, std=out_std, generator=generator)
        if self.shared is not None:
            self.shared.initialise(std, out_std, generator)

    def forward(self, x_TD: Tensor, layout: Layout, memory: None) -> Tensor:
        """[T, D] -> [T, D]; experts remember nothing."""
        chosen, weights = self.router(x_TD, layout)
        sent = x_TD if self.latent_down is None else self.latent_down(x_TD)
        y: Tensor = self.experts(sent, chosen, weights)
        if self.latent_up is not None:
            y = self.latent_up(y)
        return y if self.shared is None else y + self.shared(x_TD, layout, None)


__all__ = ["Experts", "LatentMoE", "Mlp", "Router"]
