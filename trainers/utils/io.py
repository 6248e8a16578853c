"""Safe files: written completely or not at all, read without executing anything."""

import contextlib
import glob
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
import warnings
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..compat.dassl.utils.plain import stand_ins
from .errors import UserError

LARGEST_JSON, LARGEST_YAML = 1 << 28, 1 << 20  # bytes
DEEPEST, MOST_VALUES = 64, 1_000_000  # levels of lists and objects; values with what is shared
HERE = socket.gethostname().replace(".", "-")
PLAIN = (str, int, float, bool, type(None))


def writable_dir(path) -> Path:
    """Create the folder ``path``; UserError where files cannot be written into it."""
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


def temporary_next_to(path: Path) -> Path:
    """Return a name next to ``path`` that no other process uses, on any machine.

    :func:`sweep` removes files with such names.
    """
    sweep(path.parent, path.name)
    return path.with_name(f".{path.name}.{os.getpid()}@{HERE}.{secrets.token_hex(4)}.tmp")


def sweep(folder: Path, name: str = "") -> None:
    """Remove files that killed processes of this machine left (of a ``name``; "": any).

    Files older than a day are removed as well.
    """
    for left in folder.glob(f".{glob.escape(name) or '*'}.*.tmp"):
        *_, owner, _, _ = left.name.split(".")
        pid, _, host = owner.partition("@")
        with contextlib.suppress(OSError, ValueError, OverflowError):  # of another form
            killed = not _is_alive(int(pid)) and host == HERE
            if killed or time.time() - left.stat().st_mtime > 86400:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another process
        pass
    return True


@contextlib.contextmanager
def atomic_write(path):
    """Yield a temporary path next to ``path`` that replaces it when the block succeeds.

    The old file stays intact when the block fails or the disk is full. UserError if the folder is
    not writable or the disk is full.
    """
    path = Path(path)
    writable_dir(path.parent)
    temporary = temporary_next_to(path)
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
        with contextlib.suppress(OSError):  # removed already, or cannot be removed now
            temporary.unlink()


def write_json(path, value) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flaw_of(value, *, tensors: bool = False, most: int = MOST_VALUES) -> str:
    """Describe what is not allowed in a file's content; "" if everything is.

    Plain values, lists and dicts may be nested ``DEEPEST`` deep, numbers are finite; cycles are
    found, too. With ``tensors`` also dense real tensors on the CPU that own all their values.
    """
    left, count = [(value, 0)], 0
    while left:
        value, depth = left.pop()
        count += 1
        if depth > DEEPEST or count > most:
            return f"nested over {DEEPEST} deep, or of over {most:,} values"
        if isinstance(value, dict):
            left += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, (list, tuple)):
            left += [(inner, depth + 1) for inner in value]
        elif tensors and isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
                return "a tensor that is sparse, quantised or without values"
            if value.is_complex() or value.numel() > value.untyped_storage().nbytes() // (
                value.element_size()
            ):
                return "a tensor that is complex, or holds fewer values than its shape says"
        elif not isinstance(value, PLAIN):
            return f"a {type(value).__name__}"
        elif not tensors and isinstance(value, float) and not math.isfinite(value):
            return f"the number {value}"
    return ""


def _text_of(path, most: int) -> str:
    try:
        with open(path, "rb") as handle:
            data = handle.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror})") from error
    if len(data) > most:
        raise UserError(f"'{path}' is larger than {most >> 20} MiB; give another file")
    return data.decode("utf-8")


def read_json(path, kind: type | tuple = dict):
    """Read JSON of a ``kind``; UserError if it is missing, too large, not JSON, or another kind."""
    try:
        value = json.loads(_text_of(path, LARGEST_JSON))
        flaw = flaw_of(value, most=LARGEST_JSON)  # JSON shares nothing
    except (ValueError, RecursionError) as error:
        flaw = str(error)
    if flaw:
        raise UserError(f"'{path}' is not valid JSON ({flaw}); delete it or fetch it again")
    if not isinstance(value, kind):
        raise UserError(
            f"'{path}' holds {value!r:.80}, expected an object; delete it or fetch it again"
        )
    return value


def read_yaml(path) -> dict:
    """Read yaml keys, perhaps none; UserError if it is missing, too large, not yaml, or no keys."""
    try:
        value = yaml.safe_load(_text_of(path, LARGEST_YAML)) or {}
        flaw = flaw_of(value)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        flaw = getattr(error, "problem", None) or str(error).splitlines()[0]
        flaw += f", line {mark.line + 1}" if mark else ""
    if flaw:
        raise UserError(f"'{path}' is not valid yaml ({flaw})")
    if not isinstance(value, dict):
        raise UserError(f"'{path}' holds no keys; write lines such as 'OPTIM:'")
    return value


def load_pickle(path):
    """Return what ``torch.save`` wrote, tensors on the CPU; nothing in the file is executed.

    A dict replaces the schedules and optimizers that Dassl pickles.

    Raises:
        pickle.UnpicklingError: it names something to execute.
        Exception: of many kinds, it is damaged or holds what :func:`flaw_of` refuses.
    """
    with stand_ins(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's warning is about pickles that are refused anyway
        value = torch.load(path, map_location="cpu", weights_only=True)
    if flaw := flaw_of(value, tensors=True):
        raise ValueError(flaw)
    return value


def json_digest(value) -> str:
    """Return the hex SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_file(path) -> str:
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
            number = re.search(r"os error (\d+)", str(error))
            system = (int(number[1]), os.strerror(int(number[1]))) if number else (str(error),)
            raise OSError(*system) from error


def load_tensors(
    path, *, advice: str = "delete it and run again"
) -> tuple[dict[str, torch.Tensor], dict]:
    """Return tensors (on the CPU) and metadata that :func:`save_tensors` wrote, if intact.

    UserError if the file is missing, truncated, altered, or not ours; ``advice`` ends the text.
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
