"""Trained models for people who only want the robust classifier.

    model = advprompt.load("zoo/naptuning_eurosat")  # or a run folder
    model.logits(images)  # tensors in [0, 1], PIL images, arrays or paths
    model.predict(images), model.classnames, model.card

Neither data set nor Dassl's trainer is built; see ``docs/zoo.md``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..backbone import CLIPAdapter, cosine_logits, load_clip
from ..backbone.loading import CACHE
from ..config.keys import ALSO_CALLED
from ..evaluation.victim import Victim
from ..prompting import PromptedCLIP, templates
from ..utils.errors import UserError
from ..utils.images import clip_preprocess, read_rgb
from ..utils.io import tensors_digest
from . import released
from .checkpoints import load_checkpoint, weights_file
from .exports import TOWER, Export, portable, read_export, serve
from .learned import learned_by
from .run_folder import CONFIG_FILE
from .saving import UNKNOWN

SLACK = 1e-4  # of the range [0, 1], as everywhere in this project


class RobustClassifier(nn.Module):
    """A trained model: images in, one logit per class out, differentiable in the pixels.

    Attributes:
        classnames: the K classes, in the order of the logits.
        card: the card of the export (``card.json``), or what it would say of a run.
        texts: (K, D) unit-length text features, computed once.
        resolution: height and width of the images.
        frozen: CLIP as it was before training.
        learned: what was trained, by name.
    """

    texts: Tensor
    clip: CLIPAdapter

    def __init__(
        self,
        model: PromptedCLIP,
        card: dict,
        *,
        frozen: CLIPAdapter | None = None,
        learned: dict[str, Tensor] | None = None,
    ):
        super().__init__()
        self.model, self.clip = model, cast(CLIPAdapter, model.clip)  # moves with .to(device)
        self.classnames, self.card = list(model.classnames), card
        own = card["input"]
        self.preprocess = clip_preprocess(own["size"], own["interpolation"])
        self.frozen, self.learned = frozen or self.clip, learned or {}
        self.resolution = self.clip.resolution
        with torch.no_grad():
            self.register_buffer("texts", model.text_features(), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> "RobustClassifier":
        """Stay in evaluation mode: nothing here learns."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return self.texts.device

    def pixels(self, images) -> Tensor:
        """Return images as a model's input (B, 3, H, W) in [0, 1] on the device.

        Taken are such a tensor; or one or several of any size, which are resized and cropped as in
        the tests: PIL images, paths, or arrays (H, W, 3) of uint8. UserError: another type, size or
        range.
        """
        if isinstance(images, Tensor):
            return self._checked(images)
        alone = isinstance(images, (Image.Image, str, Path)) or getattr(images, "ndim", 0) == 3
        images = [images] if alone else images
        listed = isinstance(images, (Sequence, np.ndarray))
        kinds = (Image.Image, str, Path, np.ndarray)
        if not listed or not all(isinstance(image, kinds) for image in images):
            found = type(images[0] if listed else images).__name__
            raise UserError(
                f"images are of type {found}, expected a tensor (B, 3, H, W) in [0, 1], or PIL "
                "images, paths or arrays (H, W, 3) of uint8, one or a list of them"
            )
        if not len(images):
            raise UserError("the list of images is empty; give at least one")
        try:
            tensors = [self.preprocess(_picture(image)) for image in images]
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
        """Return logits (B, K), logit scale times cosine, of images that :meth:`pixels` takes."""
        return self.model.logits(self.pixels(images), self.texts)

    forward = logits

    @torch.no_grad()
    def predict(self, images) -> list[str]:
        """Return the name of the likeliest class of every image."""
        return [self.classnames[i] for i in self.logits(images).argmax(1).tolist()]


