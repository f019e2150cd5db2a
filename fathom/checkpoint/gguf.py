"""A checkpoint written as one GGUF file, which llama.cpp loads.

Promise: quantised matrices are not rounded again. NVFP4 becomes GGUF's NVFP4 (the same codes and
block scales in another order) where rows are whole blocks of 64; other codes become the numbers
they mean without the scale of the whole matrix, which BF16 holds exactly, and that scale lies
beside them as llama.cpp expects it. The one exception are latent projections, for whose scale
llama.cpp has no place: their weights are rounded to BF16. What llama.cpp cannot compute is refused.
The file appears whole or not at all, and values pass through a few megabytes. What the file says of
the model is `gguf_facts.py`'s, tokens are `gguf_text.py`'s. Needs the library gguf.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fathom.checkpoint.atomic import SLACK
from fathom.checkpoint.gguf_facts import add_facts, architecture, check_model
from fathom.checkpoint.gguf_text import add_text
from fathom.checkpoint.names import Slot
from fathom.checkpoint.opened import Opened, open_checkpoint
from fathom.checkpoint.packed import StoredMatrix, row_pieces
from fathom.checkpoint.pieces import PIECE, Reader
from fathom.errors import CheckpointError, MissingError
from fathom.ops import nvfp4

Kind = Literal["F32", "F16", "BF16", "NVFP4"]
DTYPES: Mapping[torch.dtype, Kind] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
SUPER = 64
"""Columns of a super-block of GGUF's NVFP4: four block scales, then 32 bytes of codes."""
WIDTH: Mapping[Kind, float] = {"F32": 4, "F16": 2, "BF16": 2, "NVFP4": 36 / SUPER}
"""Bytes of a value."""

_OUTSIDE = {
    "embedding.weight": "token_embd.weight",
    "final_norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
}
_BLOCK = {
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv_weight": "ssm_conv1d.weight",
    "mixer.conv_bias": "ssm_conv1d.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.norm_weight": "ssm_norm.weight",
    "mixer.out_proj.weight": "ssm_out.weight",
    "mixer.q_proj.weight": "attn_q.weight",
    "mixer.k_proj.weight": "attn_k.weight",
    "mixer.v_proj.weight": "attn_v.weight",
    "mixer.o_proj.weight": "attn_output.weight",
    "mixer.router.weight": "ffn_gate_inp.weight",
    "mixer.router.correction_bias": "exp_probs_b.bias",
    "mixer.experts.up": "ffn_up_exps.weight",
    "mixer.experts.down": "ffn_down_exps.weight",
    "mixer.shared.up.weight": "ffn_up_shexp.weight",
    "mixer.shared.down.weight": "ffn_down_shexp.weight",
    "mixer.latent_down.weight": "ffn_latent_down.weight",
    "mixer.latent_up.weight": "ffn_latent_up.weight",
    "mixer.up.weight": "ffn_up.weight",
    "mixer.down.weight": "ffn_down.weight",
}
_JOIN = {
    "mtp.eh_proj.weight": "nextn.eh_proj.weight",
    "mtp.enorm.weight": "nextn.enorm.weight",
    "mtp.hnorm.weight": "nextn.hnorm.weight",
    "mtp.final_norm.weight": "nextn.shared_head_norm.weight",
    "mtp.blocks.1.norm.weight": "post_attention_norm.weight",
}
_PLACE = re.compile(r"(?P<mtp>mtp\.)?blocks\.(?P<index>\d+)\.(?P<rest>.+)")
_WIDE = ("ssm_conv1d.weight", "ffn_gate_inp.weight", "norm.weight", "ssm_a", "ssm_d")
"""Ends of the names of tensors that llama.cpp wants in fp32; those of one dimension are too."""
_UNSCALED = ("ffn_latent_down.weight", "ffn_latent_up.weight")
"""Matrices for whose scale llama.cpp has no place."""


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    """The slowest dimension first."""
    pieces: Callable[[], Iterator[Tensor]]
    """Its values, run by run, as they are stored."""

    @property
    def bytes(self) -> int:
        """How many bytes the values take."""
        count = 1
        for size in self.shape:
            count *= size
        return round(count * WIDTH[self.kind])


