"""From logits to one token: penalties, temperature, three filters, and a repeatable draw.

Promise: the token that a request draws at a place depends on its logits, its `Sampling`, its own
tokens and the place alone: neither on its neighbours in a batch nor on any generator's history. The
draw is the inverse of the cumulative distribution at one number that a hash of (seed, place) gives,
so it is the same on every machine up to rounding of the logits. A token's `logp` is the model's
own, whatever was drawn from.

What a request's own tokens change comes first (`adjusted`): the repetition penalty (Keskar et al.,
arXiv 1909.05858, with the sign mended as in transformers and vLLM), then those of frequency and
presence as OpenAI's interface defines them, then the bias, which so keeps its size (vLLM adds it
first; that differs only beside a repetition penalty). A mask of allowed tokens, such as a grammar's
(`grammar.py`), is laid over what that gives.

Order of the filters, each on what the earlier ones left: the logits are divided by the temperature;
`top_k` keeps the k most probable; `top_p` keeps the fewest of those whose share of what is left
reaches p (at least one); `min_p` keeps those with at least min_p times the probability of the best.
What remains is normalised again. Temperature 0 takes the most probable token, the lowest id of
equals. min_p: Nguyen et al., arXiv 2407.01082; top_p: Holtzman et al., arXiv 1904.09751.
"""

import hashlib
import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fathom.errors import RequestError


@dataclass(frozen=True)
class Sampling:
    """How a request draws its tokens; raises `RequestError` where a value makes no sense."""

    temperature: float = 1.0
    """Divides the logits; 0 always takes the most probable token."""
    top_p: float = 1.0
    """Share of the probability to keep, over 0 to 1; 1 keeps all."""
    top_k: int = 0
    """Most probable tokens to keep; 0 keeps all."""
    min_p: float = 0.0
    """Least probability to keep, as a share of the best token's; 0 keeps all."""
    seed: int = 0
    """Chooses the draws; any 64-bit number."""
    repetition: float = 1.0
    """Divides the positive logits of tokens seen in prompt or answer, multiplies the others."""
    presence: float = 0.0
    """Taken off the logit of every token that the answer holds; -2 to 2."""
    frequency: float = 0.0
    """Taken off a token's logit once for each time that the answer holds it; -2 to 2."""
    bias: tuple[tuple[int, float], ...] = ()
    """Tokens, each once, and what is added to their logits; -100 to 100."""

    def __post_init__(self) -> None:
        bounds = (
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "over 0 and at most 1"),
            ("top_k", self.top_k >= 0 and self.top_k == int(self.top_k), "a whole number from 0"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("seed", -(2**63) <= self.seed < 2**64, "a 64-bit whole number"),
            ("repetition", 0 < self.repetition < math.inf, "over 0"),
            ("presence", -2 <= self.presence <= 2, "between -2 and 2"),
            ("frequency", -2 <= self.frequency <= 2, "between -2 and 2"),
        )
        for name, good, wanted in bounds:
            if not good:
                raise RequestError(f"{name} must be {wanted}; got {getattr(self, name)!r}.")
        for token, bias in self.bias:
            if token < 0 or token != int(token) or not -100 <= bias <= 100:
                raise RequestError(
                    "bias must be tokens from 0 with numbers between -100 and 100; got "
                    f"{token!r} with {bias!r}."
                )
        if len({token for token, _ in self.bias}) < len(self.bias):
            raise RequestError("bias names a token twice; give each token one number.")

    @property
    def plain(self) -> bool:
        """Whether nothing is added to or taken off the logits: `adjusted` would only copy them."""
        return self.repetition == 1 and not (self.presence or self.frequency or self.bias)


@dataclass(frozen=True)
class Drawn:
    """A token and how probable it was."""

    id: int
    """The token."""
    logp: float
    """Its log-probability by the model: of the logits as they came."""
    sampler_logp: float
    """Its log-probability among what was drawn from: tempered and filtered; 0 when greedy."""


def sample(
    logits_V: Tensor,
    sampling: Sampling,
    place: int,
    allowed: Tensor | None = None,
    adjusted_V: Tensor | None = None,
) -> Drawn:
    """Draw one token from the logits [V] of one place of one request.

    `place` counts the request's own tokens from 0; together with the seed it fixes the draw.
    `allowed` (int32 [ceil(V / 32)], bit i of word w is token 32 w + i) leaves only its tokens to
    be drawn. `adjusted_V` is drawn from where that is not the model's own `logits_V`, which then
    only give `logp`. Raises `RequestError` when the logits hold a NaN or nothing finite, which a
    damaged model gives, and when no allowed token is left.
    """
    logits_V = logits_V.detach().to(torch.float32)
    if not math.isfinite(float(logits_V.max())):
        raise RequestError(
            "The model's logits hold a number that is none (NaN) or infinite, so no token can be "
            "drawn. Its weights are damaged, or it was trained at too high a rate."
        )
    logp_V = torch.log_softmax(logits_V, 0)
    if adjusted_V is not None or allowed is not None:
        logits_V = _restricted(logits_V if adjusted_V is None else adjusted_V, allowed)
    if sampling.temperature == 0:
        chosen = int(logits_V.argmax())
        return Drawn(chosen, float(logp_V[chosen]), 0.0)
    ids_K, share_K = survivors(logits_V, sampling)
    cumulative_K = share_K.cumsum(0)
    point = uniform(sampling.seed, place) * float(cumulative_K[-1])
    index = int(torch.searchsorted(cumulative_K, point, right=True))
    if index == len(ids_K):
        # Rounding made the point the whole sum: the last token that has any share.
        index = int(torch.searchsorted(cumulative_K, float(cumulative_K[-1])))
    chosen = int(ids_K[index])
    return Drawn(chosen, float(logp_V[chosen]), float(share_K[index].log()))


