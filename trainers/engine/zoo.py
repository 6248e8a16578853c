"""Trained models for people who only want the robust classifier.

    model = advprompt.load("zoo/naptuning_eurosat")
    model.logits(images)  # tensors in [0, 1] or PIL images
    model.predict(images), model.classnames, model.card

Neither data set nor Dassl's trainer is built; see ``docs/zoo.md``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor, nn

from ..backbone import CLIPAdapter, load_clip
from ..backbone.loading import CACHE
from ..config.keys import ALSO_CALLED
from ..prompting import PromptedCLIP
from ..utils.errors import UserError
from ..utils.images import Preprocess
from . import released
from .checkpoints import load_checkpoint, weights_file
from .exports import Export, portable, read_export, serve
from .saving import UNKNOWN

SLACK = 1e-4  # of the range [0, 1], as everywhere in this project


class RobustClassifier(nn.Module):
    """A trained model: images in, one logit per class out, differentiable in the pixels.

    Attributes:
        classnames: the K classes, in the order of the logits.
        card: the card of the export (``card.json``).
        texts: (K, D) unit-length text features, computed once.
        resolution: height and width of the images.
    """

    texts: Tensor
    clip: CLIPAdapter

    def __init__(self, model: PromptedCLIP, card: dict, preprocess: Preprocess):
        super().__init__()
        self.model, self.clip = model, cast(CLIPAdapter, model.clip)  # moves with .to(device)
        self.classnames, self.card, self.preprocess = list(model.classnames), card, preprocess
        self.resolution = self.clip.resolution
        with torch.no_grad():
            self.register_buffer("texts", model.text_features(), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> RobustClassifier:
        """Stay in evaluation mode: nothing here learns."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return self.texts.device

    def pixels(self, images) -> Tensor:
        """Return images as a model's input (B, 3, H, W) in [0, 1] on the device.

        Args:
            images: such a tensor; or a PIL image or several of any size, which are resized and
                cropped as in the tests.

        Raises:
            UserError: another type, size or range.
        """
        if isinstance(images, Tensor):
            return self._checked(images)
        images = [images] if isinstance(images, Image.Image) else images
        listed = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
        if not listed or not all(isinstance(image, Image.Image) for image in images):
            found = type(images[0] if listed else images).__name__
            raise UserError(
                f"images are of type {found}, expected a tensor (B, 3, H, W) in [0, 1], a PIL "
                "image or a list of PIL images; open files with PIL.Image.open"
            )
        if not images:
            raise UserError("the list of images is empty; give at least one")
        try:
            tensors = [self.preprocess(image.convert("RGB")) for image in images]
        except (OSError, SyntaxError, ValueError) as error:  # PIL decodes only here
            raise UserError(f"an image cannot be decoded ({error}); fetch it again") from error
        return torch.stack(tensors).to(self.device)  # (B, 3, H, W)

    def _checked(self, images: Tensor) -> Tensor:
        size = self.resolution
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise UserError(
                f"images are a tensor of shape {tuple(images.shape)}, expected "
                f"(B, 3, {size}, {size}); give PIL images to have them resized"
            )
        if not images.is_floating_point():
            raise UserError(
                f"images are {images.dtype}, expected floating point in [0, 1]; divide by 255"
            )
        images = images.to(self.device, torch.float32)
        if images.numel():
            low, high = images.detach().aminmax()
            if not (low >= -SLACK and high <= 1 + SLACK):  # also refuses NaN
                raise UserError(
                    f"pixels range over [{low:.3g}, {high:.3g}] but must lie in [0, 1]; CLIP's "
                    "mean and std are applied inside"
                )
        return images

    def logits(self, images) -> Tensor:
        """Return logits (B, K): logit scale times cosine of image and class.

        Args:
            images: see :meth:`pixels`.
        """
        return self.model.logits(self.pixels(images), self.texts)

    forward = logits

    @torch.no_grad()
    def predict(self, images) -> list[str]:
        """Return the name of the likeliest class of every image."""
        return [self.classnames[i] for i in self.logits(images).argmax(1).tolist()]


