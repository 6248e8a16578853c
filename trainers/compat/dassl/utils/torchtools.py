"""Checkpoints, and counting parameters."""

import os.path as osp
import warnings
from collections import OrderedDict

from .plain import load_plain, save_plain
from .tools import replacing

__all__ = [
    "save_checkpoint",
    "load_checkpoint",
    "resume_from_checkpoint",
    "count_num_param",
    "load_pretrained_weights",
]


def _without_module(state_dict) -> OrderedDict:
    """Drop the prefix that DataParallel puts before each name."""
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())


def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    """Write ``state`` to ``save_dir`` and note its name in the file ``checkpoint`` there.

    Args:
        state: dict with at least ``state_dict`` and ``epoch``; tensors and plain values only.
        is_best: also write ``model-best.pth.tar``.
        remove_module_from_keys: drop ``module.`` before parameter names.
        model_name: file name; default ``model.pth.tar-<epoch>``.
    """
    if remove_module_from_keys:
        state["state_dict"] = _without_module(state["state_dict"])
    model_name = model_name or f"model.pth.tar-{state['epoch']}"
    fpath = osp.join(save_dir, model_name)
    save_plain(state, fpath)
    print(f"Checkpoint saved to {fpath}")
    with replacing(osp.join(save_dir, "checkpoint")) as file:
        file.write(f"{model_name}\n".encode())
    if is_best:
        best_fpath = osp.join(save_dir, "model-best.pth.tar")
        save_plain(state, best_fpath)
        print(f'Best checkpoint saved to "{best_fpath}"')


def load_checkpoint(fpath):
    """Return the dict saved at ``fpath``, tensors on the CPU; nothing in the file is executed."""
    return load_plain(fpath)


def resume_from_checkpoint(fdir, model, optimizer=None, scheduler=None) -> int:
    """Restore everything from the latest checkpoint in ``fdir``; return its number of epochs."""
    with open(osp.join(fdir, "checkpoint"), encoding="utf-8") as file:
        fpath = osp.join(fdir, file.readline().rstrip("\n"))
    print(f'Loading checkpoint from "{fpath}"')
    checkpoint = load_checkpoint(fpath)
    model.load_state_dict(checkpoint["state_dict"])
    print("Loaded model weights")
    for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
        if part is not None and checkpoint.get(name) is not None:
            part.load_state_dict(checkpoint[name])
            print(f"Loaded {name}")
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def load_pretrained_weights(model, weight_path) -> None:
    """Copy the weights whose name and shape fit the model; report or warn about the others.

    The file is a state dict or a checkpoint with one; ``module.`` before names is ignored.
    """
    checkpoint = load_checkpoint(weight_path)
    found = _without_module(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    matched = {k: v for k, v in found.items() if k in own and own[k].shape == v.shape}
    discarded = [key for key in found if key not in matched]
    if not matched:
        warnings.warn(
            f"Cannot load {weight_path}: no weight has a name and shape of this model", stacklevel=2
        )
        return
    own.update(matched)
    model.load_state_dict(own)
    print(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def count_num_param(model=None, params=None) -> int:
    return sum(p.numel() for p in (params if model is None else model.parameters()))
