"""A toy classifier to attack, and attacks on it from a few words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advprompt.attacks import AttackSpec, run_attack, specs_from_cfg
from advprompt.backbone import cosine_logits, load_clip, text_features
from advprompt.datasets import drawing
from advprompt.prompting import templates

NODE = {
    "NAME": "pgd",
    "EPS": "3/255",
    "ALPHA": "1/255",
    "STEPS": 6,
    "RESTARTS": 1,
    "START": "uniform",
    "OBJECTIVE": "ce",
    "TARGET": "end_to_end",
    "DROP": False,
    "NORM": "linf",
    "KWARGS": {},
}
NORMS = ("linf", "l2")
EPS = {"linf": 3 / 255, "l2": 0.1}  # where the classifier keeps some samples and loses others


def spec(name: str = "pgd", norm: str = "linf", **changes) -> AttackSpec:
    """An attack as an entry of LIST; ``eps`` and ``alpha`` are in [0, 1], not in 1/255."""
    sizes = {"eps": EPS[norm], "alpha": changes.get("eps", EPS[norm]) / 4} | changes
    for key in ("eps", "alpha"):
        sizes[key] = None if sizes[key] is None else f"{255 * sizes[key]!r}/255"
    if name in ("square", "apgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "autoattack"):
        sizes = {"steps": 6} | sizes
    entry = {"NAME": name, "NORM": norm} | {k.upper(): v for k, v in sizes.items()}
    return specs_from_cfg(NODE | {"LIST": [entry]})[0]


def net(classes: int = 5) -> nn.Module:
    """A convolutional classifier in double precision, so that batch size moves no sign."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(8 * 36, classes),
        )
    return model.double().eval()


def pixels(n: int, seed: int = 0) -> Tensor:
    """Images with many pixels exactly at 0 and 1, where clipping matters."""
    noise = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (1.4 * noise - 0.2).clamp(0, 1)


def problem(n: int, classes: int = 5, model: nn.Module | None = None, wrong: bool = True):
    """Return a model's logits, images and labels, of which every fifth is ``wrong``."""
    model, clean = model or net(classes), pixels(n)
    with torch.no_grad():
        centre = net(classes)(pixels(100, seed=1).double()).mean(dim=0)  # so that no class rules

    def logits(x):
        return 20 * (model(x.double()) - centre).float()

    with torch.no_grad():
        labels = logits(clean).argmax(1)
    if wrong:
        labels[::5] = (labels[::5] + 1) % classes
    return logits, clean, labels


def shapes(name: str, n: int):
    """Return the logits of the built-in CLIP ``name``, and drawings with their labels."""
    names, clip = drawing.shape_classes(), load_clip(name)
    with torch.no_grad():
        texts = text_features(clip, templates.fill(templates.template_for("Shapes"), names))
    labels = torch.arange(n) % len(names)
    drawings = [drawing.sample("check", i, names[y]) for i, y in enumerate(labels.tolist())]
    images = torch.stack([torch.from_numpy(d).permute(2, 0, 1).float() / 255 for d in drawings])
    return lambda x: cosine_logits(clip.encode_image(x), texts, clip.logit_scale), images, labels


def attack(threat: AttackSpec, logits, clean, labels, seeds=None):
    """Run an attack that knows where the model is right."""
    own = labels.clone()
    return run_attack(
        threat,
        clean,
        range(len(clean)) if seeds is None else seeds,
        forward=logits,
        labels=labels,
        still_right=lambda x: logits(x).argmax(1) == own,
    )


def distance(a: Tensor, b: Tensor, norm: str) -> Tensor:
    return (a - b).flatten(1).norm(p=torch.inf if norm == "linf" else 2, dim=1)  # (B,)


def is_right(logits, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return logits(images).argmax(1) == labels
