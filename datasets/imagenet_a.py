"""ImageNet-A: photos that a ResNet-50 gets wrong (Hendrycks et al., 2021)."""

from .base import register
from .imagenet_variants import ImageNetVariant


@register
class ImageNetA(ImageNetVariant):
    """200 of ImageNet's classes; a test set only."""

    dataset_dir = "imagenet-adversarial"
    image_folder = "imagenet-a"
    n_classes = 200
