"""Texts to calibrate with, as ids.

Promise: the same documents give the same ids, in order, until there are enough; documents longer
than a text are cut. Reading files is `data/documents.py`'s.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from fathom.data.documents import Files, HubDataset
from fathom.errors import DataError
from fathom.text import Text


def read_texts(
    data: str | Path, text: Text, *, tokens: int = 8192, length: int = 2048
) -> list[Tensor]:
    """Texts of at most `length` ids, `tokens` in all, from a file, a folder or a hub dataset.

    Raises `DataError` if there are none.
    """
    local = Path(data).expanduser().exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(data))
    documents = Files(data) if local else HubDataset(str(data), stream=True)
    found: list[Tensor] = []
    left = tokens
    for document in documents:
        if document.text:
            ids = text.tokenizer.encode(document.text)
        else:
            ids = list(text.conversation([dict(turn) for turn in document.messages])[0])
        for first in range(0, len(ids), length):
            part = ids[first : first + min(length, left)]
            if part:
                found.append(torch.tensor(part, dtype=torch.int64))
                left -= len(part)
        if left <= 0:
            break
    if not found:
        raise DataError(f"{data} holds no text to calibrate with.")
    return found


__all__ = ["read_texts"]
