"""The Mamba-2 mixer: project, convolve, scan, gate, project back.

Promise: `memory=None` runs whole sequences; with a memory the same sequences continue, and one
token each takes the recurrence instead of the scan and updates the memory in place. The mathematics
is `ops/conv`, `ops/ssd` and `ops/norm`.
Source: Mamba-2 (arXiv 2405.21060); Nemotron-H's grouped gated norm.
"""

import math

import torch
from torch import Tensor, nn

from fathom.config.model import MambaConfig
from fathom.model.memory import MambaMemory
from fathom.model.precision import Linear
from fathom.ops import conv, norm, ssd
from fathom.ops.layout import Layout


class Mamba(nn.Module):
    """Mamba-2 with H heads of width P, N states a channel and G groups of B and C."""

    def __init__(
        self,
        config: MambaConfig,
        width: int,
        eps: float,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config, self.eps = config, eps

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device))

        self.in_proj = Linear(width, config.in_rows, dtype=dtype, device=device)
        self.conv_weight = empty(config.conv_width, config.conv)
        self.conv_bias = empty(config.conv_width)
        self.A_log = empty(config.heads)
        self.D = empty(config.heads)
        self.dt_bias = empty(config.heads)
        self.norm_weight = empty(config.inner)
        self.out_proj = Linear(config.inner, width, dtype=dtype, device=device)

    def initialise(self, std: float, out_std: float, generator: torch.Generator) -> None:
        """Fresh weights: A uniform in (1, 16), D one, steps log-uniform in (0.001, 0.1)."""
        nn.init.normal_(self.in_proj.plain, std=std, generator=generator)
        nn.init.normal_(self.out_proj.plain, std=out_std, generator=generator)
        bound = 1 / math.sqrt(self.config.conv)
        nn.init.uniform_(self.conv_weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.conv_bias)
        nn.init.ones_(self.D)
        nn.init.ones_(self.norm_weight)
        with torch.no_grad():
            heads = self.config.heads
            self.A_log.copy_(torch.empty(heads).uniform_(1, 16, generator=generator).log())
            span = torch.empty(heads).uniform_(math.log(1e-3), math.log(0.1), generator=generator)
            dt = span.exp().clamp_min(1e-4)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, x_TD: Tensor, layout: Layout, memory: MambaMemory | None) -> Tensor:
        """[T, D] -> [T, D]; the memory, if there is one, moves on by the layout's tokens."""
        config = self.config
        z, xBC, dt = self.in_proj(x_TD).split(
            [config.inner, config.conv_width, config.heads], dim=-1
        )
        held = memory.held if memory is not None else None
        stepping = memory is not None and layout.tokens == layout.sequences and held is None
        taken = xBC
        if memory is not None and stepping:
            xBC = conv.step_(xBC, self.conv_weight, self.conv_bias, memory.tail_Skc)
        else:
            before = memory.tail_Skc if memory else None
            xBC, tail = conv.causal_conv(xBC, self.conv_weight, self.conv_bias, layout, before)
        x, B, C = self._parts(xBC)
        # steps and decays are fp32 in every precision; there is no clamp on dt
        dt = ssd.step_sizes(dt, self.dt_bias)
        A = -self.A_log.float().exp()
        if memory is not None and held is not None:
            held.keep(taken, xBC, dt)
            y = ssd.peek(x, dt, A, B, C, self.D, layout, memory.state_SHPN, memory.rounding)
        elif memory is not None and stepping:
            y = ssd.step_(x, dt, A, B, C, self.D, memory.state_SHPN, memory.rounding)
        else:
            state = memory.state_SHPN if memory else None
            y, state = ssd.scan(x, dt, A, B, C, self.D, layout, config.chunk, state)
            if memory is not None:
                state = ssd.nearest(state, memory.state_SHPN.dtype)
                memory.tail_Skc, memory.state_SHPN = tail, state
        y = norm.gated_norm(y.flatten(-2), z, self.norm_weight, config.groups, self.eps)
        return self.out_proj(y)  # type: ignore[no-any-return]

    def accept(self, memory: MambaMemory, layout: Layout, counts_S: Tensor) -> None:
        """Move a holding memory on by the first tokens of each sequence of the last call."""
        held, tokens = memory.held, layout.tokens
        assert held is not None
        conv.keep_(memory.tail_Skc, held.taken_Tc[:tokens], layout, counts_S)
        x, B, _ = self._parts(held.given_Tc[:tokens])
        A = -self.A_log.float().exp()
        dt_TH, rounding = held.dt_TH[:tokens], memory.rounding
        ssd.replay(memory.state_SHPN, x, dt_TH, A, B, layout, counts_S, rounding)

    def _parts(self, xBC_Tc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The convolution's output as x [T, H, P], B and C [T, G, N]."""
        config = self.config
        narrow = config.groups * config.state
        x, B, C = xBC_Tc.split([config.inner, narrow, narrow], dim=-1)
        return (
            x.unflatten(-1, (config.heads, config.head_width)),
            B.unflatten(-1, (config.groups, config.state)),
            C.unflatten(-1, (config.groups, config.state)),
        )


__all__ = ["Mamba"]
