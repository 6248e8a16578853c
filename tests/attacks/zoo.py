"""Models that look robust and are not, and honest ones that must not be suspected.

Every entry turns the logits of an undefended toy into those of another model: ``masks(toy)`` and
``controls(toy)``, by name. ``python -m tests.attacks.zoo`` prints the table in docs/attacks.md.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from advprompt.attacks import compare, specs_from_cfg
from advprompt.attacks import dispatch as dispatch_of_attacks
from advprompt.evaluation.evaluator import Evaluation
from advprompt.evaluation.samples import ImageList
from advprompt.evaluation.victim import Victim
from advprompt.utils.errors import UserError

SIDE, CLASSES, COUNT = 8, 5, 32
NODE = {
    "NAME": "pgd",
    "EPS": "4/255",
    "ALPHA": "1/255",
    "STEPS": 50,
    "RESTARTS": 1,
    "START": "uniform",
    "OBJECTIVE": "ce",
    "TARGET": "end_to_end",
    "DROP": True,
}
TESTS = {  # the three kinds of test in configs/attacks, with fewer steps
    "PGD": [{}],
    "PGD + apgd": [{}, {"NAME": "apgd", "STEPS": 20}],
    "AutoAttack": [{"NAME": "autoattack", "STEPS": 20}],
}
Model = Callable[[Tensor], Tensor]  # pixels (B, 3, 8, 8) -> logits (B, 5)


class Toy:
    """An undefended classifier of 8x8 images: features (B, 48), then logits (B, 5)."""

    def __init__(self, relu: bool = False, seed: int = 3):
        draw = torch.Generator().manual_seed(seed)
        self.first = 0.35 * torch.randn(3 * SIDE * SIDE, 48, generator=draw)
        self.second = 2.5 * torch.randn(48, CLASSES, generator=draw)
        self.bend = torch.relu if relu else torch.tanh

    def features(self, x: Tensor) -> Tensor:
        return self.bend((x.flatten(1) - 0.5) @ self.first)

    def head(self, features: Tensor) -> Tensor:
        return features @ self.second

    def __call__(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def backward(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the identity with another gradient: ``change`` of the true one."""

    class Changed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return change(grad)

    return Changed.apply


def straight_through(x: Tensor, y: Tensor) -> Tensor:
    return x + (y - x).detach()


def shifts(x: Tensor) -> list[Tensor]:
    return [x.roll((i, j), (-2, -1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]


def masks(toy: Toy) -> dict[str, Model]:
    """Return models whose gradients, or answers, mislead an attack."""
    lone = torch.randn(3 * SIDE * SIDE, CLASSES, generator=torch.Generator().manual_seed(5))

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape)

    def staircase(x):
        low = (x * 64).floor()
        return toy((low + torch.sigmoid(40 * (x * 64 - low - 0.5))) / 64)

    def sparse(grad):
        least = grad.flatten(1).abs().quantile(0.95, dim=1)[:, None, None, None]
        return grad * (grad.abs() >= least)

    def winners(x):
        features = toy.features(x)
        return toy.head(features * (features.abs() >= features.abs().topk(5).values[:, -1:]))

    def every_other(x):
        even = (torch.arange(len(x)) % 2 == 0)[:, None, None, None]
        return toy(torch.where(even, x, x.detach()))

    def votes(x):
        return sum(F.one_hot(toy(y).argmax(1), CLASSES).float() for y in shifts(x)) + 0 * toy(x)

    def unsure(x):
        logits = toy(x)
        return torch.where(logits.softmax(1).amax(1, keepdim=True) < 0.9, torch.nan, logits)

    def remembers(x):
        return toy(straight_through(x, (x * 8).round() / 8))

    def conditional(x):
        """Text features that depend on the image, taken from a cache."""
        features = toy.features(x)
        return toy.head(features) + 3 * (features.detach() ** 2) @ toy.second

    return {
        "quantised": lambda x: toy((x * 16).round() / 16),
        "quantised, straight through": remembers,
        "staircase": staircase,
        "high frequency": lambda x: toy((x + 0.004 * torch.sin(2000 * x)).clamp(0, 1)),
        "steep sigmoid": lambda x: toy(torch.sigmoid(400 * (x - 0.5))),
        "noisy gradient": lambda x: toy(backward(lambda g: g + 20 * g.abs().mean() * noise(g))(x)),
        "random gradient": lambda x: toy(backward(noise)(x)),
        "detached": lambda x: toy(x.detach()),
        "detached with a leak": lambda x: toy(x.detach()) + 0.01 * x.flatten(1) @ lone,
        "scaled gradient": lambda x: toy(x.detach() + 0.01 * (x - x.detach())),
        "reversed gradient": lambda x: toy(backward(torch.neg)(x)),
        "mirrored gradient": lambda x: toy(backward(lambda g: g.flip(-1))(x)),
        "gradient of the next image": lambda x: toy(backward(lambda g: g.roll(1, 0))(x)),
        "gradient of one channel": lambda x: toy(torch.cat([x[:, :1], x[:, 1:].detach()], 1)),
        "gradient of half the image": lambda x: toy(
            torch.cat([x[..., :4], x[..., 4:].detach()], -1)
        ),
        "gradient of few pixels": lambda x: toy(backward(sparse)(x)),
        "gradient of every other image": every_other,
        "cached conditional text": conditional,
        "random logits": lambda x: toy(x) + noise(x[:, 0, 0, :CLASSES]),
        "random pixels": lambda x: toy(x + 0.03 * noise(x)),
        "random shift": lambda x: toy(shifts(x)[int(torch.randint(9, ()))]),
        "batch mean": lambda x: toy(x - 0.5 * x.mean(0, keepdim=True)),
        "batch deviation": lambda x: toy(0.5 + 0.2 * (x - 0.5) / x.std()),
        "other answer under gradients": lambda x: toy(x.flip(-1) if x.requires_grad else x),
        "temperature 1e4": lambda x: toy(x) * 1e4,
        "temperature 1e-6": lambda x: toy(x) * 1e-6,
        "probabilities": lambda x: toy(x).softmax(1),
        "rounded logits": lambda x: toy(x).round(),
        "rounded logits, straight through": lambda x: straight_through(
            toy(x), 4 * (toy(x) / 4).round()
        ),
        "vote of shifts": votes,
        "vote of shifts, straight through": lambda x: straight_through(
            sum(map(toy, shifts(x))), votes(x)
        ),
        "k-winner-take-all": winners,
        "NaN where unsure": unsure,
        "pixels divided by 255": lambda x: toy(x / 255),
    }


def controls(toy: Toy) -> dict[str, Model]:
    """Return honest models."""
    return {
        "undefended": toy,
        "ReLU": Toy(relu=True),
        "blur": lambda x: toy(F.avg_pool2d(x, 3, 1, 1)),
        "shrunk": lambda x: toy(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)),
        "every second pixel": lambda x: toy(F.interpolate(x[..., ::2, ::2], scale_factor=2)),
        "crop": lambda x: toy(F.pad(x[..., 1:7, 1:7], (1, 1, 1, 1), value=0.5)),
        "grey": lambda x: toy(x.mean(1, keepdim=True).expand_as(x)),
        "contrast": lambda x: toy(0.5 + 0.7 * (x - 0.5)),
        "gamma": lambda x: toy(x.clamp_min(1e-3) ** 0.7),
        "8 bits, straight through": lambda x: toy(straight_through(x, (x * 255).round() / 255)),
        "mean of two views": lambda x: (toy(x) + toy(x.flip(-1))) / 2,
        "mean of shifts": lambda x: sum(map(toy, shifts(x))) / 9,
        "log-probabilities": lambda x: toy(x).log_softmax(1),
        "shifted logits": lambda x: toy(x) + 100,
        "temperature 0.3": lambda x: 0.3 * toy(x),
        "float64": lambda x: toy(x).double(),
    }


