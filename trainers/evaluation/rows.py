"""Tensors of more rows than memory holds: written as they come, read a few at a time.

The files are ordinary safetensors with the checksum of ``io.save_tensors``, so that
``io.load_tensors`` reads them too where they fit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..utils.errors import UserError
from ..utils.io import atomic_write, bytes_of, digest_head

BLOCK = 1 << 26  # bytes read at a time when a whole file is gone through
_TYPES = {torch.float32: "F32", torch.int64: "I64"}  # as safetensors calls them
_BYTES = {torch.float32: 4, torch.int64: 8}
_CHECKSUM = "0" * 64  # until the content is known


class Rows:
    """A float32 tensor (N, D) in a safetensors file; ``rows[index]`` reads these rows.

    Args:
        path: the file, which stays open.
        name: the tensor's.

    Attributes:
        shape: (N, D).
        meta: the file's metadata, decoded.

    Raises:
        UserError: the file is missing, truncated, no safetensors, or without such a tensor.
    """

    def __init__(self, path, name: str, *, advice: str):
        self.path, self.name, self.advice = Path(path), name, advice
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115  read for as long as it lives
            head = _read_head(self._file)
            self.meta = {k: json.loads(v) for k, v in head.pop("__metadata__", {}).items()}
            entry = head[name]
            self.shape = torch.Size(entry["shape"])
            begin, end = entry["data_offsets"]
            whole = entry["dtype"] == _TYPES[torch.float32] and len(self.shape) == 2
            whole = whole and end - begin == 4 * self.shape.numel()
            whole = whole and self._file.seek(0, 2) >= head.start + end
        except FileNotFoundError as error:
            raise UserError(f"'{path}' does not exist") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"'{path}' is damaged or no safetensors file ({error}); {advice}"
            ) from error
        if not whole:
            raise UserError(f"'{path}' is damaged or holds other rows; {advice}")
        self._begin, self._stride = head.start + begin, 4 * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return 4 * self.shape.numel()

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Return rows (n, D) by their numbers (n,), or a slice of neighbours."""
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            if step != 1:
                index = torch.arange(begin, end, step)
            else:
                out = torch.empty(max(end - begin, 0), self.shape[1])  # (n, D)
                self._read(bytes_of(out), begin)
                return out
        out = torch.empty(len(index), self.shape[1])  # (n, D)
        view, stride = bytes_of(out), self._stride
        for i, row in enumerate(index.tolist()):
            self._read(view[i * stride : (i + 1) * stride], row)
        return out

    def _read(self, into: memoryview, row: int) -> None:
        self._file.seek(self._begin + row * self._stride)
        while len(into):
            got = self._file.readinto(into)
            if not got:
                raise UserError(f"'{self.path}' has become shorter while it was read")
            into = into[got:]

    def column(self, name: str) -> Tensor:
        """Read another tensor of the file, int64 (n,), whole."""
        try:
            with safe_open(str(self.path), framework="pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"'{self.path}' is damaged ({error}); {self.advice}") from error

    def blocks(self, size: int = 0) -> Iterator[Tensor]:
        """Yield all rows in order, ``size`` (default: 64 MiB) at a time."""
        size = size or max(1, BLOCK // self._stride)
        for begin in range(0, len(self), size):
            yield self[begin : begin + size]

    def verify(self, **others: Tensor) -> None:
        """Compare the content with the file's checksum; ``others``: its other tensors.

        Raises:
            UserError: they differ.
        """
        if self.meta.get("checksum") != _digest(self.name, self.shape, self.blocks(), others):
            raise UserError(f"'{self.path}' fails its checksum; {self.advice}")


class _Head(dict):
    start = 0  # where the data begin


def _read_head(file) -> _Head:
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length < 1 << 27:
        raise ValueError("no header")
    head = _Head(json.loads(file.read(length)))
    head.start = 8 + length
    return head


def _digest(name: str, shape, blocks: Iterable[Tensor], others: dict[str, Tensor], into=None):
    """Return ``io.tensors_digest`` of all; the blocks are also written to the file ``into``."""
    digest = hashlib.sha256()
    for key in sorted([name, *others]):
        if key != name:
            digest.update(digest_head(key, others[key].dtype, others[key].shape))
            digest.update(bytes_of(others[key]))
            continue
        digest.update(digest_head(name, torch.float32, shape))
        for block in blocks:
            digest.update(bytes_of(block))
            if into is not None:
                into.write(bytes_of(block))
    return digest.hexdigest()


def save_rows(path, name: str, blocks: Iterable[Tensor], shape, others, metadata: dict) -> None:
    """Write the rows of ``blocks`` as one tensor, holding one block at a time.

    Args:
        blocks: float32 (n, D) each, of ``shape`` (N, D) together.
        others: small int64 tensors for the same file, by name.
        metadata: JSON-able, as for ``io.save_tensors``.

    Raises:
        UserError: the disk is full or the folder not writable; an old file is unchanged.
        ValueError: the blocks have other rows than ``shape`` says.
    """
    others = {key: value.detach().cpu().contiguous() for key, value in others.items()}
    meta = {key: json.dumps(value) for key, value in metadata.items()}
    head, at = {"__metadata__": meta | {"checksum": json.dumps(_CHECKSUM)}}, 0
    sizes = {key: (value.dtype, value.shape) for key, value in others.items()}
    for key, (dtype, size) in {**sizes, name: (torch.float32, torch.Size(shape))}.items():
        end = at + size.numel() * _BYTES[dtype]
        head[key] = {"dtype": _TYPES[dtype], "shape": list(size), "data_offsets": [at, end]}
        at = end

    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        start = _write_head(file, head)
        for value in others.values():
            file.write(bytes_of(value))
        digest = _digest(name, torch.Size(shape), _checked(blocks, shape), others, into=file)
        if file.tell() != start + at:
            raise ValueError(f"{file.tell() - start} bytes of rows were given, not {at}")
        head["__metadata__"]["checksum"] = json.dumps(digest)
        file.seek(0)
        _write_head(file, head)


def _checked(blocks: Iterable[Tensor], shape) -> Iterator[Tensor]:
    for block in blocks:
        if block.dtype != torch.float32 or block.shape[1:] != tuple(shape)[1:]:
            raise ValueError(f"a block is {block.dtype} {tuple(block.shape)}, not of {shape}")
        yield block.detach().cpu().contiguous()


def _write_head(file, head: dict) -> int:
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)  # the format's data start at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    return 8 + len(text)
