"""``cfg.INPUT`` -> the transform from a PIL image to a tensor (3, H, W) in [0, 1].

The steps have the random draws and pixels of torchvision, whose import would take as long as
everything else.
"""

import math
import random

import numpy as np
import torch
from PIL import Image

from ...utils.tools import check_choice

AVAI_CHOICES = "random_translation random_resized_crop random_flip normalize center_crop".split()

INTERPOLATION_MODES = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


class Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, img):
        for step in self.transforms:
            img = step(img)
        return img


class Resize:
    """Resize to (height, width), or the smaller edge to a number of pixels."""

    def __init__(self, size, interpolation=Image.Resampling.BILINEAR):
        self.size, self.interpolation = size, interpolation

    def __call__(self, img):
        width, height = img.size
        if not isinstance(self.size, int):
            new = (self.size[1], self.size[0])
        elif width <= height:
            new = (self.size, int(self.size * height / width))
        else:
            new = (int(self.size * width / height), self.size)
        return img if new == img.size else img.resize(new, self.interpolation)


class CenterCrop:
    """Cut (height, width) out of the middle of an image that is at least as large."""

    def __init__(self, size):
        self.size = size

    def __call__(self, img):
        height, width = self.size
        left, top = round((img.width - width) / 2.0), round((img.height - height) / 2.0)
        return img.crop((left, top, left + width, top + height))


class RandomResizedCrop:
    """Cut out a random part of the area, ``scale``, and aspect, 3:4 to 4:3; resize it."""

    def __init__(self, size, scale, interpolation):
        self.size, self.scale, self.interpolation = size, scale, interpolation

    def _box(self, width, height):
        log_ratio = torch.log(torch.tensor((3.0 / 4.0, 4.0 / 3.0)))
        for _ in range(10):
            area = width * height * torch.empty(1).uniform_(*self.scale).item()
            aspect = torch.exp(torch.empty(1).uniform_(log_ratio[0], log_ratio[1])).item()
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = torch.randint(0, height - h + 1, size=(1,)).item()
                left = torch.randint(0, width - w + 1, size=(1,)).item()
                return left, top, left + w, top + h
        w, h = width, height  # no luck: the middle, as much as the aspect allows
        if width / height < 3.0 / 4.0:
            h = round(w / (3.0 / 4.0))
        elif width / height > 4.0 / 3.0:
            w = round(h * (4.0 / 3.0))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def __call__(self, img):
        return Resize(self.size, self.interpolation)(img.crop(self._box(*img.size)))


class RandomHorizontalFlip:
    """Mirror every other image on average."""

    def __call__(self, img):
        return img.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1) < 0.5 else img


class Random2DTranslation:
    """With probability ``p`` resize to 1.125 times the size and crop at random; else resize."""

    def __init__(self, height, width, p=0.5, interpolation=Image.Resampling.BILINEAR):
        self.height, self.width, self.p, self.interpolation = height, width, p, interpolation

    def __call__(self, img):
        if random.uniform(0, 1) > self.p:
            return Resize((self.height, self.width), self.interpolation)(img)
        height, width = round(self.height * 1.125), round(self.width * 1.125)
        img = Resize((height, width), self.interpolation)(img)
        left = round(random.uniform(0, width - self.width))
        top = round(random.uniform(0, height - self.height))
        return img.crop((left, top, left + self.width, top + self.height))


class ToTensor:
    """PIL image (RGB) -> float32 tensor (3, H, W) in [0, 1]."""

    def __call__(self, img):
        pixels = torch.from_numpy(np.array(img, dtype=np.uint8))  # (H, W, 3)
        return pixels.permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    """Subtract the mean of each channel and divide by its standard deviation."""

    def __init__(self, mean, std):
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def __call__(self, img):
        return (img - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)


def build_transform(cfg, is_train=True, choices=None):
    """Return the training or test transform and print its steps; None with INPUT.NO_TRANSFORM.

    ``choices`` are names that replace ``cfg.INPUT.TRANSFORMS``.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        check_choice("transform", choice, AVAI_CHOICES)
    check_choice("INPUT.INTERPOLATION", cfg.INPUT.INTERPOLATION, INTERPOLATION_MODES)
    size, mode = cfg.INPUT.SIZE, INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
    steps = []
    if not is_train:
        steps.append((f"resize the smaller edge to {max(size)}", Resize(max(size), mode)))
        steps.append((f"{size[0]}x{size[1]} center crop", CenterCrop(size)))
    elif "random_resized_crop" not in choices:
        steps.append((f"resize to {size[0]}x{size[1]}", Resize(size, mode)))
    if is_train and "random_translation" in choices:
        steps.append(("random translation", Random2DTranslation(*size)))
    if is_train and "random_resized_crop" in choices:
        scale = cfg.INPUT.RRCROP_SCALE
        text = f"random resized crop (size={size}, scale={scale})"
        steps.append((text, RandomResizedCrop(size, scale, mode)))
    if is_train and "random_flip" in choices:
        steps.append(("random flip", RandomHorizontalFlip()))
    steps.append(("to torch tensor of range [0, 1]", ToTensor()))
    if "normalize" in choices:
        mean, std = cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD
        steps.append((f"normalization (mean={mean}, std={std})", Normalize(mean, std)))
    print(f"Building transform_{'train' if is_train else 'test'}")
    for text, _ in steps:
        print(f"+ {text}")
    return Compose([step for _, step in steps])