def write_gguf(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    mtp: bool = True,
    pre: str | None = None,
) -> Path:
    """Write a checkpoint as a GGUF file.

    Args:
        source: a folder or hub id.
        target: the file to write; replaced once the new one is complete.
        dtype: type of plain matrices (bf16, fp16 or fp32); None: as they are. Norms, routers and
            the values of Mamba's state are fp32 always.
        mtp: whether the MTP head goes in, as llama.cpp's block of its own.
        pre: llama.cpp's name for how text is cut before merging; None: found by the pattern.

    A checkpoint without tokenizer.json makes a file without a vocabulary, for token ids alone.
    Returns the file.

    Raises:
        CheckpointError: the source is damaged, or of a shape that llama.cpp does not compute, or
            the target cannot be written.
        MissingError: gguf is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise MissingError("GGUF files need the package gguf: pip install gguf.") from None
    opened = open_checkpoint(source, mtp=mtp)
    check_model(opened.config)
    target = Path(target).expanduser().resolve()
    fresh = target.with_name(f"{target.name}.partial")
    with Reader() as reader:
        tensors = list(_tensors(reader, opened, dtype))
        _check_room(target, sum(tensor.bytes for tensor in tensors))
        kinds = {tensor.kind for tensor in tensors if len(tensor.shape) > 1}
        writer = gguf.GGUFWriter(fresh, architecture(opened.config))
        add_facts(writer, opened.config, kinds)
        add_text(writer, opened.folder, opened.config.vocab, pre)
        try:
            _write(writer, gguf.GGMLQuantizationType, tensors)
            os.replace(fresh, target)
        except OSError as error:
            raise CheckpointError(f"{target} cannot be written: {error}.") from error
        finally:
            writer.close()
            with suppress(FileNotFoundError):
                fresh.unlink()
    return target


def _check_room(target: Path, needs: int) -> None:
    """Raise `CheckpointError` unless the file can be written there."""
    if target.is_dir():
        raise CheckpointError(f"{target} is a folder; give the name of a .gguf file to write.")
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < needs + SLACK:
        raise CheckpointError(
            f"No room to write {target}: it needs {needs / 1e9:,.3f} GB, {free / 1e9:,.3f} GB are "
            f"free. Make room or choose another disk."
        )


def _write(writer: Any, types: Any, tensors: list[_Tensor]) -> None:
    """Announce all tensors, then write their values one after the other."""
    for tensor in tensors:
        # the type of the values is told by the raw one; numpy has none for most
        writer.add_tensor_info(tensor.name, tensor.shape, None, tensor.bytes, types[tensor.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    for tensor in tensors:
        began = file.tell()
        for piece in tensor.pieces():
            file.write(piece.contiguous().view(-1).view(torch.uint8).numpy())
        assert file.tell() - began == tensor.bytes, tensor.name
        writer.write_padding(file, tensor.bytes)
    file.flush()
    os.fsync(file.fileno())


def gguf_name(name: str, blocks: int) -> str:
    """What GGUF calls one of our tensors; the MTP head is the block after the last of `blocks`."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    if name in _JOIN:
        return f"blk.{blocks}.{_JOIN[name]}"
    match = _PLACE.fullmatch(name)
    assert match is not None, name
    index = blocks if match["mtp"] else int(match["index"])
    return f"blk.{index}.{_BLOCK[match['rest']]}"


def _tensors(reader: Reader, opened: Opened, dtype: torch.dtype | None) -> Iterator[_Tensor]:
    """The tensors of the file: ours, those of all experts as one, and scales beside them."""
    parts: dict[str, list[tuple[str, Slot]]] = {}
    for official, slot in opened.wanted.items():
        parts.setdefault(slot.name, []).append((official, slot))
    for own, found in parts.items():
        name = gguf_name(own, len(opened.config.pattern))
        kinds = {opened.stored.get(official, "plain") for official, _ in found}
        if kinds == {"plain"}:
            yield _plain(reader, opened, name, found, dtype)
        else:
            yield from _quantised(reader, opened, name, found)


