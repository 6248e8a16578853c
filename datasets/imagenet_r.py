"""ImageNet-R: art, cartoons, toys and other renditions (Hendrycks et al., 2021)."""

from .base import register
from .imagenet_variants import ImageNetVariant


@register
class ImageNetR(ImageNetVariant):
    """200 of ImageNet's classes; a test set only."""

    dataset_dir = "imagenet-rendition"
    image_folder = "imagenet-r"
    n_classes = 200
    fetch_name = "imagenet_r"
    source = (
        "unpack the archive of https://github.com/hendrycks/imagenet-r into '{dir}' (it makes the "
        "folder imagenet-r) and copy ImageNet's classnames.txt beside it"
    )
