"""Surrogates: the models that black-box attacks are made on instead of the tested one.

A name is ``torchvision:NAME[/WEIGHTS]``, ``timm:NAME``, ``open_clip:ARCH/TAG`` or ``clip`` (the
run's own backbone); the first three take ``?weights=PATH`` for a local checkpoint, open_clip then
without a tag. Without it, weights come from the library's cache, or over the network into it.
Loading never executes code: pickles are read with ``weights_only``.

CLIP surrogates classify by the data set's hand-made prompt. A classifier knows the labels that it
was trained on, usually ImageNet's. RAP's authors attack ImageNet itself; AdvPT's code gives a
ResNet-50 a new last layer and trains that on the data set's training images, which is what
``?weights=PATH`` is for: the checkpoint says how many classes there are. A classifier that was
trained on other labels is attacked away from its own answer to the clean image, whatever that is.
That is our choice and neither paper's; it needs no training, and may be the weaker attack.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import CLIPAdapter, load_clip, text_features
from ..backbone.architectures import check_architecture, check_open_clip
from ..backbone.weights_files import read_state
from ..utils.errors import UserError, nearest
from ..utils.io import tensors_digest

FILE = "?weights="
KINDS = ("torchvision", "timm", "open_clip", "clip")
FORMS = ("torchvision:NAME", "timm:NAME", "open_clip:ARCH/TAG", "clip")
# torchvision's networks that change the normalisation themselves, as their weights want it
OWN_NORMALISATION = ("inception_v3", "googlenet")
IMAGENET_CLASSES = 1000
OLDER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)")  # names in densenet's files


@dataclass(frozen=True)
class Surrogate:
    """A frozen classifier of images (B, 3, H, W) in [0, 1] of any size -> logits (B, K).

    Attributes:
        name: as the user wrote it.
        model: images (B, 3, size, size) in [0, 1] -> logits; normalises by itself.
        size: side of the images that the model takes; others are resized, differentiably.
        interpolation: ``bicubic`` or ``bilinear``.
        classes: K.
        of_dataset: whether the K classes are the data set's, in its order.
        sha256: hex digest of the weights, and of the prompts of a CLIP.
    """

    name: str
    model: Callable[[Tensor], Tensor]
    size: int
    interpolation: str
    classes: int
    of_dataset: bool
    sha256: str

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits (B, K), float32."""
        if tuple(pixels.shape[-2:]) != (self.size, self.size):
            pixels = F.interpolate(
                pixels, (self.size, self.size), mode=self.interpolation, antialias=True
            )
        return self.model(pixels).float()

    def knows(self, labels: str, classes: int) -> bool:
        """Tell whether the attack leads away from the data set's labels.

        Args:
            labels: ``dataset``, ``surrogate`` (no: from the surrogate's own answers) or ``auto``.
            classes: of the data set.

        Raises:
            UserError: ``dataset``, and the surrogate has another number of classes.
        """
        if labels == "dataset" and self.classes != classes:
            raise UserError(
                f"surrogate '{self.name}' has {self.classes} classes and the data set {classes}, "
                "so it cannot be attacked with KWARGS.labels 'dataset'; use 'surrogate', or name a "
                f"checkpoint that was trained on the data set with {FILE}PATH"
            )
        return labels == "dataset" or (labels == "auto" and self.of_dataset)


def check_surrogate(name: str) -> tuple[str, str, str]:
    """Return kind, model and checkpoint (or ``""``) of a surrogate's name; nothing is loaded.

    Raises:
        UserError: the name is unknown, its library is missing, or there is no such file.
    """
    text, _, path = str(name).partition(FILE)
    kind, _, model = text.partition(":")
    if kind not in KINDS or bool(model) == (kind == "clip") or (path and kind == "clip"):
        raise UserError(f"surrogate {name!r} is unknown.{nearest(name, FORMS)}")
    if path and not Path(path).expanduser().is_file():
        raise UserError(f"'{path}' does not exist; check the path behind '{FILE}'")
    if kind == "torchvision":
        _torchvision_weights(model)
    elif kind == "timm":
        _check_timm(model)
    elif kind == "open_clip":
        (check_architecture if path else check_open_clip)(model)
    return kind, model, path


def load_surrogate(
    name: str,
    *,
    prompts: Sequence[str],
    device: str | torch.device = "cpu",
    clip: CLIPAdapter | None = None,
) -> Surrogate:
    """Load a surrogate by name, frozen and in eval mode.

    Args:
        name: see the module.
        prompts: the hand-made prompt of each class of the data set.
        clip: the run's own backbone, which ``clip`` names.

    Raises:
        UserError: the name is unknown, or its weights are missing, damaged, foreign or refused.
    """
    kind, model, path = check_surrogate(name)
    with torch.inference_mode(False):
        if kind in ("torchvision", "timm"):
            load = _load_torchvision if kind == "torchvision" else _load_timm
            return load(name, model, path, len(prompts), device)
        if kind == "open_clip":
            clip = load_clip(f"file:{path}?arch={model}" if path else name, device=device)
        if clip is None:
            raise ValueError("surrogate 'clip' needs the run's backbone")
        return _zero_shot(name, clip, list(prompts))


def _zero_shot(name: str, clip: CLIPAdapter, prompts: list[str]) -> Surrogate:
    with torch.no_grad():
        texts = text_features(clip, prompts)  # (K, D), unit length

    def logits(pixels: Tensor) -> Tensor:
        features = F.normalize(clip.encode_image(pixels), dim=-1)  # (B, D)
        return clip.logit_scale * features @ texts.t()

    digest = hashlib.sha256("\n".join([clip.sha256, *prompts]).encode()).hexdigest()
    return Surrogate(name, logits, clip.resolution, "bicubic", len(prompts), True, digest)


