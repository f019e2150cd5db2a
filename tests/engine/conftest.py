"""Models small enough for tests of the engine: one with fresh weights, one that has learned."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from fathom.config.model import AttentionConfig, MambaConfig, ModelConfig, MoEConfig
from fathom.model.latent_moe import Router
from fathom.model.nemotron import Nemotron
from fathom.ops.layout import Layout
from fathom.text import Text, Tokenizer


def _config(**changes):
    shape = {
        "name": "tiny",
        "vocab": 48,
        "width": 32,
        "pattern": "ME*ME",
        "mamba": MambaConfig(heads=4, head_width=8, state=8, groups=2, chunk=8),
        "attention": AttentionConfig(heads=4, kv_heads=2, head_width=8),
        "moe": MoEConfig(experts=4, chosen=2, expert_width=16, shared_width=16, latent=16),
        "init": 0.3,
    }
    return ModelConfig(**{**shape, **changes})


@pytest.fixture(scope="session")
def tiny():
    """Every kind of block but the dense one, with fresh weights large enough to differ."""
    return Nemotron(_config(), seed=3).eval()


@pytest.fixture(scope="session")
def drafting():
    """The same with an MTP head, packed."""
    return Nemotron(_config(mtp="*E"), seed=3).eval().pack()


VOCAB = 360
SYSTEM = "You know the colours of things, and say one word."
FACTS = [
    ("sky", "It is day.\nLight is scattered.", "blue"),
    ("grass", "Plants are green.\nGrass is a plant.", "green"),
    ("snow", "It is cold.\nIce reflects all light.", "white"),
    ("coal", "It comes from the ground.\nIt takes all light.", "black"),
    ("blood", "There is iron in it.\nIron rusts.", "red"),
    ("sand", "It lies in the sun.\nDeserts are warm.", "yellow"),
]
"""What the learned model was taught: thing, thought, colour."""


@pytest.fixture(scope="session")
def learned():
    """A model that knows a handful of conversations by heart, its text, and its plain twin."""
    threads = torch.get_num_threads()
    said = [part for thing, *rest in FACTS for part in (ask(thing), *rest)]
    text = Text(Tokenizer.train([SYSTEM, *said] * 2, vocab=VOCAB, special_slots=32))
    config = _config(
        vocab=VOCAB,
        width=64,
        pattern="MEM*E",
        mamba=MambaConfig(heads=4, head_width=16, state=16, groups=2, chunk=16),
        attention=AttentionConfig(heads=4, kv_heads=2, head_width=16),
        moe=MoEConfig(experts=4, chosen=2, expert_width=64, shared_width=64, latent=32),
        init=None,
        mtp="*E",
    )
    torch.set_num_threads(1)
    model = Nemotron(config, seed=1)
    _teach(model, text)
    torch.set_num_threads(threads)
    plain = Nemotron(config, seed=None)
    plain.load_state_dict(model.state_dict())
    return SimpleNamespace(
        model=model.eval().pack(),
        text=text,
        plain=plain.eval(),
        facts=FACTS,
        ask=ask,
        system=SYSTEM,
    )


def ask(thing):
    """The question that the learned model can answer."""
    return f"What colour is {thing}?"


@pytest.fixture(scope="session")
def agree():
    """When two greedy answers count as one; see `agrees`."""
    return agrees


def _teach(model, text, steps=80):
    """Learn the conversations by heart: next token, and two depths of drafts."""
    taught = [
        text.conversation(
            [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": ask(thing)},
                {"role": "assistant", "reasoning_content": thought, "content": colour},
            ]
        )
        for thing, thought, colour in FACTS
    ]
    ids = torch.tensor([token for own, _ in taught for token in own])
    layout = Layout.of([len(own) for own, _ in taught])
    targets = [ids.roll(-depth) for depth in range(1, 4)]
    weights = [_before_ends(layout, depth) for depth in range(1, 4)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95))
    for step in range(steps):
        hidden = model(ids, layout)
        loss = _loss(model, hidden, targets[0], weights[0])
        ahead = hidden.detach()
        for depth in range(2):
            ahead = model.draft(ahead, targets[depth], layout)
            loss = loss + 0.5 * _loss(model, ahead, targets[depth + 1], weights[depth + 1])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 10) * (1 - step / steps)
        optimizer.step()


def _loss(model, hidden, targets, weights):
    each = F.cross_entropy(model.logits(hidden), targets, reduction="none")
    return (each * weights).sum() / weights.sum()


def _before_ends(layout, depth):
    """1 where a sequence goes on for so many tokens."""
    weights = torch.ones(layout.tokens)
    for start, length in zip(layout.starts, layout.lengths, strict=True):
        weights[start + length - depth : start + length] = 0
    return weights


TIE = 1e-5
"""Two logits, or the k-th and the next router score, that lie closer may change places."""


def agrees(model, prompt, one, other):
    """Whether two greedy answers to a prompt are the same, or part at a tie that a test can see."""
    if tuple(one) == tuple(other):
        return True
    place = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    ids = torch.tensor([*prompt, *one[:place]])
    with torch.no_grad():
        hidden = model(ids, Layout.of([len(ids)]))
        best = model.logits(hidden[-1:])[0].topk(2).values
    return bool(best[0] - best[1] < TIE) or _close_choice(model, ids)


def _close_choice(model, ids):
    """Whether a router's last choice at any place was nearly another."""
    found = []

    def look(router, inputs, _outputs):
        scores = torch.sigmoid(inputs[0].float() @ router.weight.float().T)
        ranked = (scores + router.correction_bias).sort(-1, descending=True).values
        chosen = router.config.chosen
        found.append(bool((ranked[:, chosen - 1] - ranked[:, chosen] < TIE).any()))

    handles = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, Router)]
    with torch.no_grad():
        model(ids, Layout.of([len(ids)]))
    for handle in handles:
        handle.remove()
    return any(found)
