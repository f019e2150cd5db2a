"""The model's calls on the engine's memory: read prompts, decode, verify drafts, accept, draft.

Promise: each is a call of the one model that also trains. Those that recur (a token of every
running request; drafts verified; what was accepted; a draft more) work on fixed buffers, the draw
of their tokens included, and are recorded once a number of rows (`model/recorded.py`). Which
requests they are for, and what becomes of the tokens, is `engine.py`'s.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fathom.engine.draws import Drawn, Parameters, drawn_of
from fathom.engine.live import Live
from fathom.engine.pages import Slots, State
from fathom.model.memory import AttentionMemory, Memory
from fathom.model.nemotron import Nemotron
from fathom.model.recorded import Recorded
from fathom.ops import dispatch
from fathom.ops.layout import Layout

WINDOW = 16
"""Hidden states that the MTP head reads of what it has not seen; it goes on from there."""

Result = tuple[Tensor, tuple[Tensor, ...]]
"""Logits, and what was drawn from them: ids and log-probabilities, or ids by depth."""

RECORDED = 512 << 20
"""Most bytes of intermediate results that recordings keep; each is of one number of requests and
drafts, and the one that was not used for longest goes first."""


class Runner:
    """Runs one model over one memory."""

    def __init__(self, model: Nemotron, slots: Slots, drafts: int) -> None:
        self.model, self.slots = model, slots
        weight, rows = model.embedding.weight, slots.table_SB.shape[0]
        device, tokens = weight.device, rows * (drafts + 1)
        self._tokens_T = _Numbers.zeros(tokens, torch.int64, device)
        self._next_T = _Numbers.zeros(tokens, torch.int64, device)
        self._counts_S = _Numbers.zeros(rows, torch.int32, device)
        self._last_S = _Numbers.zeros(rows, torch.int64, device)
        self._past_S = _Numbers(slots.memory.past_S)
        self._head_S = _Numbers.zeros(rows, torch.int32, device)
        self._ahead_S = _Numbers.zeros(rows, torch.int32, device)
        self.hidden_TD = weight.new_zeros(tokens, model.config.width)
        """The backbone's last hidden states, a row a token."""
        self._single, self._several = Parameters(rows), Parameters(tokens)
        self._ahead = [Parameters(rows) for _ in range(drafts)]
        self._catch = _Catch(slots, self.hidden_TD) if slots.head is not None else None
        self._calls: OrderedDict[tuple[str, int, int], _Call] = OrderedDict()
        self._made_for = self._circumstances()
        self.steady = True
        """Whether every call of this step has been made, and written down, before."""
        self._warm: set[str] = set()
        self._fixed = self._buffers()

    @torch.inference_mode()
    def read(self, lives: Sequence[Live], counts: Sequence[int]) -> tuple[Tensor, Layout]:
        """Read so many more of each request's tokens; return hidden states [T, D] and layout.

        The requests have no slot; their states and counts of tokens move on.
        """
        states = [live.state for live in lives]
        assert all(states)
        memory = self.slots.gathered(
            [state for state in states if state is not None],
            [live.pages for live in lives],
            [live.seen for live in lives],
        )
        layout = Layout.of(counts)
        ids = [
            token
            for live, count in zip(lives, counts, strict=True)
            for token in live.ids[live.seen : live.seen + count]
        ]
        tokens_T = torch.tensor(ids, dtype=torch.int64).to(self._tokens_T.tensor.device)
        hidden_TD: Tensor = self.model(tokens_T, layout, memory)
        for row, (live, count) in enumerate(zip(lives, counts, strict=True)):
            live.state, live.seen = State.of(memory, row), live.seen + count
        return hidden_TD, layout

    @torch.inference_mode()
    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits [T, V], fp32, of hidden states."""
        return self.model.logits(hidden_TD)

    def decode(self, lives: Sequence[Live]) -> Drawn:
        """Feed each request its last token; a token of each. The requests fill the first rows."""
        self._tokens_T.put([live.ids[-1] for live in lives])
        self._single.set(lives)
        call = self._call("decode", len(lives), 1)
        call.memory.seen = [live.seen for live in lives]
        logits_SV = call.recorded()
        for live in lives:
            live.seen += 1
        return drawn_of(logits_SV, call.drawn, self._single, lives)

    def verify(self, lives: Sequence[Live], drafts: int) -> Drawn:
        """Feed each request its last token and drafts; `drafts` + 1 tokens of each.

        The memory stays as it was until `accept`.
        """
        fed = [token for live in lives for token in (live.ids[-1], *live.drafts[:drafts])]
        self._tokens_T.put(fed)
        each = drafts + 1
        self._several.set(lives, each=each)
        call = self._call("verify", len(lives), each)
        call.memory.seen = [live.seen for live in lives]
        logits_RV = call.recorded()
        return drawn_of(logits_RV, call.drawn, self._several, lives, each=each)

    def settle(
        self, lives: Sequence[Live], drafts: int, counts: Sequence[int], depth: int
    ) -> list[list[int]]:
        """Keep the first `counts` tokens of what was verified; let the head read them and draft.

        The last `counts` tokens of each request's ids are what came after those tokens. Returns, by
        depth up to `depth`, a draft of each request for the token so far behind its last.
        """
        each = drafts + 1
        self._counts_S.put(counts)
        self._last_S.put([at * each + count - 1 for at, count in enumerate(counts)])
        following = [0] * (len(lives) * each)
        for at, (live, count) in enumerate(zip(lives, counts, strict=True)):
            following[at * each : at * each + count] = live.ids[len(live.ids) - count :]
        self._next_T.put(following)
        begun = [live.head_past for live in lives]
        self._head_S.put(begun)
        for live, count in zip(lives, counts, strict=True):
            live.seen += count
            live.head_past += count
            live.drafts = []
        self._ahead_S.put([live.head_past for live in lives])
        for place in range(depth):
            self._ahead[place].set(lives, place)
        call = self._call(f"settle {depth}", len(lives), each)
        call.memory.seen = begun
        logits_SV = call.recorded()
        # not before: states are moved on from where they were
        self._past_S.put([live.seen for live in lives])
        if depth > 1:
            return [ids_S.tolist() for ids_S in call.drawn]
        return [drawn_of(logits_SV, call.drawn, self._ahead[0], lives).ids]

    def deeper(self, lives: Sequence[Live], place: int) -> list[int]:
        """The head reads its own hidden states and the last drafts; the drafts that follow them.

        They are `place` tokens behind each request's last.
        """
        self._next_T.put([live.drafts[-1] for live in lives])
        self._ahead_S.put([live.head_past + place - 1 for live in lives])
        self._ahead[0].set(lives, place)
        call = self._call("deeper", len(lives), 1)
        call.memory.seen = [live.head_past + place - 1 for live in lives]
        logits_SV = call.recorded()
        return drawn_of(logits_SV, call.drawn, self._ahead[0], lives, first=place).ids

    def catch_up(self, live: Live, hidden_WD: Tensor) -> int:
        """Let the head read hidden states that it missed of a request; a draft of what follows.

        They are the last up to `WINDOW`, up to the token before the request's last.
        """
        missed, head = len(hidden_WD), self._catch
        assert head is not None
        assert live.slot is not None
        head.hidden_WD[:missed] = hidden_WD
        head.table_SB[0] = head.tables_SB[live.slot]
        head.past_S.put([live.head_past])
        head.last_S.put([missed - 1])
        head.next_W.put(live.ids[live.seen + 1 - missed : live.seen + 1])
        live.head_past += missed
        self._ahead[0].set([live])
        call = self._call("catch up", 1, WINDOW)
        call.memory.seen = [live.head_past - missed]
        logits_SV = call.recorded()
        self.slots.drafting_SD[live.slot] = head.drafting_SD[0]
        return drawn_of(logits_SV, call.drawn, self._ahead[0], [live]).ids[0]

    @property
    def why_not(self) -> str | None:
        """Why a recurring call is not replayed, in words; None: all are, or none has run."""
        reasons = (call.recorded.why_not for call in self._calls.values())
        return next((reason for reason in reasons if reason is not None), None)

    def look(self) -> None:
        """A step begins: recordings made for another tier or number of threads are let go."""
        self.steady = True
        now = self._circumstances()
        if now != self._made_for:
            self._made_for = now
            self._calls.clear()

    @staticmethod
    def _circumstances() -> tuple[str, int]:
        return dispatch.forced_tier(), torch.get_num_threads()

    def _call(self, kind: str, count: int, each: int) -> "_Call":
        """The call of one kind for so many requests of so many tokens."""
        key = (kind, count, each)
        found = self._calls.get(key)
        if found is None:
            found = self._calls[key] = _Call(self, kind, count, each, warm=kind in self._warm)
            self._warm.add(kind)
            while len(self._calls) > 1 and sum(c.bytes for c in self._calls.values()) > RECORDED:
                self._calls.popitem(last=False)
        else:
            self._calls.move_to_end(key)
        found.runs += 1
        self.steady = self.steady and found.runs > 2
        return found

    def function(self, kind: str, count: int, each: int) -> tuple[Callable[[], Result], Memory]:
        """What a call does, on views of the buffers, and the memory that it moves on."""
        if kind in ("decode", "verify"):
            return self._forward(kind, count, each)
        if kind == "catch up":
            return self._catching()
        return self._drafting(int(kind[7:]) if kind.startswith("settle") else 0, count, each)

    def _catching(self) -> tuple[Callable[[], Result], Memory]:
        """The head reads what it missed of one request, in a window of fixed length.

        Rows behind those that were missed hold what they held before: nothing reads what they
        leave, since the head remembers no more than it is told to.
        """
        head, layout = self._catch, Layout.of([WINDOW])
        assert head is not None
        memory = replace(self.slots.of_head(slice(0, 1), head.past_S.tensor), holding=True)
        memory.table_SB = head.table_SB
        for layer in memory.layers:
            if isinstance(layer, AttentionMemory):
                layer.pages = replace(layer.pages, table_SB=head.table_SB)

        def catch() -> Result:
            drafted_TD = self.model.draft(head.hidden_WD, head.next_W.tensor, layout, memory)
            head.drafting_SD.copy_(drafted_TD.index_select(0, head.last_S.tensor))
            logits_SV = self.model.logits(head.drafting_SD)
            return logits_SV, self._ahead[0].draw(logits_SV)

        return catch, memory

    def _forward(self, kind: str, count: int, each: int) -> tuple[Callable[[], Result], Memory]:
        """The backbone's calls: decode and verify."""
        model, slots, layout = self.model, self.slots, Layout.of([each] * count)
        tokens_T, hidden_TD = self._tokens_T.tensor[: count * each], self.hidden_TD[: count * each]
        memory = slots.first(count) if kind == "decode" else slots.holding(count)
        parameters = self._single if kind == "decode" else self._several

        def forward() -> Result:
            hidden = model(tokens_T, layout, memory)
            if slots.head is not None:
                hidden_TD.copy_(hidden)
            logits_RV = model.logits(hidden)
            return logits_RV, parameters.draw(logits_RV)

        return forward, memory

    def _drafting(self, depth: int, count: int, each: int) -> tuple[Callable[[], Result], Memory]:
        """The head's calls: settle with so many drafts after it, or (0) one draft deeper."""
        model, slots, layout = self.model, self.slots, Layout.of([each] * count)
        hidden_TD, next_T = self.hidden_TD[: count * each], self._next_T.tensor[: count * each]
        drafting_SD, last_S = slots.drafting_SD[:count], self._last_S.tensor[:count]
        counts_S, ones = self._counts_S.tensor[:count], Layout.of([1] * count)
        holding, rows = slots.holding(count), slice(0, count)
        # the head reads behind what it remembers, and drafts behind what of that stays
        reading = replace(slots.of_head(rows, self._head_S.tensor[:count]), holding=True)
        ahead = slots.of_head(rows, self._ahead_S.tensor[:count])

        def further(tokens_S: Tensor) -> Tensor:
            drafting_SD.copy_(model.draft(drafting_SD, tokens_S, ones, ahead))
            return model.logits(drafting_SD)

        def settle() -> Result:
            model.accept(holding, layout, counts_S)
            drafted_TD = model.draft(hidden_TD, next_T, layout, reading)
            drafting_SD.copy_(drafted_TD.index_select(0, last_S))
            logits_SV = model.logits(drafting_SD)
            drawn = self._ahead[0].draw(logits_SV)
            if depth == 1:
                return logits_SV, drawn
            found = [drawn[0]]
            for place in range(1, depth):
                # -1, where there is no number to go by, is no token
                logits_SV = further(found[-1])
                found.append(self._ahead[place].draw(logits_SV)[0])
            return logits_SV, tuple(found)

        def deeper() -> Result:
            logits_SV = further(next_T)
            return logits_SV, self._ahead[0].draw(logits_SV)

        return (settle, reading) if depth else (deeper, ahead)

    def fixed(self) -> list[Tensor]:
        """Everything that a recurring call reads or writes; none of it ever moves."""
        return self._fixed

    def _buffers(self) -> list[Tensor]:
        """Everything that a recurring call reads or writes, where it stays."""
        numbers = [self._tokens_T, self._next_T, self._counts_S, self._last_S]
        numbers += [self._head_S, self._ahead_S]
        found = [one.tensor for one in numbers]
        found += [self.hidden_TD, self.slots.drafting_SD, *self.slots.memory.buffers()]
        for held in self.slots.held:
            if held is not None:
                found += [held.taken_Tc, held.given_Tc, held.dt_TH]
        if self.slots.head is not None:
            found += self.slots.head.buffers()
        if self._catch is not None:
            found += self._catch.buffers()
        for parameters in (self._single, self._several, *self._ahead):
            found += parameters.buffers()
        return found


