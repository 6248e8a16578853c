"""Describable Textures: 47 textures named by adjectives (Cimpoi et al., 2014)."""

from .base import register
from .folder import ClassFolders


@register
class DescribableTextures(ClassFolders):
    """50 % training, 20 % validation, 30 % test."""

    dataset_dir = "dtd"
    image_folder = "images"
    split_file = "split_zhou_DescribableTextures.json"
    n_classes = 47
    fetch_name = "dtd"
    source = (
        "unpack https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz so that "
        "'{dir}' has its folder images, and put CoOp's split file "
        "(https://drive.google.com/file/d/1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x) beside that"
    )
