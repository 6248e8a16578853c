"""The repairs of Dassl 0.6.3, each applied only where it is needed."""

import importlib
import inspect
import types

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler, StepLR

from .dassl.optim.lr_scheduler import PlainState
from .dassl.utils.plain import load_plain, to_plain


class Overlay(types.ModuleType):
    """A module with some names replaced; given to one importer, others see the original."""

    def __init__(self, module, **names):
        super().__init__(module.__name__)
        self.__dict__.update(names, _module=module)

    def __getattr__(self, name):
        return getattr(self.__dict__["_module"], name)


def repair() -> list[str]:
    """Repair the imported Dassl and return the names of what was repaired."""
    return [
        *_repair_warmup(),
        *_repair_transform("autoaugment"),
        *_repair_transform("randaugment"),
        *_repair_checkpoints(),
    ]


def _repair_warmup() -> list[str]:
    """Warm-up schedules pass ``verbose``, which PyTorch 2.7 no longer takes."""
    schedules = importlib.import_module("dassl.optim.lr_scheduler")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        schedules.ConstantWarmupScheduler(optimizer, StepLR(optimizer, 1), 1, 1.0)
        return []
    except TypeError:
        pass

    def __init__(self, optimizer, successor, warmup_epoch, last_epoch=-1, verbose=False):
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        LRScheduler.__init__(self, optimizer, last_epoch)

    schedules._BaseWarmupScheduler.__init__ = __init__
    return ["warm-up schedules"]


def _repair_transform(name) -> list[str]:
    """Two modules of transforms use ``np.int``, which NumPy 1.24 removed."""
    module = importlib.import_module(f"dassl.data.transforms.{name}")
    if hasattr(module.np, "int") or "np.int)" not in inspect.getsource(module):
        return []
    module.np = Overlay(np, int=int)
    return [name]


def _repair_checkpoints() -> list[str]:
    """PyTorch 2.6 refuses objects, but checkpoints hold NumPy numbers and a pickled schedule.

    They are now saved as plain values, and files of both kinds are read. A resumed warm-up
    schedule then also steps the live optimizer; the pickled one brought its own copy.
    """
    tools = importlib.import_module("dassl.utils.torchtools")
    works = "weights_only" in inspect.getsource(tools.load_checkpoint)
    if works or torch.__version__ < (2, 6) or isinstance(tools.torch, Overlay):
        return []

    def load(fpath, **kwargs):
        return load_plain(fpath)

    def save(state, fpath, **kwargs):
        try:
            state = to_plain(state)
        except TypeError:  # other objects of a trainer are saved as before
            pass
        torch.save(state, fpath, **kwargs)

    tools.torch = Overlay(torch, load=load, save=save)
    warmup = importlib.import_module("dassl.optim.lr_scheduler")._BaseWarmupScheduler
    warmup.state_dict = PlainState.state_dict
    warmup.load_state_dict = PlainState.load_state_dict
    return ["checkpoints"]
