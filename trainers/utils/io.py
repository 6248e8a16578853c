"""Safe files: written whole or not at all, read without executing anything."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import UserError


def writable_dir(path) -> Path:
    """Create the folder ``path`` and check that files can be written into it.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write into folder '{path}' ({error.strerror}); "
            "choose another output folder or change its permissions"
        ) from error
    return path


@contextlib.contextmanager
def atomic_write(path):
    """Yield a temporary path next to ``path`` that replaces it when the block succeeds.

    The old file stays intact when the block fails or the disk is full.

    Raises:
        UserError: the folder is not writable or the disk is full.
    """
    path = Path(path)
    writable_dir(path.parent)
    # unique among processes of all machines that share the folder
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write '{path}' ({error.strerror or error}); the previous file is unchanged, "
            "free some space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, value) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path):
    """Read a JSON file.

    Raises:
        UserError: the file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        why = f"is not valid JSON ({error})"
        raise UserError(f"'{path}' {why}; delete it or fetch it again") from error


def sha256_file(path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        digest = hashlib.sha256()
        while block := handle.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def tensors_digest(tensors: dict[str, torch.Tensor]) -> str:
    """Return the hex SHA-256 over names, dtypes, shapes and bytes of ``tensors``."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        if value.numel():
            digest.update(memoryview(value.flatten().view(torch.uint8).numpy()))  # without a copy
    return digest.hexdigest()


def save_tensors(path, tensors: dict[str, torch.Tensor], metadata: dict | None = None) -> None:
    """Write tensors and JSON-able ``metadata`` as safetensors with a content checksum."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    meta = {k: json.dumps(v) for k, v in (metadata or {}).items()}
    meta["checksum"] = json.dumps(tensors_digest(tensors))
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=meta)
        except SafetensorError as error:  # such as a full disk
            raise OSError(str(error)) from error


def load_tensors(
    path, *, advice: str = "delete it and run again"
) -> tuple[dict[str, torch.Tensor], dict]:
    """Read what :func:`save_tensors` wrote and verify its checksum.

    Args:
        advice: what to do about a file that is refused, the end of the message.

    Returns:
        the tensors (on the CPU) and the decoded metadata.

    Raises:
        UserError: the file is missing, truncated, altered, or not ours.
    """
    try:
        with safe_open(str(path), framework="pt") as handle:
            meta = {k: json.loads(v) for k, v in (handle.metadata() or {}).items()}
            tensors = {k: handle.get_tensor(k) for k in handle.keys()}
    except FileNotFoundError as error:
        raise UserError(f"'{path}' does not exist") from error
    except (SafetensorError, OSError) as error:
        why = f"is damaged or no safetensors file ({error})"
        raise UserError(f"'{path}' {why}; {advice}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' was not written by this project; {advice}") from error
    if meta.get("checksum") != tensors_digest(tensors):
        raise UserError(f"'{path}' fails its checksum; {advice}")
    return tensors, meta