def _picture(image) -> Image.Image:
    """Return a PIL image, a path's image or an array (H, W, 3) of uint8 as RGB."""
    if isinstance(image, (str, Path)):
        return read_rgb(str(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"an image is an array of {image.dtype} of shape {image.shape}, expected "
                "(H, W, 3) of uint8; give a tensor (B, 3, H, W) for values in [0, 1]"
            )
        image = Image.fromarray(image)
    return image.convert("RGB")


class ClassifierVictim(Victim):
    """A loaded model under test; attacks on the frozen CLIP find it, and banks are shared."""

    def __init__(self, model: RobustClassifier):
        self.model, card = model, model.card
        self.name, self.classnames = card["method"]["trainer"], list(model.classnames)
        self.device, self.prompted, self.clip = model.device, model.model, model.frozen
        self.template = card["data"]["template"]
        self.sentences = templates.fill(self.template, self.classnames)
        self.frozen_image_tower = model.frozen is model.clip and not model.model.spec.acts_on_images

    def features(self, pixels):
        return self.model.model.image_features(pixels)

    def score(self, features):
        return cosine_logits(features, self.model.texts, self.model.clip.logit_scale)

    def digest(self):
        tensors = {"texts": self.model.texts, **self.model.learned}
        return hashlib.sha256(f"{self.clip.sha256} {tensors_digest(tensors)}".encode()).hexdigest()

    def facts(self) -> dict:
        """Return what a record says of the model."""
        method, training, data = (self.model.card[key] for key in ("method", "training", "data"))
        shots, source = training["shots"], data["trained_on"]
        return {
            "trainer": method["trainer"],
            "paper": method["paper"],
            "source": None if not shots or source == "unknown" else source,
            "protocol": "zero_shot" if shots == 0 else "few_shot",
            "shots": shots,
            "epochs": training["epochs"],
            "train_threat": training["threat"],
            "seed": training["seed"],
            "backbone": self.model.card["backbone"]["name"],
            "weights_sha256": self.model.frozen.sha256,
            "prompt_parameters": self.model.card["prompts"]["values"],
        }


def load(
    path,
    *,
    device: str | torch.device = "cpu",
    classnames: Sequence[str] | None = None,
    weights_dir=None,
    backbone: str | None = None,
    trainer: str | None = None,
) -> RobustClassifier:
    """Load what a run learned as a classifier.

    Args:
        path: an export of ``advprompt export``, its folder or its safetensors file; or a run
            folder, or a checkpoint in it; with ``trainer`` the folder of a run of public code, or
            its checkpoint.
        device: where the model lives.
        classnames: other classes than those of the training; contexts that are class-specific
            serve their own only.
        weights_dir: folder of CLIP's weights, default ``~/.cache/clip``.
        backbone: another name for the same weights, such as ``file:PATH``.
        trainer: of public code, such as ``MaPLe``; ``classnames`` and ``backbone`` are then needed.

    UserError: export, run or backbone are missing, damaged or altered, or do not fit.
    """
    if trainer is not None:
        with torch.inference_mode(False):
            return _load_released(path, trainer, classnames, backbone, weights_dir, device)
    with torch.inference_mode(False):  # such tensors would refuse gradients later
        run, epoch = _run_of(Path(path).expanduser())
        if run:
            own = {"backbone": backbone, "weights_dir": weights_dir}
            learned = learned_by(run, epoch=epoch, unfinished=True, **own)
            export = Export(run, learned.tensors, learned.card(), learned.spec)
            name = backbone or learned.cfg.MODEL.BACKBONE.NAME
        else:
            export, name = read_export(path), backbone
        names = _names(export, classnames)
        clip = frozen = _backbone(export, name, weights_dir).to(device)
        if any(key.startswith(TOWER) for key in export.tensors):
            clip = _backbone(export, name, weights_dir).to(device)
        model = serve(clip, names, export.spec, export.tensors, export.file)
        return RobustClassifier(model, export.card, frozen=frozen, learned=export.tensors)


def _run_of(path: Path) -> tuple[Path | None, int | None]:
    """Return the run folder that a path names, and the epoch where it names a checkpoint."""
    if path.is_file() and (path.parents[1] / CONFIG_FILE).is_file():
        number = path.name.rpartition("-")[2]
        return path.parents[1], int(number) if number.isdecimal() else None
    return (path if (path / CONFIG_FILE).is_file() else None), None


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
    data = {"classes": names, "trained_on": "unknown", "template": f"{released.WORDS} {{}}."}
    card = {"method": {"trainer": trainer, "paper": None}, "data": data}
    card["backbone"] = {"name": portable(clip.name), "weights_sha256": clip.sha256}
    card["input"] = {"size": [clip.resolution] * 2, "interpolation": "bicubic"}
    card["training"] = UNKNOWN | {"threat": None, "epoch": theirs.epoch}
    card["prompts"] = {"values": sum(v.numel() for v in state["state_dict"].values())}
    model, tensors = serve(clip, names, spec, state["state_dict"], file), state["state_dict"]
    return RobustClassifier(model, card, frozen=clip, learned=tensors)


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