class _Call:
    """A recurring call with the draw of its tokens, recorded as one."""

    def __init__(self, runner: Runner, kind: str, count: int, each: int, *, warm: bool) -> None:
        self.runs = 0
        """How often it was asked for; the first two times it runs through Python."""
        self.drawn: tuple[Tensor, ...] = ()
        """Ids and log-probabilities of the last run, where a replay writes them too."""
        function, self.memory = runner.function(kind, count, each)

        def whole() -> Tensor:
            logits_RV, self.drawn = function()
            return logits_RV

        self.recorded = Recorded(whole, runner.fixed, warm=warm)

    @property
    def bytes(self) -> int:
        """Memory that its recording takes."""
        recording = self.recorded.recording
        return recording.bytes if recording is not None else 0


class _Catch:
    """Where one request's row is laid out for the head to read what it missed."""

    def __init__(self, slots: Slots, hidden_TD: Tensor) -> None:
        assert slots.head is not None
        device = hidden_TD.device
        self.tables_SB = slots.head.table_SB
        self.hidden_WD = hidden_TD.new_zeros(WINDOW, hidden_TD.shape[1])
        self.drafting_SD = hidden_TD.new_zeros(1, hidden_TD.shape[1])
        self.table_SB = self.tables_SB[:1].clone()
        self.next_W = _Numbers.zeros(WINDOW, torch.int64, device)
        self.past_S = _Numbers.zeros(1, torch.int32, device)
        self.last_S = _Numbers.zeros(1, torch.int64, device)

    def buffers(self) -> list[Tensor]:
        """All of it."""
        numbers = [self.next_W.tensor, self.past_S.tensor, self.last_S.tensor]
        return [self.hidden_WD, self.drafting_SD, self.table_SB, *numbers]


class _Numbers:
    """A tensor of whole numbers that Python writes into at every step."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        # numpy writes a list four times faster
        self._array = tensor.numpy() if tensor.device.type == "cpu" else None

    @classmethod
    def zeros(cls, count: int, dtype: torch.dtype, device: torch.device) -> "_Numbers":
        """A new one."""
        return cls(torch.zeros(count, dtype=dtype, device=device))

    def put(self, values: Sequence[int]) -> None:
        """Write numbers into the first places."""
        if self._array is not None:
            self._array[: len(values)] = values
        else:
            fresh = torch.tensor(values, dtype=self.tensor.dtype)
            self.tensor[: len(values)] = fresh.to(self.tensor.device)


__all__ = ["RECORDED", "WINDOW", "Runner"]
