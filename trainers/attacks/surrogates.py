"""Surrogates: the models that black-box attacks are made on instead of the tested one.

A name is ``torchvision:NAME[/WEIGHTS]``, ``open_clip:ARCH/TAG`` or ``clip`` (the run's own
backbone); the first two take ``?weights=PATH`` for a local checkpoint, open_clip then without a
tag. Without it, weights come from the library's cache, or over the network into it.
Loading never executes code: pickles are read with ``weights_only``.

CLIP surrogates classify by the data set's hand-made prompt. A classifier knows the labels that it
was trained on, usually ImageNet's. RAP's authors attack ImageNet itself; AdvPT's code gives a
ResNet-50 a new last layer and trains that on the data set's training images, which is what
``?weights=PATH`` is for: the checkpoint says how many classes there are. A classifier that was
trained on other labels is attacked away from its own answer to the clean image.
That is our choice and neither paper's; it needs no training, and may be the weaker attack.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import CLIPAdapter, cosine_logits, load_clip, text_features
from ..backbone.architectures import check_architecture, check_open_clip
from ..backbone.providers import is_counter, misfit
from ..backbone.weights_files import read_state
from ..utils.errors import UserError, nearest
from ..utils.io import tensors_digest

FILE = "?weights="
FORMS = ("torchvision:NAME", "open_clip:ARCH/TAG", "clip")
# torchvision's networks that change the normalisation themselves, as their weights want it
OWN_NORMALISATION = ("inception_v3", "googlenet")
IMAGENET_CLASSES = 1000
OLDER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)")  # names in densenet's files


@dataclass(frozen=True)
class Surrogate:
    """A frozen classifier of images (B, 3, H, W) in [0, 1] of any size -> logits (B, K)."""

    name: str  # as the user wrote it
    model: Callable[[Tensor], Tensor]  # (B, 3, size, size) in [0, 1] -> logits; it normalises
    size: int  # side of the images that the model takes; others are resized, differentiably
    interpolation: str  # bicubic or bilinear
    classes: int  # K
    of_dataset: bool  # whether the K classes are the data set's, in its order
    sha256: str  # of the weights, and of the prompts of a CLIP

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits (B, K), float32."""
        size = (self.size, self.size)
        if tuple(pixels.shape[-2:]) != size:
            pixels = F.interpolate(pixels, size, mode=self.interpolation, antialias=True)
        return self.model(pixels).float()

    def knows(self, labels: str, classes: int) -> bool:
        """Return whether labels are the data set's (UserError for other ``classes``) or its own."""
        if labels == "dataset" and self.classes != classes:
            raise UserError(
                f"surrogate '{self.name}' has {self.classes} classes and the data set {classes}, "
                "so it cannot be attacked with KWARGS.labels 'dataset'; use 'surrogate', or name a "
                f"checkpoint that was trained on the data set with {FILE}PATH"
            )
        return labels == "dataset" or (labels == "auto" and self.of_dataset)


def check_surrogate(name: str) -> tuple[str, str, str]:
    """Return kind, model and checkpoint (or ``""``) of a name; UserError if any is not there."""
    text, _, path = str(name).partition(FILE)
    kind, _, model = text.partition(":")
    plain = kind == "clip"
    known = kind in [form.partition(":")[0] for form in FORMS]
    if not known or bool(model) == plain or (path and plain):
        raise UserError(f"surrogate {name!r} is unknown.{nearest(name, FORMS)}")
    if path and not Path(path).expanduser().is_file():
        raise UserError(f"'{path}' does not exist; check the path after '{FILE}'")
    checks = {"torchvision": _torchvision_weights, "clip": str}
    checks["open_clip"] = check_architecture if path else check_open_clip
    checks[kind](model)
    return kind, model, path


def load_surrogate(
    name: str, *, prompts: Sequence[str], device="cpu", clip: CLIPAdapter | None = None
) -> Surrogate:
    """Load a surrogate by name, frozen and in eval mode.

    ``prompts`` are the hand-made ones of the data set's classes, ``clip`` is the run's backbone.
    UserError if the name is unknown, or its weights are missing, damaged, foreign or refused.
    """
    kind, model, path = check_surrogate(name)
    with torch.inference_mode(False):
        if kind == "torchvision":
            with torch.random.fork_rng(devices=[]):  # initial values are drawn and thrown away
                network, classes, shown = _read_torchvision(name, model, path)
            own = bool(path) and classes == len(prompts)
            return _classifier(name, network, classes, own, device, **shown)
        if kind == "open_clip":
            clip = load_clip(f"file:{path}?arch={model}" if path else name, device=device)
        if clip is None:
            raise ValueError("surrogate 'clip' needs the run's backbone")
        return _zero_shot(name, clip, list(prompts))


