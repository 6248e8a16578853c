"""A trainer of somebody else's as a victim: built, loaded and called by its own code."""

import contextlib
import inspect
import io
import re
from collections.abc import Iterator

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import default_collate
from torchvision.transforms import Compose

from ..utils.errors import UserError
from ..utils.io import tensors_digest
from .memo import Memo
from .models import HALF, ModelVictim

IN_STATE = ("_parameters", "_buffers")  # attributes whose tensors are in a module's state_dict


class HostVictim(ModelVictim):
    """Any Dassl trainer with a trained model, attacked in float32 through its own inference.

    A trainer with a ``test`` of its own is asked through it: what that gives its evaluator first
    are the logits. All others answer by ``model_inference``. Pixels are normalised where the
    trainer's data loader does so. Parameters are frozen, and half precision becomes float32.
    """

    unwrap = "let its model_inference, or its own test, give the logits alone"
    head = "let its model_inference, or its own test, end with them"

    def __init__(self, trainer):
        self.trainer, self.own_test = trainer, _has_own(trainer, "test")
        if not self.own_test and not (_has_own(trainer, "model_inference") or trainer._models):
            raise UserError(
                f"trainer {type(trainer).__name__} has no model_inference(images) that returns "
                "logits, and no registered model; define it as Dassl's trainers do"
            )
        parts = nn.Module()
        for name, part in vars(trainer).items():
            if isinstance(part, nn.Module):
                parts.add_module(name, part)
        for part in parts.modules():
            if isinstance(part, nn.DataParallel):  # replicas would hide what the hooks look for
                part.device_ids = part.device_ids[:1]
        trainer.set_model_mode("eval")
        parts.eval().requires_grad_(False)
        _to_float32(trainer, parts)
        normal = [(s.mean, s.std) for s in _stages(trainer) if type(s).__name__ == "Normalize"]
        own = {"device": trainer.device, "name": type(trainer).__name__}
        own["normalize"] = normal[0] if normal else None
        super().__init__(parts, trainer.dm.dataset.classnames, **own)
        self.parts, self.memo, self.undone = parts, Memo(parts), False
        self.rest: dict[int, dict] = {}

    def answer(self, pixels):
        with _Connected() if self.undone else contextlib.nullcontext():
            found = ask(self.trainer, self._batch(pixels), own_test=self.own_test)
        if isinstance(found, (tuple, list, dict)):  # logits among other things
            values = list(found.values() if isinstance(found, dict) else found)
            shape = (len(pixels), len(self.classnames))
            logits = [v for v in values if torch.is_tensor(v) and tuple(v.shape) == shape]
            return logits[0] if len(logits) == 1 else found
        return found

    def _batch(self, pixels) -> dict:
        """Return a batch of the trainer's test loader with other images."""
        count = len(pixels)
        if count not in self.rest:  # what else a batch holds; every call asks for it
            sample = self.trainer.test_loader.dataset[0].items()
            rest = default_collate([{k: v for k, v in sample if k != "img"}] * count)
            rest["label"] = torch.zeros(count, dtype=torch.long)
            self.rest[count] = rest
        return {**self.rest[count], "img": pixels}

    def digest(self):
        owners = (self.trainer, *self.parts.modules())  # of neither parameters nor buffers
        values = [v for owner in owners for k, v in vars(owner).items() if k not in IN_STATE]
        loose = {f"loose {i}": tensor for i, tensor in enumerate(_tensors(values))}
        state = {k: v for k, v in self.parts.state_dict().items() if torch.is_tensor(v)}
        statistics = {"mean": self.mean, "std": self.std}
        return tensors_digest(state | loose | statistics)

    @torch.enable_grad()
    def check(self, pixels, *, gradients=True):
        """Also undo ``no_grad`` and ``detach`` where no gradient passes, and memoise the text."""
        low, high = pixels.min().item(), pixels.max().item()
        if not 0 <= low <= high <= 1:
            raise UserError(
                f"the test transform of {self.name} gives pixels from {low:.3g} to {high:.3g}, "
                "expected [0, 1] before a stage of torchvision's Normalize; normalise there"
            )
        self.memo.stop()
        self.undone, inside = False, pixels.clone().requires_grad_()
        try:
            logits = self.logits(inside)
        except (RuntimeError, ValueError, TypeError):
            logits = None  # refused below, with the reason
        # else their gradient counts as the host computes it
        self.undone = torch.is_tensor(logits) and not logits.requires_grad
        found: set = set()

        def note(module, args, output):
            if torch.is_tensor(output) and output.dtype in HALF and output.requires_grad:
                found.add(type(module).__name__)

        hooks = [module.register_forward_hook(note) for module in self.parts.modules()]
        try:
            super().check(pixels, gradients=gradients)
        finally:
            for hook in hooks:
                hook.remove()
        if found or self.logits(pixels[:1]).dtype in HALF:
            raise UserError(
                f"{self.name} computes in half precision ({', '.join(sorted(found)) or 'logits'}), "
                "whose rounding hides gradients, although its weights were made float32; set its "
                "PREC to fp32, or remove .half() and autocast from its forward"
            )
        self.memo.start(self.logits, pixels)


