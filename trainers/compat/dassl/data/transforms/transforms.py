"""``cfg.INPUT`` -> the transform from a PIL image to a tensor (3, H, W) in [0, 1]."""

import random

import numpy as np
import torch
import torchvision.transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from ...utils.tools import nearest

# In the order in which they are applied.
AVAI_CHOICES = [
    "random_translation",
    "random_crop",
    "random_resized_crop",
    "random_flip",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
    "cutout",
    "normalize",
    "gaussian_noise",
    "instance_norm",
    "center_crop",  # always part of the test transform; accepted in configs
]
ONLY_IN_DASSL = [
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment",
    "randaugment_fixmatch",
    "randaugment2",
]

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}


class Random2DTranslation:
    """With probability ``p`` resize to 1.125 times the size and crop at random; else resize."""

    def __init__(self, height, width, p=0.5, interpolation=InterpolationMode.BILINEAR):
        self.height = height
        self.width = width
        self.p = p
        self.interpolation = interpolation

    def __call__(self, img):
        if random.uniform(0, 1) > self.p:
            return F.resize(img, [self.height, self.width], self.interpolation)
        height, width = round(self.height * 1.125), round(self.width * 1.125)
        img = F.resize(img, [height, width], self.interpolation)
        left = round(random.uniform(0, width - self.width))
        top = round(random.uniform(0, height - self.height))
        return F.crop(img, top, left, self.height, self.width)


class InstanceNormalization:
    """Give each channel of a tensor (C, H, W) mean 0 and standard deviation 1."""

    def __init__(self, eps=1e-8):
        self.eps = eps

    def __call__(self, img):
        std, mean = torch.std_mean(img, dim=(1, 2), keepdim=True)  # (C, 1, 1)
        return (img - mean) / (std + self.eps)


class Cutout:
    """Set ``n_holes`` random squares of ``length`` pixels to 0; they may reach over the edge."""

    def __init__(self, n_holes=1, length=16):
        self.n_holes = n_holes
        self.length = length

    def __call__(self, img):
        img = img.clone()  # (C, H, W)
        half = self.length // 2
        for _ in range(self.n_holes):
            y, x = np.random.randint(img.size(1)), np.random.randint(img.size(2))
            img[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
        return img


class GaussianNoise:
    """With probability ``p`` add noise of the given mean and standard deviation to a tensor."""

    def __init__(self, mean=0, std=0.15, p=0.5):
        self.mean = mean
        self.std = std
        self.p = p

    def __call__(self, img):
        if random.uniform(0, 1) > self.p:
            return img
        return img + torch.randn(img.size()) * self.std + self.mean


def build_transform(cfg, is_train=True, choices=None):
    """Build the training or test transform and print its steps.

    Args:
        choices: names that replace ``cfg.INPUT.TRANSFORMS``.

    Returns:
        the transform, or None with ``cfg.INPUT.NO_TRANSFORM``.

    Raises:
        ValueError: a name or the interpolation is unknown.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        if choice in ONLY_IN_DASSL:
            raise ValueError(f"transform '{choice}' needs Dassl itself, which is not installed")
        if choice not in AVAI_CHOICES:
            raise ValueError(f"transform '{choice}' is unknown.{nearest(choice, AVAI_CHOICES)}")
    if cfg.INPUT.INTERPOLATION not in INTERPOLATION_MODES:
        raise ValueError(
            f"INPUT.INTERPOLATION '{cfg.INPUT.INTERPOLATION}' is unknown."
            f"{nearest(cfg.INPUT.INTERPOLATION, INTERPOLATION_MODES)}"
        )
    print(f"Building transform_{'train' if is_train else 'test'}")
    steps = _image_steps_train(cfg.INPUT, choices) if is_train else _image_steps_test(cfg.INPUT)
    steps.append(("to torch tensor of range [0, 1]", T.ToTensor()))
    steps += _tensor_steps(cfg.INPUT, choices, is_train)
    for text, _ in steps:
        print(f"+ {text}")
    return T.Compose([step for _, step in steps])


def _image_steps_train(cfg, choices) -> list:
    """Return (description, transform) pairs on PIL images."""
    height, width = cfg.SIZE
    mode = INTERPOLATION_MODES[cfg.INTERPOLATION]
    steps = []
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        steps.append((f"resize to {height}x{width}", T.Resize(cfg.SIZE, interpolation=mode)))
    if "random_translation" in choices:
        steps.append(("random translation", Random2DTranslation(height, width)))
    if "random_crop" in choices:
        crop = T.RandomCrop(cfg.SIZE, padding=cfg.CROP_PADDING)
        steps.append((f"random crop (padding = {cfg.CROP_PADDING})", crop))
    if "random_resized_crop" in choices:
        crop = T.RandomResizedCrop(cfg.SIZE, scale=cfg.RRCROP_SCALE, interpolation=mode)
        text = f"random resized crop (size={cfg.SIZE}, scale={cfg.RRCROP_SCALE})"
        steps.append((text, crop))
    if "random_flip" in choices:
        steps.append(("random flip", T.RandomHorizontalFlip()))
    if "colorjitter" in choices:
        b, c, s, h = cfg.COLORJITTER_B, cfg.COLORJITTER_C, cfg.COLORJITTER_S, cfg.COLORJITTER_H
        text = f"color jitter (brightness={b}, contrast={c}, saturation={s}, hue={h})"
        steps.append((text, T.ColorJitter(b, c, s, h)))
    if "randomgrayscale" in choices:
        steps.append(("random gray scale", T.RandomGrayscale(p=cfg.RGS_P)))
    if "gaussian_blur" in choices:
        blur = T.RandomApply([T.GaussianBlur(cfg.GB_K)], p=cfg.GB_P)
        steps.append((f"gaussian blur (kernel={cfg.GB_K})", blur))
    return steps


def _image_steps_test(cfg) -> list:
    height, width = cfg.SIZE
    resize = T.Resize(max(cfg.SIZE), interpolation=INTERPOLATION_MODES[cfg.INTERPOLATION])
    return [
        (f"resize the smaller edge to {max(cfg.SIZE)}", resize),
        (f"{height}x{width} center crop", T.CenterCrop(cfg.SIZE)),
    ]


def _tensor_steps(cfg, choices, is_train) -> list:
    """Return (description, transform) pairs on tensors (3, H, W)."""
    steps = []
    if "cutout" in choices and is_train:
        text = f"cutout (n_holes={cfg.CUTOUT_N}, length={cfg.CUTOUT_LEN})"
        steps.append((text, Cutout(cfg.CUTOUT_N, cfg.CUTOUT_LEN)))
    if "normalize" in choices:
        text = f"normalization (mean={cfg.PIXEL_MEAN}, std={cfg.PIXEL_STD})"
        steps.append((text, T.Normalize(mean=cfg.PIXEL_MEAN, std=cfg.PIXEL_STD)))
    if "gaussian_noise" in choices and is_train:
        text = f"gaussian noise (mean={cfg.GN_MEAN}, std={cfg.GN_STD})"
        steps.append((text, GaussianNoise(cfg.GN_MEAN, cfg.GN_STD)))
    if "instance_norm" in choices:
        steps.append(("instance normalization", InstanceNormalization()))
    return steps
