"""Any PyTorch model as a victim: a module or a function from pixels to logits."""

import hashlib
import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..utils.errors import UserError
from ..utils.io import tensors_digest
from .victim import Victim

SUMS_TO_ONE = 1e-3  # of rows of probabilities, in float16 too
SAME = 1e-3  # of the largest logit: more between two answers is a random model
HALF = (torch.float16, torch.bfloat16)


class ModelVictim(Victim):
    """A module, or a function, that returns logits (B, K) of pixels (B, 3, H, W).

    Args:
        model: called with pixels in [0, 1], or normalised as ``normalize`` says.
        classnames: the K classes in the order of the logits; empty: numbers, once it was asked.
        normalize: (mean, std) of three values each, where the model expects normalised pixels.
        device: where pixels are expected; default: that of the module's parameters, else the CPU.
        name: in tables and messages; default: that of the class or function.

    Its ``modules`` are the model, or those that the function calls.
    UserError: ``normalize`` is not of that form, or the model computes in half precision.
    """

    # advice in messages
    unwrap = "wrap it: lambda x: model(x)[0], or .logits"
    head = "features need a head, such as advprompt.zero_shot(model, classnames)"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        classnames: Sequence[str],
        *,
        normalize: Sequence | None = None,
        device: str | torch.device | None = None,
        name: str = "",
    ):
        self.model, self.classnames = model, list(classnames)
        self.modules = modules_in(model)
        self.name = name or getattr(model, "__name__", type(model).__name__).strip("<>")
        tensors = [value for part in self.modules for value in part.state_dict().values()]
        tensors = [value for value in tensors if torch.is_tensor(value)]
        if half := next((t.dtype for t in tensors if t.dtype in HALF), None):
            raise UserError(
                f"{self.name} computes in {half}, whose rounding hides gradients; attacks are "
                "measured in float32: call model.float() first"
            )
        self.device = torch.device(device or (tensors[0].device if tensors else "cpu"))
        self.mean, self.std = _statistics(normalize, self.device)

    def logits(self, pixels, prec="fp32"):
        return self.answer((pixels - self.mean) / self.std)

    @property
    def has_features(self):
        return hasattr(self.model, "image_features") and hasattr(self.model, "score")

    def features(self, pixels):
        if not self.has_features:
            return super().features(pixels)
        return self.model.image_features((pixels - self.mean) / self.std)

    def score(self, features):
        return self.model.score(features)

    def answer(self, pixels: Tensor) -> Tensor:
        """Return the logits of normalised pixels."""
        return self.model(pixels)

    def digest(self):
        """Digest the weights; of a function also its answers to fixed pixels."""
        facts = [f"{self.mean.flatten().tolist()} {self.std.flatten().tolist()}"]
        for part in self.modules:
            state = part.state_dict()
            facts.append(tensors_digest({k: v for k, v in state.items() if torch.is_tensor(v)}))
        return hashlib.sha256(" ".join([*facts, self._fixed_answers]).encode()).hexdigest()

    _fixed_answers = ""  # set by check

    @torch.enable_grad()
    def check(self, pixels: Tensor, *, gradients: bool = True) -> None:
        """Ask the model once and refuse answers that are no logits or cannot be attacked.

        Pixels are (B, 3, H, W) in [0, 1]; an attack may need ``gradients`` of the logits in them.
        UserError: another type or shape, probabilities, or no gradient.
        """
        pixels = pixels.clone().requires_grad_()
        try:
            logits = self.logits(pixels)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
            raise UserError(
                f"{self.name} cannot take pixels of shape {tuple(pixels.shape)} on {self.device} "
                f"({reason}); give images of its size, or size=..., and its device"
            ) from error
        if not self.classnames and torch.is_tensor(logits) and logits.dim() == 2:
            self.classnames = [str(i) for i in range(logits.shape[1])]
        expected = (len(pixels), len(self.classnames) or "K")
        if not torch.is_tensor(logits):
            keys = ", ".join(map(str, logits)) if isinstance(logits, dict) else ""
            raise UserError(
                f"{self.name} returns {type(logits).__name__}{f' of {keys}' if keys else ''}, "
                f"expected a tensor of logits {expected}; {self.unwrap}"
            )
        if tuple(logits.shape) != expected:
            raise UserError(
                f"{self.name} returns a tensor of shape {tuple(logits.shape)}, expected logits "
                f"{expected}, one for each of the {len(self.classnames)} classes; {self.head}"
            )
        if not logits.is_floating_point():
            raise UserError(f"{self.name} returns {logits.dtype}, expected logits in float32")
        rows = logits.detach().float()
        if (rows >= 0).all() and ((rows.sum(1) - 1).abs() < SUMS_TO_ONE).all() and expected[1] > 1:
            raise UserError(
                f"{self.name} returns probabilities (each row sums to 1), whose gradients vanish; "
                "return logits, what its softmax is applied to"
            )
        found = None
        if gradients and logits.requires_grad:
            (found,) = torch.autograd.grad(logits.sum(), pixels, allow_unused=True)
        if gradients and found is None:
            raise UserError(
                f"no gradient leads from the logits of {self.name} to the pixels (torch.no_grad, "
                "detach, or NumPy inside); remove that, or attack it with Square, which needs none"
            )
        with torch.no_grad():
            gap = (self.logits(pixels) - logits).abs().max() / logits.abs().max().clamp_min(1e-12)
            self.random = bool(gap > SAME)
            if not isinstance(self.model, nn.Module) or not self.model.state_dict():
                self._fixed_answers = self._ask_fixed(pixels.shape[1:])

    def _ask_fixed(self, shape) -> str:
        """Return the answers to two images of noise, the same for a random model."""
        noise = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            answers = self.logits(noise.to(self.device)).flatten().tolist()
        return ",".join(f"{value:.9g}" for value in answers)  # all that float32 has


def modules_in(model, depth: int = 3) -> list[nn.Module]:
    """Return the modules that a function calls: those it is bound to, closes over or names."""
    if isinstance(model, nn.Module):
        return [model]
    if not callable(model) or isinstance(model, type) or not depth:
        return []
    parts = [getattr(model, "__self__", None), *getattr(model, "__dict__", {}).values()]
    if inspect.isfunction(model):
        names = inspect.getclosurevars(model)
        parts += [*names.nonlocals.values(), *names.globals.values()]
    elif hasattr(model, "func"):  # functools.partial
        parts += [model.func, *model.args, *model.keywords.values()]
    elif inspect.isfunction(type(model).__call__):  # an object of a class of one's own
        parts.append(type(model).__call__)
    found = [module for part in parts for module in modules_in(part, depth - 1)]
    return list(dict.fromkeys(found))


def _statistics(normalize, device) -> tuple[Tensor, Tensor]:
    """Return mean and std (1, 3, 1, 1)."""
    try:
        given = ((0, 0, 0), (1, 1, 1)) if normalize is None else normalize
        values = torch.tensor([list(map(float, part)) for part in given], device=device)
        if values.shape != (2, 3) or not (values.isfinite().all() and (values[1] > 0).all()):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise UserError(
            f"normalize is {normalize!r:.80}, expected (mean, std) of three values each for pixels "
            "in [0, 1], such as ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))"
        ) from error
    return values[0].view(1, 3, 1, 1), values[1].view(1, 3, 1, 1)
