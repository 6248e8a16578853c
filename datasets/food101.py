"""Food-101: 101 dishes (Bossard et al., 2014)."""

from .base import register
from .folder import ClassFolders


@register
class Food101(ClassFolders):
    """50 % training, 20 % validation, 30 % test; the official lists in ``meta`` are not used."""

    dataset_dir = "food-101"
    image_folder = "images"
    split_file = "split_zhou_Food101.json"
    n_classes = 101
