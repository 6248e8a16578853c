"""ImageNet-Sketch: drawings of ImageNet's classes (Wang et al., 2019)."""

from .base import register
from .imagenet_variants import ImageNetVariant


@register
class ImageNetSketch(ImageNetVariant):
    """About 50 drawings of each class; a test set only."""

    dataset_dir = "imagenet-sketch"
    image_folder = "images"
