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