def _zero_shot(name: str, clip: CLIPAdapter, prompts: list[str]) -> Surrogate:
    with torch.no_grad():
        texts = text_features(clip, prompts)  # (K, D), unit length

    def logits(pixels: Tensor) -> Tensor:
        return cosine_logits(clip.encode_image(pixels), texts, clip.logit_scale)

    digest = hashlib.sha256("\n".join([clip.sha256, *prompts]).encode()).hexdigest()
    return Surrogate(name, logits, clip.resolution, "bicubic", len(prompts), True, digest)


# --- torchvision ---------------------------------------------------------------------------------


def _torchvision_weights(model: str):
    """Return the network's name and the weights that ``NAME[/WEIGHTS]`` means.

    By default the first that torchvision lists, mostly IMAGENET1K_V1, as both authors' code loads.
    """
    from torchvision import models  # slow to import

    name, _, tag = model.partition("/")
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"torchvision has no classifier '{name}'.{nearest(name, known)}")
    weights = models.get_model_weights(name).__members__
    if tag and tag not in weights:
        raise UserError(f"torchvision has no weights '{tag}' of {name}.{nearest(tag, weights)}")
    return name, weights[tag] if tag else next(iter(weights.values()))


def _read_torchvision(name: str, model: str, path: str) -> tuple[nn.Module, int, dict]:
    """Return the network with its weights, its number of classes and its preprocessing."""
    from torchvision.models import get_model

    network, weights = _torchvision_weights(model)
    build = partial(get_model, network, weights=None)
    if network in OWN_NORMALISATION:
        build = partial(build, transform_input=True, init_weights=False)
    state = read_state(path, FILE) if path else _fetched(name, weights)
    state = {OLDER.sub(r"\1\2", key): value for key, value in state.items()}
    shown = weights.transforms()
    return *_filled(name, build, state), {
        "size": shown.crop_size[0],
        "interpolation": shown.interpolation.value,
        "mean": shown.mean,
        "std": shown.std,
    }


def _fetched(name: str, weights) -> dict:
    """Return torchvision's weights from its cache or over the network."""
    safely = {"map_location": "cpu", "progress": True, "check_hash": True, "weights_only": True}
    try:
        return weights.get_state_dict(**safely)
    except Exception as error:  # torch and the network have many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the weights of surrogate '{name}' can be neither found nor fetched ({reason}); fetch "
            f"them where there is a network, or name a local checkpoint as {name}{FILE}PATH"
        ) from error


def _filled(name: str, build: Callable, state: dict) -> tuple[nn.Module, int]:
    """Return the network of K classes, filled with ``state``, whose shapes give K, and K."""
    model = build(num_classes=IMAGENET_CLASSES)
    heads = (
        len(state[key])
        for key, value in model.state_dict().items()
        if key in state
        and value.ndim
        and len(value) == IMAGENET_CLASSES != len(state[key])
        and value.shape[1:] == state[key].shape[1:]
    )
    classes = next(heads, IMAGENET_CLASSES)
    model = model if classes == IMAGENET_CLASSES else build(num_classes=classes)
    if wrong := misfit(model.state_dict(), state):
        raise UserError(
            f"the weights of surrogate '{name}' are of another network: the file {wrong}; name the "
            "network that they belong to"
        )
    model.load_state_dict(state, strict=False)
    return model, classes


def _classifier(
    name: str, model: nn.Module, classes: int, own: bool, device, *, size, interpolation, mean, std
) -> Surrogate:
    model = model.requires_grad_(False).float().eval().to(device)
    mean, std = (torch.tensor(value, device=device).view(1, 3, 1, 1) for value in (mean, std))

    def logits(pixels: Tensor) -> Tensor:
        return model((pixels - mean) / std)

    digest = tensors_digest({k: v for k, v in model.state_dict().items() if not is_counter(k)})
    return Surrogate(name, logits, size, interpolation, classes, own, digest)