def adjusted(
    logits_V: Tensor,
    sampling: Sampling,
    prompt_ids: Collection[int],
    answer_counts: Mapping[int, int],
) -> Tensor:
    """A copy of the logits [V] in fp32 with a request's penalties and bias applied.

    `prompt_ids` are the prompt's tokens, better as a set that is made once; `answer_counts` says
    how often the answer holds each of its tokens. Raises `RequestError` for a bias on a token that
    the model does not know.
    """
    logits_V = logits_V.detach().to(torch.float32, copy=True)
    device = logits_V.device
    answer = {token: count for token, count in answer_counts.items() if count > 0}
    if sampling.repetition != 1:
        seen_U = torch.tensor(list(answer.keys() | set(prompt_ids)), dtype=torch.int64)
        seen_U = seen_U.to(device)
        logits_U = logits_V[seen_U]
        divided_U, multiplied_U = logits_U / sampling.repetition, logits_U * sampling.repetition
        logits_V[seen_U] = torch.where(logits_U > 0, divided_U, multiplied_U)
    if answer and (sampling.presence or sampling.frequency):
        ids_A = torch.tensor(list(answer), dtype=torch.int64).to(device)
        counts_A = torch.tensor(list(answer.values()), dtype=torch.float32).to(device)
        logits_V[ids_A] -= sampling.frequency * counts_A + sampling.presence
    if sampling.bias:
        tokens, biases = zip(*sampling.bias, strict=True)
        if max(tokens) >= len(logits_V):
            raise RequestError(
                f"bias names the token {max(tokens)}, but the model knows tokens from 0 to "
                f"{len(logits_V) - 1}."
            )
        ids_B = torch.tensor(tokens, dtype=torch.int64).to(device)
        logits_V[ids_B] += torch.tensor(biases, dtype=torch.float32).to(device)
    return logits_V


def alternatives(logits_V: Tensor, count: int) -> list[tuple[int, float]]:
    """The `count` most probable tokens of logits [V] and their log-probabilities, the best first.

    Of equals the lower id comes first. Raises `RequestError` for a negative count.
    """
    if count < 0:
        raise RequestError(f"The number of alternatives must be 0 or more; got {count}.")
    logits_V = logits_V.detach().to(torch.float32)
    count = min(count, len(logits_V))
    if not count:
        return []
    # topk orders equals as it likes, so it only says how good the last one is.
    ids_N = (logits_V >= logits_V.topk(count).values[-1]).nonzero()[:, 0]
    order_K = torch.sort(logits_V[ids_N], descending=True, stable=True).indices[:count]
    ids_K = ids_N[order_K]
    logp_K = torch.log_softmax(logits_V, 0)[ids_K]
    return list(zip(ids_K.tolist(), logp_K.tolist(), strict=True))


def survivors(logits_V: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Ids [K] that the filters leave and their probabilities [K] in fp64, the best first.

    Where no filter is set the order is that of the ids, which spares the sorting.
    """
    tempered_V = (logits_V.double() - logits_V.max().double()) / sampling.temperature
    share_V = torch.softmax(tempered_V, 0)
    if not sampling.top_k and sampling.top_p >= 1 and sampling.min_p <= 0:
        return torch.arange(len(share_V), device=share_V.device), share_V
    # A stable order, so that equals go to the lower id, as when greedy.
    share_K, ids_K = torch.sort(share_V, descending=True, stable=True)
    if sampling.top_k:
        share_K = share_K[: sampling.top_k]
    if sampling.top_p < 1:
        before_K = share_K.cumsum(0) - share_K
        keep = int((before_K < sampling.top_p * share_K.sum()).sum())
        share_K = share_K[: max(keep, 1)]
    if sampling.min_p > 0:
        share_K = share_K[: int((share_K >= sampling.min_p * share_K[0]).sum())]
    return ids_K[: len(share_K)], share_K / share_K.sum()


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) with 53 random bits, the hash of seed and place."""
    # A hash costs a microsecond and needs no state; generators of torch or numpy differ by device.
    text = struct.pack("<QQ", seed % 2**64, place)
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _restricted(logits_V: Tensor, allowed: Tensor | None) -> Tensor:
    """The logits with -inf where a bit of `allowed` is not set; one at least is finite."""
    logits_V = logits_V.detach().to(torch.float32)
    if allowed is not None:
        words = (len(logits_V) + 31) // 32
        if allowed.dtype != torch.int32 or allowed.shape != (words,):
            raise RequestError(
                f"A mask of {len(logits_V)} tokens is {words} words of int32; got "
                f"{list(allowed.shape)} of {allowed.dtype}. Make it for this model's vocabulary."
            )
        # numpy takes the bits apart several times faster than torch.
        bytes_B = allowed.cpu().numpy().view(np.uint8)
        bits_V = np.unpackbits(bytes_B, count=len(logits_V), bitorder="little")
        allowed_V = torch.from_numpy(bits_V).view(torch.bool).to(logits_V.device)
        logits_V = torch.where(allowed_V, logits_V, -math.inf)
    if not math.isfinite(float(logits_V.max())):
        raise RequestError(
            "No token can be drawn: the mask, the bias and the penalties leave no finite logit. "
            "Allow more tokens, or use milder numbers."
        )
    return logits_V


__all__ = ["Drawn", "Sampling", "adjusted", "alternatives", "sample", "survivors", "uniform"]
