"""Checkpoints of tensors and plain values: written atomically, read without running code.

Dassl's own files also hold NumPy numbers and, in a warm-up's state, the pickled main schedule with
its optimizer. Inert placeholders replace them while loading; they become plain numbers and dicts.
"""

import contextlib
import io
import os.path as osp
import re
from collections import Counter, OrderedDict

import numpy as np
import torch

from .tools import replacing

PLAIN = (torch.Tensor, torch.Size, torch.dtype, torch.device, str, bytes, int, float, type(None))


def to_plain(value, where="checkpoint"):
    """Return ``value`` with NumPy numbers and arrays turned into plain numbers and tensors."""
    if isinstance(value, np.generic):  # before PLAIN: np.float64 is a float
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple, set)):
        kind = next(kind for kind in (list, tuple, set) if isinstance(value, kind))
        return kind(to_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, dict):
        kind = type(value) if type(value) in (OrderedDict, Counter) else dict
        return kind({key: to_plain(item, f"{where}.{key}") for key, item in value.items()})
    raise TypeError(
        f"{where} is a {type(value).__name__}, but only tensors and plain values are saved; "
        "turn it into numbers, strings, lists or dicts first"
    )


def save_plain(state, fpath) -> None:
    """Write ``state`` through :func:`to_plain`; the old file stays intact if that fails."""
    buffer = io.BytesIO()  # so that a full disk is an OSError, not a failure inside torch's writer
    torch.save(to_plain(state), buffer)
    with replacing(fpath) as file:
        file.write(buffer.getbuffer())


class _Inert(dict):
    """Holds the state of a pickled object without being one."""

    def __init__(self, *args):
        super().__init__()

    def __setstate__(self, state):
        self.update(state if isinstance(state, dict) else {})


class _NumpyType:
    """A pickled ``numpy.dtype``: its code and byte order."""

    def __init__(self, code, *args):
        self.code, self.order = code, "="

    def __setstate__(self, state):
        self.order = state[1]


def _numpy_number(dtype, raw):
    order = dtype.order if dtype.order in "<>" else "="
    return np.frombuffer(raw, np.dtype(dtype.code).newbyteorder(order))[0].item()


_SCHEDULES = ("StepLR", "MultiStepLR", "CosineAnnealingLR")
_OPTIMIZERS = ("adam.Adam", "adamw.AdamW", "radam.RAdam", "rmsprop.RMSprop", "sgd.SGD")
_OBJECTS = [
    *((_Inert, f"torch.optim.lr_scheduler.{name}") for name in _SCHEDULES),
    *((_Inert, f"torch.optim.{name}") for name in _OPTIMIZERS),
    (_Inert, "dassl.optim.radam.RAdam"),
    (lambda *args: {}, "collections.defaultdict"),  # an optimizer's state
    (dict, "builtins.dict"),
    (_NumpyType, "numpy.dtype"),
    (_numpy_number, "numpy.core.multiarray.scalar"),  # NumPy 1
    (_numpy_number, "numpy._core.multiarray.scalar"),
]


def _without_objects(value):
    if isinstance(value, _Inert):
        return {k: _without_objects(v) for k, v in value.items() if k != "optimizer"}
    if isinstance(value, dict):
        for key in value:
            value[key] = _without_objects(value[key])
        return value
    if type(value) in (list, tuple):
        return type(value)(map(_without_objects, value))
    return value


def load_plain(fpath):
    """Return what the checkpoint ``fpath`` holds, tensors on the CPU, without running its code."""
    if not osp.isfile(fpath):
        raise FileNotFoundError(f"no checkpoint at '{fpath}'")
    try:
        with stand_ins():
            return _without_objects(torch.load(fpath, map_location="cpu", weights_only=True))
    except Exception as error:  # which error a truncated file raises depends on where it ends
        foreign = re.search(r"(?:Unsupported global: |unsupported )GLOBAL (\S+)", str(error))
        what = "is truncated, damaged or no checkpoint; save or fetch it again"
        if foreign:
            what = f"was refused: loading it would run '{foreign[1]}'; save plain values"
        raise ValueError(f"checkpoint '{fpath}' {what}") from error


def stand_ins():
    """Return a context in which ``weights_only`` reads what Dassl pickles, executing nothing."""
    able = torch.__version__ >= (2, 6)  # before, files with objects are refused
    return torch.serialization.safe_globals(_OBJECTS) if able else contextlib.nullcontext()
