"""Image-text models of any library as classifiers: open_clip, OpenAI's ``clip``, transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backbone import CLIPAdapter
from ..backbone.adapter import CLIP_MEAN, CLIP_STD
from ..backbone.tiny import VOCABULARY
from ..backbone.tokens import from_open_clip
from ..prompting import templates
from ..utils.errors import UserError

TEXTS = 256  # encoded at a time


class ZeroShot(nn.Module):
    """Pixels (B, 3, H, W) in [0, 1] -> logits (B, K); the text features are computed once.

    Attributes:
        classnames: the K classes, in the order of the logits.
        texts: (K, D) unit-length text features.
        resolution: height and width of the images.
    """

    texts: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, classnames: list[str], texts: Tensor, mean, std):
        super().__init__()
        self.model, self.classnames = model, classnames
        self.register_buffer("texts", texts)
        for name, values in (("mean", mean), ("std", std)):
            value = torch.tensor(values, device=texts.device).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.resolution = _resolution(model)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return raw features (B, D)."""
        model, x = self.model, (pixels - self.mean) / self.std
        if hasattr(model, "encode_image"):
            return model.encode_image(x)
        return _tensor(model.get_image_features(pixel_values=x))

    def score(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, D)."""
        scale, bias = self.model.logit_scale.exp(), getattr(self.model, "logit_bias", None)
        logits = scale * nn.functional.normalize(features, dim=-1) @ self.texts.T
        return logits if bias is None else logits + bias  # of SigLIP

    def forward(self, pixels: Tensor) -> Tensor:
        return self.score(self.image_features(pixels))


def zero_shot(
    model: nn.Module | CLIPAdapter,
    classnames: Sequence[str] | str,
    template: str = "a photo of a {}.",
    tokenizer: Callable | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ZeroShot:
    """Return an image-text model as a classifier, for ``advprompt.evaluate`` or for training.

    Args:
        model: of open_clip or OpenAI's ``clip`` (``encode_image``, ``encode_text``), of
            transformers (``CLIPModel``, ``SiglipModel``), or what ``backbone.load_clip`` returns.
            It is used as it is, not copied; the texts are those of its weights now.
        classnames: K names, or one text with commas between them.
        template: the prompt, with ``{}`` for the class name.
        tokenizer: of the model, or transformers' processor; default: CLIP's where the model
            has its vocabulary, and of transformers that in the folder it was loaded from.
        mean, std: of the pixels it expects; default: what the model says, else CLIP's (SigLIP of
            transformers: 0.5).

    UserError: another kind of model, wrong names or template, or no tokenizer.
    """
    split = classnames.split(",") if isinstance(classnames, str) else classnames
    names = [name.strip() if isinstance(name, str) else "" for name in split]
    if not names or not all(names):
        raise UserError(f"classnames is {classnames!r:.80}, expected names such as 'cat, dog'")
    if "{}" not in template:
        raise UserError(f"the template '{template}' has no {{}}, which the class name replaces")
    if same := templates.same_text(template, names):
        raise UserError(f"classes {' and '.join(map(repr, same[0]))} have one text, '{same[1]}'")
    if isinstance(model, CLIPAdapter):
        tokenizer = tokenizer or model.tokenizer
        mean, std = mean or model.mean.flatten().tolist(), std or model.std.flatten().tolist()
        model = model.model
    parts = ("encode_image", "encode_text"), ("get_image_features", "get_text_features")
    if not any(all(hasattr(model, name) for name in pair) for pair in parts):
        raise UserError(
            f"{type(model).__name__} is no image-text model (it has neither encode_image and "
            "encode_text nor get_image_features and get_text_features); give advprompt.evaluate a "
            "function from pixels to logits"
        )
    tokenizer = tokenizer or _tokenizer_of(model)
    own_mean, own_std = _statistics(model, tokenizer)
    texts, training = templates.fill(template, names), model.training
    with torch.no_grad():
        model.eval()
        rows = [
            _encode(model, tokenizer, texts[i : i + TEXTS]) for i in range(0, len(texts), TEXTS)
        ]
        model.train(training)
    return ZeroShot(model, names, torch.cat(rows), mean or own_mean, std or own_std)


def _encode(model, tokenizer, texts: list[str]) -> Tensor:
    """Return unit-length features (K, D) of texts."""
    device = next(model.parameters()).device
    if hasattr(model, "encode_text"):
        features = model.encode_text(tokenizer(texts).to(device))
    else:
        # SigLIP was trained on texts padded to its whole context, without a mask
        siglip, length = _is_siglip(model), model.config.text_config.max_position_embeddings
        padding, known = "max_length" if siglip else True, ["input_ids", "attention_mask"]
        rows = tokenizer(
            text=texts, padding=padding, truncation=True, max_length=length, return_tensors="pt"
        )
        given = {k: v.to(device) for k, v in rows.items() if k in known[: 1 if siglip else 2]}
        features = _tensor(model.get_text_features(**given))
    return nn.functional.normalize(features, dim=-1)


def _tokenizer_of(model) -> Callable:
    """Return CLIP's tokenizer, or that in the folder of a transformers model."""
    if hasattr(model, "encode_text"):
        vocabulary = getattr(getattr(model, "text", model), "token_embedding", None)
        if getattr(vocabulary, "num_embeddings", 0) == VOCABULARY:
            length = getattr(model, "context_length", None) or model.text.context_length
            return lambda texts: from_open_clip()(texts, length)
        advice = "tokenizer=open_clip.get_tokenizer('ARCH')"
    else:
        folder = getattr(model, "name_or_path", "") or ""
        if folder and Path(folder).is_dir():
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
        advice = "tokenizer=AutoProcessor.from_pretrained('NAME')"
    raise UserError(f"the tokenizer of {type(model).__name__} is not known; give {advice}")


def _statistics(model, tokenizer) -> tuple:
    """Return mean and std of the pixels that a model expects."""
    images = getattr(tokenizer, "image_processor", None)  # transformers' processor
    if images is not None:
        return images.image_mean, images.image_std
    visual = getattr(model, "visual", None)
    config = getattr(visual, "preprocess_cfg", None) or {}  # of open_clip
    mean = config.get("mean") or getattr(visual, "image_mean", None)
    std = config.get("std") or getattr(visual, "image_std", None)
    if mean and std:
        return mean, std
    return ((0.5,) * 3, (0.5,) * 3) if _is_siglip(model) else (CLIP_MEAN, CLIP_STD)


def _resolution(model) -> int:
    if hasattr(model, "config") and hasattr(model.config, "vision_config"):
        return int(model.config.vision_config.image_size)
    visual = getattr(model, "visual", None)
    size = getattr(visual, "image_size", None) or getattr(visual, "input_resolution", 224)
    return int(size[0] if isinstance(size, (tuple, list)) else size)


def _is_siglip(model) -> bool:
    return "siglip" in getattr(getattr(model, "config", None), "model_type", "")


def _tensor(output) -> Tensor:
    """Return features (B, D), which newer transformers wrap."""
    return output if isinstance(output, Tensor) else output.pooler_output
