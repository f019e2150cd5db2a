"""How a request wants its tokens drawn: penalties, temperature, three filters, and a seed.

Promise: the token that a request draws at a place depends on its logits, its `Sampling`, its own
tokens and the place alone: neither on its neighbours in a batch nor on any generator's history. The
draw (`ops/draw`) is the inverse of the cumulative distribution at one number that a hash of (seed,
place) gives, so it is the same on every machine up to rounding of the logits.

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


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) with 53 random bits, the hash of seed and place."""
    # A hash costs a microsecond and needs no state; generators of torch or numpy differ by device.
    text = struct.pack("<QQ", seed % 2**64, place)
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


__all__ = ["Sampling", "adjusted", "alternatives", "uniform"]
