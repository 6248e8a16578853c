"""Any attack of the library torchattacks, by the name ``torchattacks:CLASS``.

What comes back is checked here and never taken on trust: range, ball, and whether the model is
really wrong on it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import losses
from ..utils.errors import UserError
from .catalogue import FILLED, library_class, library_fields
from .geometry import into_ball, length
from .gradient import AttackResult, NotFinite, _mix
from .labelled import LabelledAttack
from .spec import AttackSpec

SLACK = 1e-5  # rounding of the library's own float32 projections
RANGE_SLACK = 1e-3  # EADEN and EADL1 write their first step into the image that they clip to
MOST_VALUES = 1 << 14  # of an image under JSMA, which compares all pairs of them
MAX_TARGETS = 9  # wrong classes aimed at, as AutoAttack has it
FEWEST = {"APGDT": 4, "AutoAttack": 4}  # classes for which the targeted DLR loss is defined
GRADIENT_FREE = ("Square", "SPSA", "OnePixel", "Pixle", "GN")


@dataclass
class LibraryResult(AttackResult):
    """As any attack's; ``reached`` tells how far each image went.

    It holds (B,) per distance: ``l0`` pixels changed (in any channel), ``l1``, ``l2``, ``linf``,
    all 0 for images that came back as they were. Of an attack without a ball these are the result:
    it may break every sample, and what counts is how far it had to go.
    """

    reached: dict[str, Tensor] | None = None


class _LogitsOfImages(torch.autograd.Function):
    """Logits whose backward pass ends at the images, so that no parameter's ``.grad`` is filled."""

    @staticmethod
    def forward(ctx, images: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            ctx.images = images.detach().requires_grad_()
            ctx.logits = logits(ctx.images).float()
        return ctx.logits.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        found = torch.autograd.grad(ctx.logits, ctx.images, grad, retain_graph=True)
        return (*found, None)


class _Victim(nn.Module):
    """The module that the library expects: it has a device and says eval, the model is apart."""

    def __init__(self, logits: Callable[[Tensor], Tensor], device):
        super().__init__()
        self.place = nn.Parameter(torch.zeros((), device=device), requires_grad=False)
        self.logits = (logits,)  # not a submodule: its modes are its own
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        # The library divides by gradients: one of exactly 0 leaves a sample of NaN behind. The
        # other samples go on; that one is given up at the end.
        images = images.nan_to_num(nan=0.5, posinf=1, neginf=0)
        (logits,) = self.logits
        if torch.is_grad_enabled() and images.requires_grad:
            answer = _LogitsOfImages.apply(images, logits)
        else:
            with torch.no_grad():
                answer = logits(images).float()
        if not torch.isfinite(answer).all():
            raise NotFinite("the model's logits are not finite; compute in fp32")
        return answer


class LibraryAttack(LabelledAttack):
    """An attack of torchattacks on the samples that the model gets right.

    The library draws from torch's and numpy's global generators, one draw for the whole batch, and
    some classes stop a batch as a whole (CW): **unlike all other attacks here, the result depends
    on the batch size and on what else is in the batch.** The generators are seeded per batch, from
    the seeds of its samples, and are as before afterwards, so that the same batch gives the same
    result. Some classes show the model images outside [0, 1] on their way; none may return them.

    A sample whose images turn out NaN (the library divides by a gradient of exactly 0) comes back
    as it was and counts as ``zero_grad``, as does one whose cross-entropy has a gradient of
    exactly 0 at the clean image. ``loss_first`` and ``loss_last`` are margins, whatever the class
    ascends. JSMA aims at the likeliest wrong class; the library's own choice takes 10 classes for
    granted.

    Args:
        logits: images (b, 3, H, W) -> logits (b, K); called with any part of the batch.
        labels: (B,) int64.
        spec: name, norm, eps, alpha, steps and restarts; see :func:`~.catalogue.library_fields`
            for which of them the class takes, and what None stands for. Restarts run again on the
            samples that are left.
        kwargs: the class' other arguments.

    Raises:
        UserError: the class or an argument is unknown, or the class cannot work here.
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        labels: Tensor,
        spec: AttackSpec,
        kwargs: Mapping | None = None,
    ):
        super().__init__(logits, labels, spec)
        self.entry = library_class(spec.name)
        fields = library_fields(
            spec.name,
            norm=spec.norm,
            eps=spec.eps,
            alpha=spec.alpha,
            steps=spec.steps,
            kwargs=kwargs,
        )
        self.name, self.norm, self.eps = fields["name"], fields["norm"], fields["eps"]
        self.alpha, self.steps, self.kwargs = fields["alpha"], fields["steps"], fields["kwargs"]

    def attack(
        self, clean: Tensor, labels: Tensor, logits: Tensor, seeds: list[int]
    ) -> LibraryResult:
        self._check_suits(clean, logits.shape[1])
        margin, right = losses.margin(logits, labels), logits.argmax(1) == labels
        kept = LibraryResult(
            clean.clone(), 0.0, torch.zeros_like(right), margin, margin.clone(), right
        )
        if len(clean) and self.entry.name not in GRADIENT_FREE:
            _, grad, _ = self.gradient(clean, lambda x: losses.cross_entropy(x, labels))
            kept.zero_grad |= grad.flatten(1).abs().amax(dim=1) == 0
        for restart in range(self.spec.restarts):
            left = kept.right.nonzero().flatten()  # (b,)
            if not len(left):
                break
            seed = _one_of([_mix(seeds[i], restart) for i in left.tolist()])
            images, lost = self._perturb(clean[left], labels[left], logits.shape[1], seed)
            kept.zero_grad[left] |= lost
            with torch.no_grad():
                answer = self.logits(images)
            margin, right = losses.margin(answer, labels[left]), answer.argmax(1) == labels[left]
            worse = ~right | (margin > kept.loss_last[left])
            kept.images[left[worse]] = images[worse]
            kept.loss_last[left[worse]] = margin[worse]
            kept.right[left] = right
        change = kept.images - clean
        kept.reached = {
            "l0": (change != 0).any(dim=1).flatten(1).sum(dim=1).float(),
            "l1": change.abs().flatten(1).sum(dim=1),
            "l2": length(change, "l2").flatten(),
            "linf": length(change, "linf").flatten(),
        }
        return kept

    def _check_suits(self, clean: Tensor, classes: int) -> None:
        fewest, asked = FEWEST.get(self.entry.name, 2), self.kwargs.get("n_classes", 0)
        if classes < fewest:
            raise UserError(
                f"{self.name} needs at least {fewest} classes but the model has {classes}; use "
                "'autoattack', which leaves out what cannot run"
            )
        if asked > classes:
            raise UserError(
                f"{self.name}: KWARGS.n_classes is {asked} but the model has {classes} classes"
            )
        if self.entry.name == "JSMA" and clean[0].numel() > MOST_VALUES:
            raise UserError(
                f"{self.name} compares all pairs of an image's values, too many for images of "
                f"{tuple(clean.shape[1:])}; use torchattacks:SparseFool or torchattacks:OnePixel"
            )

    def _perturb(
        self, clean: Tensor, labels: Tensor, classes: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return the library's images, checked, and which (b,) of them it lost to NaN."""
        made = self._make(clean, classes, seed)
        with _seeded(seed):
            try:
                images = made(clean.clone(), labels.clone()).detach().float()
            except (NotFinite, UserError):
                raise
            except Exception as error:
                raise RuntimeError(
                    f"{self.name} failed in the library: {type(error).__name__}: {error}"
                ) from error
        if images.shape != clean.shape:
            raise RuntimeError(f"{self.name} returned images of shape {tuple(images.shape)}")
        lost = ~images.isfinite().flatten(1).all(dim=1)
        images = torch.where(lost[:, None, None, None], clean, images)
        low, high = (float(value) for value in torch.aminmax(images))
        if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
            raise RuntimeError(f"{self.name} returned pixels from {low:.6g} to {high:.6g}")
        images = images.clamp(0, 1)
        if self.eps is None:
            return images, lost
        far = float(length(images - clean, self.norm).max())
        if far > self.eps + SLACK:
            raise RuntimeError(
                f"{self.name} went to {far:.6g}, outside its {self.norm} ball of {self.eps:.6g}"
            )
        return into_ball(clean, images, self.eps, self.norm), lost

    def _make(self, clean: Tensor, classes: int, seed: int):
        """Return an instance of the class for ``self.logits``."""
        fields = {"EPS": self.eps, "ALPHA": self.alpha, "STEPS": self.steps, "RESTARTS": 1}
        fields["NORM"] = {"linf": "Linf", "l2": "L2"}.get(self.norm)
        values = {argument: fields[field] for argument, field in FILLED.items()}
        values |= {"seed": seed, "n_classes": min(classes, MAX_TARGETS + 1)}
        values = {key: value for key, value in values.items() if key in self.entry.defaults}
        victim = _Victim(self.logits, clean.device)
        try:
            made = self.entry.make(victim, **(values | self.kwargs))
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"{self.name} refuses its settings: {error}") from error
        if self.entry.name == "AutoAttack":
            for part in made._autoattack.attacks:
                if hasattr(part, "steps"):
                    part.steps = self.steps
        if self.entry.name == "JSMA":

            def likeliest_wrong(images, labels):
                with torch.no_grad():
                    return victim(images).scatter(1, labels[:, None], -torch.inf).argmax(1)

            made.set_mode_targeted_by_function(likeliest_wrong, quiet=True)
        return made


def _one_of(seeds: list[int]) -> int:
    """Return one seed of 32 bits for a batch."""
    return int.from_bytes(hashlib.sha256(repr(seeds).encode()).digest()[:4], "big")


@contextmanager
def _seeded(seed: int):
    """Seed the global generators of torch, numpy and Python; they are as before afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
