"""Checkpoints of prompts: tensors and plain values only, written whole, resumed exactly."""

import io
import pickle
from pathlib import Path

import torch

from ..backbone.weights_files import refused_import
from ..records.schema import check_training
from ..utils.errors import UserError
from ..utils.flat import is_json
from ..utils.io import atomic_write, load_pickle, tensors_digest
from . import released

LEARNER = released.FOLDERS[0]  # folder of a run's checkpoints
WEIGHTS = "prompts.safetensors"  # of an export
DAMAGED = "delete it to resume from an earlier one, or give another --model-dir"
KINDS = {  # of what a checkpoint may hold besides its weights
    "epoch": int,
    "optimizer": (dict, type(None)),
    "scheduler": (dict, type(None)),
    "scaler": (dict, type(None)),
    "seconds": (dict, float),  # a teacher has one number
    "best_result": float,
    "advprompt": dict,
    "advprompt.classnames": list,
    "training": dict,
    "training.data": (dict, type(None)),
}


def save_checkpoint(path, state: dict) -> None:
    """Write a checkpoint atomically; UserError, and the old file whole, where the disk is full."""
    buffer = io.BytesIO()  # so that a full disk is said in the system's words, not in torch's
    torch.save(state, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def newest_checkpoint(folder) -> Path | None:
    """Return the file that Dassl's pointer ``checkpoint`` names, else the last epoch's, or None."""
    folder = Path(folder)
    pointer = folder / "checkpoint"
    if pointer.is_file():
        name = pointer.read_text(encoding="utf-8", errors="replace").strip()
        if name and name in (p.name for p in folder.iterdir() if p.is_file()):
            return folder / name
    return max(
        (p for p in folder.glob("model.pth.tar-*") if epoch_of(p)), key=epoch_of, default=None
    )


def epoch_of(path: Path) -> int:
    """Return the epoch that a checkpoint's name states, 0 where it states none."""
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def model_digest(weights: dict) -> str:
    """Return the digest of a checkpoint's weights, as records have it for the tested model."""
    return tensors_digest({f"{LEARNER}.{name}": value for name, value in weights.items()})


def chosen_checkpoint(folder, epoch: int | None = None) -> Path | None:
    """Return a run's file: of ``epoch`` (it may be missing), else the best, the newest or None."""
    folder = Path(folder)
    if epoch is not None:
        return folder / f"model.pth.tar-{epoch}"
    best = folder / "model-best.pth.tar"
    return best if best.is_file() else newest_checkpoint(folder)


def learner_of(run) -> Path:
    """Return the folder of a run's checkpoints, under our name or one of the public code."""
    folders = [Path(run) / name for name in released.FOLDERS]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def weights_file(path) -> Path:
    """Return the file INIT_WEIGHTS means: of an export, a run, or itself; UserError if none."""
    path = Path(path).expanduser()
    if path.is_file():
        return path
    found = [path / WEIGHTS, chosen_checkpoint(learner_of(path)), chosen_checkpoint(path)]
    for file in found if path.is_dir() else ():
        if file is not None and file.is_file():
            return file
    raise UserError(
        f"MODEL.INIT_WEIGHTS is '{path}', but there are no learned prompts; give an export, the "
        "folder of a run, or a checkpoint"
    )


def load_checkpoint(path) -> dict:
    """Read a checkpoint, of public code by our names; UserError if missing or unreadable."""
    path = Path(path)
    damaged = f"checkpoint '{path}' is truncated or no checkpoint; {DAMAGED}"
    try:
        state = load_pickle(path)
    except FileNotFoundError as error:
        raise UserError(
            f"checkpoint '{path}' does not exist; check --model-dir and --load-epoch"
        ) from error
    except pickle.UnpicklingError as error:
        if not (name := refused_import(path, error)):
            raise UserError(damaged) from error
        raise UserError(
            f"checkpoint '{path}' is refused: it holds more than tensors and plain values "
            f"({name}), and loading it could execute code; use a checkpoint this project wrote"
        ) from error
    except Exception as error:  # which one a torn file raises depends on where it was torn
        raise UserError(damaged) from error
    if not isinstance(state, dict) or not isinstance(state.get("state_dict"), dict):
        raise UserError(f"checkpoint '{path}' is foreign: it has no 'state_dict'; use another file")
    weights = state["state_dict"].items()
    if not all(isinstance(k, str) and torch.is_tensor(v) for k, v in weights):
        raise UserError(f"checkpoint '{path}' has a 'state_dict' of other things than tensors")
    for name, kind in KINDS.items():
        holder, _, key = name.rpartition(".")
        found = state.get(holder, {}) if holder else state
        if key in found and not isinstance(found[key], kind):
            raise UserError(f"checkpoint '{path}' has {found[key]!r:.80} as '{name}'; {DAMAGED}")
    for name in ("advprompt", "training"):
        if not is_json(state.get(name, {})):
            raise UserError(
                f"checkpoint '{path}' has more than plain values in '{name}'; {DAMAGED}"
            )
    check_training(state.get("training", {}), path, DAMAGED)
    if "advprompt" not in state and (theirs := released.convert(state, path)):
        return theirs
    _rename_context(state)
    return state | {"released": None}


def _rename_context(state: dict) -> None:
    """Turn ``ctx`` of CoOp, and of our older versions, into the first layer of text prompts."""
    context = state["state_dict"].pop("ctx", None)
    if context is None:
        return
    state["state_dict"]["text_prompts"] = context[None]  # (1, [K,] M, d)
    for moments in (state.get("optimizer") or {}).get("state", {}).values():
        for name, value in moments.items():
            if torch.is_tensor(value) and value.shape == context.shape:
                moments[name] = value[None]


def load_prompts(module: torch.nn.Module, weights: dict, path) -> None:
    """Copy ``weights`` into a prompt module; UserError if names or shapes differ.

    CoOp's fixed ``token_prefix`` and ``token_suffix`` are ignored: they belong to its classes.
    """
    weights = {k: v for k, v in weights.items() if k not in ("token_prefix", "token_suffix")}
    own = module.state_dict()
    if missing := sorted(set(own) ^ set(weights)):
        side = "not in it" if missing[0] in own else "not in this trainer"
        raise UserError(
            f"checkpoint '{path}' belongs to another method: {missing[0]!r} is {side}; use the "
            "--trainer it was trained with"
        )
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise UserError(
                f"checkpoint '{path}' does not fit: {name} has shape {tuple(value.shape)} there "
                f"and {tuple(own[name].shape)} here (classes if class-specific, vectors, width); "
                "use the backbone, number of vectors and data set it was trained with"
            )
    module.load_state_dict(weights)


def check_facts(theirs: dict, mine: dict, path, *, resuming: bool = False) -> None:
    """Refuse a checkpoint of another trainer, backbone, kind of prompts or, if needed, classes."""
    names = {"trainer": "trainer", "weights_sha256": "backbone weights", "prompts": "prompts"}
    for key, what in names.items():
        if key in theirs and not _agree(theirs[key], mine.get(key)):
            raise UserError(
                f"checkpoint '{path}' was made with {what} '{theirs[key]}', not "
                f"'{mine.get(key)}'; use the trainer, backbone and prompts it was trained with"
            )
    # shared contexts are made to serve other classes; class-specific ones belong to theirs
    bound = resuming or mine.get("prompts", {}).get("csc", False)
    if bound and theirs.get("classnames", mine["classnames"]) != mine["classnames"]:
        raise UserError(
            f"checkpoint '{path}' was made for other classes "
            f"({', '.join(map(str, theirs['classnames'][:3]))}, ...) than this run's "
            f"({', '.join(mine['classnames'][:3])}, ...); use the data set it was trained with"
        )


def _agree(theirs, mine) -> bool:
    """Return True if facts agree in all that a checkpoint notes; older versions noted fewer."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        return all(key in mine and mine[key] == value for key, value in theirs.items())
    return theirs == mine
