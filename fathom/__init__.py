"""Fathom: train, post-train and run NVIDIA's Nemotron 3 models.

    model = fathom.Nemotron("pocket")
    model = fathom.load("folder or hub id")
    text = fathom.Text.load("folder")
    answers = fathom.generate(model, text, "How many r in strawberry?")

Promise: `import fathom` costs milliseconds; a name brings its library (torch and all) along when it
is first used. The names and their homes are the table below, their types `__init__.pyi`.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Answer": "fathom.generation",
    "Batch": "fathom.data.batch",
    "Budget": "fathom.engine.budget",
    "CheckpointError": "fathom.errors",
    "ConfigError": "fathom.errors",
    "DataError": "fathom.errors",
    "Engine": "fathom.engine.engine",
    "EngineConfig": "fathom.config.engine",
    "FathomError": "fathom.errors",
    "Grammar": "fathom.engine.grammar",
    "KernelError": "fathom.errors",
    "LIGHTNING": "fathom.model.sizes",
    "Layout": "fathom.ops.layout",
    "Memory": "fathom.model.memory",
    "MissingError": "fathom.errors",
    "ModelConfig": "fathom.config.model",
    "NANO": "fathom.model.sizes",
    "NANO_4B": "fathom.model.sizes",
    "Nemotron": "fathom.model.nemotron",
    "PICO": "fathom.model.sizes",
    "POCKET": "fathom.model.sizes",
    "Request": "fathom.engine.request",
    "RequestError": "fathom.errors",
    "SIZES": "fathom.model.sizes",
    "SUPER": "fathom.model.sizes",
    "Sampling": "fathom.engine.sampler",
    "Text": "fathom.text",
    "TextError": "fathom.errors",
    "TrainingError": "fathom.errors",
    "ULTRA": "fathom.model.sizes",
    "generate": "fathom.generation",
    "load": "fathom.checkpoint.weights",
    "save": "fathom.checkpoint.weights",
}

__all__ = [
    "LIGHTNING",
    "NANO",
    "NANO_4B",
    "PICO",
    "POCKET",
    "SIZES",
    "SUPER",
    "ULTRA",
    "Answer",
    "Batch",
    "Budget",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Engine",
    "EngineConfig",
    "FathomError",
    "Grammar",
    "KernelError",
    "Layout",
    "Memory",
    "MissingError",
    "ModelConfig",
    "Nemotron",
    "Request",
    "RequestError",
    "Sampling",
    "Text",
    "TextError",
    "TrainingError",
    "__version__",
    "generate",
    "load",
    "save",
]


def __getattr__(name: str) -> object:
    """Fetch a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fathom' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Every public name, fetched or not."""
    return sorted(__all__)