def _stages(trainer) -> list:
    transform = getattr(trainer.test_loader.dataset, "transform", None)
    return list(getattr(transform, "transforms", [transform] if transform else []))


def own_preprocess(trainer):
    """Return its own test transform without normalisation: RGB image -> (3, H, W) in [0, 1]."""
    stages = [s for s in _stages(trainer) if type(s).__name__ != "Normalize"]
    preprocess = Compose(stages)
    preprocess.key = re.sub(r" at 0x\w+|\s", "", f"host {stages}")
    return preprocess


def ask(trainer, batch: dict, *, own_test: bool):
    """Return what a trainer answers for a batch of its test loader, by its own ``test`` or Dassl's.

    UserError if its ``test`` never gives its evaluator anything.
    """
    if not own_test:
        return trainer.model_inference(trainer.parse_batch_test(batch)[0])
    loader, evaluator = trainer.test_loader, trainer.evaluator
    listener, silent = _Listener(), io.StringIO()
    split = {"split": "test"} if "split" in inspect.signature(trainer.test).parameters else {}
    trainer.test_loader, trainer.evaluator = _Loader([batch], loader), listener
    try:
        with contextlib.redirect_stderr(silent), contextlib.redirect_stdout(silent):
            trainer.test(**split)
    except (_Heard, Exception):  # its test may catch the first and raise another
        if listener.logits is None:
            raise
    finally:
        trainer.test_loader, trainer.evaluator = loader, evaluator
    if listener.logits is not None:
        return listener.logits
    raise UserError(
        f"{type(trainer).__name__}.test never calls self.evaluator.process(logits, labels) on a "
        "batch of self.test_loader, so that its logits cannot be found; do so there"
    )


@torch.no_grad()
def own_answers(trainer, loader) -> list[int]:
    """Return the class that a trainer's own test predicts for every image of a data loader.

    UserError if it cannot.
    """
    trainer.set_model_mode("eval")
    own_test, found = _has_own(trainer, "test"), []
    for batch in loader:
        try:
            logits = ask(trainer, batch, own_test=own_test)
            if isinstance(logits, (tuple, list)):
                logits = logits[0]
            found += logits.argmax(1).tolist()
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            raise UserError(
                f"{type(trainer).__name__} does not answer its own test images "
                f"({type(error).__name__}: {text}); its own --eval-only must run here first: let "
                "model_inference(images) return logits, set its PREC to fp32 on a CPU, and start "
                "on a GPU what calls CUDA"
            ) from error
    return found


class _Heard(BaseException):
    """Ends a host's test at the first logits that it gives its evaluator."""


class _Listener:
    """In place of Dassl's evaluator; keeps what the host's test gives it first."""

    logits = None

    def process(self, *args, **kwargs):
        if self.logits is None:
            self.logits = [*args, *kwargs.values()][0]
        raise _Heard

    def evaluate(self):
        return {"accuracy": 0.0}

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


class _Loader(list):
    """Batches in place of a data loader, whose attributes it has."""

    def __init__(self, batches, loader):
        super().__init__(batches)
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)


class _Connected(TorchFunctionMode):
    """Keeps the gradient where code says ``no_grad`` or ``detach``; no value changes."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.detach:
            return args[0]
        if function is torch._C._set_grad_enabled:
            return None
        return function(*args, **(kwargs or {}))


def _has_own(trainer, name: str) -> bool:
    """Return True if a trainer's method is not one of Dassl's."""
    return getattr(type(trainer), name).__module__.partition(".")[0] != "dassl"


def _to_float32(trainer, parts: nn.Module) -> None:
    """Make weights, other tensors and attributes such as ``dtype`` float32."""
    parts.float()
    for owner in (trainer, *parts.modules()):
        for name, value in list(vars(owner).items()):
            if (single := _single(value)) is not value:
                setattr(owner, name, single)


def _single(value):
    """Return a tensor or type of half precision as float32; lists and dicts are changed inside."""
    if isinstance(value, torch.dtype):
        return torch.float32 if value in HALF else value
    if torch.is_tensor(value):
        return value.float() if value.dtype in HALF else value
    if next(_tensors(value), None) is None:
        return value
    if isinstance(value, tuple):
        return tuple(map(_single, value))
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        value[key] = _single(inner)
    return value


def _tensors(value) -> Iterator[torch.Tensor]:
    """Yield the tensors of an attribute, also in lists, tuples and dicts."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)
