"""ImageNet-R: art, cartoons, toys and other renditions (Hendrycks et al., 2021)."""

from .base import register
from .imagenet_variants import ImageNetVariant


@register
class ImageNetR(ImageNetVariant):
    """200 of ImageNet's classes; a test set only."""

    dataset_dir = "imagenet-rendition"
    image_folder = "imagenet-r"
    n_classes = 200