# --- torchvision and timm ------------------------------------------------------------------------


def _library(kind: str):
    try:
        return importlib.import_module(kind)
    except Exception as error:  # a broken installation raises more than ImportError
        raise UserError(
            f"a surrogate '{kind}:NAME' needs the package {kind}, which cannot be imported "
            f"({error}); pip install {kind}"
        ) from error


def _torchvision_weights(model: str):
    """Return the network's name and the weights that ``NAME[/WEIGHTS]`` means.

    Without WEIGHTS these are the first that torchvision lists, for most networks IMAGENET1K_V1:
    those that both authors' code loads.
    """
    models = _library("torchvision").models
    name, _, tag = model.partition("/")
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"torchvision has no classifier '{name}'.{nearest(name, known)}")
    weights = models.get_model_weights(name).__members__
    if tag and tag not in weights:
        raise UserError(f"torchvision has no weights '{tag}' of {name}.{nearest(tag, weights)}")
    return name, weights[tag] if tag else next(iter(weights.values()))


def _load_torchvision(name: str, model: str, path: str, classes: int, device) -> Surrogate:
    network, weights = _torchvision_weights(model)
    options = (
        {"transform_input": True, "init_weights": False} if network in OWN_NORMALISATION else {}
    )

    def build(classes: int) -> nn.Module:
        models = _library("torchvision").models
        return models.get_model(network, weights=None, num_classes=classes, **options)

    if path:
        state = read_state(path, FILE)
    else:
        state = _fetched(
            name,
            lambda: weights.get_state_dict(
                map_location="cpu", progress=True, check_hash=True, weights_only=True
            ),
        )
    state = {OLDER.sub(r"\1\2", key): value for key, value in state.items()}
    shown = weights.transforms()
    return _classifier(
        name,
        build,
        IMAGENET_CLASSES,
        state,
        path,
        classes,
        device,
        size=shown.crop_size[0],
        interpolation=shown.interpolation.value,
        mean=shown.mean,
        std=shown.std,
    )


def _check_timm(model: str) -> None:
    timm = _library("timm")
    if not timm.is_model(model):
        known = timm.list_models()
        raise UserError(f"timm has no model '{model}'.{nearest(model, known)}")
    default = inspect.signature(timm.models.load_checkpoint).parameters.get("weights_only")
    if default is None or default.default is not True:
        raise UserError("this timm would execute code in checkpoints; pip install -U timm")


def _load_timm(name: str, model: str, path: str, classes: int, device) -> Surrogate:
    timm = _library("timm")

    def build(classes: int | None = None) -> nn.Module:
        return timm.create_model(model, pretrained=False, num_classes=classes)

    with torch.random.fork_rng(devices=[]):  # initial values are drawn and thrown away
        if path:
            state = read_state(path, FILE)
            plain = build()
        else:
            plain = _fetched(name, lambda: timm.create_model(model, pretrained=True))
            state = plain.state_dict()
    shown = timm.data.resolve_model_data_config(plain)
    known = shown["interpolation"] in ("bilinear", "bicubic")
    return _classifier(
        name,
        build,
        plain.num_classes,
        state,
        path,
        classes,
        device,
        size=shown["input_size"][-1],
        mean=shown["mean"],
        std=shown["std"],
        interpolation=shown["interpolation"] if known else "bicubic",
    )


def _fetched(name: str, get: Callable):
    """Return what ``get`` finds in the library's cache or over the network."""
    try:
        return get()
    except Exception as error:  # three libraries below, each with errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the weights of surrogate '{name}' can be neither found nor fetched ({reason}); fetch "
            f"them where there is a network, or name a local checkpoint as {name}{FILE}PATH"
        ) from error


def _classifier(
    name: str,
    build: Callable[[int], nn.Module],
    usual: int,
    state: dict[str, Tensor],
    path: str,
    classes: int,
    device,
    *,
    size: int,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Surrogate:
    """Wrap the network that ``build(K)`` makes, filled with ``state``, which says what K is."""
    with torch.random.fork_rng(devices=[]):
        model = build(usual)
        found = next(
            (
                len(state[key])
                for key, value in model.state_dict().items()
                if key in state
                and value.ndim
                and len(value) == usual != len(state[key])
                and value.shape[1:] == state[key].shape[1:]
            ),
            usual,
        )
        model = model if found == usual else build(found)
    if not found:
        raise UserError(f"surrogate '{name}' gives features, no classes; name a classifier")
    own = model.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    for keys, what in (
        ([k for k in own if k not in state and k not in counters], "lacks tensor"),
        ([k for k in state if k not in own], "has the unknown tensor"),
        ([k for k in own if k in state and own[k].shape != state[k].shape], "has another shape of"),
    ):
        if keys:
            raise UserError(
                f"the weights of surrogate '{name}' are of another network: the file {what} "
                f"'{keys[0]}'; name the network that they belong to"
            )
    model.load_state_dict(state, strict=False)
    model = model.requires_grad_(False).float().eval().to(device)
    mean, std = (torch.tensor(value, device=device).view(1, 3, 1, 1) for value in (mean, std))

    def logits(pixels: Tensor) -> Tensor:
        return model((pixels - mean) / std)

    return Surrogate(
        name,
        logits,
        size,
        interpolation,
        found,
        of_dataset=bool(path) and found == classes,
        sha256=tensors_digest({k: v for k, v in model.state_dict().items() if k not in counters}),
    )