def _shape(found: list[tuple[str, Slot]], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one part, or of the parts of all experts."""
    return shape if found[0][1].expert is None else (len(found), *shape)


def _plain(
    reader: Reader,
    opened: Opened,
    name: str,
    found: list[tuple[str, Slot]],
    dtype: torch.dtype | None,
) -> _Tensor:
    """A tensor that is not quantised."""
    official, slot = found[0]
    shape = slot.shape
    if name.endswith("ssm_conv1d.weight"):
        shape = (shape[0], shape[2])
    elif name.endswith(("ssm_a", "ssm_d")):
        shape = (shape[0], 1)
    elif name.endswith("ssm_norm.weight"):
        assert opened.config.mamba is not None
        shape = (opened.config.mamba.groups, shape[0] // opened.config.mamba.groups)
    wide = len(slot.shape) == 1 or name.endswith(_WIDE)
    own = torch.float32 if wide else dtype or opened.entries[official].dtype
    if own not in DTYPES:
        raise CheckpointError(f"{official} cannot be stored as {own} in a GGUF file.")

    def pieces() -> Iterator[Tensor]:
        """The values of all parts."""
        for each, _ in found:
            entry = opened.entries[each]
            step = PIECE // own.itemsize
            for first in range(0, entry.values, step):
                piece = torch.empty(min(step, entry.values - first), dtype=own)
                reader.read(entry, piece, first)
                yield -piece.exp() if name.endswith("ssm_a") else piece

    return _Tensor(name, DTYPES[own], _shape(found, shape), pieces)


def _quantised(
    reader: Reader, opened: Opened, name: str, found: list[tuple[str, Slot]]
) -> Iterator[_Tensor]:
    """A quantised matrix, or those of all experts, and their scales."""
    rows, columns = found[0][1].shape
    matrices = [
        StoredMatrix(each, opened.stored[each], rows, columns, opened.entries) for each, _ in found
    ]
    scaled = not name.endswith(_UNSCALED)
    four = scaled and columns % SUPER == 0 and all(one.kind == "nvfp4" for one in matrices)
    rows_of = _super_blocks if four else partial(_numbers, scaled=scaled)

    def pieces() -> Iterator[Tensor]:
        """The rows of all matrices."""
        for matrix in matrices:
            for first, count in row_pieces(rows, columns):
                yield rows_of(reader, matrix, first, count)

    yield _Tensor(name, "NVFP4" if four else "BF16", _shape(found, (rows, columns)), pieces)
    if scaled:

        def scales() -> Iterator[Tensor]:
            """The scale of every matrix."""
            for matrix in matrices:
                yield matrix.read_scale(reader).view(1)

        beside = name.removesuffix(".weight") + ".scale"
        yield _Tensor(beside, "F32", (len(matrices),), scales)


def _super_blocks(reader: Reader, matrix: StoredMatrix, first: int, count: int) -> Tensor:
    """Rows in GGUF's order, [count, columns / 64, 36]: byte j of a block of 16 holds its elements
    j (low half) and j + 8."""
    codes, scales = matrix.read(reader, first, count, torch.float32)
    assert scales is not None
    values = torch.stack([codes & 15, codes >> 4], -1).view(count, -1, 2, 8)
    halves = (values[:, :, 0] | (values[:, :, 1] << 4)).view(count, -1, SUPER // 2)
    blocks = scales.view(torch.uint8).view(count, -1, SUPER // nvfp4.BLOCK)
    return torch.cat([blocks, halves], -1)


def _numbers(reader: Reader, matrix: StoredMatrix, first: int, count: int, scaled: bool) -> Tensor:
    """Rows in BF16: exactly, without the scale of the whole matrix, if that lies beside them."""
    if not scaled:
        return matrix.decode_rows(reader, first, count).bfloat16()
    values, scales = matrix.read(reader, first, count, torch.float32)
    if scales is not None:
        values = nvfp4.dequantise(nvfp4.Quantised(values, scales, torch.ones(())))
    return values.to(torch.bfloat16)


__all__ = ["DTYPES", "SUPER", "Kind", "gguf_name", "write_gguf"]
