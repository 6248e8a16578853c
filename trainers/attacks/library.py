"""Any attack of the library torchattacks, by the name ``torchattacks:CLASS``.

Its images are checked here: range, ball, and whether the model is really wrong on them.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import losses
from ..records.threats import NORMS
from ..utils.errors import UserError
from ..utils.seeds import seeded
from .base import AttackResult, LabelledAttack, NotFinite, check_finite, likeliest_wrong
from .geometry import into_ball, length
from .library_classes import FILLED, LibraryClass, library_class

SLACK = 1e-5  # rounding of the library's own float32 projections
RANGE_SLACK = 1e-3  # EADEN and EADL1 write their first step into the image that they clip to
MOST_VALUES = 1 << 14  # of an image under JSMA, which compares all pairs of them
TARGETS = 9  # wrong classes aimed at, as AutoAttack has it
FEWEST = {"APGDT": 4, "AutoAttack": 4}  # classes for which the targeted DLR loss is defined
GRADIENT_FREE = ("Square", "SPSA", "OnePixel", "Pixle", "GN")


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
    """The module that the library expects: it has a device and is in eval mode."""

    def __init__(self, logits: Callable[[Tensor], Tensor], device):
        super().__init__()
        self.place = nn.Parameter(torch.zeros((), device=device), requires_grad=False)
        self.logits = (logits,)  # not a submodule, so that its modes are not changed
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        # The library divides by gradients: one of exactly 0 makes a sample NaN. The
        # other samples continue; that one is given up at the end.
        images = images.nan_to_num(nan=0.5, posinf=1, neginf=0)
        (logits,) = self.logits
        if torch.is_grad_enabled() and images.requires_grad:
            answer = _LogitsOfImages.apply(images, logits)
        else:
            with torch.no_grad():
                answer = logits(images).float()
        check_finite("the model's logits are", answer)
        return answer


class LibraryAttack(LabelledAttack):
    """An attack of torchattacks on the samples that the model gets right.

    The library draws from torch's and numpy's global generators, one draw for the whole batch, and
    some classes stop a batch as a whole (CW): **unlike all other attacks here, the result depends
    on the batch size and on what else is in the batch.** The generators are seeded per batch, from
    the seeds of its samples, and restored afterwards, so that the same batch gives the same
    result. Some classes pass images outside [0, 1] to the model; none may return them.

    A sample whose images become NaN (the library divides by a gradient of exactly 0) is returned
    unchanged with ``zero_grad``, as is one whose cross-entropy has a gradient of
    exactly 0 at the clean image. ``loss_first`` and ``loss_last`` are margins, even if the class
    ascends another loss. JSMA aims at the likeliest wrong class; the library's own choice assumes
    10 classes.
    """

    @property
    def entry(self) -> LibraryClass:
        return library_class(self.spec.name)

    def search(
        self, clean: Tensor, labels: Tensor, logits: Tensor, seeds: list[int], turn: int
    ) -> AttackResult:
        self._check_suits(clean, logits.shape[1])
        flat = torch.zeros_like(labels, dtype=torch.bool)
        if turn == 0 and self.entry.name not in GRADIENT_FREE:
            flat = self.gradient(clean, lambda x: losses.cross_entropy(x, labels))[2]
        seed = int.from_bytes(hashlib.sha256(repr(seeds).encode()).digest()[:4], "big")
        images, lost = self._perturb(clean, labels, logits.shape[1], seed)
        with torch.no_grad():
            answer = self.logits(images)
        margin, right = losses.margin(answer, labels), answer.argmax(1) == labels
        return AttackResult(images, 0.0, flat | lost, margin, margin, right)

    def run(self, pixels: Tensor, seeds: Sequence[int]) -> AttackResult:
        kept = super().run(pixels, seeds)
        change = kept.images - pixels.detach().float().clamp(0, 1)
        kept.reached = {
            "l0": (change != 0).any(dim=1).flatten(1).sum(dim=1).float(),
            "l1": change.abs().flatten(1).sum(dim=1),
            "l2": length(change, "l2").flatten(),
            "linf": length(change, "linf").flatten(),
        }
        return kept

    def _check_suits(self, clean: Tensor, classes: int) -> None:
        name, kind = self.spec.name, self.entry.name
        fewest, asked = FEWEST.get(kind, 2), self.spec.kwargs.get("n_classes", 0)
        if classes < fewest:
            raise UserError(
                f"{name} needs at least {fewest} classes but the model has {classes}; use "
                "'autoattack', which leaves out what cannot run"
            )
        if asked > classes:
            raise UserError(
                f"{name}: KWARGS.n_classes is {asked} but the model has {classes} classes"
            )
        if kind == "JSMA" and clean[0].numel() > MOST_VALUES:
            raise UserError(
                f"{name} compares all pairs of an image's values, too many for images of "
                f"{tuple(clean.shape[1:])}; use torchattacks:SparseFool or torchattacks:OnePixel"
            )

    def _perturb(
        self, clean: Tensor, labels: Tensor, classes: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return the library's images, checked, and which (b,) of them it lost to NaN."""
        made, name = self._make(clean, classes, seed), self.spec.name
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with seeded(seed, gpus):
            try:
                images = made(clean.clone(), labels.clone()).detach().float()
            except (NotFinite, UserError):
                raise
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                raise RuntimeError(f"{name} failed in the library: {what}") from error
        if images.shape != clean.shape:
            raise RuntimeError(f"{name} returned images of shape {tuple(images.shape)}")
        lost = ~images.isfinite().flatten(1).all(dim=1)
        images = torch.where(lost[:, None, None, None], clean, images)
        low, high = map(float, torch.aminmax(images))
        if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
            raise RuntimeError(f"{name} returned pixels from {low:.6g} to {high:.6g}")
        images, eps, norm = images.clamp(0, 1), self.spec.eps, self.spec.norm
        if eps is None:
            return images, lost
        far = float(length(images - clean, norm).max())
        if far > eps + SLACK:
            raise RuntimeError(f"{name} went to {far:.6g}, outside its {norm} ball of {eps:.6g}")
        return into_ball(clean, images, eps, norm), lost

    def _make(self, clean: Tensor, classes: int, seed: int):
        """Return an instance of the class for ``self.logits``."""
        fields = {"EPS": self.spec.eps, "ALPHA": self.spec.alpha, "STEPS": self.spec.steps}
        fields |= {"RESTARTS": 1, "NORM": NORMS.get(self.spec.norm)}
        values = {argument: fields[field] for argument, field in FILLED.items()}
        values |= {"seed": seed, "n_classes": min(classes, TARGETS + 1)}
        values = {key: value for key, value in values.items() if key in self.entry.defaults}
        victim = _Victim(self.logits, clean.device)
        try:
            made = self.entry.make(victim, **(values | self.spec.kwargs))
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"{self.spec.name} refuses its settings: {error}") from error
        if self.entry.name == "AutoAttack":
            for part in made._autoattack.attacks:
                if hasattr(part, "steps"):
                    part.steps = self.spec.steps
        if self.entry.name == "JSMA":
            aim = torch.no_grad()(lambda images, labels: likeliest_wrong(victim(images), labels)[0])
            made.set_mode_targeted_by_function(aim, quiet=True)
        return made
