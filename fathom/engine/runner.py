"""One request at a time, or a fixed group of them, through the model that also trains.

Promise: the prompt goes through the model in pieces of `chunk` tokens, so that activations stay
small however long it is, and only its last row becomes logits; then one token a step, recorded and
replayed where it can be (`engine/recorded.py`). What a token is drawn from is exactly what the
training forward gives at that place, up to the order of sums.
Drawing is `engine/sampler.py`; what a sequence remembers is `model/memory.py`.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fathom.engine.recorded import RecordedStep
from fathom.engine.request import Completion, Request, StopReason, Token
from fathom.engine.sampler import sample
from fathom.errors import RequestError
from fathom.model.memory import Memory
from fathom.model.nemotron import Nemotron
from fathom.ops.layout import Layout


class Runner:
    """Continues prompts with one model; holds nothing between requests."""

    def __init__(self, model: Nemotron, *, chunk: int = 2048) -> None:
        """Take a model; `chunk` is the most prompt tokens that go through it at once."""
        if chunk < 1:
            raise RequestError(f"chunk must be 1 or more; got {chunk}.")
        self.model = model
        self.chunk = chunk

    def stream(self, request: Request) -> Iterator[Token]:
        """Yield the answer's tokens as they come; the last one says why it is the last.

        The request is checked at once, before the first token is asked for. Raises `RequestError`.
        """
        request.check(self.model.config.vocab)
        return self._tokens(request)

    def run(self, request: Request) -> Completion:
        """Return the whole answer of one request."""
        return _complete(self.stream(request))

    def run_group(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer several requests side by side, which takes far less time than one by one.

        The group is fixed: the memory of an answer that has ended is kept, and fed, until the
        longest has. Each draws as it would alone, but sums of another order may turn near-ties.
        """
        for request in requests:
            request.check(self.model.config.vocab)
        if not requests:
            return []
        memory = self.model.memory(len(requests))
        answers: list[list[Token]] = [[] for _ in requests]
        logits_SV = self._prefill([request.ids for request in requests], memory)
        recorded = RecordedStep(self.model, memory)
        while True:
            for request, answer, logits_V in zip(requests, answers, logits_SV, strict=True):
                if not answer or answer[-1].stop_reason is None:
                    answer.append(_draw(request, logits_V, len(answer)))
            if all(answer[-1].stop_reason for answer in answers):
                return [_complete(iter(answer)) for answer in answers]
            logits_SV = recorded.step([answer[-1].id for answer in answers])

    def _tokens(self, request: Request) -> Iterator[Token]:
        """The answer to a request that was checked."""
        memory = self.model.memory()
        logits_SV = self._prefill([request.ids], memory)
        recorded = RecordedStep(self.model, memory)
        for place in range(request.max_tokens):
            token = _draw(request, logits_SV[0], place)
            yield token
            if token.stop_reason is not None:
                return
            logits_SV = recorded.step([token.id])

    def _prefill(self, prompts: Sequence[Sequence[int]], memory: Memory) -> Tensor:
        """Read the prompts; return logits [S, V] of what follows each one's last token."""
        if len(prompts) > 1:
            return self._forward(prompts, memory)
        prompt = prompts[0]
        # The last piece has one token at least, because a prompt has.
        whole = (len(prompt) - 1) // self.chunk * self.chunk
        for start in range(0, whole, self.chunk):
            self._hidden([prompt[start : start + self.chunk]], memory)
        return self._forward([prompt[whole:]], memory)

    @torch.inference_mode()
    def _hidden(self, pieces: Sequence[Sequence[int]], memory: Memory) -> tuple[Tensor, Layout]:
        """Feed one piece to every sequence; return hidden states [T, D] and their layout."""
        layout = Layout.of([len(piece) for piece in pieces])
        tokens_T = torch.tensor([i for piece in pieces for i in piece], dtype=torch.int64)
        return self.model(tokens_T.to(self.model.embedding.weight.device), layout, memory), layout

    @torch.inference_mode()
    def _forward(self, pieces: Sequence[Sequence[int]], memory: Memory) -> Tensor:
        """Feed one piece to every sequence; return logits [S, V] of each one's last row."""
        hidden_TD, layout = self._hidden(pieces, memory)
        logits_SV: Tensor = self.model.logits(hidden_TD[layout.last_S.to(hidden_TD.device)])
        return logits_SV


def _draw(request: Request, logits_V: Tensor, place: int) -> Token:
    """Draw the token of one place and say whether it is the last."""
    drawn = sample(logits_V, request.sampling, place)
    reason: StopReason | None = None
    if drawn.id in request.stop_ids:
        reason = "stop"
    elif place + 1 == request.max_tokens:
        reason = "length"
    return Token(drawn.id, drawn.logp, drawn.sampler_logp, reason)


def _complete(tokens: Iterator[Token]) -> Completion:
    """Gather the tokens of one answer."""
    found = list(tokens)
    reason = found[-1].stop_reason
    assert reason is not None
    return Completion(
        ids=tuple(token.id for token in found),
        logps=tuple(token.logp for token in found),
        sampler_logps=tuple(token.sampler_logp for token in found),
        stop_reason=reason,
    )


__all__ = ["Runner"]
