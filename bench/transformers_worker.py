"""transformers as an engine to be timed.

Promise: its own model class and cache, called as its `generate` calls them, without the time that
`generate` spends around them; contexts are filled with random keys and values, as Fathom's are.
"""

import time
from pathlib import Path

import torch
from transformers import DynamicCache, NemotronHForCausalLM
from works import random_tokens


class TransformersEngine:
    """The model with a cache made for each run."""

    def __init__(self, folder: Path, precision: str) -> None:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.model = NemotronHForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.config = self.model.config

    @torch.inference_mode()
    def prefill(self, tokens: int, batch: int) -> float:
        """Read the prompts at once, the last row of each becomes logits."""
        ids = random_tokens(self.config.vocab_size, batch, tokens)
        begin = time.perf_counter()
        cache = DynamicCache(config=self.config)
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - begin

    @torch.inference_mode()
    def decode(self, batch: int, context: int, steps: int) -> float:
        """Steps behind one real token and random keys and values for the rest of the context."""
        cache = DynamicCache(config=self.config)
        ids = random_tokens(self.config.vocab_size, steps + 1, batch, 1)
        self._step(ids[steps], cache)
        if context > 1:
            self._fill(cache, batch, context - 1)
        begin = time.perf_counter()
        for step in ids[:steps]:
            self._step(step, cache)
        return time.perf_counter() - begin

    def _step(self, tokens: torch.Tensor, cache: DynamicCache) -> None:
        """One token of each sequence [B, 1]."""
        self.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def _fill(self, cache: DynamicCache, batch: int, tokens: int) -> None:
        """Append random keys and values to every attention layer."""
        shape = (batch, self.config.num_key_value_heads, tokens, self.config.head_dim)
        for index, kind in enumerate(self.config.layers_block_type):
            if kind == "full_attention":
                keys = torch.randn(shape, dtype=self.model.dtype)
                cache.update(keys, keys.clone(), index)


def load(folder: Path, precision: str) -> TransformersEngine:
    """Load a folder in a type, "fp32" or "bf16"."""
    return TransformersEngine(folder, precision)
