"""Read CLIP checkpoints of every common layout without executing anything they contain."""

import io
import pickle
import pickletools
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..utils.errors import UserError
from ..utils.io import load_pickle
from .archives import read_script_archive

# where training scripts put the weights; TeCoA's 'state_dict' is its image prompter, so its
# vision encoder comes first
NESTED = ("vision_encoder_state_dict", "state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.", "clip_model.", "clip.", "image_encoder.")
BARE_IMAGE_TOWER = ("conv1.weight", "positional_embedding", "proj")  # ViT without "visual."
BARE_RESNET = ("conv1.weight", "layer1.0.conv1.weight", "attnpool.positional_embedding")
BARE_TIMM = ("trunk.", "head.")  # open_clip around a tower of timm
TEXT_TOWER = "token_embedding.weight positional_embedding ln_final.weight text_projection".split()
# modules that a state dict refers to; PyTorch still checks what of them is asked for
HARMLESS = ("torch", "collections", "numpy", "_codecs", "__torch__")
IMAGE_TOWERS = ("visual.proj", "visual.attnpool.positional_embedding")


@dataclass
class Checkpoint:
    """A state dict in OpenAI's key names; ``image_tower_only`` has only ``visual.*``."""

    state: dict[str, torch.Tensor]
    image_tower_only: bool
    openai_layout: bool


def read_checkpoint(path) -> Checkpoint:
    """Read a TorchScript archive (its tensors only), a file of ``torch.save`` or safetensors.

    CLIP's state dict may be at the top or under a usual key, with the prefixes that wrappers leave,
    or be an image tower alone (TeCoA, FARE). UserError if the file is missing, truncated, foreign,
    or would execute code.
    """
    return _arrange(read_state(path, "file:"), Path(path).expanduser())


def read_state(path, after: str) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint of any model, under their names in it.

    UserError if the file is missing (the user wrote its path after ``after``), truncated, foreign,
    or would execute code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder, not a checkpoint file" if path.is_dir() else "does not exist"
        raise UserError(f"'{path}' {what}; check the path after '{after}'")
    return _tensors(_read(path))


def _read(path: Path):
    try:
        with open(path, "rb") as handle:
            head = handle.read(10)
        if head[8:9] == b"{" and head[:2] != b"PK":
            return load_file(str(path))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if any(name.endswith("/constants.pkl") for name in names):
                    return read_script_archive(archive)
        return load_pickle(path)
    except PermissionError as error:
        raise UserError(
            f"'{path}' cannot be read ({error.strerror}); change its permissions"
        ) from error
    except pickle.UnpicklingError as error:
        if name := refused_import(path, error):
            raise UserError(
                f"'{path}' holds Python objects that could run code when loaded ({name}), so it "
                "was refused; save its state dict alone with torch.save or as safetensors"
            ) from error
        raise _broken(path, error) from error
    except Exception as error:  # damage can surface anywhere in three readers: name the file
        raise _broken(path, error) from error


def refused_import(path: Path, error: pickle.UnpicklingError) -> str:
    """Return what a refused pickle would have imported; "" if it is only damaged."""
    blocked = re.search(r"GLOBAL:? ([\w.]+)", str(error))  # PyTorch's and our own wording
    return _foreign_import(path) or (blocked.group(1) if blocked else "")


def _broken(path: Path, error: Exception) -> UserError:
    text = str(error).strip() or type(error).__name__
    if "Weights only load failed" in text:  # without PyTorch's advice to switch protection off
        text = "no PyTorch pickle"
    reason = text.splitlines()[0][:120].rstrip(". ")
    return UserError(f"'{path}' is truncated or no checkpoint ({reason}); fetch it again")


def _foreign_import(path: Path) -> str:
    """Name the first import of a pickle that is not PyTorch's, by looking at its opcodes only."""
    strings: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                stream = io.BytesIO(archive.read(name))
        else:
            stream = io.BytesIO(path.read_bytes())
        while True:  # torch.save's older format is several pickles in a row
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    strings += argument.split(" ")
                elif opcode.name != "STACK_GLOBAL":
                    strings += [argument] if isinstance(argument, str) else []
                    continue
                if strings[-2].split(".")[0] not in HARMLESS:
                    return ".".join(strings[-2:])
    except Exception:
        return ""  # the end, or no pickle


def _tensors(value) -> dict[str, torch.Tensor]:
    """Keep tensors under string keys, without the keys and prefixes that wrappers put in front."""
    value = value if isinstance(value, dict) else {}
    while inner := [value[k] for k in NESTED if isinstance(value.get(k), dict)]:
        value = inner[0]
    state = {k: v for k, v in value.items() if isinstance(k, str) and torch.is_tensor(v)}
    while True:
        prefix = next((p for p in PREFIXES if state and all(k.startswith(p) for k in state)), None)
        if prefix is None:
            return state
        state = {k[len(prefix) :]: v for k, v in state.items()}


def _arrange(state: dict[str, torch.Tensor], path: Path) -> Checkpoint:
    bare = any(state.keys() >= set(keys) for keys in (BARE_IMAGE_TOWER, BARE_RESNET))
    if bare or (state and all(key.startswith(BARE_TIMM) for key in state)):
        state = {f"visual.{key}": value for key, value in state.items()}
    if "text.token_embedding.weight" in state:  # open_clip with its text tower in a module
        state = {key.removeprefix("text."): value for key, value in state.items()}
    visual = [key.startswith("visual.") for key in state]
    if state and all(visual):
        return Checkpoint(state, image_tower_only=True, openai_layout=True)
    openai = any(key in state for key in IMAGE_TOWERS) and all(key in state for key in TEXT_TOWER)
    if not openai and not any(visual):
        found = ", ".join(sorted(state)[:3]) or "no tensors"
        raise UserError(
            f"'{path}' holds no CLIP weights (found {found}); name a CLIP state dict, OpenAI's "
            "archive or the image tower of one"
        )
    return Checkpoint(state, image_tower_only=False, openai_layout=openai)
