"""Many prompts at once: a batch, a thinking budget, a shared beginning, answers by a schema.

    python examples/03_engine.py                     # seconds; see below for the model
    python examples/03_engine.py folder-or-hub-id

Without a name it takes what `fathom quickstart` left in runs/quickstart/model; without that, fresh
weights of the smallest member, which say nothing sensible.
"""

import argparse
import json
import time
from pathlib import Path

import fathom
from fathom.engine.grammar import Compiler, Vocabulary
from fathom.text import Tokenizer

arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
arguments.add_argument("checkpoint", nargs="?", help="a folder or a hub id")
asked = arguments.parse_args()

left = Path("runs/quickstart/model")
checkpoint = asked.checkpoint or (left if left.is_dir() else None)
if checkpoint is None:
    model = fathom.Nemotron("pocket").pack()
    text = fathom.Text(Tokenizer.train([], vocab=288, special_slots=32))
else:
    model, text = fathom.load(checkpoint, packed=True), fathom.Text.load(checkpoint)

# One engine serves everything below. What it holds is a config; see docs/engine.md.
engine = fathom.Engine(model, sequences=16, context=2048)

# 1. A batch: sixteen are answered side by side, the others as places come free.
questions = [f"What is {a}+{b}?" for a in range(30, 36) for b in range(60, 64)]
began = time.perf_counter()
answers = fathom.generate(engine, text, questions, max_tokens=48, temperature=0)
tokens = sum(len(answer.ids) for answer in answers)
print(f"{len(answers)} answers, {tokens / (time.perf_counter() - began):,.0f} tokens a second")
print(f"  {questions[0]} {answers[0].content!r}, thought {answers[0].reasoning[:40]!r}")

# 2. A budget: after four tokens of thought the model must answer.
budget = fathom.generate(engine, text, questions[0], max_tokens=48, temperature=0, budget=4)[0]
print(f"with a budget: {budget.usage.thought} tokens of thought, cut: {budget.usage.cut}")

# 3. A shared beginning: what was read once is not read again, and a miss says why.
system = {"role": "system", "content": "You add numbers. " + "Think first, then answer. " * 20}
for question in questions[:3]:
    turns = [system, {"role": "user", "content": question}]
    usage = fathom.generate(engine, text, turns, max_tokens=8, temperature=0)[0].usage
    print(f"{usage.reused} of {usage.prompt} prompt tokens remembered ({usage.miss})")

# 4. A schema: after the thought only tokens that keep to it can be drawn. Compile it once.
schema = {
    "type": "object",
    "properties": {"sum": {"enum": [90, 91, 92]}},
    "required": ["sum"],
    "additionalProperties": False,
}
vocabulary = Vocabulary.of(text.tokenizer.json, text.stop_ids, model.config.vocab)
grammar = Compiler(vocabulary).compile(fathom.Grammar.json_schema(schema))
strict = fathom.generate(
    engine, text, questions[0], max_tokens=400, temperature=0.5, budget=20, grammar=grammar
)[0]
print(f"by the schema: {json.loads(strict.content)}")

# 5. By hand, in token ids: add requests, step, listen; end a thought or cancel at any time.
ids = tuple(text.prompt([{"role": "user", "content": "17+18=?"}]))
request = fathom.Request(
    ids, max_tokens=40, sampling=fathom.Sampling(seed=7), stop_ids=text.stop_ids
)
numbers = {engine.add(request), engine.add(request)}
engine.cancel(min(numbers))
while engine.unfinished:
    for event in engine.step():
        if event.stop_reason is not None:
            print(f"request {event.request}: {event.stop_reason}, {event.usage.answered} tokens")

stats = engine.stats
print(
    f"{stats.added} requests in {stats.steps} steps; {stats.reused_tokens} of "
    f"{stats.prompt_tokens} prompt tokens remembered; drafts accepted: "
    f"{[f'{share:.0%}' for share in stats.acceptance]}"
)