def load(
    path,
    *,
    device: str | torch.device = "cpu",
    classnames: Sequence[str] | None = None,
    weights_dir=None,
    backbone: str | None = None,
    trainer: str | None = None,
) -> RobustClassifier:
    """Load an export of ``advprompt export``, or a checkpoint of public code, as a classifier.

    Args:
        path: its folder, or its safetensors file; with ``trainer`` the folder of a run of public
            code, or its checkpoint.
        device: where the model lives.
        classnames: other classes than those of the training; contexts that are class-specific
            serve their own only.
        weights_dir: folder of CLIP's weights, default ``~/.cache/clip``.
        backbone: another name for the same weights, such as ``file:PATH``.
        trainer: of public code, such as ``MaPLe``; ``classnames`` and ``backbone`` are then needed.

    Raises:
        UserError: the export or the backbone is missing, damaged or altered, or they do not fit.
    """
    if trainer is not None:
        with torch.inference_mode(False):
            return _load_released(path, trainer, classnames, backbone, weights_dir, device)
    export = read_export(path)
    names = _names(export, classnames)
    with torch.inference_mode(False):  # such tensors would refuse gradients later
        clip = _backbone(export, backbone, weights_dir).to(device)
        model = serve(clip, names, export.spec, export.tensors, export.file)
        return RobustClassifier(model, export.card, _preprocess(export.card))


def _load_released(path, trainer: str, classnames, backbone, weights_dir, device):
    """Load a checkpoint of public code; the class name stands at the end."""
    if isinstance(classnames, str) or not classnames or not backbone:
        raise UserError(f"'{path}' names neither; give classnames=[...] and backbone='ViT-B/16'")
    file, names, trainer = weights_file(path), list(classnames), ALSO_CALLED.get(trainer, trainer)
    if not (theirs := (state := load_checkpoint(file))["released"]):
        raise UserError(f"'{file}' is not a checkpoint of public code; leave trainer out")
    clip = load_clip(backbone, weights_dir=weights_dir).to(device)
    released.check_model(theirs, theirs.spec, trainer, clip, file)
    spec = replace(theirs.spec, text_init=released.words_after(theirs, clip))
    released.check_text(theirs, spec, clip, names, file)
    card = {"method": {"trainer": trainer}, "data": {"classes": names, "trained_on": "unknown"}}
    card["backbone"] = {"name": portable(clip.name), "weights_sha256": clip.sha256}
    card["input"] = {"size": [clip.resolution] * 2, "interpolation": "bicubic"}
    card["training"] = UNKNOWN | {"epoch": theirs.epoch}
    model = serve(clip, names, spec, state["state_dict"], file)
    return RobustClassifier(model, card, _preprocess(card))


def _names(export: Export, classnames) -> list[str]:
    trained = export.card["data"]["classes"]
    if classnames is None:
        return trained
    given = [] if isinstance(classnames, str) else list(classnames)
    if not given or not all(isinstance(name, str) and name.strip() for name in given):
        raise UserError(
            f"classnames is {classnames!r}, expected a list of names such as {trained[:2]}"
        )
    if export.spec.csc and given != trained:
        raise UserError(
            f"the contexts in '{export.file}' are class-specific and serve their own "
            f"{len(trained)} classes only ({', '.join(trained[:3])}, ...); leave classnames out"
        )
    return given


def _backbone(export: Export, name: str | None, weights_dir) -> CLIPAdapter:
    theirs = export.card["backbone"]
    if name is None:
        name = theirs["name"]
        if "file:" in name:
            folder = Path(weights_dir or CACHE).expanduser()
            file = folder / name.partition("file:")[2].partition("?")[0]
            if not file.is_file():
                raise UserError(
                    f"'{export.file}' was made for the backbone '{name}', a file that is not at "
                    f"'{file}'; say where it is with backbone='file:PATH'"
                )
            name = name.replace("file:", f"file:{folder}/")
    clip = load_clip(name, weights_dir=weights_dir)
    if clip.sha256 != theirs["weights_sha256"]:
        raise UserError(
            f"'{export.file}' was made for backbone {theirs['name']} with weights "
            f"{theirs['weights_sha256'][:12]}..., but {name} has {clip.sha256[:12]}...; give the "
            "weights it was trained with"
        )
    size = export.card["input"]["size"]
    if size != [clip.resolution, clip.resolution]:
        raise UserError(
            f"'{export.file}' was made for images of {size[0]}x{size[1]} pixels, but {name} "
            f"takes {clip.resolution}x{clip.resolution}; fetch it or export it again"
        )
    return clip


def _preprocess(card: dict) -> Preprocess:
    """Return the transform that the tests of a card's model use."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    cfg.INPUT.SIZE = tuple(card["input"]["size"])
    cfg.INPUT.INTERPOLATION = card["input"]["interpolation"]
    cfg.INPUT.TRANSFORMS = ()
    with contextlib.redirect_stdout(io.StringIO()):  # Dassl prints the steps
        return Preprocess(cfg)
