"""ImageNet-Sketch: drawings of ImageNet's classes (Wang et al., 2019)."""

from .base import register
from .imagenet_variants import ImageNetVariant


@register
class ImageNetSketch(ImageNetVariant):
    """About 50 drawings of each class; a test set only."""

    dataset_dir = "imagenet-sketch"
    image_folder = "images"
    fetch_name = "sketch"
    source = (
        "unpack the archive of https://github.com/HaohanWang/ImageNet-Sketch so that "
        "'{dir}/images' has its 1,000 folders, and copy ImageNet's classnames.txt into '{dir}'"
    )