class Masked(Victim):
    """A model of the zoo under test."""

    device, classnames = torch.device("cpu"), [f"class {i}" for i in range(CLASSES)]

    def __init__(self, name: str, model: Model):
        self.name, self.model = name, model

    def logits(self, pixels, prec="fp32"):
        return self.model(pixels)

    def digest(self):
        return self.name


def _preprocess(image: Image.Image) -> Tensor:
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.view(SIDE, SIDE, 3).permute(2, 0, 1) / 255


_preprocess.key = "as it is"


def images(folder: Path, model: Model, seed: int = 0) -> ImageList:
    """Write images of patches of one colour; each has the class that the model sees in it."""
    draw = torch.Generator().manual_seed(seed)
    patches = torch.randint(0, 256, (COUNT, 3, 2, 2), generator=draw)
    pixels = F.interpolate(patches.float(), scale_factor=SIDE // 2).byte()
    with torch.no_grad():
        labels = model(pixels.float() / 255).nan_to_num().argmax(1).tolist()
    items = []
    for i, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / f"{seed}_{i}.png"
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
        items.append((path, label))
    return ImageList(items, _preprocess)


def examine(name: str, model: Model, test: str, folder: Path, seed: int = 0) -> tuple[set, int]:
    """Run a test; return the names of the checks that object, and how many samples it leaves.

    A refusal is the check ``error``.
    """
    torch.manual_seed(seed)
    square, dispatch_of_attacks.STEPS["square"] = dispatch_of_attacks.STEPS["square"], 100
    try:
        victim = Masked(name, model)
        found = Evaluation(
            victim,
            images(folder, model, seed),
            folder=folder / f"{name}, {test}, {seed}",
            cache=folder,
            batch_size=16,
            probes=COUNT,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            found.clean()
            attacks = [found.attack(spec) for spec in specs_from_cfg(NODE | {"LIST": TESTS[test]})]
    except UserError:
        return {"error"}, 0
    finally:
        dispatch_of_attacks.STEPS["square"] = square
    texts = [text for entry in attacks for text in entry["warnings"]]
    texts += [text for found in compare(attacks).values() for text in found]
    return {text.partition(":")[0] for text in texts}, attacks[-1]["correct"]


def table() -> str:
    """Return the table of masks, tests and checks as Markdown."""
    heads = ["mask", "every test", *(f"also {test}" for test in TESTS)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        for name, model in masks(Toy()).items():
            found = [examine(name, model, test, Path(folder))[0] for test in TESTS]
            always = set.intersection(*found)
            cells = [always, *(own - always for own in found)]
            words = [", ".join(f"`{check}`" for check in sorted(cell)) for cell in cells]
            lines.append(f"| {name} | " + " | ".join(words) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
